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


def views_directory(state: str, runtime: str) -> Path:
    """
    Return where a plane keeps its containers' private Volume views.

    Beside the Volumes, so that copies are cheap; one directory per plane, named as its runtime.
    """
    return Path(state) / ".views" / Path(runtime).name
