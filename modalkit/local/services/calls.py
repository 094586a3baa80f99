"""Calls, as a client or a nested caller makes them."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError
from grpclib import Status as GrpcStatus
from modal_proto import api_pb2

from modalkit.local.state import MAX_LOSSES, Call, Input, Status, is_waited_for, new_id
from modalkit.local.wire import decode_token, encode_token, known, not_found

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler

MAX_INPUTS_OUTSTANDING = 1000
"""Modal's documented limit for one `.map()`."""


class CallService:
    """`.remote`, `.spawn`, `.map`, generators, and the results of all of them."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler
        self._generation = secrets.token_hex(4)

    def _call(self, call_id: str) -> Call:
        return known(self._plane.calls, call_id, "function call")

    def _accept(
        self, call: Call, items: Iterable[api_pb2.FunctionPutInputsItem]
    ) -> list[api_pb2.FunctionPutInputsResponseItem]:
        before = len(call.inputs)
        try:
            with self._plane.keep.together():
                accepted = [self._scheduler.add_input(call, item.idx, item.input) for item in items]
        except BaseException:
            for item in call.inputs[before:]:
                del self._plane.inputs[item.id]
            call.unfinished -= len(call.inputs) - before
            del call.inputs[before:]
            raise
        for item in accepted:
            self._scheduler.enqueue(item)
        return [_receipt(item) for item in accepted]

    async def FunctionMap(self, request: api_pb2.FunctionMapRequest) -> api_pb2.FunctionMapResponse:
        function = self._plane.functions.get(request.function_id)
        if function is None or function.app.is_stopping:
            raise not_found(f"no function {request.function_id}, or its app was stopped")
        call = Call(
            new_id("fc"),
            function,
            request.function_call_invocation_type,
            parent_input_id=request.parent_input_id,
            is_map=request.function_call_type == api_pb2.FUNCTION_CALL_TYPE_MAP,
        )
        call.made_at, call.last_listened = self._plane.clock.monotonic(), time.monotonic()
        call.retried_by_client = is_waited_for(call) and (
            self._plane.config.switches.retry_delay == "client"
        )
        self._plane.keep.called(call, self._plane.clock.time())
        self._plane.calls[call.id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=encode_token(call=call.id),
            retry_policy=function.definition.retry_policy,
            max_inputs_outstanding=MAX_INPUTS_OUTSTANDING,
            sync_client_retries_enabled=call.retried_by_client,
            pipelined_inputs=self._accept(call, request.pipelined_inputs),
        )

    async def FunctionPutInputs(
        self, request: api_pb2.FunctionPutInputsRequest
    ) -> api_pb2.FunctionPutInputsResponse:
        return api_pb2.FunctionPutInputsResponse(
            inputs=self._accept(self._call(request.function_call_id), request.inputs)
        )

    async def FunctionRetryInputs(
        self, request: api_pb2.FunctionRetryInputsRequest
    ) -> api_pb2.FunctionRetryInputsResponse:
        """Run inputs again whose retries the client counts."""
        tokens = []
        for again in request.inputs:
            item = self._plane.inputs.get(str(decode_token(again.input_jwt).get("input")))
            if item is None:
                raise not_found("no such input; its result was given up")
            if item.losses > MAX_LOSSES:
                raise GRPCError(
                    GrpcStatus.FAILED_PRECONDITION,
                    f"input {item.id} was lost with {item.losses} containers and is not run again",
                )
            if item.status is Status.DONE:  # else this request comes twice
                self._scheduler.retry(item, again.input, again.retry_count)
            tokens.append(_token(item))
        return api_pb2.FunctionRetryInputsResponse(input_jwts=tokens)

    async def FunctionFinishInputs(self, _request: api_pb2.FunctionFinishInputsRequest) -> Empty:
        return Empty()

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest
    ) -> api_pb2.FunctionGetOutputsResponse:
        if request.function_call_id in self._plane.expired:
            return api_pb2.FunctionGetOutputsResponse()  # nothing, and nothing to come
        call = self._call(request.function_call_id)
        seen, _, generation = request.last_entry_id.partition("-")
        # One plane counts attempts that another has not kept: begin anew, a client drops doubles.
        position = int(seen or 0) if generation == self._generation else 0

        def outputs() -> list[api_pb2.FunctionGetOutputsItem]:
            if not request.HasField("start_idx"):
                return call.outputs[position:]
            wanted = range(request.start_idx, request.end_idx + 1)
            return [call.latest[index] for index in wanted if index in call.latest]

        with self._listening(call):
            # A client counts these seconds by its own clock, which nobody moves.
            await self._plane.clock.wait_until(call.pulse, lambda: bool(outputs()), request.timeout)
        found = outputs()
        return api_pb2.FunctionGetOutputsResponse(
            outputs=found,
            idxs=[output.idx for output in found],
            last_entry_id=f"{len(call.outputs)}-{self._generation}",
            num_unfinished_inputs=call.unfinished,
        )

    @contextlib.contextmanager
    def _listening(self, call: Call) -> Iterator[None]:
        """Let it be known that somebody waits for *call*: its container needs no core meanwhile."""
        caller = self._plane.inputs.get(call.parent_input_id)
        call.listeners += 1
        if caller is not None:
            caller.awaited += 1
            for function in (call.function, caller.call.function):
                self._scheduler.fleet.scale(function)
        try:
            yield
        finally:
            call.listeners -= 1
            call.last_listened = time.monotonic()
            if caller is not None:
                caller.awaited -= 1

    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest) -> Empty:
        call = self._call(request.function_call_id)
        self._scheduler.cancel(call, kill_containers=request.terminate_containers)
        return Empty()

    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self._call(request.function_call_id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.id,
            num_inputs=len(call.inputs),
            metadata=api_pb2.FunctionCallHandleMetadata(
                function_id=call.function.id, app_id=call.function.app.id
            ),
        )

    async def FunctionCallPutDataOut(self, request: api_pb2.FunctionCallPutDataRequest) -> Empty:
        call = self._call(request.function_call_id)
        self._plane.keep.streamed(call, request.data_chunks)
        call.data_out.extend(request.data_chunks)
        call.pulse.beat()
        return Empty()

    async def FunctionCallGetDataOut(
        self, request: api_pb2.FunctionCallGetDataRequest
    ) -> AsyncIterator[api_pb2.DataChunk]:
        call = self._call(request.function_call_id)
        position = request.last_index
        while True:
            while position < len(call.data_out):
                position += 1
                yield call.data_out[position - 1]
            if not call.unfinished:
                return
            await self._plane.clock.wait(call.pulse, float("inf"))


def _receipt(item: Input) -> api_pb2.FunctionPutInputsResponseItem:
    return api_pb2.FunctionPutInputsResponseItem(
        idx=item.index, input_id=item.id, input_jwt=_token(item)
    )


def _token(item: Input) -> str:
    return encode_token(input=item.id, idx=item.index)
