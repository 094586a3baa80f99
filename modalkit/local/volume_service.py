"""
The Volume RPCs, named as in Modal's protocol, over `volumes`.

Environment names are not told apart: the client sends "" where a container sends "main".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import tempfile
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local import trees
from modalkit.local.open_files import Held, held_below
from modalkit.local.views import View
from modalkit.local.volumes import Volume

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.state import Container

# The client asks for one URL per block of a file; Source: modal._utils.blob_utils.BLOCK_SIZE.
BLOCK_BYTES: Final = 8 << 20
ENTRIES_PER_MESSAGE: Final = 1000
SHA256: Final = re.compile(r"[0-9a-f]{64}")
OPEN_FILES: Final = "there are open files preventing the operation"  # the client looks for this
NAMED_FILES: Final = 5
FORBIDDEN_TARGETS: Final = frozenset({"/", "/root", "/tmp"})  # noqa: S108 - not one of ours

T = TypeVar("T")


class VolumeService:
    """
    Answers one caller's Volume RPCs.

    Args:
        plane: Where the Volumes and uploaded files are.
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
        with _refusals(view.volume):
            await asyncio.to_thread(view.commit)
        skip = self._plane.config.switches.commit_reload == "skipped"
        return api_pb2.VolumeCommitResponse(skip_reload=skip)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest) -> Empty:
        """Show the container what others committed; refused while it holds files open."""
        view, caller = self._view(request.volume_id), self._caller
        assert caller is not None
        pids = caller.pids()
        if held := await asyncio.to_thread(lambda: [*held_below(pids, view.mounted_at)]):
            raise GRPCError(Status.FAILED_PRECONDITION, f"{OPEN_FILES}: {_named(held, caller.pid)}")
        with _refusals(view.volume):
            await asyncio.to_thread(view.reload, caller.pid)
        return Empty()

    # -- the committed tree, from outside

    async def VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        """List a directory, or one file."""
        async for entries in self._entries(request):
            yield api_pb2.VolumeListFilesResponse(entries=entries)

    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        """List a directory, or one file, of a version 2 Volume."""
        async for entries in self._entries(request):
            yield api_pb2.VolumeListFiles2Response(entries=entries)

    async def VolumeGetFile2(
        self, request: api_pb2.VolumeGetFile2Request
    ) -> api_pb2.VolumeGetFile2Response:
        """
        Say where a file's bytes can be fetched: one address per block.

        Addresses are `volume/<id>/<path>?offset=<bytes>&length=<bytes>`.
        """
        volume = self._volume(request.volume_id)
        path = _inside(volume, request.path)
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, f"No such file: {request.path}")
        size = path.stat().st_size
        start = min(request.start, size)
        end = min(size, start + request.len) if request.len else size
        quoted = urllib.parse.quote(request.path.lstrip("/"))
        urls: list[str] = []
        position = start
        while position < end or not urls:
            stop = min(end, (position // BLOCK_BYTES + 1) * BLOCK_BYTES)
            query = f"offset={position}&length={stop - position}"
            urls.append(self._plane.blob_url(f"volume/{volume.id}/{quoted}?{query}"))
            position = stop
        return api_pb2.VolumeGetFile2Response(
            get_urls=urls, size=size, start=start, len=end - start
        )

    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest) -> Empty:
        """Put uploaded files into the committed tree, all of them or none."""
        volume = self._volume(request.volume_id)
        for file in request.files:
            if not SHA256.fullmatch(file.sha256_hex):
                raise GRPCError(Status.INVALID_ARGUMENT, f"{file.sha256_hex!r} is no sha256")
            if not (self._plane.file_store / file.sha256_hex).is_file():
                raise GRPCError(Status.NOT_FOUND, f"{file.filename}: was never uploaded")

        def put() -> None:
            _check_targets(volume, [f.filename for f in request.files], request)
            for file in request.files:
                volume.put(self._plane.file_store / file.sha256_hex, file.filename)
                if file.HasField("mode") and file.mode:
                    _inside(volume, file.filename).chmod(file.mode & 0o777)

        await _change(volume, put)
        return Empty()

    async def VolumePutFiles2(
        self, request: api_pb2.VolumePutFiles2Request
    ) -> api_pb2.VolumePutFiles2Response:
        """Name the blocks that are still to be uploaded; with all here, put the files together."""
        volume = self._volume(request.volume_id)
        _check_targets(volume, [f.path for f in request.files], request)
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(
                file_index=file_index,
                block_index=block_index,
                put_url=self._plane.blob_url(f"blob/{_block_name(block)}"),
            )
            for file_index, file in enumerate(request.files)
            for block_index, block in enumerate(file.blocks)
            if not await asyncio.to_thread(self._has_block, block)
        ]
        if not missing:
            await _change(volume, lambda: self._assemble(volume, request))
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    def _has_block(self, block: api_pb2.VolumePutFiles2Request.Block) -> bool:
        path = self._plane.blob_store / _block_name(block)
        # A block that another client is uploading at this moment is there in part.
        return path.is_file() and sha256(path.read_bytes()).digest() == block.contents_sha256

    def _assemble(self, volume: Volume, request: api_pb2.VolumePutFiles2Request) -> None:
        _check_targets(volume, [f.path for f in request.files], request)  # others may have come
        for file in request.files:
            with tempfile.NamedTemporaryFile(dir=volume.staging) as whole:
                for index, block in enumerate(file.blocks):
                    whole.seek(index * BLOCK_BYTES)
                    whole.write((self._plane.blob_store / _block_name(block)).read_bytes())
                whole.truncate(file.size)  # the client leaves out zeros at the end of a block
                whole.flush()
                Path(whole.name).chmod(file.mode & 0o777 or 0o644)
                volume.put(Path(whole.name), file.path)

    async def VolumeRemoveFile(self, request: api_pb2.VolumeRemoveFileRequest) -> Empty:
        """Remove a file, or a directory with all that is in it."""
        volume = self._volume(request.volume_id)
        path = _inside(volume, request.path, follow=False)
        if not path.exists() and not path.is_symlink():
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path}")
        if path == _inside(volume, "/"):
            raise GRPCError(Status.INVALID_ARGUMENT, "the root of a Volume cannot be removed")
        if not path.is_dir() or path.is_symlink():
            await _change(volume, path.unlink)
        elif request.recursive:
            await _change(volume, lambda: shutil.rmtree(path))
        else:
            message = f"{request.path} is a directory: pass recursive=True"
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        return Empty()

    async def VolumeRemoveFile2(self, request: api_pb2.VolumeRemoveFile2Request) -> Empty:
        """Remove a file or directory of a version 2 Volume."""
        return await self.VolumeRemoveFile(request)

    async def VolumeCopyFiles(self, request: api_pb2.VolumeCopyFilesRequest) -> Empty:
        """Copy files within the Volume, as cp does."""
        volume = self._volume(request.volume_id)
        target = _inside(volume, request.dst_path)
        into = target.is_dir()
        if not into and (len(request.src_paths) > 1 or request.dst_path.endswith("/")):
            raise GRPCError(Status.NOT_FOUND, f"No such directory: {request.dst_path}")
        if not target.parent.is_dir():
            raise GRPCError(Status.NOT_FOUND, f"No such directory: {target.parent.name}")
        pairs: list[tuple[Path, Path]] = []
        for name in request.src_paths:
            source = _inside(volume, name)
            if not source.exists():
                raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {name}")
            if source.is_dir() and not request.recursive:
                message = f"{name} is a directory: pass recursive=True (version 2 only)"
                raise GRPCError(Status.INVALID_ARGUMENT, message)
            goal = target / source.name if into else target
            if source.is_dir() and (goal == source or source in goal.parents or goal.is_file()):
                message = f"cannot copy the directory {name} to {request.dst_path}"
                raise GRPCError(Status.INVALID_ARGUMENT, message)
            if not source.is_dir() and goal.is_dir():
                message = f"{goal.name} in {request.dst_path} is a directory, and {name} is none"
                raise GRPCError(Status.INVALID_ARGUMENT, message)
            if goal != source:
                pairs.append((source, goal))
        await _change(volume, lambda: _copy(volume, pairs))
        return Empty()

    async def VolumeCopyFiles2(self, request: api_pb2.VolumeCopyFiles2Request) -> Empty:
        """Copy files within a version 2 Volume."""
        return await self.VolumeCopyFiles(request)

    # -- helpers

    def _names(self) -> list[str]:
        return self._plane.volumes.names()

    def _volume(self, volume_id: str) -> Volume:
        try:
            return self._plane.volumes.by_id(volume_id)
        except KeyError:
            raise GRPCError(Status.NOT_FOUND, f"no Volume has the id {volume_id}") from None

    def _view(self, volume_id: str) -> View:
        volume = self._volume(volume_id)
        view = self._caller.views.get(volume_id) if self._caller else None
        if view is None:
            message = f"the Volume '{volume.name or volume.id}' is not mounted in this container"
            raise GRPCError(Status.NOT_FOUND, message)
        return view

    async def _entries(
        self, request: api_pb2.VolumeListFilesRequest
    ) -> AsyncIterator[list[api_pb2.FileEntry]]:
        volume = self._volume(request.volume_id)
        path = _inside(volume, request.path)
        if not path.exists():
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path}")
        found = await _locked(volume, lambda: list(_listing(volume, path, request.recursive)))
        found = found[: request.max_entries] if request.max_entries else found
        for first in range(0, len(found), ENTRIES_PER_MESSAGE):
            yield found[first : first + ENTRIES_PER_MESSAGE]


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


