"""What Dicts, Queues and Secrets have in common: names and ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modalkit.local.wire import not_found

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.object_store import Kind, Stored


class NamedService:
    """
    Finds and makes the objects of one kind.

    Environment names are not told apart: the client sends "" where a container sends "main".
    """

    kind: Kind
    word: str
    """What users call such an object."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._store = plane.objects

    def _get_or_create(self, request: Any) -> tuple[Stored, bool]:
        """Return the object that a `...GetOrCreate` asks for, and whether it was made now."""
        name, creation = request.deployment_name, request.object_creation_type
        found = self._store.find(self.kind, name=name) if name else None
        if found and creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"{self.word} '{name}' already exists")
        if found:
            return found, False
        if name and creation == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise not_found(f"{self.word} '{name}' not found")
        try:
            return self._store.create(self.kind, name), True
        except ValueError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from error

    def _known(self, object_id: str) -> Stored:
        if (found := self._store.find(self.kind, object_id=object_id)) is None:
            raise not_found(f"no {self.word} has the id {object_id!r}; was it deleted?")
        return found

    def _page(self, request: Any) -> list[Stored]:
        page = request.pagination
        return self._store.named(self.kind, before=page.created_before, most=page.max_objects)


def creation(stored: Stored) -> api_pb2.CreationInfo:
    """Return when an object was made."""
    return api_pb2.CreationInfo(created_at=stored.created_at)
