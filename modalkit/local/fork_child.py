"""
Memory snapshots by fork, container side.

The container that makes the snapshot becomes a template: at the moment of the snapshot it ends
modal's thread, so that only the main thread is left, and waits for orders. For each order it
forks, and the child goes on from there as a container of its own: its own output, environment,
session and Volume views, then modal's own restore.

The template never takes an input. Its orders have, beside the keys of all, `env`, `mounts` as in
boot.py, and `state`, which Modal's restore reads.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import random
import sys
import threading
import traceback
import weakref
from pathlib import Path
from typing import Any, Final

from . import _private, mounts
from .boot import LEFT, die_with_parent
from .forking import Control, Order, flush, serve

OMP_PAUSE_HARD: Final = 2
EXIT_CONFIG: Final = 78  # EX_CONFIG of <sysexits.h>

_is_child = False
_directory = Path()
"""Of a child's own files, on the plane's side of things."""


def install(fork_socket: str) -> None:
    """
    Prepare this process, before modal's entrypoint runs, to become a template.

    Args:
        fork_socket: Where the plane's `ForkTemplate` listens.
    """
    control = Control(fork_socket)
    if lacking := _private.probe():
        control.refuse(lacking)
        return
    start_heartbeats = _private.postpone_heartbeats()
    user_loop = _private.remember_user_loop()

    def take(task_lifecycle_manager: Any) -> None:
        template, template_url = os.getpid(), os.environ["MODAL_SERVER_URL"]
        home = Path(os.environ["MODAL_RESTORE_STATE_PATH"]).parent
        _private.quiesce(task_lifecycle_manager)
        if reason := _refusal(user_loop()):
            control.refuse(reason)
        else:
            generator = random.getstate()
            order = serve(control, _pause_openmp)
            # CPython gives a forked child another stream. A restored snapshot has the same one in
            # every container, on Modal and here.
            random.setstate(generator)
            _become(order, template, home)
            _private.redirect(template_url)
            _private.repair(user_loop())
        _private.restore(task_lifecycle_manager)
        start_heartbeats()

    _private.replace_snapshot(take)


def leave() -> None:
    """
    End a child as the interpreter would, but for what belongs to the template.

    Called while the exception that ends the program, if any, is being handled. Returns at once in
    any other process.
    """
    if not _is_child:
        return
    error = sys.exc_info()[1]
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    else:
        (_directory / LEFT).touch()
    # As the interpreter and multiprocessing's children do: thread pools are told to end, then all
    # threads but daemons are joined. Like there, an interrupt ends the wait.
    with contextlib.suppress(KeyboardInterrupt):
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
    atexit._run_exitfuncs()  # noqa: SLF001
    flush()
    # Not by sys.exit: that would finalize objects which the template and its other children use,
    # temporary directories for one.
    os._exit(code & 0xFF)


def _refusal(loop: Any) -> str | None:
    """Say why this process must not be forked, or None."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised, and cannot be used after a fork"
    with contextlib.suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()).startswith("/dev/nvidia"):
                    return "the GPU driver is in use, and cannot be used after a fork"
    threads = [t for t in threading.enumerate() if t is not threading.main_thread()]
    if named := [thread.name for thread in threads if not thread.daemon]:
        return f"these threads would be missing after a fork: {', '.join(named)}"
    for path in _openmp_libraries():
        if not hasattr(ctypes.CDLL(path), "omp_pause_resource_all"):
            return f"{path} cannot end its threads before a fork; that needs GCC 9's libgomp"
    if not _private.can_repair(loop):
        return f"the event loop is a {type(loop).__name__}, which cannot be repaired after a fork"
    if threads:
        names = ", ".join(thread.name for thread in threads)
        _say(f"background threads are not part of a fork snapshot: {names}")
    return None


def _become(order: Order, template: int, home: Path) -> None:
    """Turn a fresh child of `template`, whose own files are in `home`, into a container."""
    global _is_child, _directory  # noqa: PLW0603 - facts about this process
    _is_child = True
    directory = Path.cwd()
    try:
        os.environ.clear()
        os.environ.update(order["env"])
        if order["mounts"]:
            mounts.enter_again(order["mounts"])
        die_with_parent(template)
        state = Path(os.environ["MODAL_RESTORE_STATE_PATH"])
        state.write_text(json.dumps(order["state"]))
        _directory = state.parent
        # By its path once more: the same path is another directory now, the child's own. Without
        # private mounts each container has another path, and it is led from one to the other.
        if directory.is_relative_to(home):
            directory = state.parent / directory.relative_to(home)
        with contextlib.suppress(FileNotFoundError):
            os.chdir(directory)
    except OSError as error:
        _say(f"a container could not be restored from its snapshot: {error}")
        os._exit(EXIT_CONFIG)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # noqa: SLF001
        finalizer.atexit = False  # the template's temporary directories are not the child's


def _pause_openmp() -> None:
    """
    End libgomp's worker threads, which a child would wait for without end.

    It must be done before every fork. LLVM's and Intel's OpenMP begin anew in a forked child by
    themselves; measured with libomp 14 and libiomp5 2026.2.
    """
    for path in _openmp_libraries():
        ctypes.CDLL(path).omp_pause_resource_all(OMP_PAUSE_HARD)


def _openmp_libraries() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line})


def _say(line: str) -> None:
    print(f"modalkit: {line}", file=sys.stderr, flush=True)  # noqa: T201 - it ends in the app's log
