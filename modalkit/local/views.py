"""
What one container sees of a Volume: a private view, until commit and reload.

What a container writes stays in its view until `commit`; what others committed appears at
`reload`; a container that is killed takes its uncommitted files with it. The last writer of a path
wins, whole files at a time. Directories, empty ones too, and symbolic links are part of a commit.

There are three kinds of view. All look alike, but for what `Kind` says:

- a copy of every file. It shares blocks where the file system can (btrfs, xfs).
- hard links to the committed files, where the mount is read-only.
- an overlay, for Volumes that are large: a generation of the committed tree below, what the
  container writes above. The plane reads the upper layer from outside, and writes what others
  committed through the container's own mount, which the kernel allows at any time.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from modalkit.local import boot, trees
from modalkit.local.volumes import Generation, Volume

Kind = Literal["copy", "links", "overlay"]

LARGE_BYTES: Final = 64 << 20
MANY_FILES: Final = 1000
"""
Up to here a copy takes some tenths of a second. It is preferred for that: in an overlay, renaming
a directory that was committed before the container started fails with EXDEV, unlike on Modal.
"""


def is_large(volume: Volume) -> bool:
    """Return whether copying a Volume for each container would be felt."""
    with volume.lock:
        tree = trees.scan(volume.committed, shared=True)
    sizes = [int(stamp[2]) for stamp in tree.values() if stamp[0] == "file"]
    return sum(sizes) > LARGE_BYTES or len(sizes) > MANY_FILES


def overlay_problem(where: Path) -> str | None:
    """
    Try an overlay whose layers are below *where*.

    Returns:
        None where it can be mounted, and its upper layer can be read from outside; else the reason.
    """
    scratch = Path(tempfile.mkdtemp(prefix="probe-", dir=where))
    try:
        for name in ("lower/replaced", "upper", "work", "merged", "other"):
            (scratch / name).mkdir(parents=True)
        (scratch / "lower/removed").touch()
        if (problem := boot.attempt(boot.PROBE_OVERLAY, str(scratch))) is not None:
            return problem
        found = trees.scan(scratch / "upper", layer=True)
        expected = {"replaced": trees.OPAQUE, "removed": trees.WHITEOUT}
        return None if found == expected else f"its upper layer reads as {found}"
    finally:
        trees.remove_all(scratch)


class View:
    """
    One container's view of a Volume.

    Args:
        volume: The Volume.
        root: A directory for what the view consists of.
        kind: How it is made; "overlay" shows nothing until the container has mounted it.
        read_only: Nothing is ever committed from it.
        mounted_at: Where the container finds `path`, or a part of it.
        sub_path: That part.
        in_background: Whether background commits are wanted.

    Attributes:
        path: The directory to be shown, as the container finds it before it is mounted anywhere.
    """

    def __init__(
        self,
        volume: Volume,
        root: Path,
        *,
        kind: Kind = "copy",
        read_only: bool = False,
        mounted_at: str = "",
        sub_path: str = "",
        in_background: bool = False,
    ) -> None:
        self.volume, self.root, self.kind = volume, root, kind
        self.read_only, self.in_background = read_only, in_background
        self.mounted_at, self.sub_path = mounted_at, sub_path
        # Both as they were when view and committed tree last agreed on the path.
        self._mine: trees.Tree = {}
        self._theirs: trees.Tree = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._generation: Generation | None = None
        if kind == "overlay":
            self._lay_over(volume.pin(root.parents[1] / "generations"))
            return
        self.path = self._written = root / "tree"
        for path in (self.path, root / "staging"):
            path.mkdir(parents=True)
        with volume.lock:
            self._pull(root)

    def _lay_over(self, generation: Generation) -> None:
        self._generation = generation
        self.path, self._written = self.root / "merged/tree", self.root / "upper/tree"
        for name in ("merged", "work", "upper/tree", "upper/staging"):
            (self.root / name).mkdir(parents=True)
        (self.root / "lower").symlink_to(generation.root.resolve())
        self._mine, self._theirs = dict(generation.tree), dict(generation.tree)

    @property
    def overlay(self) -> str | None:
        """The directory of an overlay's layers, for `mounts`; None for another kind."""
        return str(self.root) if self.kind == "overlay" else None

    def name_of(self, path: str) -> str:
        """Return the name in the Volume of a path below the mount point."""
        return os.path.normpath(os.path.join(self.sub_path, path))  # noqa: PTH118 - it opens nothing

    def commit(self, busy: Callable[[], Collection[str]] | None = None) -> int:
        """
        Push what changed in the view since the last commit or reload.

        Args:
            busy: Names files that are being written. They are left out, and so are files that
                change while they are copied.

        Returns:
            The number of files, links and directories written or removed.

        Raises:
            KeyError: The Volume was deleted.
            OSError: The disk is full. All files are copied before the first takes its place, so
                nothing was committed, unless not even a directory could be made.
        """
        with self._lock:
            return 0 if self.read_only or self._is_closed else self._push(busy)

    def reload(self, pid: int = 0) -> None:
        """
        Push own changes, then fetch what others committed.

        Args:
            pid: A process that has mounted the view, where it is an overlay.
        """
        with self._lock:
            if self._is_closed:
                return
            if not self.read_only:
                self._push(None)
            inside = Path(f"/proc/{pid}/root{self.root}/merged")
            with self.volume.lock:
                if not self.volume.is_deleted:
                    self._pull(inside if self.kind == "overlay" else self.root)

    def uncommitted(self) -> list[str]:
        """Return the paths that the container would lose if it were killed now."""
        with self._lock:
            if self.read_only or self._is_closed:
                return []
            now = self._scan()
            return sorted(
                path
                for path in now.keys() | self._mine.keys()
                if now.get(path) != self._mine.get(path)
            )

    def close(self) -> None:
        """Remove the view, once nothing uses it any more; commits that are going on are awaited."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            trees.remove_all(self.root)
            if self._generation is not None:
                self.volume.release(self._generation)

    def _scan(self) -> trees.Tree:
        if self._generation is None:
            return trees.settled_scan(self.path)
        return trees.overlaid(self._generation.tree, trees.settled_scan(self._written, layer=True))

    def _push(self, busy: Callable[[], Collection[str]] | None) -> int:
        now = self._scan()
        gone = sorted(self._mine.keys() - now.keys(), reverse=True)
        changed = sorted(path for path, stamp in now.items() if self._mine.get(path) != stamp)
        if not gone and not changed:
            return 0
        left_out = busy() if busy else ()
        staged: dict[str, Path | None] = {}
        try:
            # Everything is copied before anything is changed: a full disk damages nothing.
            for path in changed:
                if path not in left_out:
                    self._stage(path, now[path], staged, whole=busy is not None)
            if busy is not None and gone and not self._stands_still(now, changed, staged):
                gone = []
            with self.volume.changing() as tree:
                # Added first: a plane that is killed meanwhile has lost nothing.
                for path, copy in staged.items():
                    if copy is None:
                        trees.make_directory(tree, Path(path))
                    else:
                        trees.place(copy, tree, path)
                    self._mine[path] = now[path]
                    self._theirs[path] = trees.stamp_of(tree / path, shared=True) or ()
                for path in gone:
                    trees.remove(tree, path)
                    del self._mine[path]
                    self._theirs.pop(path, None)
        finally:
            for copy in filter(None, staged.values()):
                copy.unlink(missing_ok=True)
        return len(gone) + len(staged)

    def _stands_still(
        self, now: trees.Tree, changed: Sequence[str], staged: Mapping[str, Path | None]
    ) -> bool:
        """
        Tell whether what is gone may be removed: not while it may be on its way to another name.

        Of a file that is moved while it is open, or during the scan, only the old name's end would
        be seen. Who commits himself waits for it; a background commit comes again.
        """
        return len(staged) == len(changed) and self._scan().keys() == now.keys()

    def _stage(
        self, path: str, stamp: trees.Stamp, staged: dict[str, Path | None], *, whole: bool
    ) -> None:
        if stamp == trees.DIRECTORY:
            staged[path] = None
            return
        try:
            copy = trees.stage(self._written / path, self.volume.staging)
            is_same = not whole or trees.stamp_of(self._written / path) == stamp
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return  # replaced by the container since the scan: the next commit sees that
        if is_same:
            staged[path] = copy
        else:
            copy.unlink()

    def _pull(self, inside: Path) -> None:
        """Fetch what changed; *inside* has the directories of the view as its container sees it."""
        view, staging, link = inside / "tree", inside / "staging", self.kind == "links"
        tree = trees.scan(self.volume.committed, shared=True)
        for path in sorted(self._theirs.keys() - tree.keys(), reverse=True):
            if f"{self.sub_path}/".startswith(f"{path}/"):
                continue  # it is mounted by itself, and a directory made anew would not be
            trees.remove(view, path)
            del self._theirs[path]
            self._mine.pop(path, None)
        for path, stamp in sorted(tree.items()):
            if self._theirs.get(path) != stamp:
                trees.put(self.volume.committed / path, view, path, staging, stamp[0], link=link)
                if stamp == trees.DIRECTORY:
                    self._mine[path] = stamp
                else:
                    self._mine[path] = trees.stamp_of(self._written / path) or ()
                self._theirs[path] = stamp
