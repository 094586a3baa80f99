"""What `run` is called with, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from modalkit.checkpoint import state
from modalkit.errors import RunError
from modalkit.policies import CheckpointPolicy, CommitPolicy
from modalkit.runs import files


def run_directory(mount: object, run_id: object) -> Path:
    """
    Return where a run lives on the Volume that is mounted at *mount*.

    Raises:
        RunError: *run_id* is no name, or *mount* is no directory in this container.
    """
    if not isinstance(mount, (str, os.PathLike)):
        raise RunError(
            f"mount={mount!r:.80}: pass where the Volume is mounted as text, such as "
            f"mount='/outputs'."
        )
    directory = files.run_directory(Path(mount), run_id)
    if not Path(mount).is_dir():
        raise RunError(
            f"mount={str(mount)!r} is no directory in this container, and what is written outside "
            f"the Volume is lost with it. Give the function volumes={{{str(mount)!r}: volume}}."
        )
    return directory


def check(
    *, volume: object, checkpoints: object, commits: object, stateful: Mapping[str, object]
) -> None:
    """
    Refuse what a run would stumble over later.

    Raises:
        RunError: The message names the argument and what to pass instead.
    """
    if not all(callable(getattr(volume, call, None)) for call in ("commit", "reload")):
        raise RunError(
            f"volume={volume!r:.80}: a {type(volume).__qualname__} has no commit and reload. Pass "
            f"the modal.Volume itself: modal.Volume.from_name('outputs', create_if_missing=True)."
        )
    kinds = (("checkpoints", checkpoints, CheckpointPolicy), ("commits", commits, CommitPolicy))
    for name, value, kind in kinds:
        if value is not None and not isinstance(value, kind):
            raise RunError(
                f"{name}={value!r:.80}: pass a modalkit.{kind.__name__}, or None for the policy "
                f"of the Deployment."
            )
    state.describe(stateful)
