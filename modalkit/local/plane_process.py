"""The process of a plane, from its owner's side: its directories, start, questions and end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modalkit import errors
from modalkit.errors import PlaneStartError

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 20.0
# A Unix socket's path has 107 bytes at most, and this is our longest one in a TMPDIR.
LONGEST_TMPDIR: Final = 107 - len("/mk-12345678/t/ta-123456789012/plane.sock")


def make_directories(state: Path | None) -> tuple[Path, Path]:
    """
    Make the directory of one plane and, when missing, the one of its Volumes; nobody else reads.

    Returns:
        The plane's own directory and that of its state, which is in it unless *state* is given.

    Raises:
        PlaneStartError: One cannot be made; nothing is left then.
    """
    wanted = state
    try:
        if state is not None:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = Path(tempfile.gettempdir())
        if len(os.fsencode(wanted)) > LONGEST_TMPDIR:
            wanted = Path("/tmp")  # noqa: S108 - mkdtemp makes a private directory in it
        runtime = Path(tempfile.mkdtemp(prefix="mk-", dir=wanted))
    except OSError as error:
        remedy = (
            f"name another state directory, and a TMPDIR of at most {LONGEST_TMPDIR} bytes: a "
            "longer path has no room for Unix sockets"
        )
        raise PlaneStartError(
            f"the local plane cannot make its directory in {wanted}: {error}; {remedy}"
        ) from error
    if state is None:
        state = runtime / "state"
        state.mkdir(mode=0o700)
    return runtime, state


def start(configuration: Mapping[str, Any]) -> subprocess.Popen[str]:
    """Start the process; `greeting` waits until it serves."""
    package = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "modalkit.local.server"],
        env={
            **without_modal(os.environ),
            "PYTHONPATH": _prepend(package, os.environ.get("PYTHONPATH")),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the client; the plane ends with its owner
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once: `greeting` says so
        process.stdin.write(json.dumps(configuration) + "\n")
        process.stdin.flush()
    return process


def greeting(process: subprocess.Popen[str]) -> int:
    """
    Wait until the plane serves.

    Returns:
        Its process id; its parent is *process*.

    Raises:
        PlaneStartError: It does not, with the reason.
    """
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], START_TIMEOUT_S)[0]:
        raise PlaneStartError(
            f"the local plane did not start within {START_TIMEOUT_S:g} s; is the machine "
            "overloaded? See what it said on stderr above"
        )
    line = process.stdout.readline()
    said: dict[str, Any] = (
        json.loads(line) if line else {"error": "see what it said on stderr above"}
    )
    if "error" in said:
        raise PlaneStartError(f"the local plane did not start: {said['error']}")
    pid: int = said["pid"]
    return pid


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
