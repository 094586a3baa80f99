"""
The owner's side door: one JSON object per line over a unix socket in the plane's private directory.

What is served here is the plane's own interface (`LocalPlane`), not Modal's.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import attrs
from modal_proto import api_pb2

from modalkit.errors import LocalPlaneError, ModalkitError, UnknownContainerError, UsageError
from modalkit.local import gpus
from modalkit.local.faults import Fault
from modalkit.local.features import feature
from modalkit.local.reports import ContainerInfo
from modalkit.local.services import HANDLERS
from modalkit.local.state import Container
from modalkit.local.wire import RPCS

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.faults import FaultTable
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.transcript import Transcript
    from modalkit.local.volumes import Volume

ABOUT_A_VOLUME = frozenset(
    name
    for name, rpc in api_pb2.DESCRIPTOR.services_by_name["ModalClient"].methods_by_name.items()
    if "volume_id" in rpc.input_type.fields_by_name
)


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
        gpu=gpus.requested(container.function),
        gpus=list(container.gpus),
    )


class Control:
    """Answers the owner of the plane, one short operation at a time; he does the waiting."""

    def __init__(
        self, plane: Plane, scheduler: Scheduler, faults: FaultTable, transcript: Transcript
    ) -> None:
        self._plane = plane
        self._scheduler = scheduler
        self._faults = faults
        self._transcript = transcript
        self._frozen: set[str] = set()
        self._operations: dict[str, Callable[..., Any]] = {
            "containers": self._containers,
            "preempt": self._preempt,
            "kill": self._kill,
            "logs": self._logs,
            "images": self._images,
            "volume": self._volume,
            "transcript": self._rpcs,
            "time": plane.clock.time,
            "advance": self._advance,
            "plant_fault": self._plant_fault,
            "fault_strikes": faults.strikes,
            "remove_fault": faults.remove,
            "clear_faults": self._clear_faults,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "uncommitted": self._uncommitted,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until it ends."""
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # it is gone, or sends a line without an end
            return
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            result = self._operations[request.pop("op")](**request)
            return {"result": await result if inspect.isawaitable(result) else result}
        except ModalkitError as error:
            return {"error": str(error), "kind": type(error).__name__}
        except (OSError, sqlite3.Error) as error:
            return {"error": f"the local plane cannot do it: {error}", "kind": "LocalPlaneError"}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            return {"error": f"the plane's control socket has no such operation: {error!r}"}

    def _containers(self) -> list[dict[str, Any]]:
        return [attrs.asdict(describe(container)) for container in self._plane.containers.values()]

    def _live(self, container: str) -> Container:
        found = self._plane.containers.get(container)
        if found is None or not found.is_alive:
            raise UnknownContainerError(f"no live container {container!r}")
        return found

    def _preempt(self, container: str, grace_s: float | None) -> None:
        target = self._live(container)
        if target.holds_snapshot:
            raise UnknownContainerError(
                f"{container} holds a snapshot and runs no input to be preempted"
            )
        self._plane.spawn(
            self._scheduler.preempt(
                target, self._plane.config.grace_s if grace_s is None else grace_s
            )
        )

    def _kill(self, container: str) -> None:
        self._scheduler.launcher.send(self._live(container), signal.SIGKILL)

    def _logs(self, since: int) -> list[dict[str, Any]]:
        return [attrs.asdict(line) for line in self._plane.log_lines[since:]]

    def _rpcs(self, since: int) -> list[dict[str, Any]]:
        return [attrs.asdict(rpc) for rpc in self._transcript.page(since)]

    def _advance(self, seconds: float) -> float:
        self._plane.clock.advance(seconds)
        return self._plane.clock.time()

    # ------------------------------------------------------------------ faults

    def _plant_fault(self, **fields: Any) -> int:
        fault = Fault(**fields)
        if problem := self._never(fault):
            raise UsageError(f"this fault could never strike: {problem}")
        return self._faults.plant(fault)

    def _never(self, fault: Fault) -> str | None:
        """Return why *fault* cannot strike; a test with it would pass whatever happens."""
        if fault.rpc not in RPCS:
            near = difflib.get_close_matches(fault.rpc, RPCS) or ["VolumeCommit"]
            return f"modal has no RPC {fault.rpc!r}; is it {' or '.join(near)}?"
        if not any(hasattr(kind, fault.rpc) for kind in HANDLERS):
            return f"the plane does not model {feature(fault.rpc)}, and refuses {fault.rpc}"
        if fault.volume is not None and fault.rpc not in ABOUT_A_VOLUME:
            return f"{fault.rpc} is about no Volume; leave volume={fault.volume!r} away"
        if fault.caller in (None, "client", "container"):
            return None
        found = self._plane.containers.get(fault.caller)
        if found is None or not found.is_alive:
            return f"no caller {fault.caller!r}: take client, container or a live container's id"
        return None

    def _clear_faults(self) -> None:
        self._faults.remove(None)
        for container in list(self._frozen):
            self._thaw(container)

    def _freeze(self, container: str) -> None:
        target = self._live(container)
        self._frozen.add(container)
        stopped: set[int] = set()
        # What is not stopped yet may start more processes meanwhile.
        while new := set(target.pids()) - stopped:
            _send(new, signal.SIGSTOP)
            stopped |= new

    def _thaw(self, container: str) -> None:
        self._frozen.discard(container)
        found = self._plane.containers.get(container)
        if found is not None and found.is_alive:
            _send(found.pids(), signal.SIGCONT)

    async def _images(self) -> list[dict[str, Any]]:
        launcher = self._scheduler.launcher
        await asyncio.to_thread(launcher.machine.learn)
        return [attrs.asdict(image) for image in launcher.images.describe()]

    def _volume(self, name: str) -> str:
        return str(self._named(name).committed)

    async def _uncommitted(self, volume: str) -> dict[str, list[str]]:
        id = self._named(volume).id  # noqa: A001 - the field's own name
        views = {
            container.id: container.views[id]
            for container in self._plane.containers.values()
            if container.is_alive and id in container.views
        }
        return {
            container: await asyncio.to_thread(view.uncommitted)
            for container, view in views.items()
        }

    def _named(self, name: str) -> Volume:
        try:
            return self._plane.volumes.get_or_create(name, 0, create=False)
        except (KeyError, ValueError) as error:
            raise LocalPlaneError(
                f"no Volume {name!r}; there are {self._plane.volumes.names()}"
            ) from error


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
