"""
One attempt's part of a run: what it found on the Volume, and everything that it writes there.

`Run` decides when; this module knows the files: the ledger, the configuration, the events and the
checkpoints of a run's directory, and in which order they must be written.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from modalkit.checkpoint import state, store
from modalkit.checkpoint import volume as volumes
from modalkit.checkpoint.checkpointer import Checkpointer
from modalkit.checkpoint.store import Loaded, Store
from modalkit.checkpoint.volume import Volume
from modalkit.errors import CheckpointCorruptError, RunConfigMismatchError
from modalkit.policies import CheckpointPolicy, CommitPolicy
from modalkit.runs import attempts as ledger
from modalkit.runs import config as configs
from modalkit.runs import files
from modalkit.runs.attempts import Attempt, Cause
from modalkit.runs.config import RunConfig
from modalkit.telemetry import events as telemetry
from modalkit.telemetry.events import Events


@attrs.frozen(kw_only=True)
class Settings:
    """What `run` was called with, completed and checked."""

    directory: Path
    volume: Volume
    config: RunConfig
    may_change: Collection[str]
    checkpoints: CheckpointPolicy
    commits: CommitPolicy
    grace_s: float
    started_at: float
    objects: Mapping[str, object]


class Session:
    """
    The attempt that runs in this container; made when its run is entered.

    Making it reloads the Volume, compares the configuration, finds the newest whole checkpoint
    and writes the ledger's entry. Nothing is committed yet.

    Attributes:
        attempt: Its entry in the ledger.
        previous: The attempts before it.
        resumed_at: Steps that are done already, None at the beginning of a run.
        events: Its events.
        checkpointer: Its checkpoints.

    Raises:
        RunConfigMismatchError: The run is known with another configuration; nothing was written.
        CheckpointCorruptError: The run had got on, and no checkpoint of it is whole.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = settings.directory
        note = volumes.reload(settings.volume)
        self._is_first_call = configs.check_or_write(
            self._directory, settings.config, settings.may_change
        )
        self.previous = ledger.read_attempts(self._directory)
        loaded, self._skipped = store.load_newest(self._directory / store.CHECKPOINTS)
        self._refuse_to_start_over(loaded)
        self._loaded = loaded
        self.resumed_at = loaded.step if loaded else None
        self.attempt = self._new_attempt()
        self.events = self._new_events()
        self.checkpointer = self._new_checkpointer()
        ledger.write(self._directory, self.attempt)
        ledger.remove_leftovers(self._directory, self.previous)
        if note:
            self.events.say("open_files", note)

    def restore(self) -> Mapping[str, Any] | None:
        """
        Put the checkpoint into the live objects, and commit that the attempt has begun.

        Returns:
            The plain values that were saved with it, or None at the beginning of a run, when
            there is nothing to restore and nothing was committed.

        Raises:
            CheckpointMismatchError: It does not fit the objects; nothing of them was changed.
        """
        for each in self._skipped:
            text = f"{each.file} is not used: {each.reason}"
            self.events.say("checkpoint_skipped", text, file=each.file)
        self._say_versions()
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            self.events.say("began", f"begins, attempt {self.attempt.number}")
            return None
        state.restore(self._settings.objects, loaded.objects, loaded.values["objects"])
        self.events.latest.update(loaded.values["metrics"])
        self.checkpointer.resumed(loaded.step, loaded.file, loaded.values["measured_s"])
        text = f"resumes at step {loaded.step}, attempt {self.attempt.number}"
        self.events.say("resumed", text, step=loaded.step, file=loaded.file)
        self.checkpointer.commit()
        return loaded.values

    def say_unwatched(self) -> None:
        """Say that no signal will be noticed."""
        self.events.say(
            "signals_not_watched",
            "not in the main thread, where alone signals can be watched: a preemption loses "
            "what the policy has not saved. Remove @modal.concurrent from what trains",
        )

    def say_stopped(self, step: int, *, is_asked: bool) -> None:
        """Say that the loop was left, and what there is to go on from."""
        saved = self.checkpointer.saved_step
        self.events.say(
            "stopped",
            f"stopped: {step} steps are done; the loop was left, or its data ended, before the "
            f"next one was; the newest checkpoint is of step {saved}"
            + ("; the one that was asked for is not there" * is_asked),
            step=step,
            checkpoint=saved,
        )

    def save(self, step: int, values: Mapping[str, Any], *, must_commit: bool) -> None:
        """Save the objects and *values*; between two steps only."""
        # Until the next attempt has measured its own saves, these say how long one takes.
        measured = list(self.checkpointer.measured_s)
        values = {**values, "metrics": self.events.latest, "measured_s": measured}
        self.checkpointer.save(step, self._settings.objects, values, must_commit=must_commit)
        if self._is_first_call and must_commit:
            self._is_first_call = False
            self._give_way()

    def summarize(self, cause: Cause, step: int) -> dict[str, Any]:
        """
        Return the summary of the run as of *step*.

        An attempt that found nothing left to do has the summary of the one that finished.
        """
        stored = ledger.finished_summary(self.previous, step)
        if cause == "finished" and self.resumed_at == step and stored is not None:
            metrics = {name: telemetry.from_json(v) for name, v in stored["metrics"].items()}
            return {**stored, "metrics": metrics}
        self.events.flush()
        attempts = [*self.previous, attrs.evolve(self.attempt, step=step)]
        return {
            "run_id": self._directory.name,
            "status": "finished" if cause == "finished" else "stopped",
            "step": step,
            "attempts": self.attempt.number,
            "resumed_at": self.resumed_at,
            "recomputed_steps": ledger.recomputed_steps(attempts),
            "metrics": dict(self.events.latest),
            "checkpoint": f"{store.CHECKPOINTS}/{self.checkpointer.saved_file}",
        }

    def end(self, cause: Cause, step: int, error: BaseException | None) -> None:
        """Write why the attempt ended and how far it came, and commit."""
        summary = None
        if cause in ("finished", "stopped"):
            summary = self.summarize(cause, step)
            metrics = {name: telemetry.to_json(v) for name, v in summary["metrics"].items()}
            summary["metrics"] = metrics
        reason = None if error is None else f"{type(error).__qualname__}: {error}"
        self.attempt = attrs.evolve(
            self.attempt,
            cause=cause,
            step=step,
            ended_at=time.time(),
            error=reason,
            summary=summary,
        )
        ledger.write(self._directory, self.attempt)
        text = f"{cause} at step {step}" + (f" ({reason})" if reason else "")
        self.events.flush()
        self.events.say("ended", text, shown=self.events.latest, cause=cause, step=step)
        self.events.flush()
        if self._settings.commits.final or cause == "preempted":
            self.checkpointer.commit()

    def _refuse_to_start_over(self, loaded: Loaded | None) -> None:
        """Do not begin again a run that had got on, because of a bad disk."""
        had_got_on = any(attempt.step > 0 for attempt in self.previous)
        if loaded is None and had_got_on:
            reasons = "; ".join(f"{s.file}: {s.reason}" for s in self._skipped) or "none is there"
            raise CheckpointCorruptError(
                f"no checkpoint in {self._directory / store.CHECKPOINTS} is whole ({reasons}). "
                f"Restore the files, or use a new run id to begin again."
            )

    def _give_way(self) -> None:
        """
        Leave the run to another first call with another configuration, of the same moment.

        Neither saw the other's files when it began. The later commit has written over the other's
        run.json, and its own commit shows it the other's attempt.

        Raises:
            RunConfigMismatchError: There is one; what it wrote is as it was.
        """
        now, may_change = self._settings.config, self._settings.may_change
        for other in ledger.read_attempts(self._directory):
            then = RunConfig(other.config, other.seed)
            try:
                configs.compare(self._directory, then, now, may_change)
            except RunConfigMismatchError:
                configs.write(self._directory, then)
                self.checkpointer.withdraw()
                raise

    def _say_versions(self) -> None:
        """Say what makes the next steps other than an uninterrupted run's would have been."""
        before = self.previous[-1].versions if self.previous else self.attempt.versions
        changed = [
            f"{name} was {before[name]}, is {version}"
            for name, version in self.attempt.versions.items()
            if before.get(name, version) != version
        ]
        if changed:
            text = f"{'; '.join(changed)}: numbers may differ from those of an uninterrupted run"
            self.events.say("versions_differ", text)

    def _new_attempt(self) -> Attempt:
        # Also above all epochs: a ledger that is gone must not make new checkpoints the older ones.
        epoch = store.highest_epoch(self._directory / store.CHECKPOINTS)
        return Attempt(
            number=max(ledger.next_number(self._directory), epoch + 1),
            container=files.container_id(),
            started_at=self._settings.started_at,
            resumed_at=self.resumed_at,
            step=self.resumed_at or 0,
            seed=self._settings.config.seed,
            config=self._settings.config.config,
            versions=configs.versions(),
        )

    def _new_events(self) -> Events:
        name = f"{self.attempt.number}-{self.attempt.container}.jsonl"
        return Events(
            self._directory / telemetry.EVENTS / name,
            run_id=self._directory.name,
        )

    def _new_checkpointer(self) -> Checkpointer:
        checkpoints = Store(
            self._directory / store.CHECKPOINTS,
            writer=self.attempt.container,
            epoch=self.attempt.number,
            fenced=frozenset(attempt.container for attempt in self.previous),
            restored=self._loaded.file if self._loaded else None,
            rejected=frozenset(skipped.file for skipped in self._skipped),
        )
        return Checkpointer(
            checkpoints,
            self._settings.volume,
            checkpoints=self._settings.checkpoints,
            commits=self._settings.commits,
            events=self.events,
        )
