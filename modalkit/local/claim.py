"""
Who has a state directory: one plane at a time, which says there who it is.

The claim is a lock on a file, held by the plane and by its warden, so it ends when the last of them
does. What is written into the file outlives a plane that was killed, and tells the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import IO, Final

import attrs

from modalkit.errors import LocalPlaneError

LOCK: Final = ".lock"
STATE_LINK: Final = "state"
"""In a plane's own directory: its state, or the way to it."""
PATIENCE_S: Final = 15.0
"""How long a new plane waits for the warden of one that was killed, or for one that starts."""
POLL_S: Final = 0.02


@attrs.frozen
class Holder:
    """The plane that has a state directory."""

    plane: int
    warden: int
    runtime: str


class Claim:
    """
    The exclusive use of a state directory; it is released when no process has it open any more.

    Raises:
        LocalPlaneError: Another plane has it.
    """

    def __init__(self, state: Path) -> None:
        self._file = _locked(state)
        self.left = _read(state)
        """The plane before this one, if it was killed."""

    def renew(self, runtime: Path, state: Path) -> None:
        """
        Make the directory of a plane anew; what a killed one left in its place goes.

        Raises:
            LocalPlaneError: Somebody else has a directory of that name.
        """
        for path in {runtime, *([Path(self.left.runtime)] if self.left else [])}:
            _remove_own(path)
        try:
            runtime.mkdir(mode=0o700)
        except OSError as error:
            raise LocalPlaneError(
                f"cannot make the plane's directory {runtime}: {error}; set another TMPDIR"
            ) from error
        (runtime / STATE_LINK).symlink_to(state)

    def write(self, holder: Holder | None) -> None:
        """Say who has it; None says that its plane ended in order."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(attrs.asdict(holder)) if holder else "")
        self._file.flush()


def runtime_of(state: Path) -> Path:
    """Return the directory of the sockets of a plane that keeps *state*: the same every time."""
    name = hashlib.sha256(f"{os.getuid()} {state.resolve()}".encode()).hexdigest()[:8]
    return short_tmpdir() / f"mk-{name}"


def short_tmpdir() -> Path:
    """Return the directory for temporary files, or /tmp where its path has no room for sockets."""
    wanted = Path(tempfile.gettempdir())
    return wanted if len(os.fsencode(wanted)) <= LONGEST_TMPDIR else Path("/tmp")  # noqa: S108


# A Unix socket's path has 107 bytes at most, and this is our longest one in a TMPDIR.
LONGEST_TMPDIR: Final = 107 - len("/mk-12345678/t/ta-123456789012/plane.sock")


def holder(state: Path) -> Holder | None:
    """Return the plane that has *state* now; None when it is free."""
    with contextlib.suppress(FileNotFoundError), (state / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(state)
    return None


def _locked(state: Path) -> IO[str]:
    file = os.fdopen(os.open(state / LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _read(state)
            is_alive = other is not None and Path(f"/proc/{other.plane}").exists()
            if is_alive or time.monotonic() > deadline:
                file.close()
                who = f"another plane (pid {other.plane})" if other else "another plane"
                raise LocalPlaneError(
                    f"{who} is using {state}; end it with `modalkit local down --state {state}`, "
                    "or give each its own state directory"
                ) from None
            time.sleep(POLL_S)
        else:
            return file


def _read(state: Path) -> Holder | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads((state / LOCK).read_text()))
    return None


def _remove_own(path: Path) -> None:
    """Remove a plane's directory that is ours; what is another user's is left alone."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if is_ours and path.name.startswith("mk-"):
            shutil.rmtree(path, ignore_errors=True)
