"""The process of a plane, from its owner's side: its directories, start, questions and end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from modalkit import errors
from modalkit.errors import PlaneStartError
from modalkit.local import claim

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 20.0
LOG = "plane.log"
"""In the state of a plane that stays: what it would have said on stderr."""
PLANE_VARIABLE = "MODALKIT_LOCAL_PLANE"


@attrs.frozen
class Greeting:
    """
    What a plane says once it serves.

    Attributes:
        pid: Its process id; its parent is the warden.
        was_killed: The plane that had this state before did not end in order.
        apps: Deployed apps that it found in its state.
        inputs: Inputs that it found there, accepted and not finished, which it runs again.
    """

    pid: int
    was_killed: bool
    apps: int
    inputs: int


def make_directories(state: Path | None) -> tuple[Path, Path]:
    """
    Make the state directory, when it is missing; without one, a plane's own directory with both.

    Nobody else reads them. The directory of a plane that keeps its state is made by the plane.

    Returns:
        The plane's own directory and that of its state.

    Raises:
        PlaneStartError: One cannot be made; nothing is left then.
    """
    wanted = state
    try:
        if state is not None:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            return claim.runtime_of(state), state
        wanted = claim.short_tmpdir()
        runtime = Path(tempfile.mkdtemp(prefix="mk-", dir=wanted))
        state = runtime / claim.STATE_LINK
        state.mkdir(mode=0o700)
        return runtime, state
    except OSError as error:
        remedy = (
            f"name another state directory, and a TMPDIR of at most {claim.LONGEST_TMPDIR} bytes: "
            "a longer path has no room for Unix sockets"
        )
        raise PlaneStartError(
            f"the local plane cannot make its directory in {wanted}: {error}; {remedy}"
        ) from error


def start(configuration: Mapping[str, Any], log: Path | None = None) -> subprocess.Popen[str]:
    """
    Start the process; `greeting` waits until it serves.

    Args:
        configuration: What it reads from its stdin.
        log: File for what it says on stderr, for a plane that outlives this process.
    """
    package = str(Path(__file__).parents[2])
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    stderr = os.open(log, appended, 0o600) if log else None
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "modalkit.local.server"],
            env={
                **without_modal(os.environ),
                "PYTHONPATH": _prepend(package, os.environ.get("PYTHONPATH")),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the client; the plane ends with its owner
        )
    finally:
        if stderr is not None:
            os.close(stderr)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once: `greeting` says so
        process.stdin.write(json.dumps(configuration) + "\n")
        process.stdin.flush()
    return process


def greeting(process: subprocess.Popen[str], log: Path | None = None) -> Greeting:
    """
    Wait until the plane serves.

    Raises:
        PlaneStartError: It does not, with the reason.
    """
    assert process.stdout is not None
    where = f"in {log}" if log else "on stderr above"
    if not select.select([process.stdout], [], [], START_TIMEOUT_S)[0]:
        raise PlaneStartError(
            f"the local plane did not start within {START_TIMEOUT_S:g} s; is the machine "
            f"overloaded? See what it said {where}"
        )
    line = process.stdout.readline()
    said: dict[str, Any] = json.loads(line) if line else {"error": f"see what it said {where}"}
    if "error" in said:
        raise PlaneStartError(f"the local plane did not start: {said['error']}")
    return Greeting(**said)


def stop(process: subprocess.Popen[str]) -> None:
    """End the plane and its warden; what does not end in time is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(CLOSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def let_go(process: subprocess.Popen[str]) -> None:
    """Close our ends of the pipes of a plane that stays."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()


def default_state() -> Path:
    """Return the state directory of this user's plane that stays, where none is named."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "modalkit" / "plane"


def find(state: Path | None) -> Path | None:
    """
    Return the directory of the plane that is up.

    Args:
        state: That plane's state directory. None for the plane that MODALKIT_LOCAL_PLANE names, or
            the one with the default state.
    """
    named = os.environ.get(PLANE_VARIABLE)
    if state is None and named:
        state = Path(named, claim.STATE_LINK).resolve()
    holder = claim.holder(state or default_state())
    return Path(holder.runtime) if holder else None


def end(runtime: Path) -> None:
    """
    End a plane that stays, and wait until everything of it is gone.

    A plane that does not end in time is killed; its warden cleans up.
    """
    holder = claim.holder((runtime / claim.STATE_LINK).resolve())
    if holder is None:
        return
    with contextlib.suppress(ProcessLookupError):
        warden = os.pidfd_open(holder.warden)
        try:
            os.kill(holder.warden, signal.SIGTERM)
            if not select.select([warden], [], [], CLOSE_TIMEOUT_S)[0]:
                os.kill(holder.plane, signal.SIGKILL)
                select.select([warden], [], [], CLOSE_TIMEOUT_S)
        finally:
            os.close(warden)


def ask(path: Path, operation: str, arguments: Mapping[str, Any]) -> Any:
    """
    Send one request to a plane's control socket and return the result.

    Raises:
        PlaneStartError: It does not answer.
        UsageError: It was asked for something that does not exist.
        LocalPlaneError: It answers that it cannot.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"op": operation, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except OSError as error:
            raise PlaneStartError(
                f"the local plane does not answer any more ({error}); start another one"
            ) from error
    if not line:
        raise PlaneStartError(f"the local plane ended while it was asked for {operation!r}")
    reply = json.loads(line)
    if "error" in reply:
        raise getattr(errors, reply.get("kind", "LocalPlaneError"))(reply["error"])
    return reply["result"]


def without_modal(environment: Mapping[str, str]) -> dict[str, str]:
    """Drop every setting of modal's: tokens and profiles of a real account stay out of reach."""
    return {name: value for name, value in environment.items() if not name.startswith("MODAL_")}


def _prepend(path: str, rest: str | None) -> str:
    return os.pathsep.join([path, rest]) if rest else path
