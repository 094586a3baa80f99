"""
The resumable run: a context manager around a training loop.

    enter    find the newest whole checkpoint, register the attempt, restore (or seed and save
             step 0), commit
    steps    between two steps: save by policy, leave if a signal has come
    exit     write why the attempt ended, commit, give back signals and generators, re-raise

Rule 1: objects are saved between two steps only. A step that was begun and not done is nowhere in
a checkpoint, whatever ended it.
Rule 2: what a step draws at random depends on the steps before it alone. Making a loader's
iterator draws too, and a resumed run makes more of them; so the training stream is put in place
right before a loop's first step, and everything outside of steps draws from another.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modalkit.checkpoint.volume import Volume
from modalkit.deployment import container_policy
from modalkit.errors import RunError
from modalkit.policies import CheckpointPolicy, CommitPolicy
from modalkit.runs import arguments, seeding
from modalkit.runs import attempts as ledger
from modalkit.runs import config as configs
from modalkit.runs.attempts import Cause
from modalkit.runs.batches import Batches
from modalkit.runs.preemption import PreemptionWatch
from modalkit.runs.session import Session, Settings
from modalkit.snapshots.renew import renew_once_per_container


def run(
    run_id: str,
    /,
    *,
    volume: Volume,
    mount: str | Path,
    config: Mapping[str, Any] | None = None,
    may_change: Collection[str] = (),
    seed: int = 0,
    checkpoints: CheckpointPolicy | None = None,
    commits: CommitPolicy | None = None,
    **stateful: object,
) -> Run:
    """
    Begin the run *run_id*, or go on with it where its last attempt stopped.

    Use it as a context manager in a plain function on Modal's main thread. What a signal, an
    exception or the end of the block leaves is committed, and the exception is raised again: a
    preemption always as `KeyboardInterrupt`, on which Modal gives the input to another container.

    Args:
        run_id: Name of the run; the same on every attempt. 1 to 64 letters, digits, `.`, `_`, `-`.
        volume: The Volume that runs live on.
        mount: Where it is mounted; the run's directory is `<mount>/runs/<run_id>`.
        config: What the training was called with, as JSON. A known run id with another one is
            refused, because its steps would be those of two trainings.
        may_change: Keys of *config* that may differ between attempts, such as `("epochs",)`.
        seed: Of python's, numpy's and torch's generators in a new run, and of the order of data.
        checkpoints: When to save; None for the `Deployment`'s policy, else every 60 s.
        commits: When to make saves durable; None for the `Deployment`'s, else at every save.
        **stateful: The objects to save and restore, by the names they have in a checkpoint:
            modules, optimizers, schedulers, tensors, random generators, anything with
            `state_dict` and `load_state_dict`. What an optimizer's param_groups hold, the
            learning rate included, comes from the checkpoint.

    Raises:
        RunError: An argument that a run cannot work with.
    """
    started_at = time.time()
    directory = arguments.run_directory(mount, run_id)
    arguments.check(volume=volume, checkpoints=checkpoints, commits=commits, stateful=stateful)
    policy = container_policy()
    settings = Settings(
        directory=directory,
        volume=volume,
        config=configs.make(config, may_change, seed),
        may_change=may_change,
        checkpoints=checkpoints or policy.checkpoints or CheckpointPolicy(),
        commits=commits or policy.commits or CommitPolicy(),
        grace_s=policy.grace_s,
        started_at=started_at,
        objects=stateful,
    )
    return Run(settings)


class Run:
    """
    A run inside its `with` block; made by `run`.

    Attributes:
        run_id: Its name.
        directory: `<mount>/runs/<run_id>`.
        seed: Its seed.
        attempt: Number of this attempt, 1 for the first.
        resumed_at: Steps that were done when this attempt began; None if it began the run.
        step: Steps done. Inside the body of a step: that step.
        extra: Plain values that are saved and restored with the objects; yours to fill.
    """

    def __init__(self, settings: Settings) -> None:
        self.run_id = settings.directory.name
        self.directory = settings.directory
        self.seed = settings.config.seed
        self.attempt = 0
        self.resumed_at: int | None = None
        self.step = 0
        self.extra: dict[str, Any] = {}
        self._settings = settings
        self._session: Session | None = None
        self._watch = PreemptionWatch(grace_s=settings.grace_s, saving_s=self._saving_s)
        self._cleanup = contextlib.ExitStack()
        self._is_active = False
        self._target: int | None = None
        self._loop: object = None
        self._step_is_open = False
        self._save_is_asked = False
        self._is_vouched_for = False
        self._training_stream: dict[str, Any] = {}
        self._summary: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        # Before the generators are captured, because that state comes back at the end.
        renew_once_per_container()
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(seeding.put_back, seeding.capture())
            cleanup.enter_context(self._watch)
            self._session = Session(self._settings)
            try:
                self._begin(self._session)
            except BaseException as error:
                self._end(self._cause(error), error)
                raise
            self._cleanup = cleanup.pop_all()
        self._is_active = True
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._is_active = False
        self._watch.disarm()
        with self._cleanup:
            cause = self._finish(error)
        if self._watch.requested:  # also by now, during the last commit
            cause = "preempted"
        if cause == "preempted" and not isinstance(error, KeyboardInterrupt):
            # A return or another exception would end the input; this gives it to the next
            # container.
            raise KeyboardInterrupt(f"run {self.run_id} was preempted") from error

    def __repr__(self) -> str:
        return f"<Run {self.run_id} at step {self.step}, attempt {self.attempt}>"

    # ---- what the loop uses -----------------------------------------------------------------

    def steps(self, n: int) -> Iterator[int]:
        """
        Yield the steps that are still to do: 0 to *n* - 1, less those done.

        Step i is done when the loop asks for the next one. Between two steps the run is saved by
        policy, and when step *n* - 1 is done; a signal to stop is honoured there. A loop that is
        left by `break`, or because its data ended, leaves a step that is not done: it is neither
        counted nor saved, and the next call begins it again. To end a run early with all that was
        done, call `checkpoint_now()` in the body before `break`.
        In `zip(run.steps(n), loader)` the steps come first, so that no batch is fetched for a
        step that is not there.

        Args:
            n: Steps of the whole run. May grow: a finished run then goes on.

        Raises:
            RunError: *n* is not a number of steps, or the run is not entered.
            KeyboardInterrupt: A signal has come; all is saved.
        """
        session = self._active()
        if type(n) is not int or n < 0:
            raise RunError(f"steps({n!r}): pass the number of steps of the whole run, 0 or more.")
        # Here and not at the first step: making a loader's iterator comes between the two.
        self._end_loop()
        self._is_vouched_for = False
        return self._steps(session, n)

    def batches(
        self, n_items: int, batch_size: int, *, shuffle: bool = True, drop_last: bool = True
    ) -> Batches:
        """
        Return a batch sampler without end, whose batches depend on (seed, epoch, step) alone.

        Pass it as `DataLoader(dataset, batch_sampler=...)`. It starts at the run's next step and
        draws a new order for each epoch of `.steps_per_epoch` steps. What the dataset's
        `__getitem__` draws from random, numpy or torch is seeded from (seed, step), with any
        `num_workers`. A `collate_fn`, or a `__getitems__` that does not loop over its indices, is
        seeded so in workers only; in the main process it draws from the training stream.

        Args:
            n_items: Items in the dataset.
            batch_size: Items per step.
            shuffle: False keeps the dataset's order.
            drop_last: False yields a smaller batch at the end of an epoch.

        Raises:
            RunError: There is not a single batch per epoch.
        """
        return Batches(
            n_items,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=self.seed,
            next_step=lambda: self.step,
        )

    def log(self, /, **metrics: Any) -> None:
        """
        Log metrics of the current step: numbers, or tensors with one element.

        Tensors are kept as they are, on their device, and converted at a flush every 2 s.

        Raises:
            RunError: A value is not a single number.
        """
        self._active().events.log_metrics(self.step, metrics)

    @property
    def should_stop(self) -> bool:
        """Whether a signal to stop has come; `steps` honours it by itself."""
        return self._watch.requested

    def checkpoint_now(self) -> None:
        """
        Save and commit when the current step is done; at once, if none is begun.

        Called in the body of a step it also says that the objects are as that step leaves them.
        If the loop is left there for good, the step counts as done and is saved when the block
        ends, unless that is by an exception.
        """
        session = self._active()
        if self._step_is_open:
            self._save_is_asked = True
            self._is_vouched_for = self._loop is not None
        else:
            with self._watch.saving():
                self._save(session, must_commit=True)

    def summary(self) -> dict[str, Any]:
        """
        Return what became of the run, as plain values.

        Returns:
            `run_id`; `status`, `finished` or `stopped` (`break`, or the data ended); `step`, those
            done; `attempts`; `resumed_at`; `recomputed_steps`, as far as killed containers left a
            trace of them; `metrics`, the last value of each; `checkpoint`, the newest manifest
            under the run's directory. A finished run with nothing left to do returns what it
            returned when it finished.
        """
        if self._summary is not None:
            return dict(self._summary)
        return self._entered().summarize(self._cause(None), self.step)

    # ---- enter and exit ---------------------------------------------------------------------

    def _begin(self, session: Session) -> None:
        self.attempt = session.attempt.number
        self.resumed_at = session.resumed_at
        self.step = session.resumed_at or 0
        if not self._watch.is_watching:
            session.say_unwatched()
        values = session.restore()
        # What the block draws outside of steps, such as a split of the data, is the same on
        # every attempt; steps have a stream of their own.
        seeding.seed_everything(self.seed, seeding.rank())
        if values is None:
            self._training_stream = seeding.capture()
            with self._watch.saving():
                self._save(session, must_commit=True)
        else:
            self._training_stream = values["rng"]
            self.extra.update(values["extra"])

    def _cause(self, error: BaseException | None) -> Cause:
        is_done = self._target is not None and self.step >= self._target
        return ledger.cause_of(error, is_signalled=self._watch.requested, is_done=is_done)

    def _finish(self, error: BaseException | None) -> Cause:
        try:
            if error is None:
                self._count_vouched_step(self._entered())
        except BaseException as failure:
            self._end(self._cause(failure), failure)
            raise
        cause = self._cause(error)
        self._end(cause, error)
        return cause

    def _end(self, cause: Cause, error: BaseException | None) -> None:
        """Write the end. While an exception is on its way, failing to is said, not raised."""
        session = self._entered()
        if cause == "stopped":
            session.say_stopped(self.step, is_asked=self._save_is_asked)
        try:
            session.end(cause, self.step, error)
            self._summary = session.summarize(cause, self.step)
        except Exception as failure:
            if cause in ("finished", "stopped") and not self._watch.requested:
                raise
            session.events.say("end_not_written", f"the end was not committed: {failure!r}")

    def _entered(self) -> Session:
        if self._session is None:
            raise RunError(
                f"run {self.run_id!r} is not entered. Use `with modalkit.run(...) as run:`."
            )
        return self._session

    def _active(self) -> Session:
        if not self._is_active:
            raise RunError(
                f"run {self.run_id!r} is not active. Use it inside `with modalkit.run(...)`."
            )
        return self._entered()

    # ---- the loop ---------------------------------------------------------------------------

    def _steps(self, session: Session, n: int) -> Iterator[int]:
        self._target = n
        self._leave_if_asked(session)
        if self.step >= n:
            text = f"nothing left to do: {self.step} of {n} steps are done"
            session.events.say("nothing_left", text)
            return
        if self._step_is_open:
            text = f"step {self.step} was left before its end, and is begun again"
            session.events.say("begun_again", text)
        loop = self._loop = object()
        seeding.restore(self._training_stream, seed=self.seed, rank=seeding.rank())
        try:
            while self.step < n:
                self._step_is_open, self._is_vouched_for = True, False
                yield self.step
                if self._loop is not loop:
                    raise RunError("a loop over steps() was used after a later one had begun.")
                self._step_is_open = False
                self.step += 1
                self._between_steps(session)
        finally:
            if self._loop is loop and self._is_active:
                self._end_loop()

    def _end_loop(self) -> None:
        if self._loop is not None:
            self._training_stream = seeding.capture()
            self._loop = None

    def _between_steps(self, session: Session) -> None:
        self._leave_if_asked(session)
        is_due = self._save_is_asked or session.checkpointer.is_due(self.step)
        if is_due or self.step == self._target:
            with self._watch.saving():
                self._save(session, must_commit=self._save_is_asked)
                self._save_is_asked = False
                self._leave_if_asked(session)
        session.events.flush_if_due(self.step)

    def _count_vouched_step(self, session: Session) -> None:
        """Save the step that a loop was left in, if its body said that the objects are whole."""
        if self._step_is_open and self._is_vouched_for and not self._watch.raised:
            self._step_is_open = False
            self.step += 1
            self._save(session, must_commit=True)
            self._save_is_asked = False

    def _leave_if_asked(self, session: Session) -> None:
        if not self._watch.requested:
            return
        self._watch.disarm()
        # A body that swallowed the interrupt, or left its loop, has left a step half done.
        is_whole = not self._watch.raised and not self._step_is_open
        if is_whole and session.checkpointer.saved_step != self.step:
            self._save(session, must_commit=True)
        raise KeyboardInterrupt(f"{self._watch.signal_name} at step {self.step}")

    def _save(self, session: Session, *, must_commit: bool) -> None:
        # Only inside a loop are the generators the training stream.
        stream = self._training_stream if self._loop is None else seeding.capture()
        session.save(self.step, {"rng": stream, "extra": self.extra}, must_commit=must_commit)

    def _saving_s(self) -> float:
        return self._session.checkpointer.slowest_s if self._session else 0.0
