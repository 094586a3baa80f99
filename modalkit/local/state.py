"""
What the plane knows: apps, functions, calls, inputs and containers, and how they may change.

Pure: no clock, no process, no socket; each thing has a `Pulse` that wakes who waits for it.
Rule 1: a container changes state by `Container.on(event)` and the table below; the rest raises.
Rule 2: what becomes of an input when an attempt ends is decided by `after_output` and `after_loss`.
Rule 3: an input has one owner at most, and only its owner's output counts.
"""

from __future__ import annotations

import enum
import itertools
import secrets
import string
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs
from modal_proto import api_pb2

from modalkit.local.clock import Pulse, Timer
from modalkit.local.processes import descendants

if TYPE_CHECKING:
    from pathlib import Path

    from modalkit.local.fork_template import ForkTemplate
    from modalkit.local.switches import Switches
    from modalkit.local.views import View

_counter = itertools.count(1)
_generation = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(6))

MAX_LOSSES = 8
"""Containers that an input may lose before its call fails; modal's `MAX_INTERNAL_FAILURE_COUNT`."""
MAX_STRAY_INTERRUPTS = 100
"""Interrupts that nobody sent, after which a call fails: an attempt that always raises one ends."""
MAX_STARTS_FAILED = 3
"""Containers in a row that may die before they take an input; Modal's limit is not public."""
MAX_CRASH_DELAY_S = 60.0
"""The longest pause between the starts of a deployed function that only crashes."""
MAX_RETRY_DELAY_S = 60.0
"""Modal's cap on `Retries.max_delay`."""


def new_id(prefix: str) -> str:
    """Return a new identifier such as `ta-3f9a1c000017`, unique over restarts of the plane."""
    return f"{prefix}-{_generation}{next(_counter):06d}"


class State(enum.Enum):
    """Where a container stands."""

    BOOTING = "booting"
    TEMPLATE = "template"  # holds a snapshot; takes no input
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"  # finishes what it has, takes nothing new
    EXITED = "exited"


class Event(enum.Enum):
    """What can happen to a container."""

    ASKED = "asked for input"
    SNAPSHOT = "became a snapshot"
    ASSIGNED = "was given an input"
    EMPTIED = "has no input left"
    DRAINED = "is to take no more"
    EXITED = "exited"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.BOOTING, Event.ASKED): State.IDLE,
    (State.BOOTING, Event.SNAPSHOT): State.TEMPLATE,
    (State.IDLE, Event.ASSIGNED): State.BUSY,
    (State.BUSY, Event.ASKED): State.BUSY,
    (State.BUSY, Event.ASSIGNED): State.BUSY,
    (State.BUSY, Event.EMPTIED): State.IDLE,
    (State.IDLE, Event.ASKED): State.IDLE,
    (State.DRAINING, Event.ASKED): State.DRAINING,
    (State.DRAINING, Event.EMPTIED): State.DRAINING,
    **{
        (state, Event.DRAINED): State.DRAINING
        for state in (State.BOOTING, State.IDLE, State.BUSY, State.DRAINING)
    },
    **{(state, Event.EXITED): State.EXITED for state in State if state is not State.EXITED},
}


class IllegalTransitionError(Exception):
    """Bug: an event that cannot happen in this state; nothing was changed."""