async def _locked(volume: Volume, work: Callable[[], T]) -> T:
    def run() -> T:
        with volume.lock:
            return work()

    return await asyncio.to_thread(run)


async def _change(volume: Volume, work: Callable[[], object]) -> None:
    def run() -> None:
        with volume.changing():
            work()

    with _refusals(volume):
        await asyncio.to_thread(run)


@contextlib.contextmanager
def _refusals(volume: Volume) -> Iterator[None]:
    """Say of a Volume that it was deleted meanwhile."""
    try:
        yield
    except KeyError:
        name = volume.name or volume.id
        raise GRPCError(Status.NOT_FOUND, f"the Volume '{name}' was deleted") from None


def _copy(volume: Volume, pairs: Iterable[tuple[Path, Path]]) -> None:
    base = volume.committed.resolve()
    for source, goal in pairs:
        inside = trees.scan(source, shared=True) if source.is_dir() else {}
        if source.is_dir():
            trees.make_directory(base, goal.relative_to(base))
        else:
            volume.put(source, str(goal.relative_to(base)))
        for path, (kind, *_) in sorted(inside.items()):
            relative = str(goal.relative_to(base) / path)
            trees.put(source / path, base, relative, volume.staging, kind)


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


def _inside(volume: Volume, relative: str, *, follow: bool = True) -> Path:
    try:
        return volume.resolve(relative, follow=follow)
    except ValueError as error:
        raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from None


