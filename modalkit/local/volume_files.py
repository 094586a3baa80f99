"""
The Volume RPCs that read and change a committed tree from outside, named as in Modal's protocol.

What containers see of Volumes is in `volume_service`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local import trees
from modalkit.local.volume_service import find, refusals
from modalkit.local.volumes import Volume

if TYPE_CHECKING:
    from modalkit.local.core import Plane

# The client asks for one URL per block of a file; Source: modal._utils.blob_utils.BLOCK_SIZE.
BLOCK_BYTES: Final = 8 << 20
ENTRIES_PER_MESSAGE: Final = 1000
SHA256: Final = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class VolumeFileService:
    """
    Answers one caller's RPCs for the files of Volumes.

    Args:
        plane: Where the Volumes and uploaded files are.
    """

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

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

        Addresses are `volume/<id>/<name>?offset=<bytes>&length=<bytes>`, with a name that keeps
        these bytes: the client asks for them by and by, and the file may be replaced meanwhile.
        """
        volume = find(self._plane, request.volume_id)
        path = _inside(volume, request.path)
        try:
            held = await asyncio.to_thread(volume.hold, path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise GRPCError(Status.NOT_FOUND, f"No such file: {request.path}") from None
        size = held.stat().st_size
        start = min(request.start, size)
        end = min(size, start + request.len) if request.len else size
        urls: list[str] = []
        position = start
        while position < end or not urls:
            stop = min(end, (position // BLOCK_BYTES + 1) * BLOCK_BYTES)
            query = f"offset={position}&length={stop - position}"
            urls.append(self._plane.blob_url(f"volume/{volume.id}/{held.name}?{query}"))
            position = stop
        return api_pb2.VolumeGetFile2Response(
            get_urls=urls, size=size, start=start, len=end - start
        )

    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest) -> Empty:
        """Put uploaded files into the committed tree, all of them or none."""
        volume = find(self._plane, request.volume_id)
        for file in request.files:
            if not SHA256.fullmatch(file.sha256_hex):
                raise GRPCError(Status.INVALID_ARGUMENT, f"{file.sha256_hex!r} is no sha256")
            if not (self._plane.file_store / file.sha256_hex).is_file():
                raise GRPCError(Status.NOT_FOUND, f"{file.filename}: was never uploaded")

        def put() -> None:
            _check_targets(volume, [f.filename for f in request.files], request)
            with volume.incoming() as incoming:
                for file in request.files:
                    incoming.add(self._plane.file_store / file.sha256_hex, file.filename, file.mode)

        await _change(volume, put)
        return Empty()

    async def VolumePutFiles2(
        self, request: api_pb2.VolumePutFiles2Request
    ) -> api_pb2.VolumePutFiles2Response:
        """Name the blocks that are still to be uploaded; with all here, put the files together."""
        volume = find(self._plane, request.volume_id)
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
        with volume.incoming() as incoming:
            for file in request.files:
                with incoming.new(file.path, file.mode or 0o644) as whole:
                    for index, block in enumerate(file.blocks):
                        whole.seek(index * BLOCK_BYTES)
                        whole.write((self._plane.blob_store / _block_name(block)).read_bytes())
                    whole.truncate(file.size)  # the client leaves out zeros at the end of a block

    async def VolumeRemoveFile(self, request: api_pb2.VolumeRemoveFileRequest) -> Empty:
        """Remove a file, or a directory with all that is in it."""
        volume = find(self._plane, request.volume_id)
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
        volume = find(self._plane, request.volume_id)
        target = _inside(volume, request.dst_path)
        into = target.is_dir()
        target = target.resolve() if into else target.parent.resolve() / target.name
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
            source = source.parent.resolve() / source.name
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

    async def _entries(
        self, request: api_pb2.VolumeListFilesRequest
    ) -> AsyncIterator[list[api_pb2.FileEntry]]:
        volume = find(self._plane, request.volume_id)
        path = _inside(volume, request.path)
        if not path.exists():
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path}")
        found = await _locked(volume, lambda: list(_listing(volume, path, request.recursive)))
        found = found[: request.max_entries] if request.max_entries else found
        for first in range(0, len(found), ENTRIES_PER_MESSAGE):
            yield found[first : first + ENTRIES_PER_MESSAGE]


async def _locked(volume: Volume, work: Callable[[], T]) -> T:
    def run() -> T:
        with volume.lock:
            return work()

    return await asyncio.to_thread(run)


async def _change(volume: Volume, work: Callable[[], object]) -> None:
    def run() -> None:
        with volume.changing():
            work()

    with refusals(volume):
        await asyncio.to_thread(run)


def _copy(volume: Volume, pairs: Iterable[tuple[Path, Path]]) -> None:
    base = volume.committed.resolve()
    with volume.incoming() as incoming:
        for source, goal in pairs:
            name = goal.relative_to(base)
            below = sorted(trees.scan(source, shared=True)) if source.is_dir() else []
            for path in (".", *below):
                incoming.add(source / path, str(name / path))


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
