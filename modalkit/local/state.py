"""
What the plane knows: apps, functions, calls, inputs and containers, and how they may change.

Pure: no clock, no process, no socket; each thing has a `Pulse` that wakes who waits for it.
Rule 1: a container changes state by `Container.on(event)` and the table below; the rest raises.
Rule 2: what becomes of an input when an attempt ends is decided by `after_output` and `after_loss`.
"""

from __future__ import annotations

import enum
import itertools
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from modalkit.local.clock import Pulse, Timer
from modalkit.local.processes import descendants

if TYPE_CHECKING:
    from pathlib import Path

    from modal_proto import api_pb2

    from modalkit.local.fork_template import ForkTemplate
    from modalkit.local.volumes import View

_counter = itertools.count(1)
_generation = secrets.token_hex(3)

MAX_LOSSES = 8
"""Containers that an input may lose before its call fails; modal's `MAX_INTERNAL_FAILURE_COUNT`."""
MAX_STARTS_FAILED = 3
"""Containers in a row that may die before they take an input; Modal's limit is not public."""
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


@attrs.define(eq=False)
class App:
    """One app: ephemeral (`modal run`) or deployed."""

    id: str
    name: str
    app_state: int
    function_ids: dict[str, str] = attrs.field(factory=dict)
    class_ids: dict[str, str] = attrs.field(factory=dict)
    logs: list[api_pb2.TaskLogsBatch] = attrs.field(factory=list)
    said: set[str] = attrs.field(factory=set)
    """What the plane itself has said in them."""
    open_streams: int = 0
    """Log streams that are being read."""
    is_stopping: bool = False
    is_done: bool = False
    last_seen: float = 0.0
    """Monotonic time of the client's last sign of life."""
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
    parameters: bytes = b""
    options: Any = None  # api_pb2.FunctionOptions
    pending: deque[Input] = attrs.field(factory=deque)
    containers: list[Container] = attrs.field(factory=list)
    starts_failed: int = 0
    version: int = 0
    snapshot_maker: Container | None = None
    """The container that is making this version's snapshot, or holds it."""
    can_fork: bool = True
    pulse: Pulse = attrs.field(factory=Pulse)
    """Beats when inputs wait, and when containers come, change state or go."""

    @property
    def live(self) -> list[Container]:
        """The containers that take inputs, or will."""
        return [
            c
            for c in self.containers
            if c.state in (State.BOOTING, State.IDLE, State.BUSY) and not c.holds_snapshot
        ]


@attrs.define(eq=False)
class Call:
    """One `.remote()`, `.spawn()` or `.map()`."""

    id: str
    function: Function
    invocation_type: int
    inputs: list[Input] = attrs.field(factory=list)
    outputs: list[Any] = attrs.field(
        factory=list
    )  # api_pb2.FunctionGetOutputsItem, in order of completion
    latest: dict[int, Any] = attrs.field(factory=dict)  # by input index
    data_out: list[Any] = attrs.field(factory=list)  # api_pb2.DataChunk of a generator
    unfinished: int = 0
    """Inputs that have no final output yet."""
    pulse: Pulse = attrs.field(factory=Pulse)
    """Beats at each output."""


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
    retries: int = 0
    losses: int = 0
    deliveries: int = 0
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
    template: ForkTemplate | None = None
    pid: int = 0
    is_preempted: bool = False
    is_timed_out: bool = False
    is_doomed: bool = False
    """It was killed before it had a process."""
    has_asked: bool = False
    """It got through its imports and enter hooks, and asked for an input."""
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
    """It is done, with what it has."""


Verdict = Requeue | Retry | Finish


def retry_delay_s(policy: api_pb2.FunctionRetryPolicy, retries_used: int) -> float:
    """Return the delay in seconds before retry number *retries_used* + 1, capped as Modal's."""
    delay_ms = policy.initial_delay_ms * (policy.backoff_coefficient or 1.0) ** retries_used
    cap_ms = policy.max_delay_ms or MAX_RETRY_DELAY_S * 1000
    return float(min(delay_ms, cap_ms)) / 1000


def after_output(item: Input, container: Container, *, failed: bool, terminated: bool) -> Verdict:
    """
    Decide what an attempt's own output means.

    Args:
        item: The input.
        container: The container that sent the output; it owns the input.
        failed: The output is an exception or a timeout.
        terminated: The output says "cancelled": what an async method reports under SIGINT.
    """
    # What a preempted attempt reports is the interrupt in other clothes: an async method is
    # cancelled, a framework leaves by SystemExit. Unknown on Modal; here it is run again.
    if container.is_preempted and (failed or terminated):
        return Requeue()
    policy = item.call.function.definition.retry_policy
    if failed and item.retries < policy.retries:
        return Retry(retry_delay_s(policy, item.retries))
    return Finish()


def after_loss(item: Input, container: Container) -> Verdict:
    """
    Decide what the end of a container without an output means.

    Args:
        item: The input that it had.
        container: The container that is gone. One that was preempted costs nothing. Any other is
            a loss, also one that ended by a KeyboardInterrupt of its own, without an output and
            with code 0: it runs again, but not for ever.
    """
    if container.start_failure is not None or item.call.function.app.is_stopping:
        return Finish()
    if container.is_preempted:
        return Requeue()
    return Requeue() if item.losses + 1 <= MAX_LOSSES else Finish()
