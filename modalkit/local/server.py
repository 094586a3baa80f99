"""
The plane's process, and the warden that outlives it.

`python -m modalkit.local.server` reads its configuration as one JSON line from stdin, answers with
one line when it serves, and ends when stdin does: its owner is gone then, however it died. The
first process becomes the warden and forks the plane. The kernel hands orphans of any depth to the
warden (PR_SET_CHILD_SUBREAPER), so when the plane ends, even by SIGKILL, it kills every process
that is left and removes the directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
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
from modalkit.local.boot import die_with_parent
from modalkit.local.processes import descendants, views_directory

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
SWEEP_S = 10.0
"""How long the warden tries to end what is left, such as a program of another user's."""


def main() -> None:
    """Run the plane under a warden."""
    configuration = json.loads(sys.stdin.readline())
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    warden = os.getpid()
    plane = os.fork()
    if plane == 0:
        die_with_parent(warden)
        _serve(configuration)
        os._exit(0)
    os.close(sys.stdout.fileno())  # the owner reads the plane's end from this pipe
    signal.signal(signal.SIGTERM, lambda *_: os.kill(plane, signal.SIGTERM))
    status = _guard(plane)
    _sweep(configuration)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


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
    shutil.rmtree(views, ignore_errors=True)
    with contextlib.suppress(OSError):
        views.parent.rmdir()
    shutil.rmtree(configuration["runtime"], ignore_errors=True)


def _serve(configuration: dict[str, Any]) -> None:
    state = Path(configuration["state"])
    with (state / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _greet({"error": f"another plane is using {state}; give each its own state directory"})
            return
        shutil.rmtree(state / ".views", ignore_errors=True)  # left by one that was killed
        level = os.environ.get("MODALKIT_LOCAL_LOG", "warning").upper()
        logging.basicConfig(level="WARNING", format="[local plane] %(message)s")
        logging.getLogger("modalkit.local").setLevel(level)
        try:
            asyncio.run(_amain(configuration))
        except LocalPlaneError as error:
            _greet({"error": str(error)})


def _greet(greeting: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(greeting) + "\n")
    sys.stdout.flush()


async def _amain(configuration: dict[str, Any]) -> None:
    """Serve until the owner closes our stdin, or SIGTERM."""
    from grpclib.server import Server
    from modal_version import __version__ as modal_version

    from modalkit.local.blobs import start_http
    from modalkit.local.containers import Launcher
    from modalkit.local.control import Control
    from modalkit.local.core import Config, Plane
    from modalkit.local.faults import FaultTable
    from modalkit.local.lifesigns import LifeSigns
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.services import for_client, for_container
    from modalkit.local.transcript import Transcript
    from modalkit.local.wire import Line, servicer

    plane = Plane(Config(**configuration), modal_version)
    plane.objects.delete_anonymous()
    plane.views.parent.mkdir(mode=0o700, exist_ok=True)
    for directory in (plane.file_store, plane.blob_store, plane.views):
        directory.mkdir(parents=True, exist_ok=True)
    faults = FaultTable(lambda volume_id: plane.volumes.by_id(volume_id).name)
    transcript = Transcript(plane.clock, plane.hidden_values)

    def serve(handlers: list[object], caller: str) -> Any:
        line = Line(caller, plane.clock, transcript, faults)
        return servicer(handlers, modal_version=modal_version, line=line)

    launcher = Launcher(plane, lambda c: serve(for_container(plane, scheduler, c), c.id))
    scheduler = Scheduler(plane, launcher)
    http = await start_http(plane)
    clients = Server([serve(for_client(plane, scheduler), "client")])
    await clients.start(path=str(plane.runtime / "plane.sock"))
    control = await asyncio.start_unix_server(
        Control(plane, scheduler, faults, transcript).serve, plane.runtime / "control.sock"
    )
    plane.spawn(LifeSigns(plane, scheduler).watch())
    _greet({"pid": os.getpid()})
    await _owner_gone()
    plane.is_closing = True
    control.close()
    clients.close()
    plane.volumes.close()
    await http.cleanup()


async def _owner_gone() -> None:
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()
    gone = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, gone.set)
    loop.add_reader(stdin, lambda: None if os.read(stdin, 1 << 12) else gone.set())
    await gone.wait()


if __name__ == "__main__":
    main()
