"""
Quick starts, container side: a process that has imported modal and forks a container per order.

A container that is forked has what a new interpreter has after the same imports, but for the seed
of its hashes, which all of one plane share. Where the order shows that something would differ, a
new interpreter takes the fork's place.

Its orders have, beside the keys of all, `env`, `spec`, the path of what boot.py reads, and `names`,
those of all files and directories that the container has of its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

from . import boot
from .forking import Control, serve

READ_AT_START: Final = re.compile(
    r"PYTHON(?!PATH$).*|LD_.*|GLIBC_.*|MALLOC_.*|TZ|LANG|LC_.*|HOME|OPENSSL_.*|SSL_.*|PROTOCOL_.*"
    r"|MODAL_(LOG|PROFILE|CONFIG|TELEMETRY).*"
)
"""Variables that are read once, when the interpreter starts or modal is imported."""


def wait(socket_path: str, parent: int) -> dict[str, Any]:
    """
    Fork a container for each order of the plane. Returns in the containers only.

    Args:
        socket_path: Where the plane's `ForkTemplate` listens.
        parent: Pid of the plane.

    Returns:
        What boot.py is to do.
    """
    boot.die_with_parent(parent)
    control = Control(socket_path)
    modal = importlib.import_module("modal")
    importlib.import_module(boot.ENTRYPOINT)
    # It is to be run as a program, and that complains about one that is imported already.
    del sys.modules[boot.ENTRYPOINT]
    delattr(modal, boot.ENTRYPOINT.rpartition(".")[2])
    gc.collect()
    gc.freeze()  # what is not touched stays shared
    at_start, zygote = dict(os.environ), os.getpid()
    order = serve(control)
    boot.die_with_parent(zygote)
    path = Path(order["spec"])
    spec: dict[str, Any] = {**json.loads(path.read_text()), "parent": zygote}
    if _would_differ(order, at_start):
        path.write_text(json.dumps(spec))
        program = [sys.executable, boot.__file__, str(path)]
        os.execve(sys.executable, program, order["env"])  # noqa: S606 - no shell is wanted
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[1:1] = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    importlib.invalidate_caches()
    return spec


def _would_differ(order: dict[str, Any], at_start: dict[str, str]) -> bool:
    """Tell whether a new interpreter would not be as this one is, with the order's environment."""
    env = order["env"]
    changed = {name for name in {**at_start, **env} if at_start.get(name) != env.get(name)}
    imported = {name.partition(".")[0] for name in sys.modules} - {"__main__"}
    imported |= {"sitecustomize", "usercustomize"}
    return any(map(READ_AT_START.fullmatch, changed)) or bool(imported & set(order["names"]))
