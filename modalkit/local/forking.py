"""
Processes that fork others by order of the plane, container side.

The plane's end is `fork_template.ForkTemplate`. An order is 4 bytes of length, with the descriptors
of stdout and stderr attached, then JSON; an answer is a line of JSON with a key `op`: ready,
refused, forked, failed or exited. The process ends when the plane closes the connection.

The standard library only: this runs in the container's interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

Order = dict[str, Any]
"""What a child is told: its id as `container`, and what its maker needs."""


class Control:
    """The connection to the plane's `ForkTemplate`."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)

    def send(self, **answer: Any) -> None:
        """Send one answer."""
        self.socket.sendall(json.dumps(answer).encode() + b"\n")

    def refuse(self, reason: str) -> None:
        """Say that this process must not be forked; it goes on by itself."""
        self.send(op="refused", reason=reason)
        self.socket.close()

    def receive(self) -> tuple[Order, list[int]] | None:
        """Wait for an order; None when the plane has closed the connection."""
        flags = socket.MSG_WAITALL
        header, descriptors, _, _ = socket.recv_fds(self.socket, 4, 2, flags)
        if not header:
            return None
        data = self.socket.recv(int.from_bytes(header, "big"), flags)
        return json.loads(data), descriptors


def serve(control: Control, prepare: Callable[[], None] = lambda: None) -> Order:
    """
    Fork a child for every order. Returns in the children only, with their order.

    A child is the first process of a session of its own and has its own output.

    Args:
        control: Where orders come from.
        prepare: Called before every fork.
    """
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: dict[int, tuple[int, str]] = {}  # by a descriptor that is readable at their end
    poll = select.poll()
    poll.register(control.socket, select.POLLIN)
    _report(control, op="ready")
    while True:
        for ready, _ in poll.poll():
            if ready in children:
                poll.unregister(ready)
                os.close(ready)
                pid, name = children.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _report(control, op="exited", container=name, code=code)
                continue
            if (received := control.receive()) is None:
                os._exit(0)
            order, descriptors = received
            forked = _fork(control, order["container"], prepare)
            if forked == 0:
                control.socket.close()
                for child in children:
                    os.close(child)
                signal.signal(signal.SIGINT, on_interrupt)
                _stand_alone(descriptors)
                return order
            for descriptor in descriptors:
                os.close(descriptor)
            if forked is not None:
                handle = os.pidfd_open(forked)
                children[handle] = (forked, order["container"])
                poll.register(handle, select.POLLIN)


def _report(control: Control, **answer: Any) -> None:
    try:
        control.send(**answer)
    except (BrokenPipeError, ConnectionResetError):  # the plane ended a moment ago
        os._exit(0)


def flush() -> None:
    """Write out what is buffered, or parent and child would both do so."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _fork(control: Control, container: str, prepare: Callable[[], None]) -> int | None:
    try:
        prepare()
        flush()
        pid = os.fork()
    except OSError as error:
        _report(control, op="failed", container=container, reason=str(error))
        return None
    if pid:
        _report(control, op="forked", container=container, pid=pid)
    return pid


def _stand_alone(descriptors: list[int]) -> None:
    os.setsid()
    for descriptor, standard in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
