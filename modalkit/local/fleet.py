"""
How many containers a function has, and what each of them starts from.

The scheduler says what waits; the fleet launches, drains and buries, and hands back what a dead
container had.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modalkit.errors import PrivateMountsError, SnapshotGoneError
from modalkit.local import state
from modalkit.local.core import default_max_containers
from modalkit.local.outcomes import start_failure
from modalkit.local.state import App, Container, Event, Function, Input, State

if TYPE_CHECKING:
    from modalkit.local.containers import Launcher
    from modalkit.local.core import Plane

logger = logging.getLogger("modalkit.local")

SNAPSHOTS = range(2, 7)
"""How many snapshots one version may have, where it has several."""


class Fleet:
    """
    Launches and ends containers.

    Args:
        plane: What is known.
        launcher: Effects on processes.
        lose: Called with each input that a dead container had.
        owed: Called with an input, and the delay in seconds before it runs again, for which a
            dead container was waited.
        fail: Called when everything that waits for a function fails with one result.
        crash: Called when an ephemeral app crashes only.
    """

    def __init__(
        self,
        plane: Plane,
        launcher: Launcher,
        *,
        lose: Callable[[Input, Container], None],
        owed: Callable[[Input, float], None],
        fail: Callable[[Function, api_pb2.GenericResult], None],
        crash: Callable[[App], object],
    ) -> None:
        self.plane = plane
        self.launcher = launcher
        self._lose = lose
        self._owed = owed
        self._fail = fail
        self._crash = crash

    # ------------------------------------------------------------------ how many

    def scale(self, function: Function) -> None:
        """Launch what is needed for the inputs that wait."""
        if function.app.is_stopping or self.plane.is_closing or function.pause is not None:
            return
        live = function.live
        free = sum(function.free_slots(container) for container in live)
        missing = -(-(len(function.pending) - free) // function.slots)
        wanted = max(missing, self._wanted(function) - len(live))
        room = self._room(function)
        for _ in range(min(wanted, room)):
            if not self._launch_one(function):
                return

    def has_room(self, function: Function) -> bool:
        """Tell whether one more container of *function* may be launched."""
        return self._room(function) > 0

    def _room(self, function: Function) -> int:
        taken = len(function.live) + self._leaving(function)
        room = self._most(function) - taken
        if room > 0 or function.definition.autoscaler_settings.max_containers:
            return room
        # The limit is this machine's, not the app's: calls may be nested to any depth.
        return room + self._waiting_for_others(function)

    def _waiting_for_others(self, function: Function) -> int:
        """
        Count the containers of which each input waits for calls that it has made.

        They count only while a call from a container waits for *function*: a caller outside of
        them can wait, and a long `.map()` of inputs that wait needs no process for each.
        """
        waiting = sum(
            bool(c.running) and all(item.awaited for item in c.running.values())
            for c in function.live
        )
        is_owed = waiting and any(item.call.parent_input_id for item in function.pending)
        return waiting if is_owed else 0

    def is_spare(self, function: Function) -> bool:
        """Tell whether one of the idle containers of *function* may go."""
        return len(function.live) > self._wanted(function)

    def _wanted(self, function: Function) -> int:
        is_published = (function.base or function).id in function.app.function_ids.values()
        least = int(function.definition.autoscaler_settings.min_containers) if is_published else 0
        if not function.definition.autoscaler_settings.buffer_containers:
            return least
        return max(least, function.busy_containers())

    def _most(self, function: Function) -> int:
        settings = function.definition.autoscaler_settings
        if settings.max_containers:
            return int(settings.max_containers)
        least = int(settings.min_containers + settings.buffer_containers)
        return max(default_max_containers(), least)

    def _leaving(self, function: Function) -> int:
        """Count those that save their last words: limits are locks to their users."""
        if self.plane.config.switches.same_input_twice == "briefly":
            return 0
        return sum(c.is_alive and (c.is_preempted or c.is_timed_out) for c in function.containers)

    def shrink(self, function: Function) -> None:
        """Let idle containers go that a lower limit no longer allows."""
        idle = [c for c in function.live if c.state is State.IDLE]
        for container in idle[: max(0, len(function.live) - self._most(function))]:
            self.drain(container)

    # ------------------------------------------------------------------ starts

    def _launch_one(self, function: Function) -> bool:
        """Launch one container, or return False when a snapshot has to be ready first."""
        if not self.plane.takes_snapshots(function):
            return self._launch(function, "cold")
        forks = self.plane.config.engine == "fork" and function.can_fork
        ready = [maker for maker in function.snapshot_makers if _can_restore(maker)]
        if self._restore_fails(function, has_snapshot=bool(ready) if forks else None):
            return self._launch(function, "cold")
        if not forks:
            function.has_snapshot = True
            return self._launch(function, "snapshotting")
        if len(ready) == len(function.snapshot_makers) < self._snapshots_wanted(function):
            maker = self.launcher.new_container(function, "snapshotting")
            maker.holds_snapshot = True
            function.snapshot_makers.append(maker)
            function.has_snapshot = True
            self.plane.spawn(self._run(maker))
        if not ready:
            return False
        return self._launch(function, "restored", random.choice(ready))

    def _launch(self, function: Function, kind: str, maker: Container | None = None) -> bool:
        container = self.launcher.new_container(function, kind)
        container.maker = maker
        self.plane.spawn(self._run(container))
        return True

    def _snapshots_wanted(self, function: Function) -> int:
        if self.plane.config.switches.snapshots == "one":
            return 1
        if not function.snapshot_makers:
            function.snapshots_wanted = random.choice(SNAPSHOTS)
        return function.snapshots_wanted

    def _restore_fails(self, function: Function, *, has_snapshot: bool | None) -> bool:
        """Tell whether this restore is the one that fails."""
        if self.plane.config.switches.restore == "works" or function.restore_has_failed:
            return False
        if not (function.has_snapshot if has_snapshot is None else has_snapshot):
            return False
        function.restore_has_failed = True
        name = function.definition.function_name
        self.plane.tell(
            function.app,
            f"restoring a snapshot of {name} failed, as the switch `restore` has it once: "
            "this container starts cold",
        )
        return True

    async def _run(self, container: Container) -> None:
        """Launch *container*, stay with it to its end, and pick up what it leaves."""
        try:
            await self.launcher.run(container, self)
        except SnapshotGoneError as loss:
            logger.info("container %s: %s", container.id, loss)  # the next one makes a new snapshot
        except PrivateMountsError as refusal:
            container.start_failure = start_failure(str(refusal))
        except Exception as error:
            logger.exception("container %s could not be started", container.id)
            container.start_failure = start_failure(f"the local plane could not start it: {error}")
        self._bury(container)
        await asyncio.to_thread(self.launcher.clean_up, container)

    # ------------------------------------------------------------------ ends

    def _bury(self, container: Container) -> None:
        function = container.function
        is_retired = container.holds_snapshot and container not in function.snapshot_makers
        was_wanted = container.state not in (State.DRAINING, State.TEMPLATE) and not is_retired
        if container.is_alive:
            container.on(Event.EXITED)
        container.exited_at = self.plane.clock.time()
        function.containers.remove(container)
        if container in function.snapshot_makers:
            function.snapshot_makers.remove(container)
        lost, container.running = list(container.running.values()), {}
        for item in lost:
            if item.owner is container:
                self._lose(item, container)
        for item, delay_s in container.owed:
            self._owed(item, delay_s)
        if was_wanted and not container.has_asked:
            self._count_failed_start(container)
        function.pulse.beat()
        self.scale(function)

    def _count_failed_start(self, container: Container) -> None:
        """
        Say so, fail the calls, or wait, when containers end before they take an input.

        A failure that says why (an import, a hook, the startup timeout) fails the waiting calls.
        A process that just dies is started again: three times in an ephemeral app, which is then
        stopped; without end, ever more slowly, in a deployed one. As Modal documents it; its
        limits are not public.
        """
        function = container.function
        if container.returncode is None and container.start_failure is None:
            return  # it never had a process: its snapshot went away
        function.starts_failed += 1
        if container.start_failure is not None:
            self._fail(function, container.start_failure)
        failures = function.starts_failed
        text = (
            f"{failures} containers of {function.definition.function_name} in a row ended before "
            f"taking an input; the last with code {container.returncode}: "
            f"{container.end_cause or ' | '.join(container.last_words)}"
        )
        if function.app.app_state == api_pb2.APP_STATE_DEPLOYED:
            if failures > 1:
                self._pause(function, text)
        elif failures >= state.MAX_STARTS_FAILED:
            self._fail(function, start_failure(text))
            self._crash(function.app)

    def _pause(self, function: Function, text: str) -> None:
        delay_s = min(2.0 ** (function.starts_failed - 2), state.MAX_CRASH_DELAY_S)
        self.plane.tell(function.app, f"{text}; the next one starts in {delay_s:g} s")
        if function.pause is not None:
            function.pause.cancel()

        def go_on() -> None:
            function.pause = None
            self.scale(function)

        function.pause = self.plane.clock.call_later(delay_s, go_on)

    def drain(self, container: Container) -> None:
        """Give *container* nothing more; it ends when it has finished what it has."""
        if container.state in (State.BOOTING, State.IDLE, State.BUSY):
            container.on(Event.DRAINED)

    def retire(self, function: Function) -> None:
        """Let the containers and snapshots of an old version go, and start what is needed."""
        for container in list(function.containers):
            if not container.holds_snapshot:
                self.drain(container)
        makers, function.snapshot_makers = function.snapshot_makers, []
        for maker in makers:
            self.plane.spawn(self.close_when_childless(maker))
        function.can_fork, function.has_snapshot, function.restore_has_failed = True, False, False
        function.starts_failed = 0
        if function.pause is not None:
            function.pause.cancel()
            function.pause = None
        self.scale(function)

    async def close_when_childless(self, maker: Container) -> None:
        """End the process that holds a snapshot once nothing runs that was restored from it."""
        function = maker.function
        await self.plane.clock.wait_until(
            function.pulse, lambda: all(c.maker is not maker for c in function.containers)
        )
        self.launcher.close_template(maker)

    async def preempt(self, container: Container, grace_s: float) -> None:
        """Interrupt, wait, kill; what it had runs again, and no retry is used."""
        container.is_preempted = True
        self.drain(container)
        everyone = self.plane.config.switches.interrupt == "group"
        self.launcher.interrupt(container, everyone=everyone)
        if not await self.launcher.wait_exit(container, grace_s):
            self.launcher.send(container, signal.SIGKILL)


def _can_restore(maker: Container) -> bool:
    return maker.state is State.TEMPLATE and maker.template is not None and maker.template.is_ready
