"""
Faults: what an owner has go wrong in the RPCs of his plane.

They strike on the wire, before or after the handler, which knows nothing of them: what follows is
the real client's answer to such an error. A client tries again by itself after UNAVAILABLE,
INTERNAL, UNKNOWN, CANCELLED and DEADLINE_EXCEEDED, three times with 0.1 to 1 s in between, and
ninety times in a `commit()`; every other status reaches the app at once, as the exception that
modal has for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from modalkit.errors import UsageError

if TYPE_CHECKING:
    from modalkit.local.plane import RunningPlane

STATUSES: Final = (
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
DISK_FULL: Final = "no space left on device"


@attrs.frozen(kw_only=True)
class Fault:
    """
    One fault: which RPCs it strikes, and how.

    Attributes:
        rpc: Name of the RPC; each try of a client counts as one.
        nth: The first of the matching RPCs that it strikes, from 1 on.
        times: How many it strikes from then on; None for all. One that another fault answers first
            is none of them.
        caller: "client", "container" (any), or the id of one container; None for everybody.
        volume: Name of the Volume that the request is about; None for all.
        status: The gRPC status of the answer; None for a delay only.
        message: The text of the answer.
        delay_s: How long it waits first, in seconds of the plane's clock.
        applied: The RPC is carried out all the same; only its answer is lost.
    """

    rpc: str
    nth: int = 1
    times: int | None = 1
    caller: str | None = None
    volume: str | None = None
    status: str | None = None
    message: str = ""
    delay_s: float = 0.0
    applied: bool = False

    def __attrs_post_init__(self) -> None:
        if self.nth < 1 or (self.times is not None and self.times < 1):
            raise UsageError(f"nth and times count from 1: nth={self.nth}, times={self.times}")
        if not self.delay_s >= 0:
            raise UsageError(f"a delay of {self.delay_s} s is not possible")
        if self.status is not None and self.status not in STATUSES:
            raise UsageError(f"no gRPC status {self.status!r}: take one of {', '.join(STATUSES)}")


@attrs.define(eq=False)
class _Planted:
    number: int
    fault: Fault
    seen: int = 0
    strikes: int = 0

    @property
    def is_due(self) -> bool:
        """Whether it is to strike the RPC that was seen last."""
        times = self.fault.times
        return self.seen >= self.fault.nth and (times is None or self.strikes < times)


class FaultTable:
    """
    The faults of one plane, as its wire sees them.

    Args:
        volume_name: Returns the name of the Volume with an id.
    """

    def __init__(self, volume_name: Callable[[str], str]) -> None:
        self._volume_name = volume_name
        self._planted: dict[int, _Planted] = {}
        self._strikes: dict[int, int] = {}

    def plant(self, fault: Fault) -> int:
        """Have *fault* strike from now on; return its number."""
        number = len(self._strikes)
        self._planted[number] = _Planted(number, fault)
        self._strikes[number] = 0
        return number

    def remove(self, number: int | None) -> None:
        """Take one fault away, or all of them."""
        for found in list(self._planted) if number is None else [number]:
            self._planted.pop(found, None)

    def strikes(self, number: int) -> int:
        """Return how many RPCs a fault has struck, also one that was taken away."""
        return self._strikes[number]

    def strike(self, rpc: str, caller: str, request: Any) -> list[Fault]:
        """
        Return the faults that strike this RPC, and count them.

        One answers, and what would come after its answer strikes another time.
        """
        known = self._planted.values()
        matching = [p for p in known if self._matches(p.fault, rpc, caller, request)]
        for planted in matching:
            planted.seen += 1
        struck = _acting([planted for planted in matching if planted.is_due])
        for planted in struck:
            planted.strikes += 1
            self._strikes[planted.number] += 1
        return [planted.fault for planted in struck]

    def _matches(self, fault: Fault, rpc: str, caller: str, request: Any) -> bool:
        if fault.rpc != rpc or (fault.volume and not self._is_about(fault.volume, request)):
            return False
        if fault.caller == "container":
            return caller != "client"
        return fault.caller in (None, caller)

    def _is_about(self, volume: str, request: Any) -> bool:
        try:
            return self._volume_name(getattr(request, "volume_id", "")) == volume
        except KeyError:
            return False


def _acting(due: list[_Planted]) -> list[_Planted]:
    """Return those of *due* that act: the delays, and the one whose answer the caller gets."""
    answers = [planted for planted in due if planted.fault.status is not None]
    early = [planted for planted in answers if not planted.fault.applied]
    reached = due[: due.index(early[0]) + 1] if early else due
    answer = (early or answers)[:1]
    return [planted for planted in reached if planted.fault.delay_s or planted in answer]


@attrs.frozen
class PlantedFault:
    """
    A fault that was planted. As a context manager it goes with its block.

    Attributes:
        fault: What it does.
    """

    fault: Fault
    _number: int
    _plane: RunningPlane

    @property
    def strikes(self) -> int:
        """How many RPCs it has struck: a test that checks it cannot pass by accident."""
        found: int = self._plane.ask("fault_strikes", number=self._number)
        return found

    def remove(self) -> None:
        """Let every RPC pass again."""
        self._plane.ask("remove_fault", number=self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exit: object) -> None:
        self.remove()


@attrs.frozen
class FrozenContainer:
    """A container whose processes are stopped. As a context manager it thaws with its block."""

    container: str
    _plane: RunningPlane

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._plane.faults.thaw(self.container)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exit: object) -> None:
        self.thaw()


@attrs.frozen
class Faults:
    """
    What can be made to go wrong in a plane: `plane.faults`.

    What is planted stays until it is removed, or until the end of its `with` block.
    """

    _plane: RunningPlane

    def fail(
        self,
        rpc: str,
        *,
        nth: int = 1,
        times: int | None = 1,
        status: str = "UNAVAILABLE",
        message: str = "made to fail by plane.faults",
        caller: str | None = None,
        volume: str | None = None,
        applied: bool = False,
    ) -> PlantedFault:
        """
        Answer an RPC with an error.

        The client's own retries count too: after one UNAVAILABLE it tries again, and the app sees
        nothing but a delay. For an error that the app sees, take a status that is not retried
        (such as "ABORTED"), or a number of *times* beyond the client's.

        Args:
            rpc: Its name, such as "VolumeCommit"; `plane.transcript()` shows those of your app.
            nth: The first of the matching RPCs that fails, from 1 on.
            times: How many fail from then on; None for all.
            status: Name of the gRPC status.
            message: The text of the error.
            caller: "client", "container" (any), or the id of one container; None for everybody.
            volume: Only what is about the Volume of this name.
            applied: The RPC is carried out all the same; only its answer is lost.

        Raises:
            UsageError: It could never strike: the plane has no such RPC, there is no such status
                or caller, or the RPC is about no Volume.
        """
        return self._plant(
            Fault(
                rpc=rpc,
                nth=nth,
                times=times,
                status=status,
                message=message,
                caller=caller,
                volume=volume,
                applied=applied,
            )
        )

    def delay(
        self,
        rpc: str,
        *,
        seconds: float,
        nth: int = 1,
        times: int | None = 1,
        caller: str | None = None,
        volume: str | None = None,
    ) -> PlantedFault:
        """Hold an RPC back for *seconds* of the plane's clock; see `fail`."""
        return self._plant(
            Fault(rpc=rpc, nth=nth, times=times, delay_s=seconds, caller=caller, volume=volume)
        )

    def fail_commit(
        self,
        volume: str | None = None,
        *,
        nth: int = 1,
        times: int | None = 1,
        status: str = "ABORTED",
        message: str = "the commit was made to fail by plane.faults",
        applied: bool = False,
    ) -> PlantedFault:
        """
        Have `commit()` of a Volume fail in the app: nothing is committed, unless *applied*.

        Commits of the plane's own, in the background, are no RPCs and go on. The one that Modal's
        container code makes when a container ends in order is an RPC, and counts.
        """
        return self.fail(
            "VolumeCommit",
            nth=nth,
            times=times,
            status=status,
            message=message,
            volume=volume,
            applied=applied,
        )

    def fill_disk(self, volume: str | None = None) -> PlantedFault:
        """
        Have every `commit()` of a Volume answer as over a full disk, until it is removed.

        It is what the plane answers when its own disk is full: `commit()` raises RuntimeError, and
        nothing is committed; the app may still write to its own view. What Modal answers is not
        known.
        """
        return self.fail_commit(volume, times=None, status="FAILED_PRECONDITION", message=DISK_FULL)

    def freeze(self, container: str) -> FrozenContainer:
        """
        Stop all processes of a container (SIGSTOP): no heartbeat, no output, no end.

        Raises:
            UnknownContainerError: There is no such live container.
        """
        self._plane.ask("freeze", container=container)
        return FrozenContainer(container, self._plane)

    def thaw(self, container: str) -> None:
        """Let a frozen container go on; one that has ended meanwhile stays so."""
        self._plane.ask("thaw", container=container)

    def clear(self) -> None:
        """Take all faults away, and thaw what is frozen."""
        self._plane.ask("clear_faults")

    def _plant(self, fault: Fault) -> PlantedFault:
        number = self._plane.ask("plant_fault", **attrs.asdict(fault))
        return PlantedFault(fault, number, self._plane)
