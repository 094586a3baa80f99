"""
A Volume on a local disk with the rules of Modal's: private views, commits, refused reloads.

Not a mock of anything of modalkit: a second, tiny implementation of what a run is given.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


class DirectoryVolume:
    """
    A committed tree and, at `mount`, one container's view of it.

    `commit` publishes the view and then reloads, as the real client does; `reload` refuses while a
    file of the view is open. A container that is killed is a view that nobody commits.
    """

    def __init__(self, root: Path, name: str = "view-0") -> None:
        self.root = root
        self.committed = root / "committed"
        self.mount = root / name
        self.commits = 0
        self.committed.mkdir(parents=True, exist_ok=True)
        _replace_tree(self.committed, self.mount)

    def next_container(self) -> DirectoryVolume:
        """Start another container: its view is what was committed, and no more."""
        number = len(list(self.root.glob("view-*")))
        return DirectoryVolume(self.root, f"view-{number}")

    def commit(self) -> None:
        _replace_tree(self.mount, self.committed)
        self.commits += 1
        self.reload()

    def reload(self) -> None:
        if held := self.open_files():
            raise RuntimeError(
                f"there are open files preventing the operation: path {held[0]} is open"
            )
        _replace_tree(self.committed, self.mount)

    def open_files(self) -> list[str]:
        held = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                target = descriptor.readlink()
                if target.is_relative_to(self.mount):
                    held.append(str(target))
        return held


def _replace_tree(source: Path, target: Path) -> None:
    """Make *target* equal to *source* in place, so that open directories stay valid."""
    target.mkdir(exist_ok=True)
    for path in sorted(target.rglob("*"), reverse=True):
        if not (source / path.relative_to(target)).exists():
            path.rmdir() if path.is_dir() else path.unlink()
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif not _is_unchanged(path, copy):
            shutil.copy2(path, copy)


def _is_unchanged(path: Path, copy: Path) -> bool:
    if not copy.exists():
        return False
    new, old = path.stat(), copy.stat()
    return (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)
