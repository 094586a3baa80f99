"""
The first code of a container's process: `python boot.py SPEC.json`.

Where containers start quickly it is `python boot.py --zygote SOCKET PARENT`, once, which forks one
for every order of the plane.

It makes the process die with the plane, gives it its private mounts, the import guard and the
fork server where they are asked for, and becomes Modal's own container entrypoint.

Started as a script in the container's interpreter, which need not have modalkit: only the
standard library and the siblings of this file, under a private package name, are imported.

The keys of SPEC.json:
    mounts: list of `mounts.Mount`; none, and no namespace is made.
    scratch: a directory for the new root.
    cwd: the working directory and first entry of sys.path.
    guard: null, or the arguments of `guard.install`.
    fork_socket: null, or where a `ForkTemplate` listens.
    parent: pid of the plane, to notice its death before this code ran (default: not checked).
    at_restore: variables to set when this process goes on as the restored one (default: none).
    module: what to run as `__main__` (default: Modal's entrypoint).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ENTRYPOINT: Final = "modal._container_entrypoint"
EXIT_CONFIG: Final = 78  # EX_CONFIG of <sysexits.h>
LEFT: Final = "left-orderly"
"""Made in a container's directory when its program comes to its end by itself."""
PR_SET_PDEATHSIG: Final = 1
ZYGOTE: Final = "--zygote"
PROBE: Final = "--probe"
PROBE_OVERLAY: Final = "--probe-overlay"
PROBE_TIMEOUT_S: Final = 20.0


def mounts_available() -> str | None:
    """
    Try private mounts in a throw-away process.

    Returns:
        None where they work, else the reason and the remedy.
    """
    if sys.platform != "linux":
        return f"private Volume views need Linux namespaces, and this is {sys.platform}"
    with tempfile.TemporaryDirectory(prefix="modalkit-probe-") as scratch:
        return attempt(PROBE, scratch)


def attempt(probe: str, scratch: str) -> str | None:
    """
    Run one of the probes of this file in a process of its own.

    Returns:
        None where it works, else the reason.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__, probe, scratch],
            capture_output=True,
            text=True,
            check=False,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"the trial of private mounts did not end within {PROBE_TIMEOUT_S:.0f} s"
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else None


def main(spec: dict[str, Any]) -> None:
    """Do what the module's docstring says; returns when the container's work is done."""
    die_with_parent(spec.get("parent"))
    if spec["mounts"]:
        _enter_mounts(spec["mounts"], spec["scratch"])
        die_with_parent(spec.get("parent"))  # new credentials may have cleared it
    _default_signals()
    os.chdir(spec["cwd"])
    if sys.path and sys.path[0] == str(Path(__file__).parent):
        sys.path.pop(0)
    sys.path.insert(0, spec["cwd"])
    if spec["guard"]:
        sibling("guard").install(**spec["guard"])
    if spec.get("at_restore"):
        _set_at_restore(spec["at_restore"])
    module = spec.get("module", ENTRYPOINT)
    sys.argv = [module]
    with _fork_server(spec["fork_socket"]):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    Path(spec["scratch"], LEFT).touch()


def die_with_parent(parent: int | None = None) -> None:
    """
    Have the kernel kill this process when its parent ends, however that happens.

    Args:
        parent: Pid of the parent as it was at the start; another one now means it has died.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(EXIT_CONFIG)


def sibling(name: str) -> types.ModuleType:
    """Import a module of this directory under a private package, whatever sys.path holds."""
    package = "_modalkit_local"
    if package not in sys.modules:
        module = types.ModuleType(package)
        module.__path__ = [str(Path(__file__).parent)]
        sys.modules[package] = module
    return importlib.import_module(f"{package}.{name}")


@contextlib.contextmanager
def _fork_server(fork_socket: str | None) -> Iterator[None]:
    if fork_socket is None:
        yield
        return
    fork_child = sibling("fork_child")
    fork_child.install(fork_socket)
    try:
        yield
    finally:
        fork_child.leave()


def _set_at_restore(variables: dict[str, str]) -> None:
    """
    Set variables when modal opens the file that says that the snapshot has been restored.

    On Modal they come with the restored container; it reads the file before any hook runs.
    """
    state = os.environ["MODAL_RESTORE_STATE_PATH"]

    def on_open(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and variables and str(arguments[0]) == state:
            os.environ.update(variables)
            variables.clear()

    sys.addaudithook(on_open)


def _default_signals() -> None:
    # A plane started with & from a script ignores SIGINT, its children inherit that, and then no
    # preemption would ever interrupt anything.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _enter_mounts(wanted: list[Any], scratch: str) -> None:
    mounts = sibling("mounts")
    try:
        mounts.enter(wanted, scratch)
    except OSError as error:
        message = f"modalkit: no private mounts: {error.strerror}; {mounts.remedy()}"
        print(message, file=sys.stderr, flush=True)  # noqa: T201 - the container has no log yet
        os._exit(EXIT_CONFIG)


def _probe(scratch: str) -> None:
    source = Path(scratch, "source")
    source.mkdir()
    target = "/modalkit-probe/target"
    _enter_mounts([{"source": str(source), "target": target, "read_only": False}], scratch)
    Path(target, "file").touch()


def _probe_overlay(scratch: str) -> None:
    """Replace a directory, and remove a file."""
    merged = Path(scratch, "merged")
    mount = {"source": str(merged), "target": "/modalkit-probe/target", "read_only": False}
    _enter_mounts([{**mount, "overlay": scratch}], str(Path(scratch, "other")))
    shown = Path(str(mount["target"]))
    (shown / "replaced").rmdir()
    (shown / "replaced").mkdir()
    (shown / "removed").unlink()


if __name__ == "__main__":
    if sys.argv[1] == PROBE:
        _probe(sys.argv[2])
    elif sys.argv[1] == PROBE_OVERLAY:
        _probe_overlay(sys.argv[2])
    elif sys.argv[1] == ZYGOTE:
        main(sibling("zygote").wait(sys.argv[2], int(sys.argv[3])))
    else:
        main(json.loads(Path(sys.argv[1]).read_text()))
