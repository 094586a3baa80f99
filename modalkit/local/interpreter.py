"""
What an interpreter has: asked by running this file in it, since it may not be the plane's own.

The standard library only: the interpreter need not have modalkit.
"""

from __future__ import annotations

import json
import re
import site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0


def describe() -> dict[str, Any]:
    """Return the version, the directories that it needs, and the distributions that it finds."""
    return {
        "version": "{}.{}.{}".format(*sys.version_info[:3]),
        "needs": sorted({sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent)}),
        "distributions": _distributions(),
    }


def ask_interpreter(python: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """
    Return what `describe` says in another interpreter.

    Raises:
        OSError: It cannot be run.
    """
    try:
        done = subprocess.run(
            [python, __file__],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or error
        raise OSError(f"the containers' interpreter {python} cannot be run: {said}") from error
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _distributions() -> dict[str, str]:
    # From the names of the metadata directories: reading all the metadata takes far longer.
    found: dict[str, str] = {}
    for place in [*sys.path[1:], *site.getsitepackages()]:
        for suffix in ("dist-info", "egg-info"):
            for path in Path(place or ".").glob(f"*.{suffix}"):
                name, version, *_ = [*path.name.removesuffix(f".{suffix}").split("-"), ""]
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return found


if __name__ == "__main__":
    print(json.dumps(describe()))  # noqa: T201 - its answer
