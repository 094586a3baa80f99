"""
Who runs what: inputs are queued, containers are asked for, results are recorded, apps are stopped.

Decisions come from `state`; effects (processes, signals) go through the `Launcher`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modalkit.errors import PrivateMountsError, SnapshotGoneError
from modalkit.local import state
from modalkit.local.core import default_max_containers
from modalkit.local.outcomes import Outcome, start_failure, stopped
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

    # ------------------------------------------------------------------ inputs in

    def add_input(self, call: Call, index: int, payload: api_pb2.FunctionInput) -> Input:
        """Accept one input of *call* and queue it."""
        item = Input(new_id("in"), call, index, payload)
        self.plane.inputs[item.id] = item
        call.inputs.append(item)
        call.unfinished += 1
        self.enqueue(item)
        return item

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
        self.scale(item.call.function)

    async def take(self, container: Container, most: int) -> list[Input] | None:
        """Return up to *most* inputs for *container*, or None when it shall end."""
        function = container.function
        container.on(Event.ASKED)
        container.has_asked = True
        container.function.starts_failed = 0
        clock = self.plane.clock
        window_s = function.definition.autoscaler_settings.scaledown_window or DEFAULT_SCALEDOWN_S
        idle_until = clock.monotonic() + window_s
        while container.state is not State.DRAINING:
            if function.app.is_stopping:
                container.on(Event.DRAINED)
            elif function.pending:
                return self._assign(container, most)
            elif container.running or not self._is_spare(function):
                await clock.wait(function.pulse, window_s)
            elif (left_s := idle_until - clock.monotonic()) > 0:
                await clock.wait(function.pulse, left_s)
            else:
                container.on(Event.DRAINED)
        return None

    def _is_spare(self, function: Function) -> bool:
        return len(function.live) > self._warm_containers(function)

    def _assign(self, container: Container, most: int) -> list[Input]:
        taken: list[Input] = []
        pending = container.function.pending
        while pending and len(taken) < most:
            if taken and pending[0].payload.method_name != taken[0].payload.method_name:
                break
            item = pending.popleft()
            item.status, item.owner = Status.RUNNING, container
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
        result = Result(
            status=Result.GENERIC_STATUS_TIMEOUT,
            exception=f"Task's current input hit its timeout of {limit_s}s",
        )
        container.is_timed_out = True
        self.drain(container)
        self.record(item, container, Outcome(result))
        await self.launcher.interrupt_then_kill(container, LAST_WORDS_S)

    # ------------------------------------------------------------------ results out

    def record(self, item: Input, container: Container, outcome: Outcome) -> None:
        """Take one output of an attempt; an attempt that lost its input is not heard."""
        container.running.pop(item.id, None)
        if item.owner is container and item.timer is not None:
            item.timer.cancel()
        if container.state is State.BUSY and not container.running:
            container.on(Event.EMPTIED)
            if container.function.definition.single_use_containers:
                container.on(Event.DRAINED)
        if item.owner is container:
            status = outcome.result.status
            verdict = state.after_output(
                item,
                container,
                failed=status in (Result.GENERIC_STATUS_FAILURE, Result.GENERIC_STATUS_TIMEOUT),
                terminated=status == Result.GENERIC_STATUS_TERMINATED,
            )
            self._carry_out(verdict, item, container, outcome)

    def _carry_out(
        self, verdict: state.Verdict, item: Input, container: Container, outcome: Outcome
    ) -> None:
        match verdict:
            case state.Requeue():
                self._run_again(item, container, 0.0)
            case state.Retry(delay_s):
                item.retries += 1
                self._run_again(item, container, delay_s)
            case state.Finish():
                self.finish(item, outcome, container)

    def _run_again(self, item: Input, container: Container, delay_s: float) -> None:
        item.status, item.owner = Status.WAITING, None
        if container.is_alive and (container.is_preempted or container.is_timed_out):
            # It may still be saving: the next attempt must find what it saved.
            container.owed.append((item, delay_s))
        else:
            self.plane.spawn(self._enqueue_later(item, delay_s))

    async def _enqueue_later(self, item: Input, delay_s: float) -> None:
        if delay_s:
            await self.plane.clock.sleep(delay_s)
        if item.status is Status.WAITING:
            self.enqueue(item)

    def finish(self, item: Input, outcome: Outcome, container: Container | None = None) -> None:
        """Close *item* with *outcome*."""
        if item.status is Status.DONE:
            return
        item.status, item.owner = Status.DONE, None
        # `.map()` drops an output whose retry_count is not its own; retries here are the plane's.
        output = api_pb2.FunctionGetOutputsItem(
            result=outcome.result,
            idx=item.index,
            input_id=item.id,
            data_format=outcome.data_format,  # type: ignore[arg-type]
            task_id=container.id if container else "",
            input_started_at=outcome.started_at,
            output_created_at=outcome.created_at,
            retry_count=0,
        )
        item.call.latest[item.index] = output
        item.call.outputs.append(output)
        item.call.unfinished -= 1
        item.call.pulse.beat()

    def fail_pending(self, function: Function, result: Result) -> None:
        """Fail everything that waits for *function*."""
        while function.pending:
            self.finish(function.pending.popleft(), Outcome(result))

    def cancel(self, call: Call, *, kill_containers: bool) -> None:
        """Cancel what is unfinished of *call*."""
        result = Result(
            status=Result.GENERIC_STATUS_TERMINATED, exception="Function call was cancelled"
        )
        for item in call.inputs:
            owner = item.owner
            if item.status is Status.DONE:
                continue
            with contextlib.suppress(ValueError):
                call.function.pending.remove(item)
            self.finish(item, Outcome(result), owner)
            if owner is not None and owner.is_alive:
                owner.cancelled.append(item.id)
                owner.pulse.beat()
                if kill_containers:
                    self.launcher.send(owner, signal.SIGINT)

    # ------------------------------------------------------------------ containers

    def scale(self, function: Function) -> None:
        """Launch what is needed for the inputs that wait."""
        if function.app.is_stopping or self.plane.is_closing:
            return
        definition, live = function.definition, function.live
        settings = definition.autoscaler_settings
        # Limits are locks to their users: what saves its last words still counts.
        leaving = sum(
            c.is_alive and (c.is_preempted or c.is_timed_out) for c in function.containers
        )
        per = max(
            1,
            definition.target_concurrent_inputs
            or definition.max_concurrent_inputs
            or definition.batch_max_size,
        )
        free = sum(max(0, per - len(container.running)) for container in live)
        most = (settings.max_containers or default_max_containers()) - leaving
        missing = -(-(len(function.pending) - free) // per)
        wanted = max(missing, self._warm_containers(function) - len(live))
        for _ in range(min(wanted, most - len(live))):
            if not self._launch_one(function):
                return

    def _warm_containers(self, function: Function) -> int:
        is_published = function.id in function.app.function_ids.values()
        if function.starts_failed >= state.MAX_STARTS_FAILED:
            return 0  # it would fail again, without end
        return int(function.definition.autoscaler_settings.min_containers) if is_published else 0

    def _launch_one(self, function: Function) -> bool:
        """Launch one container, or return False when a snapshot has to be ready first."""
        kind = "cold"
        if self.plane.takes_snapshots(function):
            maker = function.snapshot_maker
            forks = self.plane.config.engine == "fork" and function.can_fork
            if forks and maker is not None and not _can_restore(maker):
                return False
            kind = "restored" if forks and maker is not None else "snapshotting"
        container = self.launcher.new_container(function, kind)
        if kind == "snapshotting" and self.plane.config.engine == "fork" and function.can_fork:
            container.holds_snapshot = True
            function.snapshot_maker = container
        self.plane.spawn(self._run(container))
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

    def _bury(self, container: Container) -> None:
        function = container.function
        was_wanted = container.state is not State.DRAINING
        if container.is_alive:
            container.on(Event.EXITED)
        container.exited_at = self.plane.clock.time()
        function.containers.remove(container)
        if function.snapshot_maker is container:
            function.snapshot_maker = None
        lost, container.running = list(container.running.values()), {}
        for item in lost:
            if item.owner is container:
                self._lose(item, container)
        for item, delay_s in container.owed:
            self.plane.spawn(self._enqueue_later(item, delay_s))
        if was_wanted and not container.has_asked:
            self._count_failed_start(container)
        function.pulse.beat()
        self.scale(function)

    def _lose(self, item: Input, container: Container) -> None:
        verdict = state.after_loss(item, container)
        item.losses += 0 if container.is_preempted else 1
        result = container.start_failure or Result(
            status=Result.GENERIC_STATUS_INTERNAL_FAILURE,
            exception=f"container {container.id} ended with code {container.returncode} "
            "while it had this input",
        )
        self._carry_out(verdict, item, container, Outcome(result))

    def _count_failed_start(self, container: Container) -> None:
        """Fail the waiting calls when containers end before they take an input."""
        function = container.function
        if container.returncode is None and container.start_failure is None:
            return  # it never had a process: its snapshot went away
        function.starts_failed += 1
        if container.start_failure is not None:
            self.fail_pending(function, container.start_failure)
        elif function.starts_failed >= state.MAX_STARTS_FAILED:
            text = (
                f"{function.starts_failed} containers in a row ended before taking an input; "
                f"the last with code {container.returncode}: {' | '.join(container.last_words)}"
            )
            self.fail_pending(function, start_failure(text))

    def drain(self, container: Container) -> None:
        """Give *container* nothing more; it ends when it has finished what it has."""
        if container.state in (State.BOOTING, State.IDLE, State.BUSY):
            container.on(Event.DRAINED)

    async def preempt(self, container: Container, grace_s: float) -> None:
        """Interrupt, wait, kill; the same input goes to a new container, no retry is used."""
        container.is_preempted = True
        self.drain(container)
        await self.launcher.interrupt_then_kill(container, grace_s)

    def retire(self, function: Function) -> None:
        """Let the containers and the snapshot of an old version go; `scale` starts the new."""
        for container in list(function.containers):
            if not container.holds_snapshot:
                self.drain(container)
        maker, function.snapshot_maker = function.snapshot_maker, None
        if maker is not None:
            self.plane.spawn(self._close_when_childless(maker))
        function.can_fork = True
        function.starts_failed = 0

    async def _close_when_childless(self, maker: Container) -> None:
        await self._childless(maker)
        self.launcher.close_template(maker)

    async def _childless(self, maker: Container) -> None:
        function = maker.function
        await self.plane.clock.wait_until(
            function.pulse,
            lambda: all(
                c is maker or c.template is not maker.template for c in function.containers
            ),
        )

    # ------------------------------------------------------------------ apps

    async def stop_app(self, app: App) -> None:
        """Stop *app*: its inputs fail, its containers end."""
        if app.is_stopping:
            return
        app.is_stopping = True
        containers = [
            c for c in self.plane.containers.values() if c.function.app is app and c.is_alive
        ]
        for item in list(self.plane.inputs.values()):
            if item.call.function.app is app and item.status in (Status.PENDING, Status.WAITING):
                self.finish(item, Outcome(stopped()))
        for function in self.plane.functions.values():
            if function.app is app:
                function.pending.clear()
        for container in containers:
            if container.state is State.BOOTING and not container.holds_snapshot:
                self.launcher.send(
                    container, signal.SIGKILL
                )  # nothing of the user's is running in it yet
            self.drain(container)
        await asyncio.gather(*(self._stop_container(c) for c in containers))
        app.app_state = api_pb2.APP_STATE_STOPPED
        app.is_done = True
        self.plane.emit(app, app_done=True)

    async def _stop_container(self, container: Container) -> None:
        if container.holds_snapshot:
            await self._childless(container)
            self.launcher.close_template(container)
            await self.launcher.wait_exit(container, STOP_GRACE_S)
            return
        if container.running:
            await self.launcher.interrupt_then_kill(container, self.plane.config.grace_s)
        elif not await self.launcher.wait_exit(container, STOP_GRACE_S):
            self.launcher.send(container, signal.SIGKILL)


def _can_restore(maker: Container) -> bool:
    return maker.state is State.TEMPLATE and maker.template is not None and maker.template.is_ready
