"""
Volumes as directories: one committed tree each, whose files are replaced and never written to.

What containers see of them is in `views`. No gRPC and no asyncio here: `volume_service` and
`volume_files` answer the RPCs, in threads.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from modalkit.errors import LocalPlaneError
from modalkit.local import trees

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,63}")
RECORD: Final = "volume.json"
DELETED: Final = "~deleted-"
"""Before the id, in the name of a directory that is being removed."""
HELD_S: Final = 3600.0
"""How long what a client reads is kept after its last request, when it was replaced meanwhile."""


@attrs.define(eq=False)
class Generation:
    """
    A committed tree as it was at one moment, made of hard links: no file takes up space twice.

    Attributes:
        root: The directory that holds the tree under the name `TREE`.
        tree: What is in it.
        users: How many views show it.
    """

    TREE = "tree"

    root: Path
    tree: trees.Tree
    users: int = 0


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
        is_deleted: Nothing can be committed any more.
    """

    id: str
    name: str
    version: int
    root: Path
    created_at: float = attrs.field(factory=time.time)
    lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)
    is_deleted: bool = attrs.field(default=False, init=False)
    _newest: Generation | None = attrs.field(default=None, init=False, repr=False)
    """The tree as it is now; None where no generation shows it."""
    _held: dict[str, float] = attrs.field(factory=dict, init=False, repr=False)
    """What is in `reading`, and when each was last asked for, by the monotonic clock."""

    def __attrs_post_init__(self) -> None:
        for path in (self.committed, self.staging, self.reading):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def committed(self) -> Path:
        """The committed tree."""
        return self.root / "committed"

    @property
    def staging(self) -> Path:
        """Where files are written before they are renamed into the committed tree."""
        return self.root / "staging"

    @property
    def reading(self) -> Path:
        """What clients read, under names of its own: the client fetches it block by block."""
        return self.root / "reading"

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
            ValueError: The path leads out of the Volume, or round in circles.
        """
        base = self.committed.resolve()
        path = base / relative.lstrip("/")
        try:
            where = path.resolve() if follow else _place(path)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{relative!r} is no path of a Volume: {error}") from None
        if ".." in Path(relative).parts or not (where == base or base in where.parents):
            raise ValueError(f"{relative!r} leads out of the Volume {self.name or self.id!r}")
        return path

    @contextlib.contextmanager
    def changing(self) -> Iterator[Path]:
        """
        Hold the lock while the committed tree, which this returns, is changed.

        Raises:
            KeyError: The Volume was deleted.
        """
        with self.lock:
            if self.is_deleted:
                raise KeyError(self.id)
            stale, self._newest = self._newest, None
            if stale is not None and not stale.users:
                trees.remove_all(stale.root)
            yield self.committed

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """
        Put entries into the committed tree, within `changing`: all of them or none.

        Raises:
            OSError: The disk is full, for one.
        """
        incoming = Incoming(self)
        try:
            yield incoming
            for name, copy in incoming.staged:
                if copy is None:
                    trees.make_directory(self.committed, Path(name))
                else:
                    trees.place(copy, self.committed, name)
        finally:
            for copy in filter(None, (copy for _, copy in incoming.staged)):
                copy.unlink(missing_ok=True)

    def hold(self, path: Path) -> Path:
        """
        Give a committed file another name that keeps its bytes, whatever becomes of the file.

        Raises:
            OSError: There is no such file.
        """
        with self.lock:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise FileNotFoundError(path)
            held = self.reading / f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}"
            if not held.exists():
                trees.stage(path.resolve(), self.staging, link=True).replace(held)
            now = self._held[held.name] = time.monotonic()
            for name in [name for name, used in self._held.items() if now - used > HELD_S]:
                (self.reading / name).unlink(missing_ok=True)
                del self._held[name]
            return held

    def held(self, name: str) -> Path:
        """
        Return what `hold` returned, by its name.

        Raises:
            KeyError: There is none, or not any more.
        """
        with self.lock:
            self._held[name] = max(time.monotonic(), self._held[name])
            return self.reading / name

    def require_directory(self, relative: str, *, create: bool) -> None:
        """
        Check that a directory of the committed tree may be mounted by itself.

        Args:
            relative: Its path; the empty one is the whole tree.
            create: Make it where it is missing.

        Raises:
            ValueError: The path leads out of the Volume, or through a link or a file.
        """
        path = self.resolve(relative, follow=False)
        parts = [path, *path.parents][: len(Path(relative).parts)]
        if bad := [part for part in parts if part.is_symlink() or part.is_file()]:
            where = bad[0].relative_to(self.committed.resolve())
            raise ValueError(
                f"sub_path {relative!r}: {where} in the Volume {self.name or self.id!r} is no "
                "directory"
            )
        if create and not path.is_dir():
            with self.changing():
                path.mkdir(parents=True, exist_ok=True)

    def pin(self, where: Path) -> Generation:
        """
        Return the present generation, which stays as it is until it is released.

        Args:
            where: A directory on the same file system, for the links.

        Raises:
            OSError: The file system makes no hard links.
        """
        with self.lock:
            if self._newest is None:
                tree = trees.scan(self.committed, shared=True)
                generation = Generation(where / f"{self.id}-{uuid.uuid4().hex[:8]}", tree)
                try:
                    _link_all(tree, self.committed, generation.root / Generation.TREE)
                except OSError:
                    trees.remove_all(generation.root)
                    raise
                self._newest = generation
            self._newest.users += 1
            return self._newest

    def release(self, generation: Generation) -> None:
        """Let go of what `pin` returned."""
        with self.lock:
            generation.users -= 1
            if not generation.users and generation is not self._newest:
                trees.remove_all(generation.root)


@attrs.frozen
class Incoming:
    """
    What is to come into a committed tree together; see `Volume.incoming`.

    Attributes:
        staged: The names to be, and the copies in the staging directory; None for a directory.
    """

    _volume: Volume
    staged: list[tuple[str, Path | None]] = attrs.field(factory=list, init=False)

    def add(self, source: Path, relative: str, mode: int = 0) -> None:
        """Copy a file, a link or an empty directory; *mode* 0 is that of the source."""
        name = self._name(relative)
        if source.is_dir() and not source.is_symlink():
            self.staged.append((name, None))
            return
        copy = trees.stage(source, self._volume.staging)
        self.staged.append((name, copy))
        if mode:
            copy.chmod(mode & 0o777)

    @contextlib.contextmanager
    def new(self, relative: str, mode: int) -> Iterator[BinaryIO]:
        """Write a file."""
        copy = self._volume.staging / uuid.uuid4().hex
        self.staged.append((self._name(relative), copy))
        with copy.open("xb") as file:
            yield file
        copy.chmod(mode & 0o777)

    def _name(self, relative: str) -> str:
        volume = self._volume
        # A link on the way is followed, for it leads to a directory of the same Volume.
        name = _place(volume.resolve(relative, follow=False))
        inside = name.relative_to(volume.committed.resolve())
        if not inside.parts:
            where = volume.name or volume.id
            raise ValueError(f"{relative!r} names no file in the Volume {where!r}")
        return str(inside)


def _place(path: Path) -> Path:
    return path.parent.resolve() / path.name


def _link_all(tree: trees.Tree, source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path, (kind, *_) in sorted(tree.items()):
        if kind == "dir":
            (target / path).mkdir()
        else:
            (target / path).hardlink_to(source / path)


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
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in root.glob(f"{DELETED}*"):  # by a plane that was killed
            trees.remove_all(left)
        for record in sorted(root.glob(f"*/{RECORD}")):
            volume = _load(record)
            if volume.name:
                self._volumes[volume.id] = volume
                for left in (*volume.staging.iterdir(), *volume.reading.iterdir()):  # by another
                    left.unlink()
            else:
                trees.remove_all(record.parent)

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
        if name:
            _check_name(name)
        with self._lock:
            for volume in self._volumes.values():
                if name and volume.name == name:
                    return volume
            if not create:
                raise KeyError(name)
            id = f"vo-{uuid.uuid4().hex[:22]}"  # noqa: A001 - the field's own name
            # "~" is in no Volume's name, so these never take a named one's place.
            has_place = name and not (self.root / name / RECORD).exists()  # of one renamed since
            root = self.root / (name if name and has_place else f"~{id}")
            volume = Volume(id, name or "", version or 1, root)
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
        return sorted(volume.name for volume in list(self._volumes.values()) if volume.name)

    def rename(self, id: str, name: str) -> None:  # noqa: A002
        """
        Give a Volume another name.

        Raises:
            KeyError: There is none of that id.
            ValueError: Modal does not allow that name, or another Volume has it.
        """
        _check_name(name)
        with self._lock:
            volume = self._volumes[id]
            if name in self.names():
                raise ValueError(f"Volume '{name}' already exists")
            with volume.lock:  # its directory keeps the old name: views and addresses lead there
                volume.name = name
                volume.save()

    def delete(self, id: str) -> None:  # noqa: A002
        """
        Remove a Volume with all its files; views of it stay as they are.

        Raises:
            KeyError: There is none.
        """
        with self._lock:
            volume = self._volumes.pop(id)
        with volume.changing():
            volume.is_deleted = True
            # Under another name first: what is left of it when the plane is killed is no Volume.
            deleted = volume.root.with_name(f"{DELETED}{volume.id}")
            volume.root.rename(deleted)
            trees.remove_all(deleted)

    def close(self) -> None:
        """Remove the ephemeral Volumes."""
        for volume in list(self._volumes.values()):
            if not volume.name:
                self.delete(volume.id)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name in {".", ".."}:
        raise ValueError(f"{name!r} is not a Volume name: up to 63 of A-Z a-z 0-9 . _ -")


def _load(record: Path) -> Volume:
    try:
        return Volume(root=record.parent, **json.loads(record.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise LocalPlaneError(
            f"the record of a Volume, {record}, cannot be read ({error}); delete this file: the "
            "Volume's files stay, and it is found again when an app next creates it by its name"
        ) from error
