"""
Volumes as directories: one committed tree each, and one private view per container.

A view is a full copy. What a container writes stays in its view until `commit`; what others
committed appears at `reload`; a container that is killed takes its uncommitted files with it.
The last writer of a path wins, whole files at a time. Directories, empty ones too, and symbolic
links are part of a commit.

No gRPC and no asyncio here: `volume_service` answers the RPCs, in threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import attrs

from modalkit.errors import LocalPlaneError
from modalkit.local import trees

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,63}")
RECORD: Final = "volume.json"


@attrs.define(eq=False)
class Volume:
    """
    One Volume: its identity and the directory that holds it.

    Attributes:
        id: Modal's object id, `vo-...`.
        name: The name it was created under; empty for an ephemeral Volume.
        version: 1 or 2, as the client asked; both are stored alike.
        root: The directory of this Volume.
        created_at: Unix seconds.
        lock: Held while the committed tree is read as a whole or changed.
    """

    id: str
    name: str
    version: int
    root: Path
    created_at: float = attrs.field(factory=time.time)
    lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for path in (self.committed, self.staging):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def committed(self) -> Path:
        """The committed tree."""
        return self.root / "committed"

    @property
    def staging(self) -> Path:
        """Where files are written before they are renamed into the committed tree."""
        return self.root / "staging"

    def save(self) -> None:
        """Write down what a later registry needs to know about this Volume."""
        record = {"id": self.id, "name": self.name, "version": self.version}
        temporary = self.root / f"{RECORD}.tmp"
        temporary.write_text(json.dumps({**record, "created_at": self.created_at}))
        temporary.replace(self.root / RECORD)  # a plane may be killed at any moment

    def resolve(self, relative: str, *, follow: bool = True) -> Path:
        """
        Turn a path from a request into one below the committed tree.

        Args:
            relative: As the client wrote it; leading slashes are ignored.
            follow: Whether the path will be opened, so that a link must lead into the tree too.

        Raises:
            ValueError: The path leads out of the Volume.
        """
        base = self.committed.resolve()
        path = base / relative.lstrip("/")
        where = path.resolve() if follow else path.parent.resolve() / path.name
        if ".." in Path(relative).parts or not (where == base or base in where.parents):
            raise ValueError(f"{relative!r} leads out of the Volume {self.name or self.id!r}")
        return path

    def put(self, source: Path, relative: str) -> None:
        """Copy a file into the committed tree; the caller holds the lock."""
        inside = self.resolve(relative, follow=False).relative_to(self.committed.resolve())
        if not inside.parts:
            raise ValueError(f"{relative!r} names no file in the Volume {self.name or self.id!r}")
        trees.put(source, self.committed, str(inside), self.staging, "file")


class View:
    """
    One container's private copy of a Volume.

    Args:
        volume: The Volume.
        path: The directory to fill; the container finds it at its mount path.
        read_only: Nothing is ever committed from it.
    """

    def __init__(self, volume: Volume, path: Path, *, read_only: bool = False) -> None:
        self.volume = volume
        self.path = path
        self.read_only = read_only
        # Both as they were when view and committed tree last agreed on the path.
        self._mine: trees.Tree = {}
        self._theirs: trees.Tree = {}
        self._staging = path.with_name(path.name + ".staging")
        path.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)
        with volume.lock:
            self._pull()

    def commit(self) -> int:
        """
        Push what changed in the view since the last commit or reload.

        Returns:
            The number of files, links and directories written or removed.
        """
        if self.read_only:
            return 0
        with self.volume.lock:
            return self._push()

    def reload(self) -> None:
        """Push own changes, then fetch what others committed."""
        with self.volume.lock:
            if not self.read_only:
                self._push()
            self._pull()

    def _push(self) -> int:
        now = trees.settled_scan(self.path)
        tree = self.volume.committed
        gone = sorted(self._mine.keys() - now.keys(), reverse=True)
        changed = sorted(path for path, stamp in now.items() if self._mine.get(path) != stamp)
        for path in gone:
            trees.remove(tree / path)
            del self._mine[path]
            self._theirs.pop(path, None)
        for path in changed:
            try:
                trees.put(self.path / path, tree, path, self.volume.staging, now[path][0])
            except (FileNotFoundError, IsADirectoryError):
                continue  # replaced by the container since the scan: the next commit sees that
            self._mine[path] = now[path]
            self._theirs[path] = trees.stamp_of(tree / path) or ()
        return len(gone) + len(changed)

    def _pull(self) -> None:
        tree = trees.scan(self.volume.committed)
        for path in sorted(self._theirs.keys() - tree.keys(), reverse=True):
            trees.remove(self.path / path)
            del self._theirs[path]
            self._mine.pop(path, None)
        for path, stamp in sorted(tree.items()):
            if self._theirs.get(path) != stamp:
                trees.put(self.volume.committed / path, self.path, path, self._staging, stamp[0])
                self._mine[path] = trees.stamp_of(self.path / path) or ()
                self._theirs[path] = stamp


def open_files(pids: Iterable[int], path: Path) -> list[str]:
    """
    Name what the given processes hold open below a directory.

    Open files and directories, mapped files and working directories count. They are compared by
    inode, because the processes see the directory at another path.

    Returns:
        Relative paths, sorted; "." for the directory itself.
    """
    inodes = {(s.st_dev, s.st_ino): "." for s in (path.stat(),)}
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files):
            with contextlib.suppress(OSError):
                entry = Path(directory, name)
                facts = entry.lstat()
                inodes[facts.st_dev, facts.st_ino] = str(entry.relative_to(path))
    by_number = {inode: name for (_, inode), name in inodes.items()}
    found: set[str] = set()
    for pid in pids:
        found.update(inodes[key] for key in _held(pid) if key in inodes)
        # The device that a map names is not the one that stat names on btrfs and overlayfs:
        # the file's own name must agree instead.
        found.update(
            by_number[inode]
            for inode, where in _mapped(pid)
            if inode in by_number and Path(where).name == Path(by_number[inode]).name
        )
    return sorted(found)


def _held(pid: int) -> Iterator[tuple[int, int]]:
    process = Path("/proc", str(pid))
    links = [process / "cwd"]
    with contextlib.suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with contextlib.suppress(OSError):
            facts = link.stat()
            yield facts.st_dev, facts.st_ino


def _mapped(pid: int) -> Iterator[tuple[int, str]]:
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(pid), "maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[4] != "0":  # noqa: PLR2004 - address..path, see proc(5)
                yield int(fields[4]), fields[5]


class VolumeRegistry:
    """
    All Volumes below one directory.

    Named ones stay there and are found by the next registry; ephemeral ones go at `close`.

    Args:
        root: The directory; made when missing.

    Raises:
        LocalPlaneError: A Volume's record there cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._volumes: dict[str, Volume] = {}
        root.mkdir(parents=True, exist_ok=True)
        for record in sorted(root.glob(f"*/{RECORD}")):
            volume = _load(record)
            if volume.name:
                self._volumes[volume.id] = volume
            else:  # left by a plane that was killed
                shutil.rmtree(record.parent)

    def get_or_create(self, name: str | None, version: int, create: bool) -> Volume:  # noqa: FBT001
        """
        Find a Volume by its name, or make it.

        Args:
            name: None makes a new ephemeral Volume.
            version: 1 or 2 for a new one; 0 means 1.
            create: Whether a missing one is made.

        Raises:
            KeyError: There is none of that name and `create` is False.
            ValueError: The name is not one that Modal allows.
        """
        if name and (not NAME.fullmatch(name) or name in {".", ".."}):
            raise ValueError(f"{name!r} is not a Volume name: up to 63 of A-Z a-z 0-9 . _ -")
        with self._lock:
            for volume in self._volumes.values():
                if name and volume.name == name:
                    return volume
            if not create:
                raise KeyError(name)
            id = f"vo-{uuid.uuid4().hex[:22]}"  # noqa: A001 - the field's own name
            # "~" is in no Volume's name, so an ephemeral one never takes a named one's place.
            volume = Volume(id, name or "", version or 1, self.root / (name or f"~{id}"))
            volume.save()
            self._volumes[id] = volume
            return volume

    def by_id(self, id: str) -> Volume:  # noqa: A002
        """
        Find a Volume by its id.

        Raises:
            KeyError: There is none.
        """
        return self._volumes[id]

    def names(self) -> list[str]:
        """List the names of all named Volumes."""
        return sorted(volume.name for volume in self._volumes.values() if volume.name)

    def delete(self, id: str) -> None:  # noqa: A002
        """
        Remove a Volume with all its files; views of it stay as they are.

        Raises:
            KeyError: There is none.
        """
        with self._lock:
            volume = self._volumes.pop(id)
        with volume.lock:
            shutil.rmtree(volume.root)

    def close(self) -> None:
        """Remove the ephemeral Volumes."""
        for volume in list(self._volumes.values()):
            if not volume.name:
                self.delete(volume.id)


def _load(record: Path) -> Volume:
    try:
        return Volume(root=record.parent, **json.loads(record.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise LocalPlaneError(
            f"the record of a Volume, {record}, cannot be read ({error}); delete this file: the "
            "Volume's files stay, and it is found again when an app next creates it by its name"
        ) from error
