"""
The owner's side door: one JSON object per line over a unix socket in the plane's private directory.

What is served here is the plane's own interface (`LocalPlane`), not Modal's.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from modalkit.local.reports import ContainerInfo
from modalkit.local.state import Container

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler


def describe(container: Container) -> ContainerInfo:
    """Return what `LocalPlane.containers()` shows of *container*."""
    return ContainerInfo(
        id=container.id,
        app=container.function.app.name,
        function=container.function.definition.function_name,
        pid=container.pid,
        kind=container.kind,
        state=container.state.value,
        inputs=sorted(container.running),
        launched_at=container.launched_at,
        first_input_at=container.first_input_at,
        exited_at=container.exited_at,
        returncode=container.returncode,
    )


class Control:
    """Answers the owner of the plane."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler
        self._operations: dict[str, Callable[..., Any]] = {
            "containers": self._containers,
            "preempt": self._preempt,
            "kill": self._kill,
            "logs": self._logs,
            "volume": self._volume,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until it ends."""
        try:
            while line := await reader.readline():
                request = json.loads(line)
                try:
                    reply = {"result": self._operations[request.pop("op")](**request)}
                except LookupError as error:
                    reply = {"error": str(error.args[0])}
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    def _containers(self) -> list[dict[str, Any]]:
        return [attrs.asdict(describe(container)) for container in self._plane.containers.values()]

    def _live(self, container: str) -> Container:
        found = self._plane.containers.get(container)
        if found is None or not found.is_alive:
            raise LookupError(f"no live container {container!r}")
        return found

    def _preempt(self, container: str, grace_s: float | None) -> None:
        target = self._live(container)
        if target.holds_snapshot:
            raise LookupError(f"{container} holds a snapshot and runs no input to be preempted")
        self._plane.spawn(
            self._scheduler.preempt(
                target, self._plane.config.grace_s if grace_s is None else grace_s
            )
        )

    def _kill(self, container: str) -> None:
        self._scheduler.launcher.send(self._live(container), signal.SIGKILL)

    def _logs(self, since: int) -> list[dict[str, Any]]:
        return [attrs.asdict(line) for line in self._plane.log_lines[since:]]

    def _volume(self, name: str) -> str:
        try:
            return str(self._plane.volumes.get_or_create(name, 0, create=False).committed)
        except (KeyError, ValueError) as error:
            raise LookupError(
                f"no Volume {name!r}; there are {self._plane.volumes.names()}"
            ) from error