class Status(enum.Enum):
    """Where an input stands."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting for its retry"
    DONE = "done"


@attrs.frozen(eq=False)
class Definition:
    """What a function is in one version of its app."""

    definition: Any  # api_pb2.Function
    metadata: Any  # api_pb2.FunctionHandleMetadata
    gpu_choices: list[Any] = attrs.field(factory=list)
    """The api_pb2.GPUConfig of each, where the app gave a list."""


@attrs.frozen(eq=False)
class Deployment:
    """One version of an app: what it was published with."""

    version: int
    deployed_at: float
    request: Any  # api_pb2.AppPublishRequest
    definitions: dict[str, Definition]
    """What each function was, by tag."""
    pinned: dict[str, str] = attrs.field(factory=dict)
    """Id of the function that keeps running this version, by tag, where somebody asked for it."""

    @property
    def function_ids(self) -> dict[str, str]:
        """Return the ids of the functions that it was published with, by tag."""
        return dict(self.request.function_ids)

    @property
    def class_ids(self) -> dict[str, str]:
        """Return the ids of its classes, by tag."""
        return dict(self.request.class_ids)


@attrs.define(eq=False)
class App:
    """One app: ephemeral (`modal run`) or deployed."""

    id: str
    name: str
    app_state: int
    created_at: float = 0.0
    """Unix seconds, as all times of day here."""
    stopped_at: float = 0.0
    tags: dict[str, str] = attrs.field(factory=dict)
    deployments: list[Deployment] = attrs.field(factory=list)
    """Its versions, the first one first."""
    warnings: dict[str, list[str]] = attrs.field(factory=dict)
    """What will not happen here of what its functions ask for, by function id."""
    function_ids: dict[str, str] = attrs.field(factory=dict)
    class_ids: dict[str, str] = attrs.field(factory=dict)
    logs: list[api_pb2.TaskLogsBatch] = attrs.field(factory=list)
    said: set[str] = attrs.field(factory=set)
    """What the plane itself has said in them."""
    is_published: bool = False
    """Its client has sent all that it consists of."""
    has_own_stream: bool = False
    """Its client has followed its logs from the beginning."""
    open_streams: int = 0
    """Log streams that are being read."""
    is_stopping: bool = False
    is_done: bool = False
    last_seen: float = 0.0
    """Machine's monotonic time of the client's last sign of life."""
    pulse: Pulse = attrs.field(factory=Pulse)
    """Beats at each log line and change of state."""


@attrs.define(eq=False)
class Function:
    """One function, or one parametrised or re-configured variant of it."""

    id: str
    app: App
    definition: Any  # api_pb2.Function
    metadata: Any  # api_pb2.FunctionHandleMetadata
    base: Function | None = None
    pinned_to: Deployment | None = None
    """The version that it keeps running, whatever is deployed later."""
    parameters: bytes = b""
    options: Any = None  # api_pb2.FunctionOptions
    gpu_choices: list[Any] = attrs.field(factory=list)
    """The api_pb2.GPUConfig of each, where the app gave a list."""
    pending: deque[Input] = attrs.field(factory=deque)
    containers: list[Container] = attrs.field(factory=list)
    starts_failed: int = 0
    """Containers in a row that ended before they took an input."""
    pause: Timer | None = None
    """While it crashes only: due when the next container starts."""
    version: int = 0
    coming: Function | None = None
    """What it is to be once the deploy that is going on is published."""
    snapshot_makers: list[Container] = attrs.field(factory=list)
    """The containers that are making a snapshot of this version, or hold one."""
    snapshots_wanted: int = 1
    can_fork: bool = True
    has_snapshot: bool = False
    """A snapshot of this version has been begun."""
    restore_has_failed: bool = False
    """The one failure of a restore that the plane was asked for has happened."""
    pulse: Pulse = attrs.field(factory=Pulse)
    """Beats when inputs wait, and when containers come, change state or go."""

    @property
    def published(self) -> App | Deployment:
        """Where it finds the other functions by tag: its app, or the version it is pinned to."""
        return (self.base or self).pinned_to or self.app

    @property
    def live(self) -> list[Container]:
        """The containers that take inputs, or will."""
        return [
            c
            for c in self.containers
            if c.state in (State.BOOTING, State.IDLE, State.BUSY) and not c.holds_snapshot
        ]

    @property
    def slots(self) -> int:
        """How many inputs one container takes at a time, and is launched for."""
        d = self.definition
        return int(d.target_concurrent_inputs or d.max_concurrent_inputs or d.batch_max_size or 1)

    def free_slots(self, container: Container) -> int:
        """How many inputs *container* would take now."""
        if self.definition.batch_max_size and container.running:
            return 0  # a batch is done before the next one is begun
        return max(0, self.slots - len(container.running))

    @property
    def running(self) -> int:
        """How many inputs its containers have."""
        return sum(len(container.running) for container in self.containers)

    def busy_containers(self) -> int:
        """How many containers its inputs need, the waiting ones too, and its buffer."""
        inputs = self.running + len(self.pending)
        buffer = int(self.definition.autoscaler_settings.buffer_containers)
        return -(-inputs // self.slots) + buffer if inputs else 0


@attrs.define(eq=False)
class Call:
    """One `.remote()`, `.spawn()` or `.map()`."""

    id: str
    function: Function
    invocation_type: int
    parent_input_id: str = ""
    """The input that made this call, when a container did."""
    is_map: bool = False
    """Its caller takes results one by one, at his own pace."""
    inputs: list[Input] = attrs.field(factory=list)
    outputs: list[Any] = attrs.field(
        factory=list
    )  # api_pb2.FunctionGetOutputsItem, in order of completion
    latest: dict[int, Any] = attrs.field(factory=dict)  # by input index
    data_out: list[Any] = attrs.field(factory=list)  # api_pb2.DataChunk of a generator
    unfinished: int = 0
    """Inputs that have no final output yet."""
    retried_by_client: bool = False
    """The client waits and sends failed inputs again, not the plane."""
    made_at: float = 0.0
    """Time of the plane's monotonic clock."""
    listeners: int = 0
    """Requests for outputs that are being held."""
    last_listened: float = 0.0
    """Machine's monotonic time at which the last of them ended."""
    closed_at: float | None = None
    """Time of the plane's monotonic clock at which its last input was done."""
    pulse: Pulse = attrs.field(factory=Pulse)
    """Beats at each output."""


