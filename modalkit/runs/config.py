"""
What a run was called with: written once, and compared by every later attempt.

A run id is a promise that its steps are those of one training. An attempt with another
configuration or seed would mix two, so it is refused, with the differences shown.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from modalkit.errors import RunConfigMismatchError, RunError
from modalkit.runs import files

RUN_FILE: Final = "run.json"


@attrs.frozen
class RunConfig:
    """The configuration of a run, as JSON."""

    config: Mapping[str, Any]
    seed: int

    @property
    def digest(self) -> str:
        """A sha256 of configuration and seed, equal on every machine."""
        return hashlib.sha256(_canonical({"config": self.config, "seed": self.seed})).hexdigest()

    def without(self, keys: Collection[str]) -> RunConfig:
        """Return the configuration without *keys*."""
        kept = {key: value for key, value in self.config.items() if key not in keys}
        return attrs.evolve(self, config=kept)


def make(config: Mapping[str, Any] | None, may_change: object, seed: int) -> RunConfig:
    """
    Return the configuration as JSON makes it: tuples are lists, and so on.

    Raises:
        RunError: It is not JSON, or *may_change* is not a collection of names.
    """
    if isinstance(may_change, str) or not isinstance(may_change, Collection):
        raise RunError(
            f"may_change={may_change!r} must be a tuple of names, such as ('epochs',) with the "
            f"comma."
        )
    if type(seed) is not int:
        raise RunError(f"seed={seed!r}: a seed is an integer. Pass seed=0, or any other.")
    try:
        plain = json.loads(_canonical(dict(config or {})))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"config={config!r:.200} is not JSON ({error}). Pass a dict of strings, numbers, "
            f"booleans, None, lists and dicts; NaN and infinity are not JSON."
        ) from error
    return RunConfig(plain, seed)


def check_or_write(directory: Path, now: RunConfig, may_change: Collection[str]) -> bool:
    """
    Compare with the run's first call, or be it.

    Args:
        directory: The run's directory.
        now: This call's configuration.
        may_change: Keys that may differ.

    Returns:
        Whether this is the run's first call.

    Raises:
        RunConfigMismatchError: The run is known, with another configuration or seed.
        RunError: What the run was called with is there and cannot be read.
    """
    then = _read(directory)
    if then is None:
        write(directory, now)
        return True
    compare(directory, then, now, may_change)
    return False


def compare(directory: Path, then: RunConfig, now: RunConfig, may_change: Collection[str]) -> None:
    """
    Compare two configurations of the run in *directory*.

    Raises:
        RunConfigMismatchError: They differ.
    """
    if then.without(may_change).digest != now.without(may_change).digest:
        raise RunConfigMismatchError(
            f"run {directory.name!r} is known with another configuration:\n"
            + "\n".join(_differences(then.without(may_change), now.without(may_change)))
            + "\nUse a new run id for a new training. Keys that may differ between attempts are "
            "named in may_change=(...)."
        )


def versions() -> dict[str, str]:
    """Return the versions that decide whether numbers are the same again."""
    from modalkit import __version__

    found = {"modalkit": __version__, "python": sys.version.split()[0]}
    for name in ("torch", "numpy"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    return found


def _read(directory: Path) -> RunConfig | None:
    path = directory / RUN_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        return RunConfig(dict(content["config"]), content["seed"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read ({error!r}), so this call cannot be compared with the run's "
            f"first one. Try again; if it is damaged and you call with the same configuration, "
            f"remove the file, or else use a new run id."
        ) from error


def write(directory: Path, config: RunConfig) -> None:
    """Write what the run's first call was."""
    content = {
        "v": 1,
        "run_id": directory.name,
        "config": config.config,
        "seed": config.seed,
        "digest": config.digest,
        "versions": versions(),
        "created_at": time.time(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    # Attempts that start at once write the same content, each by way of a file of its own.
    temporary = directory / f".tmp-{files.container_id()}-{RUN_FILE}"
    files.write_json(directory / RUN_FILE, content, temporary=temporary)


def _differences(then: RunConfig, now: RunConfig) -> list[str]:
    lines = []
    if then.seed != now.seed:
        lines.append(f"  seed: was {then.seed}, is {now.seed}")
    for key in sorted({*then.config, *now.config}):
        was, is_now = (_shown(side.config, key) for side in (then, now))
        if was != is_now:
            lines.append(f"  {key}: was {was}, is {is_now}")
    return lines


def _shown(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key], sort_keys=True) if key in config else "absent"


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
