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

DIRECTORY: Final[Stamp] = ("dir",)
# Two kinds that only the upper layer of an overlay has: see <kernel>/filesystems/overlayfs.rst.
WHITEOUT: Final[Stamp] = ("whiteout",)
OPAQUE: Final[Stamp] = ("opaque",)
OPAQUE_MARK: Final = "user.overlay.opaque"

# The kernel stamps files with a clock that advances in steps of up to 1/HZ = 10 ms: two writes
# within one step look the same. A scan that follows the newest write by a step cannot miss one.
CLOCK_STEP_NS: Final = 10_000_000
SCANS: Final = 3
# From <linux/fs.h>; shares the blocks on btrfs, xfs and bcachefs, refused elsewhere.
FICLONE: Final = 0x40049409


def scan(root: Path, *, shared: bool = False, layer: bool = False) -> Tree:
    """
    List everything below a directory, by relative path; sockets and the like are left out.

    Args:
        root: The directory.
        shared: Its files are replaced and never written to, and have hard links elsewhere.
        layer: It is the upper layer of an overlay.

    Raises:
        OSError: A directory cannot be read.
    """
    entries: Tree = {}

    def refuse(error: OSError) -> None:
        # What cannot be read is not gone; only what went away meanwhile is.
        is_gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        if not is_gone or error.filename == str(root):
            raise error

    for directory, directories, files in os.walk(root, onerror=refuse):
        for name in (*directories, *files):
            path = Path(directory, name)
            with contextlib.suppress(FileNotFoundError):
                if (stamp := stamp_of(path, shared=shared, layer=layer)) is not None:
                    entries[str(path.relative_to(root))] = stamp
    return entries


def stamp_of(path: Path, *, shared: bool = False, layer: bool = False) -> Stamp | None:
    """Return an entry's stamp, see `scan`; None for what is neither file, directory nor link."""
    facts = path.lstat()
    if stat.S_ISDIR(facts.st_mode):
        return OPAQUE if layer and _is_opaque(path) else DIRECTORY
    if stat.S_ISLNK(facts.st_mode):
        return ("link", str(path.readlink()))
    if stat.S_ISREG(facts.st_mode):
        stamp = ("file", facts.st_mtime_ns, facts.st_size, facts.st_ino)
        return stamp if shared else (*stamp, facts.st_ctime_ns)  # a new link changes the last
    if layer and stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0:
        return WHITEOUT
    return None


def _is_opaque(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.getxattr(path, OPAQUE_MARK, follow_symlinks=False) == b"y"
    return False


def settled_scan(root: Path, *, layer: bool = False) -> Tree:
    """
    Scan, a clock step after the newest write: whatever is written later has another stamp.

    Where writing goes on, the newest files get stamps that no later scan will find again.
    """
    for attempt in range(SCANS):
        entries = scan(root, layer=layer)
        oldest = time.time_ns() - CLOCK_STEP_NS  # of what may be written once more and look alike
        young = {path: stamp for path, stamp in entries.items() if _written_after(stamp, oldest)}
        if not young:
            break
        if attempt < SCANS - 1:
            time.sleep(CLOCK_STEP_NS / 1e9)
        else:
            entries |= {path: (*stamp, uuid.uuid4().hex) for path, stamp in young.items()}
    return entries


def _written_after(stamp: Stamp, oldest: int) -> bool:
    # A stamp from the future is of a clock that was set back: waiting would not help.
    return stamp[0] == "file" and oldest < int(stamp[4]) <= oldest + 2 * CLOCK_STEP_NS


def overlaid(lower: Tree, upper: Tree) -> Tree:
    """Return the tree that an overlay of the two layers shows."""
    hiding = {path for path, stamp in upper.items() if stamp != DIRECTORY}

    def is_seen(path: str) -> bool:
        while path and path not in hiding:
            path = path.rpartition("/")[0]
        return not path

    shown = {path: stamp for path, stamp in lower.items() if is_seen(path)} if hiding else {**lower}
    for path, stamp in upper.items():
        if stamp != WHITEOUT:
            shown[path] = DIRECTORY if stamp == OPAQUE else stamp
    return shown


def make_directory(root: Path, relative: Path) -> None:
    """Make a directory of a tree, with its parents."""
    # Each part must be a true directory: a link that someone committed under one of these names
    # must not lead the write out of the tree.
    for parent in (*reversed(relative.parents[:-1]), relative):
        path = root / parent
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(exist_ok=True)


def stage(source: Path, staging: Path, *, link: bool = False) -> Path:
    """
    Copy a file or a symbolic link to a new name in a directory, or share a file by a hard link.

    Returns:
        The copy; when it cannot be made, nothing is left of it.
    """
    temporary = staging / uuid.uuid4().hex
    try:
        if link:
            with contextlib.suppress(OSError):  # too many links, or a file of somebody else's
                os.link(source, temporary, follow_symlinks=False)
                return temporary
        copy(source, temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def place(staged: Path, root: Path, relative: str) -> None:
    """Move a staged entry into a tree; readers see what was there or the new one, never a part."""
    target = root / relative
    if len(parents := Path(relative).parents) > 1:
        make_directory(root, parents[0])
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    staged.replace(target)


def put(
    source: Path, root: Path, relative: str, staging: Path, kind: str | int, *, link: bool = False
) -> None:
    """Copy one entry into a tree, as by `stage` and `place`."""
    if kind == "dir":
        make_directory(root, Path(relative))
        return
    staged = stage(source, staging, link=link)
    try:
        place(staged, root, relative)
    finally:
        staged.unlink(missing_ok=True)


def remove(root: Path, relative: str) -> None:
    """Remove an entry of a tree that may be gone."""
    path = root / relative
    if any((root / parent).is_symlink() for parent in Path(relative).parents):
        return  # what a link leads to is another entry, or not of this tree
    # A directory goes only when it is empty: what is in it belongs to somebody else.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        else:
            path.unlink()


def remove_all(root: Path) -> None:
    """Remove a tree that may be gone, also where its directories may not be read or written."""
    for directory, directories, _ in os.walk(root):  # overlayfs makes one of mode 0
        for path in (Path(directory, name) for name in directories):
            if not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


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
        facts = os.fstat(reader.fileno())
    # Not the extended attributes: overlayfs keeps notes of its own in them.
    target.chmod(stat.S_IMODE(facts.st_mode))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
