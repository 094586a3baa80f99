"""The logs of apps and containers: followed as they come, counted and fetched later."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from modalkit.local.wire import known

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.state import App, Container

LOST_CLIENT_S = 3.0
"""How long an ephemeral app lives on when its client's log stream breaks without a goodbye."""
LOOK_AGAIN_S = 1.0
"""How long the end of a container may go unnoticed by who follows its logs alone."""


class LogService:
    """What containers wrote, filtered as `modal app logs` and `modal container logs` ask."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler

    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        """Follow the logs of an app, or of one container, to its end."""
        container = self._plane.containers.get(request.task_id)
        app = self._app(request.app_id, container)
        position = int(request.last_entry_id.partition("-")[0] or 0)
        clock = self._plane.clock
        deadline = clock.monotonic() + request.timeout
        is_broken = True
        app.open_streams += 1
        # Only the app's own client follows it before it is there; others come and go.
        app.has_own_stream |= not app.is_published
        try:
            while True:
                is_over = container is not None and not container.is_alive
                while position < len(app.logs):
                    position += 1
                    if batch := _filtered(app.logs[position - 1], request, request.file_descriptor):
                        yield batch
                if is_over:
                    yield api_pb2.TaskLogsBatch(app_done=True)
                if is_over or app.is_done or clock.monotonic() >= deadline:
                    is_broken = False
                    return
                left_s = deadline - clock.monotonic()
                await clock.wait(app.pulse, min(left_s, LOOK_AGAIN_S) if container else left_s)
        finally:
            app.open_streams -= 1
            app.last_seen = time.monotonic()
            if is_broken and app.has_own_stream and not app.is_stopping:
                self._plane.spawn(self._leave_if_silent(app, LOST_CLIENT_S))

    def _app(self, app_id: str, container: Container | None = None) -> App:
        return container.function.app if container else known(self._plane.apps, app_id, "app")

    async def _leave_if_silent(self, app: App, patience_s: float) -> None:
        """End what a client left when it broke off and gives no other sign of life."""
        broke_at = time.monotonic()
        await asyncio.sleep(patience_s)
        if app.last_seen <= broke_at and not app.open_streams:
            await self._scheduler.leave_app(app)

    async def AppFetchLogs(
        self, request: api_pb2.AppFetchLogsRequest
    ) -> api_pb2.AppFetchLogsResponse:
        """Return the last lines of a time range, the oldest first."""
        found, left = [], request.limit or len(self._app(request.app_id).logs)
        for batch in reversed(self._in_range(request)):
            if left <= 0:
                break
            found.append(batch)
            left -= len(batch.items)
        return api_pb2.AppFetchLogsResponse(batches=reversed(found))

    async def AppCountLogs(
        self, request: api_pb2.AppCountLogsRequest
    ) -> api_pb2.AppCountLogsResponse:
        """Count the lines of a time range per stretch of time; empty ones are left out."""
        width, counts = request.bucket_secs or 1, Counter[tuple[int, int]]()
        for batch in self._in_range(request):
            for item in batch.items:
                counts[int(item.timestamp // width) * width, item.file_descriptor] += 1
        return api_pb2.AppCountLogsResponse(
            app_id=request.app_id,
            buckets=[
                api_pb2.AppCountLogsResponse.LogBucket(
                    bucket_start_at=Timestamp(seconds=start),
                    stdout_logs=counts[start, api_pb2.FILE_DESCRIPTOR_STDOUT],
                    stderr_logs=counts[start, api_pb2.FILE_DESCRIPTOR_STDERR],
                    system_logs=counts[start, api_pb2.FILE_DESCRIPTOR_INFO],
                )
                for start in sorted({start for start, _ in counts})
            ],
        )

    def _in_range(self, request: Any) -> list[api_pb2.TaskLogsBatch]:
        since, until = request.since.ToNanoseconds() / 1e9, request.until.ToNanoseconds() / 1e9
        batches = (_filtered(b, request, request.source) for b in self._app(request.app_id).logs)
        return [
            batch
            for batch in batches
            if batch and batch.items and since <= batch.items[0].timestamp < until
        ]


def _filtered(
    batch: api_pb2.TaskLogsBatch, request: Any, stream: int
) -> api_pb2.TaskLogsBatch | None:
    """Return *batch*, which has one item or is the end of the logs, where the request wants it."""
    if not batch.items:
        return batch
    [item] = batch.items
    has_all = all(
        wanted in ("", *found)
        for wanted, *found in (
            (request.task_id, batch.task_id),
            (request.function_id, batch.function_id, batch.root_function_id),
            (request.parametrized_function_id, batch.function_id),
            (request.function_call_id, item.function_call_id),
        )
    )
    is_wanted = has_all and stream in (0, item.file_descriptor) and request.search_text in item.data
    return batch if is_wanted else None
