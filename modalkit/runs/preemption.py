"""
Signals that ask a run to stop, and the time that is left for it.

The first SIGINT or SIGTERM sets a flag, which the run honours between two steps. If no such
boundary comes in time to save and commit within the grace period, `KeyboardInterrupt` is raised
in the main thread, wherever it is; a save that is under way may end first, since the boundary
follows it. A second signal raises it at once.
On Modal `KeyboardInterrupt` is the one way to leave an input such that it is given to another
container; a return or any other exception ends it.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final, Self

RESERVE_S: Final = 3.0
"""
Kept free at the end of the grace period for what comes after the run: other exit hooks, and
Modal's own last commit.
"""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_LOOK_EVERY_S: Final = 0.05
"""How often a countdown that waits for a save looks whether it has ended."""


class PreemptionWatch:
    """
    Handlers of SIGINT and SIGTERM for the time of a `with` block.

    Args:
        grace_s: Seconds between the signal and SIGKILL.
        saving_s: Gives the seconds that a save and its commit take.

    Attributes:
        requested: A signal has come.
        raised: `KeyboardInterrupt` was raised where the main thread happened to be.
        is_watching: Whether handlers are installed; not outside the main thread.
    """

    def __init__(self, *, grace_s: float, saving_s: Callable[[], float]) -> None:
        self._grace_s = grace_s
        self._saving_s = saving_s
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}
        # Held while a countdown may end in an interrupt; released to end it in silence.
        self._countdown = _thread.allocate_lock()
        self._is_armed = False
        self._is_saving = False
        self.requested = False
        self.raised = False
        self.is_watching = False
        self.signal_name = ""
        self.requested_at: float | None = None

    def __enter__(self) -> Self:
        # Python runs handlers in the main thread only, and lets no other install them.
        if threading.current_thread() is threading.main_thread():
            self._countdown.acquire()
            self._is_armed = True
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
            self.is_watching = True
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, previous in self._previous.items():
            # Whoever replaced ours has taken over; None is a handler that Python cannot set.
            if signal.getsignal(number) == self._on_signal and previous is not None:
                signal.signal(number, previous)
        self._previous.clear()
        self.disarm()

    def disarm(self) -> None:
        """Let the main thread finish what it does now: it is on its way out, and saving."""
        if self._is_armed:
            self._is_armed = False
            self._countdown.release()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Let what is done here end if it can before the reserve, whatever it was estimated at."""
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._in_forked_child(number)
        elif self.requested:
            self.raised = True
            raise KeyboardInterrupt(f"{self.signal_name}: the step did not end in time")
        else:
            self.requested = True
            self.requested_at = time.monotonic()
            self.signal_name = signal.Signals(number).name
            # Neither threading.Thread nor print here: the main thread may hold their locks.
            latest = self.requested_at + self._grace_s - RESERVE_S
            _thread.start_new_thread(self._raise_later, (self._seconds_left(), latest))

    def _seconds_left(self) -> float:
        return max(0.0, self._grace_s - self._saving_s() - RESERVE_S)

    def _raise_later(self, delay_s: float, latest: float) -> None:
        """In a thread of its own, because SIGALRM may be in use by the program."""
        if self._is_disarmed_within(delay_s):
            return
        # A save that hangs ends too, while there is time to leave.
        while self._is_saving and time.monotonic() < latest:
            if self._is_disarmed_within(_LOOK_EVERY_S):
                return
        main = threading.main_thread().ident
        assert main is not None
        # To the main thread itself, so that a sleep or a read there ends too.
        signal.pthread_kill(main, signal.SIGINT)

    def _is_disarmed_within(self, delay_s: float) -> bool:
        is_disarmed = self._countdown.acquire(timeout=delay_s)
        if is_disarmed:
            self._countdown.release()
        return is_disarmed

    def _in_forked_child(self, number: int) -> None:
        """
        Handle a signal in a process that inherited the handler, such as a DataLoader's worker.

        A signal to the whole process group must not take the workers from the step that is still
        to end; they go with the main process. SIGTERM to a worker is how its owner ends it.
        """
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
