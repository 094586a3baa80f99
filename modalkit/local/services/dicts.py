"""Dicts."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from modalkit.local.object_store import Stored
from modalkit.local.services.named import NamedService, creation

UNUSED_S = 7 * 24 * 3600.0
"""Modal forgets an entry that is neither read nor written for 7 days."""
MOST_COUNTED = 100_000
"""What `Dict.len()` returns at most."""


class DictService(NamedService):
    """Dicts: each request is done as a whole, so `put(skip_if_exists=True)` is a lock."""

    kind = "di"
    word = "Dict"

    def _use(self, dict_id: str) -> float:
        """Forget what is too old, and return the time of this use."""
        now = self._plane.clock.time()
        self._known(dict_id)
        self._store.clear(dict_id, unused_since=now - UNUSED_S)
        return now

    async def DictGetOrCreate(
        self, request: api_pb2.DictGetOrCreateRequest
    ) -> api_pb2.DictGetOrCreateResponse:
        """Find a Dict by name, or make one."""
        stored, is_new = self._get_or_create(request)
        if is_new:
            entries = [(entry.key, entry.value) for entry in request.data]
            self._store.put(stored.id, entries, self._plane.clock.time())
        return api_pb2.DictGetOrCreateResponse(dict_id=stored.id, metadata=_metadata(stored))

    async def DictGetById(self, request: api_pb2.DictGetByIdRequest) -> api_pb2.DictGetByIdResponse:
        """Find a Dict by id."""
        stored = self._known(request.dict_id)
        return api_pb2.DictGetByIdResponse(dict_id=stored.id, metadata=_metadata(stored))

    async def DictList(self, request: api_pb2.DictListRequest) -> api_pb2.DictListResponse:
        """List named Dicts, the newest first."""
        return api_pb2.DictListResponse(
            dicts=[
                api_pb2.DictListResponse.DictInfo(
                    name=stored.name,
                    created_at=stored.created_at,
                    dict_id=stored.id,
                    metadata=_metadata(stored),
                )
                for stored in self._page(request)
            ]
        )

    async def DictHeartbeat(self, request: api_pb2.DictHeartbeatRequest) -> Empty:
        """Accept the sign that an ephemeral Dict's owner lives; the plane's end removes it."""
        self._known(request.dict_id)
        return Empty()

    async def DictDelete(self, request: api_pb2.DictDeleteRequest) -> Empty:
        """Remove a Dict with its entries."""
        self._store.delete(self._known(request.dict_id).id)
        return Empty()

    async def DictClear(self, request: api_pb2.DictClearRequest) -> Empty:
        """Remove all entries."""
        self._store.clear(self._known(request.dict_id).id)
        return Empty()

    async def DictGet(self, request: api_pb2.DictGetRequest) -> api_pb2.DictGetResponse:
        """Return the value of a key."""
        now = self._use(request.dict_id)
        value = self._store.get(request.dict_id, request.key, now)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def DictContains(
        self, request: api_pb2.DictContainsRequest
    ) -> api_pb2.DictContainsResponse:
        """Say whether a key is there."""
        now = self._use(request.dict_id)
        value = self._store.get(request.dict_id, request.key, now)
        return api_pb2.DictContainsResponse(found=value is not None)

    async def DictPop(self, request: api_pb2.DictPopRequest) -> api_pb2.DictPopResponse:
        """Remove a key and return its value."""
        self._use(request.dict_id)
        value = self._store.pop(request.dict_id, request.key)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def DictUpdate(self, request: api_pb2.DictUpdateRequest) -> api_pb2.DictUpdateResponse:
        """Set entries, all or none; with `if_not_exists` those that are missing."""
        now = self._use(request.dict_id)
        entries = [(entry.key, entry.value) for entry in request.updates]
        done = self._store.put(request.dict_id, entries, now, keep=request.if_not_exists)
        return api_pb2.DictUpdateResponse(created=done > 0)

    async def DictLen(self, request: api_pb2.DictLenRequest) -> api_pb2.DictLenResponse:
        """Count the entries, up to Modal's limit."""
        self._use(request.dict_id)
        return api_pb2.DictLenResponse(len=min(MOST_COUNTED, self._store.count(request.dict_id)))

    async def DictContents(
        self, request: api_pb2.DictContentsRequest
    ) -> AsyncIterator[api_pb2.DictEntry]:
        """Send every key, with its value when that is asked for."""
        now = self._use(request.dict_id)
        for key, value in self._store.entries(request.dict_id, now):
            yield api_pb2.DictEntry(key=key, value=value if request.values else b"")


def _metadata(stored: Stored) -> api_pb2.DictMetadata:
    return api_pb2.DictMetadata(name=stored.name, creation_info=creation(stored))
