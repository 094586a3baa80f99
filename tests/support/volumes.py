"""
A Volume on a local disk with the rules of Modal's: private views, commits by file, refused reloads.

Not a mock of anything of modalkit: a second, tiny implementation of what a run is given.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

Tree = dict[Path, tuple[int, int]]
"""Files by their relative path, with size and time of change."""


class DirectoryVolume:
    """
    A committed tree and, at `mount`, one container's view of it.

    `commit` publishes what the view changed since it was last in step, file by file: of two
    writers of one file the last wins, and files of others stay. Then it reloads, as the real client
    does; `reload` refuses while a file of the view is open. A container that is killed is a view
    that nobody commits.
    """

    def __init__(self, root: Path, name: str = "view-0") -> None:
        self.root = root
        self.committed = root / "committed"
        self.mount = root / name
        self.commits = 0
        self.committed.mkdir(parents=True, exist_ok=True)
        self.mount.mkdir(exist_ok=True)
        self._in_step: Tree = {}
        self._show_committed()

    def next_container(self) -> DirectoryVolume:
        """Start another container: its view is what was committed, and no more."""
        number = len(list(self.root.glob("view-*")))
        return type(self)(self.root, f"view-{number}")

    def commit(self) -> None:
        now = _tree(self.mount)
        for path in now.keys() - self._in_step.keys() | _changed(now, self._in_step):
            _copy(self.mount / path, self.committed / path)
        for path in self._in_step.keys() - now.keys():
            (self.committed / path).unlink(missing_ok=True)
        self._in_step = now
        self.commits += 1
        self.reload()

    def reload(self) -> None:
        if held := self.open_files():
            raise RuntimeError(
                f"there are open files preventing the operation: path {held[0]} is open"
            )
        self._show_committed()

    def open_files(self) -> list[str]:
        held = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                target = descriptor.readlink()
                if target.is_relative_to(self.mount):
                    held.append(str(target))
        return held

    def _show_committed(self) -> None:
        """Take over what others committed; what only this view has changed stays."""
        committed, now = _tree(self.committed), _tree(self.mount)
        removed_here = self._in_step.keys() - now.keys()
        for path in committed.keys() - now.keys() | _changed(committed, now):
            if now.get(path) == self._in_step.get(path):
                _copy(self.committed / path, self.mount / path)
        for path in self._in_step.keys() & now.keys() - committed.keys():
            (self.mount / path).unlink()
        shown = _tree(self.mount)
        self._in_step = {
            path: version
            for path, version in committed.items()
            if shown.get(path) == version or path in removed_here
        }


def _tree(directory: Path) -> Tree:
    found = {}
    for path in directory.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[path.relative_to(directory)] = (status.st_size, status.st_mtime_ns)
    return found


def _changed(new: Tree, old: Tree) -> set[Path]:
    return {path for path in new.keys() & old.keys() if new[path] != old[path]}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
