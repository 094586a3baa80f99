"""Virtual environments that hold exactly some of the installed packages, made without a network."""

from __future__ import annotations

import re
import sys
import venv
from collections import defaultdict
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path, PurePath

from packaging.requirements import Requirement


def closure_venv(path: Path, *distributions: str) -> Path:
    """
    Make a venv with *distributions* and what they require, and nothing else.

    The packages are links to those of this interpreter, so a venv takes a moment, even with torch.

    Args:
        path: Where to make it.
        distributions: Names, with extras if wanted (`"modal"`, `"uvicorn[standard]"`).

    Returns:
        The venv's Python executable.
    """
    venv.create(path, with_pip=False, symlinks=True)
    site = path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    wanted = closure(distributions)
    owners = _owners()
    for name in wanted:
        _link(metadata.distribution(name), wanted, owners, site)
    return path / "bin" / "python"


def closure(requirements: Iterable[str]) -> set[str]:
    """Return the normalised names of *requirements* and of all that they require here."""
    found: set[str] = set()
    pending = [Requirement(text) for text in requirements]
    done: set[tuple[str, str]] = set()
    while pending:
        requirement = pending.pop()
        name = normalise(requirement.name)
        found.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in done:
                done.add((name, extra))
                pending += _required(name, extra)
    return found


def normalise(name: str) -> str:
    """Return a distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _required(name: str, extra: str) -> list[Requirement]:
    every = [Requirement(text) for text in metadata.requires(name) or []]
    return [r for r in every if r.marker is None or r.marker.evaluate({"extra": extra})]


def _files(distribution: metadata.Distribution) -> list[PurePath]:
    """List what lies in site-packages: no scripts, no caches."""
    return [
        file for file in distribution.files or [] if not {"..", "__pycache__"} & set(file.parts)
    ]


def _owners() -> dict[str, set[str]]:
    """Map every top-level entry of site-packages to the distributions that have files in it."""
    owners: dict[str, set[str]] = defaultdict(set)
    for distribution in metadata.distributions():
        name = normalise(distribution.metadata["Name"])
        for file in _files(distribution):
            owners[file.parts[0]].add(name)
    return owners


def _link(
    distribution: metadata.Distribution,
    wanted: set[str],
    owners: dict[str, set[str]],
    site: Path,
) -> None:
    """Link whole top-level entries; files one by one where an unwanted one shares the entry."""
    for file in _files(distribution):
        top = file.parts[0]
        link = site / (top if owners[top] <= wanted else file)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(str(distribution.locate_file(link.relative_to(site)))))
