"""
The plane's connection to a process that forks containers: one that holds a snapshot, or a zygote.

`forking` is the other end and describes the protocol; `fork_child` and `zygote` use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modalkit.errors import ForkRefusedError, LocalPlaneError, SnapshotGoneError


class ForkTemplate:
    """
    A process that forks containers.

    Made by `listen` before the process starts; it connects by itself.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._connection: socket.socket | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pids: dict[str, asyncio.Future[int]] = {}
        self._exits: dict[str, asyncio.Future[int]] = {}
        self._sending = asyncio.Lock()
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def listen(cls, socket_path: Path) -> ForkTemplate:
        """
        Wait for a template's connection.

        Args:
            socket_path: What the container gets as `fork_socket`; at most 107 bytes long.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind(str(socket_path))
        listener.listen(1)
        return cls(listener)

    @property
    def is_ready(self) -> bool:
        """Whether containers can be restored now."""
        return self._ready.done() and self._ready.exception() is None and not self._task.done()

    async def wait_ready(self) -> None:
        """
        Wait until the snapshot is there.

        Raises:
            ForkRefusedError: The process must not be forked, with its reason.
            SnapshotGoneError: It has ended.
        """
        await asyncio.shield(self._ready)

    async def fork(
        self, container_id: str, order: Mapping[str, Any], *, stdout_fd: int, stderr_fd: int
    ) -> int:
        """
        Make a container.

        Args:
            container_id: Its id; unique for this template.
            order: What it is to know; see the process that the template is.
            stdout_fd: Where its output goes; the caller closes its own copy.
            stderr_fd: The same for errors.

        Returns:
            The pid of the new process.

        Raises:
            SnapshotGoneError: The template has ended, or ends meanwhile.
            LocalPlaneError: The template lives and could not fork.
        """
        if not self.is_ready or self._connection is None:
            raise SnapshotGoneError(
                f"{container_id} cannot be restored: its snapshot's process has ended"
            )
        loop = asyncio.get_running_loop()
        self._pids[container_id] = loop.create_future()
        self._exits[container_id] = loop.create_future()
        data = json.dumps({**order, "container": container_id}).encode()
        sending = loop.create_task(self._send(data, [stdout_fd, stderr_fd]))
        sending.add_done_callback(lambda task: task.cancelled() or task.exception())  # read
        try:
            # The end of the template is an answer too, and nobody reads any more.
            waited: set[asyncio.Future[Any]] = {sending, self._pids[container_id]}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            return await self._pids[container_id]
        except OSError as error:
            raise SnapshotGoneError(
                f"{container_id} cannot be restored: its snapshot's process has ended ({error})"
            ) from error
        finally:
            sending.cancel()
            del self._pids[container_id]

    async def _send(self, data: bytes, descriptors: list[int]) -> None:
        """Send one order, as soon as there is room for it."""
        loop = asyncio.get_running_loop()
        async with self._sending:
            connection = self._connection
            assert connection is not None
            while not _send_fds(connection, len(data).to_bytes(4, "big"), descriptors):
                has_room = loop.create_future()
                loop.add_writer(connection.fileno(), has_room.set_result, None)
                try:
                    await has_room
                finally:
                    if connection.fileno() >= 0:  # else `_end` has done it
                        loop.remove_writer(connection.fileno())
            await loop.sock_sendall(connection, data)

    async def wait_exit(self, container_id: str) -> int:
        """
        Wait for the end of a container that `fork` restored.

        Returns:
            Its exit code; the negative number of the signal that killed it.
        """
        try:
            return await asyncio.shield(self._exits[container_id])
        finally:
            if self._exits[container_id].done():
                del self._exits[container_id]

    def close(self) -> None:
        """End the template, and with it every container that it restored."""
        self._task.cancel()
        self._end()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._connection, _ = await loop.sock_accept(self._listener)
            self._connection.setblocking(False)
            rest = b""
            while data := await loop.sock_recv(self._connection, 1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._handle(json.loads(line))
        except OSError:  # the process was killed: the same as an end of the stream
            pass
        finally:
            self._end()

    def _handle(self, answer: dict[str, Any]) -> None:
        match answer["op"]:
            case "ready":
                self._ready.set_result(None)
            case "refused":
                _fail(self._ready, ForkRefusedError(answer["reason"]))
            case "forked":
                self._pids[answer["container"]].set_result(answer["pid"])
            case "failed":
                reason = f"its snapshot could not be forked: {answer['reason']}"
                _fail(self._pids[answer["container"]], LocalPlaneError(reason))
                del self._exits[answer["container"]]
            case "exited":
                self._exits[answer["container"]].set_result(answer["code"])

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        for end in (self._listener, self._connection):
            if end is not None and end.fileno() >= 0:
                loop.remove_reader(end.fileno())  # before the number is another file's
                loop.remove_writer(end.fileno())
                with contextlib.suppress(OSError):
                    end.close()
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._pids.values()]
        for waited in waiting:
            _fail(waited, SnapshotGoneError("the process that holds the snapshot has ended"))
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(-signal.SIGKILL)  # the kernel kills them with their parent


def _send_fds(connection: socket.socket, data: bytes, descriptors: list[int]) -> bool:
    """Send descriptors along, for which asyncio has nothing; return False if there is no room."""
    try:
        socket.send_fds(connection, [data], descriptors)
    except BlockingIOError:
        return False
    return True


def _fail(future: asyncio.Future[Any], error: LocalPlaneError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # read: nobody need wait for it
