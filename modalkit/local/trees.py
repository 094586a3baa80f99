"""
Directory trees as values, and copies of single entries between them.

A scan maps each relative path to a stamp that differs whenever the entry may have changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from pathlib import Path
from typing import Final

# A file's kind and, for a regular file, what changes whenever its content may have.
Stamp = tuple[str | int, ...]
Tree = dict[str, Stamp]

# The kernel stamps files with a clock that advances in steps of up to 1/HZ = 10 ms: two writes
# within one step look the same. A scan that follows the newest write by a step cannot miss one.
CLOCK_STEP_NS: Final = 10_000_000
# From <linux/fs.h>; shares the blocks on btrfs, xfs and bcachefs, refused elsewhere.
FICLONE: Final = 0x40049409


def scan(root: Path) -> Tree:
    """List everything below a directory, by relative path; sockets and the like are left out."""
    entries: Tree = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            with contextlib.suppress(FileNotFoundError):
                if (stamp := stamp_of(path)) is not None:
                    entries[str(path.relative_to(root))] = stamp
    return entries


def stamp_of(path: Path) -> Stamp | None:
    """Return an entry's stamp; None for what is neither file, directory nor link."""
    facts = path.lstat()
    if stat.S_ISDIR(facts.st_mode):
        return ("dir",)
    if stat.S_ISLNK(facts.st_mode):
        return ("link", str(path.readlink()))
    if stat.S_ISREG(facts.st_mode):
        return ("file", facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_ctime_ns)
    return None


def settled_scan(root: Path) -> Tree:
    """Scan, a clock step after the newest write: whatever is written later has another stamp."""
    entries = scan(root)
    newest = max((int(s[4]) for s in entries.values() if s[0] == "file"), default=0)
    wait_ns = newest + CLOCK_STEP_NS - time.time_ns()
    if 0 < wait_ns <= CLOCK_STEP_NS:
        time.sleep(wait_ns / 1e9)
        entries = scan(root)
    return entries


def _make_directory(root: Path, relative: Path) -> None:
    # Each part must be a true directory: a link that someone committed under one of these names
    # must not lead the write out of the tree.
    for parent in (*reversed(relative.parents[:-1]), relative):
        path = root / parent
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(exist_ok=True)


def put(source: Path, root: Path, relative: str, staging: Path, kind: str | int) -> None:
    """Copy one entry into a tree; readers of the target see the old or the new, never a part."""
    if kind == "dir":
        _make_directory(root, Path(relative))
        return
    target = root / relative
    if len(parents := Path(relative).parents) > 1:
        _make_directory(root, parents[0])
    temporary = staging / uuid.uuid4().hex
    try:
        copy(source, temporary)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove an entry that may be gone."""
    # A directory goes only when it is empty: what is in it belongs to somebody else.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        else:
            path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file or a link, sharing its blocks where the file system can."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer, FICLONE, reader.fileno())
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            shutil.copyfileobj(reader, writer, 1 << 20)
    shutil.copystat(source, target)
