"""Queues."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modalkit.local.object_store import Stored
from modalkit.local.queue_items import MAX_PARTITION_BYTES, MAX_PARTITION_ITEMS, FullError
from modalkit.local.services.named import NamedService, creation

MAX_ITEM_BYTES = 1 << 20
MAX_PARTITION_KEY_BYTES = 64
DEFAULT_TTL_S = 24 * 3600
"""How long a partition lives after its last put where the caller does not say."""
MAX_HOLD_S = 55.0
"""How long one request is held; the client asks again."""
ITEMS_PER_LOOK = 100


class QueueService(NamedService):
    """Queues: an item goes to one getter, whoever takes it first; a held getter waits its time."""

    kind = "qu"
    word = "Queue"

    async def QueueGetOrCreate(
        self, request: api_pb2.QueueGetOrCreateRequest
    ) -> api_pb2.QueueGetOrCreateResponse:
        """Find a Queue by name, or make one."""
        stored, _ = self._get_or_create(request)
        return api_pb2.QueueGetOrCreateResponse(queue_id=stored.id, metadata=_metadata(stored))

    async def QueueGetById(
        self, request: api_pb2.QueueGetByIdRequest
    ) -> api_pb2.QueueGetByIdResponse:
        """Find a Queue by id."""
        stored = self._known(request.queue_id)
        return api_pb2.QueueGetByIdResponse(queue_id=stored.id, metadata=_metadata(stored))

    async def QueueList(self, request: api_pb2.QueueListRequest) -> api_pb2.QueueListResponse:
        """List named Queues, the newest first, with how much they hold."""
        now, most = self._plane.clock.time(), request.total_size_limit or (1 << 31) - 1
        return api_pb2.QueueListResponse(
            queues=[
                api_pb2.QueueListResponse.QueueInfo(
                    name=stored.name,
                    created_at=stored.created_at,
                    num_partitions=self._store.items.partitions(stored.id, now),
                    total_size=min(most, self._store.items.length(stored.id, now)),
                    queue_id=stored.id,
                    metadata=_metadata(stored),
                )
                for stored in self._page(request)
            ]
        )

    async def QueueHeartbeat(self, request: api_pb2.QueueHeartbeatRequest) -> Empty:
        """Accept the sign that an ephemeral Queue's owner lives; the plane's end removes it."""
        self._known(request.queue_id)
        return Empty()

    async def QueueDelete(self, request: api_pb2.QueueDeleteRequest) -> Empty:
        """Remove a Queue with its items; who waits for one is told."""
        self._store.delete(self._known(request.queue_id).id)
        if request.queue_id in self._plane.queue_pulses:
            self._plane.queue_pulses.pop(request.queue_id).beat()
        return Empty()

    async def QueueClear(self, request: api_pb2.QueueClearRequest) -> Empty:
        """Remove the items of one partition, or of all."""
        queue_id = self._known(request.queue_id).id
        partition = None if request.all_partitions else _partition(request.partition_key)
        self._store.items.clear(queue_id, partition)
        return Empty()

    async def QueuePut(self, request: api_pb2.QueuePutRequest) -> Empty:
        """Append items, all or none; a full partition is what the client waits at."""
        queue_id = self._known(request.queue_id).id
        values = list(request.values)
        _check(values)
        try:
            self._store.items.push(
                queue_id,
                _partition(request.partition_key),
                values,
                self._plane.clock.time(),
                request.partition_ttl_seconds or DEFAULT_TTL_S,
            )
        except FullError as error:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"Queue is full: {error}") from error
        self._plane.queue_pulses[queue_id].beat()
        return Empty()

    async def QueueGet(self, request: api_pb2.QueueGetRequest) -> api_pb2.QueueGetResponse:
        """Remove and return items, waiting for the first one up to the caller's timeout."""
        partition, most = _partition(request.partition_key), max(1, request.n_values)
        values: list[bytes] = []

        def has_taken() -> bool:
            queue_id = self._known(request.queue_id).id  # it may be deleted meanwhile
            values.extend(
                self._store.items.take(queue_id, partition, most, self._plane.clock.time())
            )
            return bool(values)

        await self._hold(request.queue_id, has_taken, request.timeout)
        return api_pb2.QueueGetResponse(values=values)

    async def QueueNextItems(
        self, request: api_pb2.QueueNextItemsRequest
    ) -> api_pb2.QueueNextItemsResponse:
        """Return items behind one that the caller knows, and leave them where they are."""
        partition, after = _partition(request.partition_key), int(request.last_entry_id or 0)
        found: list[tuple[int, bytes]] = []

        def has_found() -> bool:
            queue_id, now = self._known(request.queue_id).id, self._plane.clock.time()
            found.extend(self._store.items.look(queue_id, partition, after, ITEMS_PER_LOOK, now))
            return bool(found)

        await self._hold(request.queue_id, has_found, request.item_poll_timeout)
        return api_pb2.QueueNextItemsResponse(
            items=[api_pb2.QueueItem(value=value, entry_id=str(at)) for at, value in found]
        )

    async def _hold(self, queue_id: str, holds: Callable[[], bool], timeout_s: float) -> None:
        if holds() or timeout_s <= 0:
            return
        pulse = self._plane.queue_pulses[queue_id]
        await self._plane.clock.wait_until(pulse, holds, min(timeout_s, MAX_HOLD_S))

    async def QueueLen(self, request: api_pb2.QueueLenRequest) -> api_pb2.QueueLenResponse:
        """Count the items of one partition, or of all."""
        queue_id = self._known(request.queue_id).id
        partition = None if request.total else _partition(request.partition_key)
        length = self._store.items.length(queue_id, self._plane.clock.time(), partition)
        return api_pb2.QueueLenResponse(len=length)


def _partition(key: bytes) -> bytes:
    if len(key) > MAX_PARTITION_KEY_BYTES:
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"a Queue's partition key has {MAX_PARTITION_KEY_BYTES} bytes at most, not {len(key)}",
        )
    return key


def _check(values: list[bytes]) -> None:
    """Refuse what would never fit: the client waits for ever at a partition that is full."""
    if len(values) > MAX_PARTITION_ITEMS:
        problem = f"{len(values)} items at once: a partition holds {MAX_PARTITION_ITEMS}"
    elif too_large := max((len(v) for v in values if len(v) > MAX_ITEM_BYTES), default=0):
        problem = f"an item of {too_large} bytes: the limit is 1 MiB"
    elif (size := sum(map(len, values))) > MAX_PARTITION_BYTES:
        problem = f"{size} bytes at once: a partition holds 64 MiB"
    else:
        return
    raise GRPCError(Status.INVALID_ARGUMENT, f"Queue.put of {problem}")


def _metadata(stored: Stored) -> api_pb2.QueueMetadata:
    return api_pb2.QueueMetadata(name=stored.name, creation_info=creation(stored))
