"""What a container says: one instance per container, since its socket is its identity."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from modalkit.local.outcomes import Outcome

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.state import Container

HEARTBEAT_HOLD_S = 12.0
"""How long a heartbeat is held open for cancellations; the client sends one every 15 s."""


class ContainerService:
    """The container side of calls, and its lifecycle."""

    def __init__(self, plane: Plane, scheduler: Scheduler, caller: Container) -> None:
        self._plane = plane
        self._scheduler = scheduler
        self._caller = caller

    async def ContainerHello(self, _request: Empty) -> Empty:
        return Empty()

    async def ContainerHeartbeat(
        self, _request: api_pb2.ContainerHeartbeatRequest
    ) -> api_pb2.ContainerHeartbeatResponse:
        caller = self._caller
        caller.last_heard = time.monotonic()
        if not await self._plane.clock.wait_until(
            caller.pulse, lambda: bool(caller.cancelled), HEARTBEAT_HOLD_S
        ):
            return api_pb2.ContainerHeartbeatResponse()
        cancelled = [self._caller.cancelled.popleft() for _ in range(len(self._caller.cancelled))]
        return api_pb2.ContainerHeartbeatResponse(
            cancel_input_event=api_pb2.CancelInputEvent(input_ids=cancelled)
        )

    async def FunctionGetInputs(
        self, request: api_pb2.FunctionGetInputsRequest
    ) -> api_pb2.FunctionGetInputsResponse:
        self._caller.last_heard = time.monotonic()
        taken = await self._scheduler.take(
            self._caller, max(1, request.batch_max_size), request.batch_linger_ms / 1000
        )
        if taken is None:
            return api_pb2.FunctionGetInputsResponse(
                inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)]
            )
        return api_pb2.FunctionGetInputsResponse(
            inputs=[
                api_pb2.FunctionGetInputsItem(
                    input_id=item.id,
                    input=item.payload,
                    function_call_id=item.call.id,
                    function_call_invocation_type=item.call.invocation_type,  # type: ignore[arg-type]
                    retry_count=item.retries,
                )
                for item in taken
            ]
        )

    async def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest) -> Empty:
        for output in request.outputs:
            outcome = Outcome(
                output.result,
                output.data_format,
                started_at=output.input_started_at,
                created_at=output.output_created_at,
            )
            item = self._plane.inputs.get(output.input_id)
            # A reply that was lost brings an output once more; its input may be at its next try.
            if item is not None and output.retry_count >= item.retries:
                self._scheduler.record(item, self._caller, outcome)
        return Empty()

    async def TaskResult(self, request: api_pb2.TaskResultRequest) -> Empty:
        """Hear that the container failed: before it asked for an input, its callers must know."""
        if self._caller.has_asked:
            return Empty()  # an exit hook raised; what it served is not undone by that
        failure = api_pb2.GenericResult()
        failure.CopyFrom(request.result)
        self._caller.start_failure = failure
        return Empty()

    async def ContainerCheckpoint(self, _request: api_pb2.ContainerCheckpointRequest) -> Empty:
        """Let the process go on as the restored one: forked children bring files of their own."""
        state = {"task_id": self._caller.id, "function_id": self._caller.function.id}
        temporary = self._caller.directory / "restore-state.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self._caller.directory / "restore-state.json")
        return Empty()

    async def FunctionGetDynamicConcurrency(
        self, request: api_pb2.FunctionGetDynamicConcurrencyRequest
    ) -> api_pb2.FunctionGetDynamicConcurrencyResponse:
        function = self._caller.function
        # Above its target a container goes only where no further one may be launched.
        is_full = function.pending and not self._scheduler.fleet.has_room(function)
        wanted = request.max_concurrency if is_full else request.target_concurrency
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=wanted)
