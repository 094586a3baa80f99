"""When a run is saved, when that is committed, and how long it took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from modalkit.checkpoint import state, volume
from modalkit.checkpoint.store import Checkpoint, Store
from modalkit.checkpoint.volume import Volume
from modalkit.policies import CheckpointPolicy, CommitPolicy
from modalkit.telemetry.events import Events

_RECENT: Final = 5
"""How many saves and commits the time for the next ones is judged by: the slowest of them."""


class Checkpointer:
    """
    Saves objects into a store by policy. Saving is synchronous: it returns when all is written.

    Args:
        store: Where checkpoints go.
        volume: What makes them durable.
        checkpoints: When to save.
        commits: When to commit what was saved.
        events: Told of each save and commit.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        volume: Volume,
        *,
        checkpoints: CheckpointPolicy,
        commits: CommitPolicy,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._volume = volume
        self._checkpoints = checkpoints
        self._commits = commits
        self._events = events
        self._clock = clock
        self._saved_at = clock()
        self._committed_at: float | None = None
        self._save_s: deque[float] = deque([0.0], maxlen=_RECENT)
        self._commit_s: deque[float] = deque([0.0], maxlen=_RECENT)
        self.saved_step: int | None = None
        """Step of the newest checkpoint, restored or saved here."""
        self.saved_file: str | None = None

    @property
    def slowest_s(self) -> float:
        """Seconds that the slowest of the recent saves and commits took together."""
        return sum(self.measured_s)

    @property
    def measured_s(self) -> tuple[float, float]:
        """Seconds of the slowest recent save, and of the slowest recent commit."""
        return max(self._save_s), max(self._commit_s)

    def resumed(self, step: int, file: str, measured_s: Sequence[float] = (0.0, 0.0)) -> None:
        """Take note of the checkpoint that was restored, and of what its writer had measured."""
        self.saved_step, self.saved_file = step, file
        self._save_s.append(measured_s[0])
        self._commit_s.append(measured_s[1])

    def is_due(self, step: int) -> bool:
        """Say whether the policy asks for a save after *step* steps."""
        every_steps, period_s = self._checkpoints.every_steps, self._checkpoints.period_s
        if every_steps is not None and step % every_steps == 0:
            return True
        return period_s is not None and self._clock() - self._saved_at >= period_s

    def save(
        self,
        step: int,
        objects: Mapping[str, object],
        values: Mapping[str, Any],
        *,
        must_commit: bool = False,
    ) -> None:
        """
        Save, and commit if the policy says so.

        Args:
            step: Steps done; the objects must be between two steps.
            objects: The live objects.
            values: Plain values to keep beside them.
            must_commit: Commit whatever the policy says.
        """
        started = self._clock()
        # What was measured up to here must not be missing from a run that resumes here.
        self._events.flush(step)
        saved = self._publish(step, objects, values)
        save_s = self._clock() - started
        self._save_s.append(save_s)
        self.saved_step, self.saved_file = step, saved.file
        self._events.emit(
            "checkpoint", step=step, file=saved.file, bytes=saved.bytes, save_s=save_s
        )
        if must_commit or (self._commits.on_checkpoint and self._commit_is_due()):
            self.commit()
        self._saved_at = self._clock()

    def withdraw(self) -> None:
        """Remove all that was saved here."""
        self._store.withdraw()
        self.saved_step = self.saved_file = None

    def commit(self) -> None:
        """Make everything durable that was written, then remove what is no longer needed."""
        self._events.flush()
        commit_s = volume.commit(self._volume, self._events)
        self._commit_s.append(commit_s)
        self._committed_at = self._clock()
        self._events.emit("committed", commit_s=commit_s, step=self.saved_step)
        self._prune()

    def _prune(self) -> None:
        try:
            removed = self._store.prune(self._checkpoints.keep_last)
        except OSError as error:
            # What is too much does no harm to what was just committed; the next commit tries again.
            self._events.emit("not_pruned", message=f"could not remove old checkpoints: {error}")
            return
        if removed:
            self._events.emit("pruned", files=removed)

    def _publish(
        self, step: int, objects: Mapping[str, object], values: Mapping[str, Any]
    ) -> Checkpoint:
        described = {"objects": state.describe(objects)}
        captured = {"objects": state.capture(objects), "values": {**values, **described}}
        return self._store.publish(step, captured)

    def _commit_is_due(self) -> bool:
        return self._committed_at is None or (
            self._clock() - self._committed_at >= self._commits.min_interval_s
        )
