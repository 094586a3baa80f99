"""
The plane's process, and the warden that outlives it.

`python -m modalkit.local.server` reads its configuration as one JSON line from stdin, answers with
one line when it serves, and ends when stdin does: its owner is gone then, however it died. A plane
that stays ends by SIGTERM only. The first process becomes the warden and forks the plane. The
kernel hands orphans of any depth to the warden (PR_SET_CHILD_SUBREAPER), so when the plane ends,
even by SIGKILL, it kills every process that is left and removes the directories. Both hold the
claim on the state directory, so the next plane does not start before that is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from modalkit.errors import LocalPlaneError
from modalkit.local.background_commits import commit_for_ever
from modalkit.local.boot import die_with_parent
from modalkit.local.claim import Claim, Holder
from modalkit.local.processes import descendants, views_directory
from modalkit.local.trees import remove_all

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
LOG_VARIABLE = "MODALKIT_LOCAL_LOG"
"""How much the plane says on stderr: a level of logging."""
SWEEP_S = 10.0
"""How long the warden tries to end what is left, such as a program of another user's."""


def main() -> None:
    """Run the plane under a warden."""
    configuration = json.loads(sys.stdin.readline())
    try:
        claim = _claim(configuration)
    except LocalPlaneError as error:
        _greet({"error": str(error)})
        sys.exit(1)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    warden = os.getpid()
    plane = os.fork()
    if plane == 0:
        die_with_parent(warden)
        _serve(configuration, claim)
        os._exit(0)
    os.close(sys.stdout.fileno())  # the owner reads the plane's end from this pipe
    signal.signal(signal.SIGTERM, lambda *_: os.kill(plane, signal.SIGTERM))
    status = _guard(plane)
    _sweep(configuration)
    if status == 0:
        claim.write(None)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _claim(configuration: dict[str, Any]) -> Claim:
    state = Path(configuration["state"])
    claim = Claim(state)
    if configuration["kept"]:
        claim.renew(Path(configuration["runtime"]), state)
    remove_all(state / ".views")  # left by one that was killed
    return claim


def _guard(plane: int) -> int:
    """Reap orphans until the plane itself ends; return its wait status."""
    while True:
        pid, status = os.wait()
        if pid == plane:
            return status


def _sweep(configuration: dict[str, Any]) -> None:
    """Kill every process that the plane left, and remove what it wrote for itself."""
    deadline = time.monotonic() + SWEEP_S
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)
    views = views_directory(configuration["state"], configuration["runtime"])
    remove_all(views)
    with contextlib.suppress(OSError):
        views.parent.rmdir()
    shutil.rmtree(configuration["runtime"], ignore_errors=True)


def _serve(configuration: dict[str, Any], claim: Claim) -> None:
    logging.basicConfig(level="WARNING", format="[local plane] %(message)s")
    try:
        logging.getLogger("modalkit.local").setLevel(_log_level())
        asyncio.run(_amain(configuration, claim))
    except LocalPlaneError as error:
        _greet({"error": str(error)})


def _log_level() -> str:
    level = os.environ.get(LOG_VARIABLE) or "warning"
    if level.upper() not in logging.getLevelNamesMapping():
        raise LocalPlaneError(
            f"{LOG_VARIABLE}={level!r} is no level of logging: take debug, info, warning or error"
        )
    return level.upper()


def _greet(greeting: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(greeting) + "\n")
    sys.stdout.flush()


async def _amain(configuration: dict[str, Any], claim: Claim) -> None:  # noqa: PLR0915 - its parts
    """Serve until the owner closes our stdin, or SIGTERM."""
    from modal_version import __version__ as modal_version

    from modalkit.local.blobs import start_http
    from modalkit.local.containers import Launcher
    from modalkit.local.control import Control
    from modalkit.local.core import Config, Plane
    from modalkit.local.faults import FaultTable
    from modalkit.local.lifesigns import LifeSigns
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.services import for_client, for_container
    from modalkit.local.serving import Server
    from modalkit.local.transcript import Transcript
    from modalkit.local.wire import Line, servicer

    stays, _ = configuration.pop("stays"), configuration.pop("kept")
    plane = Plane(Config(**configuration), modal_version)
    for directory in (plane.file_store, plane.blob_store, plane.views.parent, plane.views):
        directory.mkdir(mode=0o700, exist_ok=True)
    plane.volumes.root.chmod(0o700)  # the directory of the state may be everybody's to read
    faults = FaultTable(lambda volume_id: plane.volumes.by_id(volume_id).name)
    transcript = Transcript(plane.clock, plane.hidden_values)

    def serve(handlers: list[object], caller: str) -> Any:
        line = Line(caller, plane.clock, transcript, faults)
        return servicer(handlers, modal_version=modal_version, line=line)

    launcher = Launcher(plane, lambda c: serve(for_container(plane, scheduler, c), c.id))
    scheduler = Scheduler(plane, launcher)
    unfinished = plane.keep.restore(plane)
    plane.objects.delete_anonymous(spare=plane.keep.needed(plane))
    http = await start_http(plane)
    clients = Server([serve(for_client(plane, scheduler), "client")])
    await clients.start(path=str(plane.runtime / "plane.sock"))
    control = await asyncio.start_unix_server(
        Control(plane, scheduler, faults, transcript).serve, plane.runtime / "control.sock"
    )
    plane.spawn(LifeSigns(plane, scheduler).watch())
    plane.spawn(commit_for_ever(plane))
    scheduler.resume(unfinished)
    claim.write(Holder(os.getpid(), os.getppid(), str(plane.runtime)))
    report = {"was_killed": claim.left is not None, "apps": len(plane.deployed)}
    _greet({"pid": os.getpid(), **report, "inputs": len(unfinished)})
    await _end(stays=stays)
    plane.is_closing = True
    control.close()
    clients.close()
    plane.volumes.close()
    await http.cleanup()
    plane.keep.close()


async def _end(*, stays: bool) -> None:
    """Return at SIGTERM, or when the owner of a plane that does not stay is gone."""
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    if not stays:
        loop.add_reader(stdin, lambda: None if os.read(stdin, 1 << 12) else end.set())
    await end.wait()


if __name__ == "__main__":
    main()
