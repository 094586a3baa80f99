"""
The RPCs for Volumes as such and for what a container sees of them, over `volumes` and `views`.

Environment names are not told apart: the client sends "" where a container sends "main". The files
of a committed tree are in `volume_files`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local.open_files import Held, held_below
from modalkit.local.views import View
from modalkit.local.volumes import Volume

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.state import Container

OPEN_FILES: Final = "there are open files preventing the operation"  # the client looks for this
NAMED_FILES: Final = 5
FORBIDDEN_TARGETS: Final = frozenset({"/", "/root", "/tmp"})  # noqa: S108 - not one of ours


class VolumeService:
    """
    Answers one caller's RPCs for Volumes, but for their files.

    Args:
        plane: Where the Volumes are.
        caller: The container that calls; None for a client.
    """

    def __init__(self, plane: Plane, caller: Container | None) -> None:
        self._plane = plane
        self._caller = caller

    # -- identity

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest
    ) -> api_pb2.VolumeGetOrCreateResponse:
        """Find a Volume by name, or make one."""
        registry, name = self._plane.volumes, request.deployment_name or None
        kind = request.object_creation_type
        if kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS and name in registry.names():
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{name}' already exists")
        create = name is None or kind != api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED
        try:
            volume = registry.get_or_create(name, request.version, create)
        except KeyError:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{name}' not found") from None
        except ValueError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from None
        metadata = volume_metadata(volume)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.id, version=metadata.version, metadata=metadata
        )

    async def VolumeGetById(
        self, request: api_pb2.VolumeGetByIdRequest
    ) -> api_pb2.VolumeGetByIdResponse:
        """Find a Volume by its id."""
        volume = self._volume(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.id, metadata=volume_metadata(volume))

    async def VolumeList(self, request: api_pb2.VolumeListRequest) -> api_pb2.VolumeListResponse:
        """List named Volumes, the newest first."""
        page = request.pagination
        volumes = [self._plane.volumes.get_or_create(n, 0, create=False) for n in self._names()]
        chosen = sorted(
            (v for v in volumes if v.created_at < (page.created_before or float("inf"))),
            key=lambda v: -v.created_at,
        )
        return api_pb2.VolumeListResponse(
            items=[
                api_pb2.VolumeListItem(
                    label=v.name,
                    volume_id=v.id,
                    created_at=v.created_at,
                    metadata=volume_metadata(v),
                )
                for v in chosen[: page.max_objects or None]
            ]
        )

    async def VolumeRename(self, request: api_pb2.VolumeRenameRequest) -> Empty:
        """Give a Volume another name; its id, and so what mounts it, stays."""
        volume = self._volume(request.volume_id)
        if request.name in self._names():
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{request.name}' already exists")
        try:
            # Whoever copies the Volume at this moment holds its lock: nothing else waits for him.
            await asyncio.to_thread(self._plane.volumes.rename, volume.id, request.name)
        except ValueError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from None
        return Empty()

    async def VolumeHeartbeat(self, request: api_pb2.VolumeHeartbeatRequest) -> Empty:
        """Accept the sign that an ephemeral Volume's owner lives; the plane's end removes it."""
        self._volume(request.volume_id)
        return Empty()

    async def VolumeDelete(self, request: api_pb2.VolumeDeleteRequest) -> Empty:
        """Remove a Volume with all its files."""
        self._volume(request.volume_id)
        await asyncio.to_thread(self._plane.volumes.delete, request.volume_id)
        return Empty()

    # -- views of a container

    async def VolumeCommit(
        self, request: api_pb2.VolumeCommitRequest
    ) -> api_pb2.VolumeCommitResponse:
        """Make what the container wrote durable; the client may be told to reload next."""
        view = self._view(request.volume_id)
        with refusals(view.volume):
            await asyncio.to_thread(view.commit)
        skip = self._plane.config.switches.commit_reload == "skipped"
        return api_pb2.VolumeCommitResponse(skip_reload=skip)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest) -> Empty:
        """Show the container what others committed; refused while it holds files open."""
        view, caller = self._view(request.volume_id), self._caller
        assert caller is not None
        pids, others = caller.pids(), [other.mounted_at for other in caller.views.values()]
        held = await asyncio.to_thread(lambda: [*held_below(pids, view.mounted_at, others)])
        if held:
            raise GRPCError(Status.FAILED_PRECONDITION, f"{OPEN_FILES}: {_named(held, caller.pid)}")
        with refusals(view.volume):
            await asyncio.to_thread(view.reload, caller.pid)
        return Empty()

    # -- helpers

    def _names(self) -> list[str]:
        return self._plane.volumes.names()

    def _volume(self, volume_id: str) -> Volume:
        return find(self._plane, volume_id)

    def _view(self, volume_id: str) -> View:
        volume = self._volume(volume_id)
        view = self._caller.views.get(volume_id) if self._caller else None
        if view is None:
            message = f"the Volume '{volume.name or volume.id}' is not mounted in this container"
            raise GRPCError(Status.NOT_FOUND, message)
        return view


def find(plane: Plane, volume_id: str) -> Volume:
    """Return the Volume that a request names."""
    try:
        return plane.volumes.by_id(volume_id)
    except KeyError:
        raise GRPCError(Status.NOT_FOUND, f"no Volume has the id {volume_id}") from None


def check_mounts(mounts: Sequence[api_pb2.VolumeMount]) -> None:
    """Refuse mounts that Modal refuses; its client checks most of them too."""
    for mount in mounts:
        if mount.mount_path != os.path.normpath(mount.mount_path) or mount.mount_path[:1] != "/":
            raise _invalid(f"{mount.mount_path!r}: a mount path is canonical and absolute")
        if mount.mount_path in FORBIDDEN_TARGETS:
            raise _invalid(f"a Volume cannot be mounted at {mount.mount_path!r}")
        if ".." in Path(mount.sub_path).parts:
            raise _invalid(f"sub_path {mount.sub_path!r} leads out of the Volume")
    for key, what in (("volume_id", "Volume"), ("mount_path", "mount path")):
        values = [getattr(mount, key) for mount in mounts]
        if twice := {value for value in values if values.count(value) > 1}:
            raise _invalid(f"the same {what} is mounted more than once: {twice.pop()}")


def _invalid(message: str) -> GRPCError:
    return GRPCError(Status.INVALID_ARGUMENT, message)


@contextlib.contextmanager
def refusals(volume: Volume) -> Iterator[None]:
    """Say of a Volume that it was deleted meanwhile."""
    try:
        yield
    except KeyError:
        name = volume.name or volume.id
        raise GRPCError(Status.NOT_FOUND, f"the Volume '{name}' was deleted") from None


def _named(held: Sequence[Held], main_pid: int) -> str:
    """Name what is open in the words of the client, which looks for it at Modal's own paths."""
    said: dict[str, None] = {}
    for item in held:
        by = "" if item.pid == main_pid else f" from '{_command(item.pid)}'"
        if item.how == "cwd":
            said[f"cwd{by.replace(' from', ' of')} is inside volume"] = None
        else:
            said[f"path {item.path} is open{by}"] = None
    more = len(said) - NAMED_FILES
    return "; ".join([*said][:NAMED_FILES]) + (f"; and {more} more" if more > 0 else "")


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        line = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ")
        return line.decode(errors="replace").strip()
    return str(pid)


def volume_metadata(volume: Volume) -> api_pb2.VolumeMetadata:
    """Return what a handle of *volume* is to know."""
    version = api_pb2.VolumeFsVersion.Value(f"VOLUME_FS_VERSION_V{volume.version}")
    metadata = api_pb2.VolumeMetadata(version=version, name=volume.name)
    metadata.creation_info.created_at = volume.created_at
    return metadata