def is_waited_for(call: Call) -> bool:
    """Tell whether the caller waits for the result: `.remote()` and `.map()`, not `.spawn()`."""
    return call.invocation_type in (
        api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
        api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC_LEGACY,
    )


@attrs.define(eq=False)
class Input:
    """One input of a call."""

    id: str
    call: Call
    index: int
    payload: Any  # api_pb2.FunctionInput
    status: Status = Status.PENDING
    owner: Container | None = None
    """The one container whose output counts."""
    last_owner: Container | None = None
    """The container that had it last; it may still be saving."""
    retries: int = 0
    losses: int = 0
    stray_interrupts: int = 0
    deliveries: int = 0
    awaited: int = 0
    """Requests for outputs of calls that it made, which are being held: it waits for them."""
    timer: Timer | None = None
    """Ends the present attempt when it takes too long."""


@attrs.define(eq=False)
class Container:
    """One process that runs one function's inputs."""

    id: str
    function: Function
    kind: str  # cold | snapshotting | restored
    directory: Path
    launched_at: float
    state: State = State.BOOTING
    running: dict[str, Input] = attrs.field(factory=dict)
    views: dict[str, View] = attrs.field(factory=dict)
    gpus: tuple[str, ...] = ()
    """Those of this machine that it may use."""
    template: ForkTemplate | None = None
    maker: Container | None = None
    """The one whose snapshot this one is restored from."""
    pid: int = 0
    is_preempted: bool = False
    is_timed_out: bool = False
    is_told_to_cancel: bool = False
    """An input of its was cancelled; modal's client may interrupt the whole process for that."""
    left_orderly: bool = False
    """Its program came to its end: with an input unanswered, that was a KeyboardInterrupt."""
    end_cause: str = ""
    """Why the plane killed it, in words."""
    last_heard: float = 0.0
    """Machine's monotonic time of its last sign of life."""
    is_doomed: bool = False
    """It was killed before it had a process."""
    has_asked: bool = False
    """It got through its imports and enter hooks, and asked for an input."""
    idle_since: float = 0.0
    """Monotonic time since which it has had nothing to do, when it has nothing to do."""
    owed: list[tuple[Input, float]] = attrs.field(factory=list)
    """Inputs that it gave up, with the delay in seconds before they run again, once it is gone."""
    holds_snapshot: bool = False
    first_input_at: float | None = None
    exited_at: float | None = None
    returncode: int | None = None
    start_failure: Any = None  # api_pb2.GenericResult
    cancelled: deque[str] = attrs.field(factory=deque)
    """Inputs to be cancelled, which its next heartbeat tells it."""
    last_words: deque[str] = attrs.field(factory=lambda: deque(maxlen=3))
    """The end of its stderr, for the error that its callers get."""
    pulse: Pulse = attrs.field(factory=Pulse)
    """Beats when it changes state, and when an input of its is cancelled."""

    def on(self, event: Event) -> None:
        """Change state by the table, or raise IllegalTransitionError and change nothing."""
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            raise IllegalTransitionError(
                f"container {self.id} is {self.state.value} and cannot be one that {event.value}"
            )
        changed, self.state = self.state is not target, target
        if changed:
            self.pulse.beat()
            self.function.pulse.beat()

    @property
    def has_started(self) -> bool:
        """Whether it is through with its imports and enter hooks."""
        return self.has_asked or self.state is State.TEMPLATE

    @property
    def is_alive(self) -> bool:
        """Whether its process has not been reaped yet."""
        return self.state is not State.EXITED

    def pids(self) -> list[int]:
        """The processes of this container: the main one and all of its descendants."""
        return [self.pid, *descendants(self.pid)] if self.pid else []


