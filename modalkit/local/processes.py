"""What the plane and its warden must both know: process trees, and where views lie."""

from __future__ import annotations

import contextlib
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes below *pid*, parents before their children."""
    found = [pid]
    for parent in found:  # grows as it is read
        found += _children(parent)
    return found[1:]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def memory_bytes(pids: list[int]) -> int:
    """
    Return the memory that processes hold, in bytes; what they share with others in proportion.

    Files that are mapped count too, as they do in a container's own accounting.
    """
    return sum(_proportional_kib(pid) for pid in pids) << 10


def _proportional_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def views_directory(state: str, runtime: str) -> Path:
    """
    Return where a plane keeps its containers' private Volume views.

    Beside the Volumes, so that copies are cheap; one directory per plane, named as its runtime.
    """
    return Path(state) / ".views" / Path(runtime).name
