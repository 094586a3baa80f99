"""
Where the files of a container are shown: at the absolute paths that they have on Modal.

Each container has a directory of its own with its files, laid out as they are in the image. What
the app adds replaces what this machine has at that place, as far as the machine can do without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from modalkit.local.mounts import Mount

HOME: Final = Path("/root")
"""Where Modal puts an app's code, and the working directory where the image names none."""
# Directories that images and this machine have in common. What an app adds below these is
# added to what is there, at any depth; below the second kind, beside what is there.
SYSTEM: Final = frozenset(
    {
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "proc",
        "run",
        "sbin",
        "sys",
        "usr",
        "var",
    }
)
SHARED: Final = frozenset({*SYSTEM, "home", "media", "mnt", "opt", "srv", "tmp"})


def shown(staged: Path, needed: Iterable[Path]) -> list[Mount]:
    """
    Return what is to be mounted where.

    Args:
        staged: The container's own files, by their path in the image; it holds a `root`.
        needed: Directories of this machine that must not be hidden: the interpreter's, say.
    """
    needed = [path for path in needed if path.is_absolute()]
    return [*_shown(staged, Path("/"), needed), *_kept(staged / "root", needed)]


def _shown(staged: Path, place: Path, needed: list[Path]) -> Iterator[Mount]:
    for entry in sorted(staged.iterdir()):
        target = place / entry.name
        is_directory = entry.is_dir() and not entry.is_symlink()
        if is_directory and target != HOME and _is_shared(target, needed):
            yield from _shown(entry, target, needed)
        else:
            yield {"source": str(entry), "target": str(target), "read_only": False}


def _is_shared(target: Path, needed: list[Path]) -> bool:
    if target.parts[1] in SYSTEM:
        return target.is_dir()
    is_top = target.parent == Path("/")
    return (is_top and target.name in SHARED) or any(p.is_relative_to(target) for p in needed)


def _kept(staged: Path, needed: list[Path]) -> Iterator[Mount]:
    """Show of this machine's own /root what is needed, and its caches and settings."""
    kept = [path for path in needed if path != HOME and path.is_relative_to(HOME)]
    with contextlib.suppress(OSError):  # not ours to read: then nothing of ours is in it
        kept += [path for path in HOME.iterdir() if path.name.startswith(".")]
    for path in kept:
        if path.exists() and not (staged / path.relative_to(HOME)).exists():
            yield {"source": str(path), "target": str(path), "read_only": False}