# ------------------------------------------------------------------ what becomes of an input


@attrs.frozen
class Requeue:
    """Run it again at once; nothing is counted."""


@attrs.frozen
class Retry:
    """Run it again after *delay_s*; one retry of the user's policy is used."""

    delay_s: float


@attrs.frozen
class Finish:
    """It is done, with what it has, or with another status of api_pb2.GenericResult."""

    status: int | None = None


Verdict = Requeue | Retry | Finish


def retry_delay_s(policy: api_pb2.FunctionRetryPolicy, retries_used: int) -> float:
    """Return the delay in seconds before retry number *retries_used* + 1, capped as Modal's."""
    delay_ms = policy.initial_delay_ms * (policy.backoff_coefficient or 1.0) ** retries_used
    cap_ms = policy.max_delay_ms or MAX_RETRY_DELAY_S * 1000
    return float(min(delay_ms, cap_ms)) / 1000


def after_output(
    item: Input, container: Container, switches: Switches, *, failed: bool, terminated: bool
) -> Verdict:
    """
    Decide what an attempt's own output means.

    Args:
        item: The input.
        container: The container that sent the output; it owns the input.
        switches: How to read what is unknown about Modal.
        failed: The output is an exception or a timeout.
        terminated: The output says "cancelled": what an async method reports under SIGINT.
    """
    if container.is_preempted and (failed or terminated):
        # The interrupt in other clothes: an async method is cancelled, a framework leaves by
        # SystemExit. What Modal makes of it is unknown.
        if switches.preempted_output == "requeued":
            return Requeue()
        if switches.preempted_output == "final":
            return _finish_for_good(item)
        if item.call.retried_by_client:
            return Finish(api_pb2.GenericResult.GENERIC_STATUS_FAILURE)  # which it retries
        failed = True
    if terminated and (container.is_timed_out or container.is_told_to_cancel):
        return Requeue()  # another input was meant, and modal's client cancels all that it has
    policy = item.call.function.definition.retry_policy
    if failed and item.retries < policy.retries and not item.call.retried_by_client:
        return Retry(retry_delay_s(policy, item.retries))
    return Finish()


def _finish_for_good(item: Input) -> Finish:
    """Return the end that no retry follows, not even one by a client that retries by itself."""
    is_retried = item.call.retried_by_client
    return Finish(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED if is_retried else None)


def after_loss(item: Input, container: Container, switches: Switches) -> Verdict:
    """
    Decide what the end of a container without an output means.

    Args:
        item: The input that it had.
        container: The container that is gone. One that was preempted, or interrupted because
            another of its inputs was cancelled or ran out of time, costs nothing.
        switches: How to read what is unknown about Modal.
    """
    if container.start_failure is not None or item.call.function.app.is_stopping:
        return Finish()
    was_interrupted = container.is_told_to_cancel and container.left_orderly
    if container.is_preempted or container.is_timed_out or was_interrupted:
        return Requeue()
    if container.left_orderly and switches.stray_interrupt != "counted":
        item.stray_interrupts += 1
        goes_on = item.stray_interrupts <= MAX_STRAY_INTERRUPTS
        is_free = switches.stray_interrupt == "requeued" and goes_on
        return Requeue() if is_free else _finish_for_good(item)
    item.losses += 1
    if item.losses <= MAX_LOSSES:
        return Requeue()
    # A client that is refused a retry ends the whole map; of a single call it says what happened.
    return _finish_for_good(item) if item.call.is_map else Finish()
