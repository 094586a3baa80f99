"""What `modal app`, `modal container` and the handles' own questions are answered with."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING

from grpclib import GRPCError
from grpclib import Status as GrpcStatus
from modal_proto import api_pb2

from modalkit.local.core import ENVIRONMENT
from modalkit.local.state import Status
from modalkit.local.wire import known

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.state import App, Call, Container, Input

Result = api_pb2.GenericResult
Suggest = api_pb2.ObjectSuggestRequest


class InspectionService:
    """Apps, containers and calls as they are; a look at an app is no sign of its client's life."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler

    # ------------------------------------------------------------------ apps

    def _app(self, app_id: str) -> App:
        return known(self._plane.apps, app_id, "app")

    async def AppList(self, _request: api_pb2.AppListRequest) -> api_pb2.AppListResponse:
        """List the apps that run or are deployed, and those that have stopped."""
        return api_pb2.AppListResponse(
            apps=[
                api_pb2.AppListResponse.AppListItem(
                    app_id=app.id,
                    description=app.name,
                    name=app.name,
                    state=app.app_state,  # type: ignore[arg-type]
                    created_at=app.created_at,
                    stopped_at=app.stopped_at,
                    n_running_tasks=len(self._live(app.id)),
                    metadata=app_metadata(app),
                )
                for app in self._plane.apps.values()
            ]
        )

    async def AppGetLifecycle(
        self, request: api_pb2.AppGetLifecycleRequest
    ) -> api_pb2.AppGetLifecycleResponse:
        """Say since when an app runs, is deployed or is stopped."""
        return api_pb2.AppGetLifecycleResponse(lifecycle=lifecycle(self._app(request.app_id)))

    async def AppGetInfo(self, request: api_pb2.AppGetInfoRequest) -> api_pb2.AppGetInfoResponse:
        """Say what an app has; without the GPUs and schedules of its functions."""
        return api_pb2.AppGetInfoResponse(info=app_metadata(self._app(request.app_id)))

    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        """Find the deployed app of a name, or the last one that was stopped."""
        app_id = self._plane.deployed.get(request.name, "")
        previous = [
            a.id for a in self._plane.apps.values() if a.name == request.name and a.deployments
        ]
        known = app_id or (previous[-1] if previous else "")
        return api_pb2.AppGetByDeploymentNameResponse(
            app_id=app_id,
            previous_app_id="" if app_id else known,
            environment_name=ENVIRONMENT,
            lifecycle=lifecycle(self._plane.apps[known]) if known else None,
        )

    async def AppDeploymentHistory(
        self, request: api_pb2.AppDeploymentHistoryRequest
    ) -> api_pb2.AppDeploymentHistoryResponse:
        """List the versions of an app, the newest first."""
        app = self._app(request.app_id)
        return api_pb2.AppDeploymentHistoryResponse(
            app_deployment_histories=[
                api_pb2.AppDeploymentHistory(
                    app_id=app.id,
                    version=deployment.version,
                    client_version=self._plane.modal_version,
                    deployed_at=deployment.deployed_at,
                    tag=deployment.request.deployment_tag,
                    commit_info=deployment.request.commit_info,
                )
                for deployment in reversed(app.deployments)
            ],
            production_app_version=len(app.deployments),
        )

    async def AppGetTags(self, request: api_pb2.AppGetTagsRequest) -> api_pb2.AppGetTagsResponse:
        """Return the tags of an app."""
        return api_pb2.AppGetTagsResponse(tags=self._app(request.app_id).tags)

    async def ObjectSuggest(self, request: Suggest) -> api_pb2.ObjectSuggestResponse:
        """Name what is deployed and nearly of that name."""
        known = {name: ("", name) for name in self._plane.deployed}
        query = request.query
        if request.kind != Suggest.OBJECT_SUGGEST_KIND_APP:
            known = {
                f"{name}/{tag}": (name, tag)
                for name, app_id in self._plane.deployed.items()
                for tag in self._plane.apps[app_id].function_ids
            }
            query = query if "/" in query else query.replace(".", "/", 1)  # a slip that is made
        near = difflib.get_close_matches(query, known, n=request.limit or 1)
        return api_pb2.ObjectSuggestResponse(
            suggestions=[
                api_pb2.ObjectSuggestion(app_name=known[key][0], object_name=known[key][1])
                for key in near
            ]
        )

    # ------------------------------------------------------------------ containers

    def _live(self, app_id: str = "") -> list[Container]:
        return [
            c
            for c in self._plane.containers.values()
            if c.is_alive and not c.holds_snapshot and app_id in ("", c.function.app.id)
        ]

    def _container(self, container_id: str) -> Container:
        return known(self._plane.containers, container_id, "container")

    async def TaskList(self, request: api_pb2.TaskListRequest) -> api_pb2.TaskListResponse:
        """List the containers that live, of one app or of all."""
        return api_pb2.TaskListResponse(
            tasks=[
                api_pb2.TaskStats(
                    task_id=c.id,
                    app_id=c.function.app.id,
                    app_description=c.function.app.name,
                    started_at=c.launched_at,
                    enqueued_at=c.launched_at,
                )
                for c in self._live(request.app_id)
            ]
        )

    async def TaskGetInfo(self, request: api_pb2.TaskGetInfoRequest) -> api_pb2.TaskGetInfoResponse:
        """Say whose a container is, and since when it runs or has ended."""
        container = self._container(request.task_id)
        info = api_pb2.TaskInfo(
            id=container.id,
            started_at=container.launched_at,
            enqueued_at=container.launched_at,
            finished_at=container.exited_at or 0.0,
        )
        return api_pb2.TaskGetInfoResponse(app_id=container.function.app.id, info=info)

    async def ContainerStop(
        self, request: api_pb2.ContainerStopRequest
    ) -> api_pb2.ContainerStopResponse:
        """Let a container finish, or interrupt it: its inputs go to others, as on Modal."""
        container = self._container(request.task_id)
        if container.holds_snapshot:
            message = f"{container.id} holds a snapshot, from which others were restored"
            raise GRPCError(GrpcStatus.FAILED_PRECONDITION, message)
        self._scheduler.fleet.drain(container)
        if not request.graceful:
            self._plane.spawn(self._scheduler.preempt(container, self._plane.config.grace_s))
        return api_pb2.ContainerStopResponse()

    # ------------------------------------------------------------------ functions and calls

    async def FunctionGetCurrentStats(
        self, request: api_pb2.FunctionGetCurrentStatsRequest
    ) -> api_pb2.FunctionStats:
        """Count the inputs that wait and run, and the containers."""
        function = known(self._plane.functions, request.function_id, "function")
        return api_pb2.FunctionStats(
            backlog=len(function.pending),
            num_total_tasks=len(function.live),
            num_running_inputs=sum(len(container.running) for container in function.live),
        )

    def _call(self, call_id: str) -> Call:
        return known(self._plane.calls, call_id, "function call")

    async def FunctionCallGetInfo(
        self, request: api_pb2.FunctionCallGetInfoRequest
    ) -> api_pb2.FunctionCallGetInfoResponse:
        """Count the inputs of a call by what became of them."""
        call, clock = self._call(request.function_call_id), self._plane.clock
        ended = Counter(output.result.status for output in call.latest.values())
        created_at = clock.time() - (clock.monotonic() - call.made_at)
        failed = sum(ended.values()) - sum(
            ended[status]
            for status in (
                Result.GENERIC_STATUS_SUCCESS,
                Result.GENERIC_STATUS_TIMEOUT,
                Result.GENERIC_STATUS_TERMINATED,
            )
        )

        def total(count: int) -> api_pb2.InputCategoryInfo:
            return api_pb2.InputCategoryInfo(total=count)

        return api_pb2.FunctionCallGetInfoResponse(
            info=api_pb2.FunctionCallInfo(
                function_call_id=call.id,
                created_at=created_at,
                scheduled_at=created_at,
                pending_inputs=total(call.unfinished),
                failed_inputs=total(failed),
                succeeded_inputs=total(ended[Result.GENERIC_STATUS_SUCCESS]),
                timeout_inputs=total(ended[Result.GENERIC_STATUS_TIMEOUT]),
                cancelled_inputs=total(ended[Result.GENERIC_STATUS_TERMINATED]),
                total_inputs=len(call.inputs),
            )
        )

    async def FunctionGetCallGraph(
        self, request: api_pb2.FunctionGetCallGraphRequest
    ) -> api_pb2.FunctionGetCallGraphResponse:
        """Return a call with all that its inputs have called."""
        root = self._call(request.function_call_id)
        calls = [root]
        for call in calls:  # grows as it is read
            inputs = {item.id for item in call.inputs}
            calls += [c for c in self._plane.calls.values() if c.parent_input_id in inputs]
        return api_pb2.FunctionGetCallGraphResponse(
            function_calls=[
                api_pb2.FunctionCallCallGraphInfo(
                    function_call_id=call.id,
                    # The client looks for the parent among what it gets.
                    parent_input_id="" if call is root else call.parent_input_id,
                    function_name=call.function.definition.function_name,
                    module_name=call.function.definition.module_name,
                )
                for call in calls
            ],
            inputs=[_input_info(item, call) for call in calls for item in call.inputs],
        )


def _input_info(item: Input, call: Call) -> api_pb2.InputCallGraphInfo:
    output = call.latest.get(item.index) if item.status is Status.DONE else None
    owner = item.owner.id if item.owner else ""
    return api_pb2.InputCallGraphInfo(
        input_id=item.id,
        status=output.result.status if output else 0,  # type: ignore[arg-type]
        function_call_id=call.id,
        task_id=output.task_id if output else owner,
    )


def lifecycle(app: App) -> api_pb2.AppLifecycle:
    """Return where an app stands."""
    return api_pb2.AppLifecycle(
        app_state=app.app_state,  # type: ignore[arg-type]
        created_at=app.created_at,
        deployed_at=app.deployments[-1].deployed_at if app.deployments else 0.0,
        version=len(app.deployments),
        stopped_at=app.stopped_at,
    )


def app_metadata(app: App) -> api_pb2.AppHandleMetadata:
    """Return what a handle on an app knows."""
    return api_pb2.AppHandleMetadata(
        description=app.name,
        app_id=app.id,
        environment_name=ENVIRONMENT,
        lifecycle=lifecycle(app),
        functions=app.function_ids,
    )
