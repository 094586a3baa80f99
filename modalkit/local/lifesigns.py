"""
Who has gone without a word: clients, callers and containers; and results that nobody will fetch.

Signs of life come from processes, whose clock is the machine's: a plane whose own clock is moved
on does not take them for dead.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

from modal_proto import api_pb2

from modalkit.local.state import App, Call, Container, State, is_waited_for

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler

T = TypeVar("T")

logger = logging.getLogger("modalkit.local")

LOOK_EVERY_S: Final = 5.0
IDLE_CLIENT_S: Final = 60.0
"""Silence after which a client is taken for dead; it sends a heartbeat every 15 s."""
IDLE_CALLER_S: Final = 120.0
"""Modal cancels a `.remote()` "within about two minutes" after its caller disappears."""
IDLE_MAP_S: Final = 3_600.0
"""The same for `.map()`, whose client asks for nothing while its caller works on results."""
CALL_EXPIRES_S: Final = 86_400.0
"""Modal's limit for a call that is waited for."""
RESULTS_KEPT_S: Final = 7 * 86_400.0
"""How long Modal keeps the results of `.spawn()`."""
FETCHED_KEPT_S: Final = 600.0
"""How long a result stays after its caller has it: he may have lost the reply."""


class LifeSigns:
    """Looks around every few seconds."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler
        self._said: set[str] = set()

    async def watch(self) -> None:
        """Look around for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._look(self._look_at_client, self._plane.apps.values())
            self._look(self._look_at_call, self._plane.calls.values())
            alive = [c for c in self._plane.containers.values() if c.is_alive]
            self._look(self._look_at_container, alive)

    def _look(self, at: Callable[[T], None], things: Iterable[T]) -> None:
        """Look at each; trouble with one, over a full disk say, hides none of the others."""
        for thing in list(things):
            try:
                at(thing)
            except Exception as error:
                if str(error) not in self._said:
                    self._said.add(str(error))
                    logger.exception("the plane goes on, but could not look after everything")

    def _look_at_client(self, app: App) -> None:
        if time.monotonic() - app.last_seen > IDLE_CLIENT_S and not app.is_stopping:
            self._plane.spawn(self._scheduler.leave_app(app))

    def _look_at_call(self, call: Call) -> None:
        now, is_sync = self._plane.clock.monotonic(), is_waited_for(call)
        if call.closed_at is not None and not call.unfinished:
            if now - call.closed_at > (FETCHED_KEPT_S if is_sync else RESULTS_KEPT_S):
                self._forget(call)
        elif is_sync and not call.listeners:
            silence_s = time.monotonic() - call.last_listened
            if not call.inputs and silence_s > IDLE_CALLER_S:
                self._forget(call)
            elif silence_s > (IDLE_MAP_S if call.is_map else IDLE_CALLER_S):
                logger.info("call %s: its caller has been silent for %.0f s", call.id, silence_s)
                self._scheduler.cancel(call, kill_containers=False)
        elif is_sync and now - call.made_at > CALL_EXPIRES_S:
            result = api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT,
                exception="a call that is waited for expires after 24 hours; use .spawn()",
            )
            self._scheduler.cancel(call, kill_containers=False, result=result)

    def _forget(self, call: Call) -> None:
        self._plane.keep.forgotten(call)
        del self._plane.calls[call.id]
        if not is_waited_for(call):
            self._plane.expired.add(call.id)
        for item in call.inputs:
            self._plane.inputs.pop(item.id, None)

    def _look_at_container(self, container: Container) -> None:
        if container.state not in (State.IDLE, State.BUSY, State.DRAINING):
            return
        silence_s = time.monotonic() - container.last_heard
        if container.last_heard and silence_s > self._plane.config.heartbeat_timeout_s:
            container.end_cause = f"was killed: it sent no heartbeat for {silence_s:.0f} s"
            self._plane.tell(container.function.app, f"{container.id} {container.end_cause}")
            self._scheduler.launcher.send(container, signal.SIGKILL)
