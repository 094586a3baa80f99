"""
Plain data in, modal objects and keyword arguments out, and back.

The lowest layer that knows modal: it imports it inside functions, and nothing of modalkit but the
errors. Policies, deployments and recipes describe; what they describe becomes a modal object here
and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from modalkit._modal_introspect import is_read_only, volume_environment
from modalkit.errors import PolicyError

if TYPE_CHECKING:
    import modal


def in_container() -> bool:
    """
    Return whether this process runs in a container of Modal.

    There a module only has to define the same objects again; checking them a second time costs
    start-up time. `modal.is_local()` cannot be asked: it is True in subprocesses of a container.
    """
    return os.environ.get("MODAL_IS_REMOTE") == "1"


class ImageCall(NamedTuple):
    """One call of a `modal.Image` method: its name and arguments as data."""

    method: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = MappingProxyType({})


def image(base: ImageCall, steps: Iterable[ImageCall]) -> modal.Image:
    """Return the image that *base*, a static method of `modal.Image`, and then *steps* describe."""
    import modal

    return extend(getattr(modal.Image, base.method)(*base.arguments, **base.keywords), steps)


def extend(image: modal.Image, steps: Iterable[ImageCall]) -> modal.Image:
    """Return *image* with *steps* applied in order."""
    for step in steps:
        image = getattr(image, step.method)(*step.arguments, **step.keywords)
    return image


def retries(
    *,
    max_retries: int,
    initial_delay_s: float,
    backoff_coefficient: float,
    max_delay_s: float,
) -> modal.Retries:
    """Return the `modal.Retries` with these numbers; delays in seconds."""
    import modal

    return modal.Retries(
        max_retries=max_retries,
        initial_delay=initial_delay_s,
        backoff_coefficient=backoff_coefficient,
        max_delay=max_delay_s,
    )


def retry_numbers(retries: int | modal.Retries) -> dict[str, Any]:
    """
    Return what Modal will do for a `retries=` argument: the keywords for `retries()`.

    Raises:
        PolicyError: It is neither a number nor a `modal.Retries`.
    """
    import modal

    if isinstance(retries, int):
        # Modal's own reading of a plain number: a fixed delay of one second.
        return {
            "max_retries": retries,
            "initial_delay_s": 1.0,
            "backoff_coefficient": 1.0,
            "max_delay_s": 60.0,
        }
    if not isinstance(retries, modal.Retries):
        raise PolicyError(f"retries={retries!r}: pass a RetryPolicy, a modal.Retries, or a number.")
    return {
        "max_retries": retries.max_retries,
        "initial_delay_s": retries.initial_delay.total_seconds(),
        "backoff_coefficient": retries.backoff_coefficient,
        "max_delay_s": retries.max_delay.total_seconds(),
    }


RENAMED: Final[Mapping[str, str]] = {
    "allow_concurrent_inputs": "decorate with @modal.concurrent(max_inputs=...)",
    "checkpointing_enabled": "write enable_memory_snapshot=",
    "concurrency_limit": "write max_containers=",
    "concurrent_inputs": "decorate with @modal.concurrent(max_inputs=...)",
    "container_idle_timeout": "write scaledown_window=",
    "enable_gpu_snapshot": 'write experimental_options={"enable_gpu_snapshot": True}',
    "interactive": "use `modal run --interactive`",
    "keep_warm": "write min_containers=",
    "max_inputs": "write single_use_containers=True",
    "mounts": "add the files to the image: image.add_local_dir(...)",
    "preemptible": "write nonpreemptible=",
}
"""What Modal's arguments of the past are called now. Source: modal 1.6.4, `modal.App.cls`."""


def check_keywords(keywords: Iterable[str]) -> None:
    """
    Refuse keywords that neither `@app.cls` nor `@app.function` takes.

    Raises:
        PolicyError: A keyword is misspelt, unknown, or was renamed by Modal.
    """
    import difflib
    import inspect

    import modal

    known = {
        *inspect.signature(modal.App.cls).parameters,
        *inspect.signature(modal.App.function).parameters,
    } - {"self", *RENAMED}
    for keyword in keywords:
        if keyword in known:
            continue
        where = (
            f"{keyword}= is no argument of @app.cls or @app.function of modal {modal.__version__}"
        )
        if advice := RENAMED.get(keyword.removeprefix("_").removeprefix("experimental_")):
            raise PolicyError(f"{where} any more: {advice}.")
        close = difflib.get_close_matches(keyword, known, n=1)
        hint = f"Did you mean {close[0]}=?" if close else f"They take {', '.join(sorted(known))}."
        raise PolicyError(f"{where}. {hint}")


def canonical_mount(path: str | PurePosixPath) -> str:
    """Return *path* as Modal writes a mount point: `/outputs/` and `/outputs` are one."""
    return PurePosixPath(path).as_posix()


def check_mount(path: str) -> None:
    """
    Refuse a mount point that Modal does not allow.

    Raises:
        PolicyError: *path* is relative, has `..` in it, or is one of `/`, `/root` and `/tmp`.
    """
    mount = PurePosixPath(path)
    forbidden = ("/", "/root", "/tmp")  # noqa: S108 - names, not files
    if not mount.is_absolute() or ".." in mount.parts or mount.as_posix() in forbidden:
        raise PolicyError(
            f"mount {path!r}: Modal mounts a Volume at an absolute path without '..' that is not "
            f"'/', '/root' or '/tmp'. Use a directory of its own, such as '/outputs'."
        )


def check_reopenable(volume: object) -> None:
    """
    Refuse a Volume that the container could not open again by its name.

    Raises:
        PolicyError: *volume* is no `modal.Volume`, cannot be written to, has no name, or belongs
            to another environment.
    """
    import modal

    if not isinstance(volume, modal.Volume):
        raise PolicyError(
            f"{volume!r} is no modal.Volume. Make one by modal.Volume.from_name(...)."
        )
    if is_read_only(volume):
        raise PolicyError(
            f"{volume!r} is read-only: runs could not be saved on it. Pass the Volume without "
            f"read_only."
        )
    remedy = (
        "Use modal.Volume.from_name(name), or name the Volume in the class (`outputs = volume` and "
        "`mount = ...`), mount it by volumes=, and leave outputs out of the Deployment."
    )
    if not volume.name:
        raise PolicyError(f"{volume!r} has no name to open it by in the container. {remedy}")
    if environment := volume_environment(volume):
        raise PolicyError(
            f"Volume {volume.name!r} of environment {environment!r}: the container would look for "
            f"it in its own environment. {remedy}"
        )


def check_same_volume(mount: str, ours: modal.Volume, theirs: Any) -> None:
    """
    Refuse *theirs* at *mount* if it is another Volume than *ours*, or read-only.

    Raises:
        PolicyError: They differ, which two handles made by the same name do not; or *theirs*
            cannot be written to.
    """
    if theirs is not ours and getattr(theirs, "name", None) != ours.name:
        raise PolicyError(
            f"volumes={{{mount!r}: {theirs!r}}}: the Deployment mounts its outputs, {ours!r}, at "
            f"{mount!r}. Mount yours somewhere else."
        )
    if is_read_only(theirs):
        raise PolicyError(
            f"volumes={{{mount!r}: {theirs!r}}} is read-only: runs could not be saved on it. Leave "
            f"it out; the Deployment mounts its outputs."
        )
