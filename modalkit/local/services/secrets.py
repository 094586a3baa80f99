"""Secrets: their values go to containers, and into no log, error or answer."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from modalkit.local.core import ENVIRONMENT
from modalkit.local.object_store import Stored
from modalkit.local.services.named import NamedService, creation
from modalkit.local.wire import not_found


class SecretService(NamedService):
    """Named Secrets, and those that an app brings as a dictionary."""

    kind = "st"
    word = "Secret"

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest
    ) -> api_pb2.SecretGetOrCreateResponse:
        """Find a Secret by name, or make one."""
        stored, is_new = self._get_or_create(request)
        overwrites = (
            request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
        )
        if is_new or overwrites:
            self._store.set_secret(stored.id, dict(request.env_dict), replace=True)
        metadata = self._metadata(stored)
        if missing := sorted(set(request.required_keys) - set(metadata.keys)):
            raise not_found(f"Secret '{stored.name}' is missing key(s): {', '.join(missing)}")
        return api_pb2.SecretGetOrCreateResponse(secret_id=stored.id, metadata=metadata)

    async def SecretGetInfo(
        self, request: api_pb2.SecretGetInfoRequest
    ) -> api_pb2.SecretGetInfoResponse:
        """Return the name and the keys of a Secret."""
        stored = self._known(request.secret_id)
        return api_pb2.SecretGetInfoResponse(metadata=self._metadata(stored))

    async def SecretUpdate(self, request: api_pb2.SecretUpdateRequest) -> Empty:
        """Set variables, and remove those that come without a value."""
        secret_id = self._known(request.secret_id).id
        given = {u.key: u.value for u in request.updates if u.HasField("value")}
        self._store.set_secret(secret_id, given, replace=False)
        for update in request.updates:
            if update.key not in given:
                self._store.pop(secret_id, update.key.encode())
        return Empty()

    async def SecretList(self, request: api_pb2.SecretListRequest) -> api_pb2.SecretListResponse:
        """List named Secrets, the newest first."""
        return api_pb2.SecretListResponse(
            items=[
                api_pb2.SecretListItem(
                    label=stored.name,
                    created_at=stored.created_at,
                    environment_name=ENVIRONMENT,
                    secret_id=stored.id,
                    metadata=self._metadata(stored),
                )
                for stored in self._page(request)
            ],
            environment_name=ENVIRONMENT,
        )

    async def SecretDelete(self, request: api_pb2.SecretDeleteRequest) -> Empty:
        """Remove a Secret; containers that run keep what they were given."""
        self._store.delete(self._known(request.secret_id).id)
        return Empty()

    def _metadata(self, stored: Stored) -> api_pb2.SecretMetadata:
        return api_pb2.SecretMetadata(
            name=stored.name,
            creation_info=creation(stored),
            keys=sorted(self._store.secret(stored.id)),
            environment_name=ENVIRONMENT,
        )
