"""
Who runs what: inputs are queued and given out, results are recorded, apps are stopped.

Decisions come from `state`, containers from the `Fleet`, effects (processes, signals) go through
the `Launcher`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modalkit.local import state
from modalkit.local.fleet import Fleet
from modalkit.local.outcomes import Outcome, cancelled, stopped
from modalkit.local.state import App, Call, Container, Event, Function, Input, State, Status, new_id

if TYPE_CHECKING:
    from modalkit.local.containers import Launcher
    from modalkit.local.core import Plane

logger = logging.getLogger("modalkit.local")

Result = api_pb2.GenericResult
DEFAULT_TIMEOUT_S = 300
"""Modal's default for `timeout`."""
DEFAULT_SCALEDOWN_S = 60
"""Modal's documented default for `scaledown_window`."""
STOP_GRACE_S = 8.0
"""How long a stopped app's containers may run their exit hooks."""
LAST_WORDS_S = 5.0
"""Between the interrupt and the kill of an input that ran out of time."""


class Scheduler:
    """Moves inputs to containers and results back to calls."""

    def __init__(self, plane: Plane, launcher: Launcher) -> None:
        self.plane = plane
        self.launcher = launcher
        self.fleet = Fleet(
            plane,
            launcher,
            lose=self._lose,
            owed=self._enqueue_later,
            fail=self.fail_pending,
            crash=lambda app: plane.spawn(self.stop_app(app)),
        )

    # ------------------------------------------------------------------ inputs in

    def add_input(self, call: Call, index: int, payload: api_pb2.FunctionInput) -> Input:
        """Accept one input of *call*, which is to be queued when all that come with it are kept."""
        item = Input(new_id("in"), call, index, payload)
        self.plane.keep.accepted(item)
        self.plane.inputs[item.id] = item
        call.inputs.append(item)
        call.unfinished += 1
        call.closed_at = None
        return item

    def resume(self, unfinished: Iterable[Input]) -> None:
        """Go on with what an earlier plane had accepted, and keep warm what it kept warm."""
        for item in unfinished:
            self.enqueue(item)
        for function in list(self.plane.functions.values()):
            self.fleet.scale(function)

    def enqueue(self, item: Input) -> None:
        """Queue *item* for the next container of its function."""
        if item.status is Status.DONE:
            return
        if item.call.function.app.is_stopping:
            self.finish(item, Outcome(stopped()))
            return
        item.status, item.owner = Status.PENDING, None
        item.call.function.pending.append(item)
        item.call.function.pulse.beat()
        self.fleet.scale(item.call.function)

    async def take(self, container: Container, most: int, linger_s: float) -> list[Input] | None:
        """
        Return up to *most* inputs for *container*, or None when it shall end.

        Args:
            container: Who asks.
            most: 1, or the size of a batch.
            linger_s: How long a batch that is not full waits for more.
        """
        function, clock = container.function, self.plane.clock
        if again := self._undelivered(container):
            return again
        container.on(Event.ASKED)
        if not container.has_asked:
            container.has_asked, container.idle_since = True, clock.monotonic()
            container.pulse.beat()
        function.starts_failed = 0
        while container.state is not State.DRAINING:
            settings = function.definition.autoscaler_settings  # may change while this one waits
            window_s = settings.scaledown_window or DEFAULT_SCALEDOWN_S
            if function.app.is_stopping:
                container.on(Event.DRAINED)
            elif function.pending:
                await self._linger(container, most, linger_s)
                if taken := self._assign(container, most):
                    return taken
            elif container.running or not self.fleet.is_spare(function):
                await clock.wait(function.pulse, window_s)
            elif (left_s := container.idle_since + window_s - clock.monotonic()) > 0:
                await clock.wait(function.pulse, left_s)
            else:
                container.on(Event.DRAINED)
        return None

    def _undelivered(self, container: Container) -> list[Input]:
        """Return what a container had been given when it asks again: the reply was lost."""
        if container.function.definition.max_concurrent_inputs > 1:
            return []  # it asks while it works
        return [item for item in container.running.values() if item.owner is container]

    async def _linger(self, container: Container, most: int, linger_s: float) -> None:
        """Wait for a full batch; others may take what waits meanwhile."""
        function = container.function
        await self.plane.clock.wait_until(
            function.pulse,
            lambda: not 0 < len(function.pending) < most or container.state is State.DRAINING,
            linger_s,
        )

    def _assign(self, container: Container, most: int) -> list[Input]:
        taken: list[Input] = []
        pending = container.function.pending
        if container.state is State.DRAINING or container.function.app.is_stopping:
            return []
        while pending and len(taken) < most:
            if taken and pending[0].payload.method_name != taken[0].payload.method_name:
                break
            item = pending.popleft()
            if not container.running:
                container.is_told_to_cancel = False  # whoever was meant is gone
            item.status, item.owner, item.last_owner = Status.RUNNING, container, container
            item.deliveries += 1
            container.running[item.id] = item
            container.on(Event.ASSIGNED)
            container.first_input_at = container.first_input_at or self.plane.clock.time()
            self._limit(item, container)
            taken.append(item)
        return taken

    def _limit(self, item: Input, container: Container) -> None:
        """End this attempt when it outlasts the function's timeout."""
        limit_s = container.function.definition.timeout_secs or DEFAULT_TIMEOUT_S
        delivery = item.deliveries

        def expire() -> None:
            if item.owner is container and item.deliveries == delivery:
                self.plane.spawn(self._time_out(item, container, limit_s))

        item.timer = self.plane.clock.call_later(limit_s, expire)

    async def _time_out(self, item: Input, container: Container, limit_s: int) -> None:
        if item.owner is not container:
            return  # it answered in the meantime
        result = Result(
            status=Result.GENERIC_STATUS_TIMEOUT,
            exception=f"Task's current input hit its timeout of {limit_s}s",
        )
        was_interrupted, container.is_timed_out = container.is_timed_out, True
        self.fleet.drain(container)
        self.record(item, container, Outcome(result))
        if not was_interrupted:  # a second interrupt would strike the last words
            await self.launcher.interrupt_then_kill(container, LAST_WORDS_S)

    def _limit_cancelled(self, item: Input, container: Container) -> None:
        """End a container that goes on with a cancelled input for as long as one may take."""

        def expire() -> None:
            if item.id in container.running and container.is_alive:
                container.is_timed_out = True
                self.fleet.drain(container)
                self.plane.spawn(self.launcher.interrupt_then_kill(container, LAST_WORDS_S))

        limit_s = container.function.definition.timeout_secs or DEFAULT_TIMEOUT_S
        self.plane.clock.call_later(limit_s, expire)

    # ------------------------------------------------------------------ results out

    def record(self, item: Input, container: Container, outcome: Outcome) -> None:
        """Take one output of an attempt; an attempt that lost its input is not heard."""
        container.running.pop(item.id, None)
        if item.owner is container and item.timer is not None:
            item.timer.cancel()
        if container.state is State.BUSY and not container.running:
            container.on(Event.EMPTIED)
            container.idle_since = self.plane.clock.monotonic()
            if container.function.definition.single_use_containers:
                container.on(Event.DRAINED)
        if item.owner is container:
            status = outcome.result.status
            verdict = state.after_output(
                item,
                container,
                self.plane.config.switches,
                failed=status in (Result.GENERIC_STATUS_FAILURE, Result.GENERIC_STATUS_TIMEOUT),
                terminated=status == Result.GENERIC_STATUS_TERMINATED,
            )
            self._carry_out(verdict, item, container, outcome)

    def _carry_out(
        self, verdict: state.Verdict, item: Input, container: Container, outcome: Outcome
    ) -> None:
        match verdict:
            case state.Requeue():
                self._run_again(item, 0.0)
            case state.Retry(delay_s):
                item.retries += 1
                self.plane.keep.retried(item)
                self._run_again(item, delay_s)
            case state.Finish(status):
                if status is not None:
                    outcome.result.status = status  # type: ignore[assignment]
                self.finish(item, outcome, container)

    def _run_again(self, item: Input, delay_s: float) -> None:
        item.status, item.owner = Status.WAITING, None
        last = item.last_owner
        is_leaving = last is not None and last.is_alive and (last.is_preempted or last.is_timed_out)
        if is_leaving and self.plane.config.switches.same_input_twice == "never":
            # It may still be saving: the next attempt must find what it saved.
            assert last is not None
            last.owed.append((item, delay_s))
        else:
            self._enqueue_later(item, delay_s)

    def _enqueue_later(self, item: Input, delay_s: float) -> None:
        self.plane.clock.call_later(delay_s, lambda: self._enqueue_waiting(item))

    def _enqueue_waiting(self, item: Input) -> None:
        if item.status is Status.WAITING:
            self.enqueue(item)

    def _lose(self, item: Input, container: Container) -> None:
        verdict = state.after_loss(item, container, self.plane.config.switches)
        cause = container.end_cause or f"ended with code {container.returncode}"
        result = container.start_failure or Result(
            status=Result.GENERIC_STATUS_INTERNAL_FAILURE,
            exception=f"container {container.id} {cause} while it had this input",
        )
        if item.call.function.app.is_stopping:
            result = stopped()
        self._carry_out(verdict, item, container, Outcome(result))

    def retry(self, item: Input, payload: api_pb2.FunctionInput, count: int) -> None:
        """
        Run a finished input again, as a client asks that waits between retries itself.

        Args:
            item: The input.
            payload: What the client sends this time.
            count: The client's number of this retry; 0 where it does not count.
        """
        item.call.latest.pop(item.index, None)
        item.call.unfinished += 1
        item.payload.CopyFrom(payload)
        item.retries = count or item.retries + 1
        item.call.closed_at = None
        self.plane.keep.accepted(item)
        self._run_again(item, 0.0)

    def finish(self, item: Input, outcome: Outcome, container: Container | None = None) -> None:
        """Close *item* with *outcome*."""
        if item.status is Status.DONE:
            return
        item.status, item.owner = Status.DONE, None
        if item.timer is not None:
            item.timer.cancel()
        call = item.call
        output = api_pb2.FunctionGetOutputsItem(
            result=outcome.result,
            idx=item.index,
            input_id=item.id,
            data_format=outcome.data_format,  # type: ignore[arg-type]
            task_id=container.id if container else "",
            input_started_at=outcome.started_at,
            output_created_at=outcome.created_at,
            # `.map()` drops an output whose count is not its own, and it counts its own retries.
            retry_count=item.retries if call.retried_by_client else 0,
        )
        call.latest[item.index] = output
        call.outputs.append(output)
        call.unfinished -= 1
        if not call.unfinished:
            call.closed_at = self.plane.clock.monotonic()
        self.plane.keep.finished(item, output, self.plane.clock.time())
        call.pulse.beat()

    def fail_pending(self, function: Function, result: Result) -> None:
        """Fail everything that waits for *function*."""
        while function.pending:
            self.finish(function.pending.popleft(), Outcome(result))

    def cancel(self, call: Call, *, kill_containers: bool, result: Result | None = None) -> None:
        """Cancel what is unfinished of *call*."""
        function = call.function
        function.pending = deque(item for item in function.pending if item.call is not call)
        told: set[str] = set()
        for item in call.inputs:
            owner = item.owner
            if item.status is Status.DONE:
                continue
            self.finish(item, Outcome(result or cancelled()), owner)
            if owner is None or not owner.is_alive:
                continue
            owner.cancelled.append(item.id)
            owner.is_told_to_cancel = True
            owner.pulse.beat()
            self._limit_cancelled(item, owner)
            if kill_containers and owner.id not in told:
                told.add(owner.id)
                self.plane.spawn(self.preempt(owner, self.plane.config.grace_s))

    async def preempt(self, container: Container, grace_s: float) -> None:
        """Interrupt, wait, kill; the same inputs go to a new container, no retry is used."""
        container.is_preempted = True
        if self.plane.config.switches.same_input_twice == "briefly":
            for item in list(container.running.values()):
                if item.owner is container:
                    self._run_again(item, 0.0)
        await self.fleet.preempt(container, grace_s)

    # ------------------------------------------------------------------ apps

    async def stop_app(self, app: App) -> None:
        """Stop *app*: its inputs fail, its containers end."""
        if app.is_stopping:
            return
        app.stopped_at = self.plane.clock.time()
        self.plane.keep.changed(app)  # if that fails, the app goes on
        app.is_stopping = True
        containers = self._of(app, lambda c: c.is_alive)
        for item in list(self.plane.inputs.values()):
            if item.call.function.app is app and item.status in (Status.PENDING, Status.WAITING):
                self.finish(item, Outcome(stopped()))
        for function in self.plane.functions.values():
            if function.app is app:
                function.pending.clear()
        for container in containers:
            if container.state is State.BOOTING and not container.holds_snapshot:
                # Nothing of the user's is running in it yet.
                self.launcher.send(container, signal.SIGKILL)
            self.fleet.drain(container)
        await asyncio.gather(*(self._stop_container(c) for c in containers))
        app.app_state = api_pb2.APP_STATE_STOPPED
        app.is_done = True
        self.plane.emit(app, app_done=True)

    async def leave_app(self, app: App) -> None:
        """End what an app's client left: at once, a detached one when its calls are done."""
        if app.app_state == api_pb2.APP_STATE_DETACHED:
            app.app_state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
            while calls := [
                c for c in self.plane.calls.values() if c.function.app is app and c.unfinished
            ]:
                for call in calls:
                    await self.plane.clock.wait_until(call.pulse, lambda c=call: not c.unfinished)  # type: ignore[misc]
            await self.stop_app(app)
        elif app.app_state in (api_pb2.APP_STATE_EPHEMERAL, api_pb2.APP_STATE_INITIALIZING):
            await self.stop_app(app)

    def _of(self, app: App, holds: Callable[[Container], bool]) -> list[Container]:
        return [c for c in self.plane.containers.values() if c.function.app is app and holds(c)]

    async def _stop_container(self, container: Container) -> None:
        if container.holds_snapshot:
            await self.fleet.close_when_childless(container)
            await self.launcher.wait_exit(container, STOP_GRACE_S)
            return
        if container.running:
            await self.launcher.interrupt_then_kill(container, self.plane.config.grace_s)
        elif not await self.launcher.wait_exit(container, STOP_GRACE_S):
            self.launcher.send(container, signal.SIGKILL)
