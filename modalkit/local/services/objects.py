"""Secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modalkit.local.state import new_id
from modalkit.local.wire import not_found

if TYPE_CHECKING:
    from modalkit.local.core import Plane


class SecretService:
    """Secrets made from dictionaries; their values never reach a log."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest
    ) -> api_pb2.SecretGetOrCreateResponse:
        name = request.deployment_name
        if name and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            if name not in self._plane.secret_names:
                raise not_found(f"Secret {name!r} not found")
            return api_pb2.SecretGetOrCreateResponse(secret_id=self._plane.secret_names[name])
        secret_id = new_id("st")
        self._plane.secrets[secret_id] = dict(request.env_dict)
        if name:
            self._plane.secret_names[name] = secret_id
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id)
