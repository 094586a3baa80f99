"""Which files below a mount point the processes of a container hold open, from /proc."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs


@attrs.frozen
class Held:
    """
    One file or directory that a process holds.

    Attributes:
        path: Relative to the mount point; "." for the mount point itself.
        pid: The process.
        how: "cwd", "open" or "mapped".
        is_written: The process may write to it.
    """

    path: str
    pid: int
    how: str
    is_written: bool = False


def held_below(pids: Iterable[int], mount_point: str, others: Iterable[str] = ()) -> Iterator[Held]:
    """
    Find what the given processes hold below a directory, which each sees at the same path.

    What is below one of *others*, where something else is mounted inside, does not count. Working
    directories, open files and directories, and mapped files do. The kernel names them as their own
    process sees them: a mount there need not exist here.
    """
    bases = _names(mount_point)
    names = [name for other in others for name in _names(other)]
    inner = [name for name in names if _is_in(name, bases) and name not in bases]
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for path, how, is_written in (*_links(pid), *_maps(pid)):
                named = path.removesuffix(" (deleted)")
                for base in bases:
                    if _is_in(named, [base]) and not _is_in(named, inner):
                        yield Held(os.path.relpath(named, base), pid, how, is_written)
                        break


def _names(mount_point: str) -> list[str]:
    # Links of this machine in the path may be true directories there.
    return [*dict.fromkeys((os.path.realpath(mount_point), os.path.normpath(mount_point)))]


def _is_in(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _links(pid: int) -> Iterator[tuple[str, str, bool]]:
    process = Path("/proc", str(pid))
    yield str((process / "cwd").readlink()), "cwd", False
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            # The mode of the link is that of the descriptor, see proc_pid_fd(5).
            yield str(link.readlink()), "open", bool(link.lstat().st_mode & stat.S_IWUSR)


def _maps(pid: int) -> Iterator[tuple[str, str, bool]]:
    for line in Path("/proc", str(pid), "maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6:  # noqa: PLR2004 - address to path, see proc_pid_maps(5)
            mode = fields[1]
            yield fields[5].replace("\\012", "\n"), "mapped", mode[1] == "w" and mode[3] == "s"
