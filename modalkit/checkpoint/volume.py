"""The calls that a run makes on its Volume, and the one way in which they fail harmlessly."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from modalkit.telemetry.events import Events

_OPEN_FILES: Final = "open files preventing the operation"
"""In the message of the error. Source: `modal.Volume.reload`."""


class Volume(Protocol):
    """What a run needs of a `modal.Volume`."""

    def commit(self) -> Any:
        """Make what was written durable."""

    def reload(self) -> Any:
        """Show what others have committed."""


def commit(volume: Volume, events: Events) -> float:
    """
    Commit, and return the seconds it took.

    `modal.Volume.commit` reloads after it has committed, and a reload refuses files that the
    program holds open. Ours are all closed; if the program has others, the commit itself has
    succeeded when that error is raised.

    Raises:
        RuntimeError: The commit failed in any other way.
    """
    started = time.monotonic()
    try:
        volume.commit()
    except RuntimeError as error:
        if _OPEN_FILES not in str(error):
            raise
        events.say_once(
            "open_files",
            f"committed; the Volume could not be reloaded after it, which a run does not need "
            f"({error})",
        )
    return time.monotonic() - started


def reload(volume: Volume) -> str | None:
    """
    Show what earlier attempts have committed.

    A container that has just started shows it anyway, so a reload that open files prevent is
    no error.

    Returns:
        What is to be said about it, if anything.

    Raises:
        RuntimeError: The reload failed in any other way.
    """
    try:
        volume.reload()
    except RuntimeError as error:
        if _OPEN_FILES not in str(error):
            raise
        return (
            f"the Volume was not reloaded, because the program has files open on it ({error}); "
            f"a container that started after the last attempt sees its checkpoints all the same"
        )
    return None