def _check_targets(
    volume: Volume,
    names: Iterable[str],
    request: api_pb2.VolumePutFilesRequest | api_pb2.VolumePutFiles2Request,
) -> None:
    targets = [(name, _inside(volume, name, follow=False)) for name in names]
    taken = {target for _, target in targets}
    for name, target in targets:
        if target.is_dir() or (target.exists() and request.disallow_overwrite_existing_files):
            raise GRPCError(Status.ALREADY_EXISTS, f"{name}: already exists")
        for parent in target.parents:
            if parent.is_file() or parent in taken:
                message = f"{name}: {parent.name} already exists, and is no directory"
                raise GRPCError(Status.ALREADY_EXISTS, message)


def _block_name(block: api_pb2.VolumePutFiles2Request.Block) -> str:
    return f"block-{block.contents_sha256.hex()}"


def volume_metadata(volume: Volume) -> api_pb2.VolumeMetadata:
    """Return what a handle of *volume* is to know."""
    version = api_pb2.VolumeFsVersion.Value(f"VOLUME_FS_VERSION_V{volume.version}")
    metadata = api_pb2.VolumeMetadata(version=version, name=volume.name)
    metadata.creation_info.created_at = volume.created_at
    return metadata


def _listing(volume: Volume, path: Path, recursive: bool) -> Iterator[api_pb2.FileEntry]:  # noqa: FBT001
    base = volume.committed.resolve()
    below = path.rglob("*") if recursive else path.iterdir()
    for entry in sorted(below) if path.is_dir() else [path]:
        facts = entry.lstat()
        kind = api_pb2.FileEntry.FILE
        if stat.S_ISDIR(facts.st_mode):
            kind = api_pb2.FileEntry.DIRECTORY
        elif stat.S_ISLNK(facts.st_mode):
            kind = api_pb2.FileEntry.SYMLINK
        yield api_pb2.FileEntry(
            path=str(entry.relative_to(base)),
            type=kind,
            mtime=int(facts.st_mtime),
            size=facts.st_size,
        )
