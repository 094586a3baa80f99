"""
The plane's clock, which an owner may move, and what waits on it.

Everything in the plane that waits for time to pass waits here: a test moves the clock by an hour
and what would have happened in that hour happens now. Processes in containers have the machine's
own clock, which nobody moves.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable

import attrs

logger = logging.getLogger("modalkit.local")


class Pulse:
    """Wakes those who wait for one thing at each change of it; they look for themselves what."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def beat(self) -> None:
        """Wake all who wait."""
        for waiter in self._waiting:
            _wake(waiter)

    def join(self) -> asyncio.Future[None]:
        """Return what is done at the next beat; `leave` it in any case."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> None:
        """Wait no more."""
        self._waiting.discard(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@attrs.define(eq=False)
class Timer:
    """A call that is due at a moment, until it is cancelled."""

    due: float
    action: Callable[[], object] | None

    def cancel(self) -> None:
        """Have it never called."""
        self.action = None


class Clock:
    """
    Two clocks that advance alike: monotonic seconds, and Unix seconds for people.

    Timers are kept in a heap, of which the event loop sees the earliest only.
    """

    def __init__(self) -> None:
        self._moved_s = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None
        self._armed_for = float("inf")

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        return time.monotonic() + self._moved_s

    def time(self) -> float:
        """Return Unix seconds, as the plane shows them."""
        return time.time() + self._moved_s

    def advance(self, seconds: float) -> None:
        """
        Move both clocks on; what falls due happens before any other task runs.

        Raises:
            ValueError: *seconds* is negative: time does not run backwards.
        """
        if not seconds >= 0:
            raise ValueError(f"the clock moves forwards only, not by {seconds} s")
        self._moved_s += seconds
        self._ring()

    def call_later(self, delay_s: float, action: Callable[[], object]) -> Timer:
        """Call *action* in *delay_s* seconds of this clock."""
        timer = Timer(self.monotonic() + max(0.0, delay_s), action)
        if timer.due == float("inf"):
            return timer
        heapq.heappush(self._heap, (timer.due, next(self._order), timer))
        if timer.due < self._armed_for:
            self._arm()
        return timer

    async def sleep(self, delay_s: float) -> None:
        """Return in *delay_s* seconds of this clock."""
        await self.wait(Pulse(), delay_s)

    async def wait(self, pulse: Pulse, timeout_s: float) -> None:
        """Return at the next beat of *pulse*, or in *timeout_s* seconds of this clock."""
        waiter = pulse.join()
        timer = self.call_later(timeout_s, lambda: _wake(waiter))
        try:
            await waiter
        finally:
            pulse.leave(waiter)
            timer.cancel()

    async def wait_until(
        self, pulse: Pulse, holds: Callable[[], bool], timeout_s: float = float("inf")
    ) -> bool:
        """Look at each beat of *pulse* whether it *holds*; return whether it did in time."""
        deadline = self.monotonic() + timeout_s
        while not (held := holds()) and (left_s := deadline - self.monotonic()) > 0:
            await self.wait(pulse, left_s)
        return held

    def _ring(self) -> None:
        now = self.monotonic()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].action is None):
            _, _, timer = heapq.heappop(self._heap)
            action, timer.action = timer.action, None
            if action is not None:
                self._do(action)
        self._arm()

    @staticmethod
    def _do(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:  # or no timer would ring any more
            logger.exception("bug in the local plane: a timer")

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._armed_for = None, float("inf")
        if self._heap:
            self._armed_for = self._heap[0][0]
            delay_s = max(0.0, self._armed_for - self.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._ring)
