"""Apps and their logs: what a client says before it calls anything."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modalkit.local.core import ENVIRONMENT, IMAGE_BUILDER
from modalkit.local.layout import app_layout
from modalkit.local.object_store import NAME
from modalkit.local.services.functions import redefine
from modalkit.local.services.inspection import app_metadata
from modalkit.local.state import App, Definition, Deployment, Function, new_id
from modalkit.local.wire import known, not_found

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler

APP_ID_LENGTH = len("ap-") + 22
"""By their length modal's commands tell ids of apps from names."""


class AppService:
    """The life of apps: what their own clients say."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler

    async def ClientHello(self, _request: Empty) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER)

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        settings = api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER)
        metadata = api_pb2.EnvironmentMetadata(
            name=request.deployment_name or ENVIRONMENT, settings=settings
        )
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-main", metadata=metadata)

    def _app(self, app_id: str) -> App:
        app = known(self._plane.apps, app_id, "app")
        app.last_seen = time.monotonic()
        return app

    def _create(self, name: str, app_state: int) -> App:
        app = App(
            new_id("ap").ljust(APP_ID_LENGTH, "0"),
            name,
            app_state,
            created_at=self._plane.clock.time(),
            last_seen=time.monotonic(),
        )
        self._plane.apps[app.id] = app
        return app

    async def AppCreate(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        app = self._create(request.description, request.app_state)
        app.tags = dict(request.tags)
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=f"local plane, app {app.id}")

    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest
    ) -> api_pb2.AppGetOrCreateResponse:
        """Find an app by its name or id, or make one without functions."""
        name = request.app_name
        app = self._plane.apps.get(self._plane.deployed.get(name, name))
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise not_found(f"App '{name}' not found")
            _check_name(name)
            app = self._create(name, api_pb2.APP_STATE_DEPLOYED)
            self._plane.keep.created(app)
            self._plane.deployed[name] = app.id
        return api_pb2.AppGetOrCreateResponse(app_id=app.id, handle_metadata=app_metadata(app))

    async def AppGetLayout(
        self, request: api_pb2.AppGetLayoutRequest
    ) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(
            app_layout=app_layout(self._plane, self._app(request.app_id))
        )

    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest) -> Empty:
        self._app(request.app_id)
        return Empty()

    async def AppSetTags(self, request: api_pb2.AppSetTagsRequest) -> Empty:
        app = self._app(request.app_id)
        with _all_or_nothing(app):
            app.tags = dict(request.tags)
            self._plane.keep.changed(app)
        return Empty()

    async def AppPublish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        """Let an app run, or deploy a version of it; its functions may be called from now on."""
        app, now = self._app(request.app_id), self._plane.clock.time()
        if request.staged:
            raise GRPCError(
                Status.UNIMPLEMENTED, "the local plane does not model staged deployments"
            )
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            _check_name(request.name)
        functions = [f for f in self._plane.functions.values() if f.app is app]  # variants too
        with _all_or_nothing(app, *functions):
            redefined = self._publish(app, request, now)
        for tag, class_id in app.class_ids.items():
            self._plane.classes[class_id] = app.function_ids.get(f"{tag}.*", "")
        for function in redefined:
            self._scheduler.fleet.retire(function)
        for function in functions:
            self._scheduler.fleet.scale(function)
        warnings = [line for i in app.function_ids.values() for line in app.warnings.get(i, ())]
        return api_pb2.AppPublishResponse(
            url=f"local plane, app {app.name or app.id}",
            deployed_at=now,
            server_warnings=[
                api_pb2.Warning(
                    type=api_pb2.Warning.WARNING_TYPE_FUNCTION_CONFIGURATION, message=line
                )
                for line in warnings
            ],
        )

    def _publish(self, app: App, request: api_pb2.AppPublishRequest, now: float) -> list[Function]:
        """Change what *app* consists of; return the functions whose containers run old code."""
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        redefined = [
            function
            for function_id in app.function_ids.values()
            for function in redefine(self._plane, self._plane.functions[function_id])
        ]
        app.app_state, app.is_published = request.app_state or app.app_state, True
        app.tags = {**app.tags, **request.tags}
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            app.name = request.name
            app.deployments = [*app.deployments, self._version(app, request, now)]
            self._plane.keep.published(self._plane, app)
            self._plane.deployed[app.name] = app.id
        return redefined

    def _version(self, app: App, request: api_pb2.AppPublishRequest, at: float) -> Deployment:
        kept = {}
        for tag, function_id in app.function_ids.items():
            function = self._plane.functions[function_id]
            kept[tag] = Definition(
                copy.deepcopy(function.definition),
                copy.deepcopy(function.metadata),
                function.gpu_choices,
            )
        return Deployment(len(app.deployments) + 1, at, request, kept)

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest) -> Empty:
        """End an ephemeral app, and a detached one when its calls are done."""
        self._plane.spawn(self._scheduler.leave_app(self._app(request.app_id)))
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest) -> Empty:
        app = self._app(request.app_id)
        self._plane.deployed = {name: i for name, i in self._plane.deployed.items() if i != app.id}
        # A client that goes away stops the waiting, not the stopping.
        await asyncio.shield(self._plane.spawn(self._scheduler.stop_app(app)))
        return Empty()


@contextlib.contextmanager
def _all_or_nothing(*things: App | Function) -> Iterator[None]:
    """Set the fields of *things* back where an error ends this block, such as a full disk."""
    before = [
        (thing, {field.name: getattr(thing, field.name) for field in attrs.fields(type(thing))})
        for thing in things
    ]
    try:
        yield
    except BaseException:
        for thing, fields in before:
            for name, value in fields.items():
                setattr(thing, name, value)
        raise


def _check_name(name: str) -> None:
    if not NAME.match(name):
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"{name!r} is no app's name: Modal allows 1 to 64 of a-z A-Z 0-9 - _ .",
        )
