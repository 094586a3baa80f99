"""
What Modal's service allows in the arguments of `@app.cls` and `@app.function`.

Its client checks a part of it when the app is loaded, some of it never, and leaves the rest to the
server. Here all of it is checked when the deployment is written, on the laptop only.

Source: `@app.cls` and `_utils/mount_utils.py` of modal 1.6.4, and Modal's guides "GPU
acceleration" and "Scaling out".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from modalkit import modal_objects
from modalkit._modal_introspect import is_secret
from modalkit.errors import PolicyError

EXPERIMENTAL_OPTIONS: Final = ("efa_disabled", "enable_gpu_snapshot", "fabric_size", "flash")
"""The keys of `experimental_options` that Modal documents or its client reads."""


class Limit(NamedTuple):
    """What the values of one argument must be."""

    fits: Callable[[Any], bool]
    is_to_be: str
    remedy: str


def check_options(options: Mapping[str, Any]) -> None:
    """
    Refuse arguments of `@app.cls` or `@app.function` that Modal's service would not take.

    Raises:
        PolicyError: A value is outside Modal's limits, or two of them contradict each other.
    """
    for name, limit in LIMITS.items():
        value = options.get(name)
        if value is not None and not limit.fits(value):
            raise PolicyError(f"{name}={value!r}: {limit.is_to_be}. {limit.remedy}")
    least, most = options.get("min_containers"), options.get("max_containers")
    if least is not None and most is not None and least > most:
        raise PolicyError(
            f"min_containers={least!r} with max_containers={most!r}: the least cannot be above the "
            f"most. Lower min_containers, or raise max_containers."
        )
    _check_volumes(options.get("volumes") or {})
    _check_experimental(options.get("experimental_options") or {})


def _is_gpu(value: Any) -> bool:
    """Return whether it is `"H100"`, `"H100:8"`, or a list of such to choose from."""
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(n, str) and re.fullmatch(r"[^:\s]+(:[1-9][0-9]*)?", n) for n in names)


def _whole(low: int, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_environment(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(text, str | None) for name, text in value.items()
    )


def _are_secrets(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(is_secret, value))


_CONTAINERS: Final = Limit(
    _whole(0, 4000), "a whole number from 0 to 4000", "Leave it out for Modal's default."
)

LIMITS: Final[Mapping[str, Limit]] = {
    "gpu": Limit(
        _is_gpu,
        "a GPU is a name with an optional count of 1 or more, or a list of such in order of choice",
        'Write gpu="H100:8", or gpu=["H100", "A100"]; leave gpu out for none.',
    ),
    "scaledown_window": Limit(
        _whole(2, 3600), "a whole number of seconds from 2 to 3600", "Leave it out for 60 s."
    ),
    "min_containers": _CONTAINERS,
    "max_containers": _CONTAINERS,
    "buffer_containers": _CONTAINERS,
    "env": Limit(
        _is_environment,
        "environment variables are strings, or None",
        'Write the value as a string, such as {"WORLD_SIZE": "8"}.',
    ),
    "secrets": Limit(
        _are_secrets,
        "secrets is a list of modal.Secret",
        'Write secrets=[modal.Secret.from_name("token")].',
    ),
    "volumes": Limit(
        lambda value: isinstance(value, Mapping),
        "volumes is a dictionary from mount points to Volumes",
        'Write volumes={"/data": volume}.',
    ),
    "experimental_options": Limit(
        lambda value: isinstance(value, Mapping),
        "experimental_options is a dictionary",
        'Write experimental_options={"enable_gpu_snapshot": True}.',
    ),
}
"""One row for each argument; the sentence says what it must be, the last one what to write."""


def _check_volumes(volumes: Mapping[Any, Any]) -> None:
    paths: dict[str, Any] = {}
    for path in volumes:
        if not isinstance(path, str | PurePosixPath):
            raise PolicyError(
                f"volumes={{{path!r}: ...}}: a mount point is a path. Write it as a string, such "
                f"as '/data'."
            )
        modal_objects.check_mount(str(path))
        mount = modal_objects.canonical_mount(path)
        if mount in paths:
            raise PolicyError(
                f"volumes has {paths[mount]!r} and {path!r}: both are the mount point {mount!r}. "
                f"Keep one of them."
            )
        paths[mount] = path


def _check_experimental(options: Mapping[Any, Any]) -> None:
    """Refuse misspelt keys; Modal takes any key, and new ones come without a new client."""
    for key in options:
        if key in EXPERIMENTAL_OPTIONS:
            continue
        if close := difflib.get_close_matches(str(key), EXPERIMENTAL_OPTIONS, n=1, cutoff=0.75):
            raise PolicyError(
                f"experimental_options={{{key!r}: ...}}: Modal ignores keys that it does not know. "
                f"Did you mean {close[0]!r}?"
            )
