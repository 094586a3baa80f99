"""Interrupted and resumed equals uninterrupted, bit for bit, down to the losses."""

from __future__ import annotations

import functools
import itertools
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modalkit
from modalkit.runs.attempts import read_attempts
from tests.support.training import STEPS, Killed, Outcome, Training, at, fail, survive
from tests.support.volumes import DirectoryVolume


def signal_now(number: int = signal.SIGINT):
    return lambda: os.kill(os.getpid(), number)


INTERRUPTIONS = {
    "error-before": lambda step: {"before": at(step, fail(ValueError("bad batch")))},
    "interrupt-after": lambda step: {"after": at(step, fail())},
    "sigint": lambda step: {"before": at(step, signal_now())},
    "sigterm": lambda step: {"after": at(step, signal_now(signal.SIGTERM))},
}


def interrupt(volume: DirectoryVolume, kind: str, step: int, **options) -> DirectoryVolume:
    """Run until *step*, be interrupted, and return the next container's Volume."""
    error = survive(lambda: Training(volume).fit(**INTERRUPTIONS[kind](step), **options))
    assert type(error) is (ValueError if kind == "error-before" else KeyboardInterrupt)
    return volume.next_container()


CASES = [("sigint", step) for step in range(STEPS)]
CASES += [("error-before", 4), ("interrupt-after", 4), ("sigterm", 4), ("sigterm", 11)]


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_interrupted_at_any_step(volume, uninterrupted, kind, step):
    volume = interrupt(volume, kind, step)
    summary = Training(volume).fit()
    Outcome(volume).assert_equals(uninterrupted)
    assert (summary["status"], summary["step"], summary["attempts"]) == ("finished", STEPS, 2)


class DyingVolume(DirectoryVolume):
    """A container's view that stops reaching anyone when its container is killed."""

    is_dead = False

    def commit(self) -> None:
        if not self.is_dead:
            super().commit()


@pytest.mark.parametrize("step", range(STEPS))
def test_killed_at_any_step(tmp_path, uninterrupted, step):
    volume = DyingVolume(tmp_path)

    def die() -> None:
        volume.is_dead = True
        raise Killed

    survive(lambda: Training(volume).fit(after=at(step, die)))
    fresh = volume.next_container()
    summary = Training(fresh).fit()
    Outcome(fresh).assert_equals(uninterrupted)
    assert summary["resumed_at"] == step // 3 * 3
    first, second = read_attempts(fresh.mount / "runs" / "r")
    assert (first.cause, first.step, second.cause) == ("lost", step // 3 * 3, "finished")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["error-before", "sigint"])
def test_the_number_of_workers_changes_nothing(volume, uninterrupted, kind, workers):
    error = survive(lambda: Training(volume, workers=workers).fit(**INTERRUPTIONS[kind](7)))
    assert error is not None
    volume = volume.next_container()
    # Not even between attempts.
    Training(volume, workers=2 - workers).fit()
    Outcome(volume).assert_equals(uninterrupted)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    interruptions=st.lists(
        st.tuples(st.sampled_from(sorted(INTERRUPTIONS)), st.integers(0, STEPS - 1)), max_size=5
    ),
    every=st.integers(1, 5),
)
def test_interrupted_any_number_of_times(tmp_path_factory, uninterrupted, interruptions, every):
    volume = DyingVolume(tmp_path_factory.mktemp("run"))
    policy = modalkit.CheckpointPolicy(every_steps=every, keep_last=1)
    for kind, step in interruptions:
        done = [a.resumed_at or 0 for a in read_attempts(volume.mount / "runs" / "r")]
        hooks = INTERRUPTIONS[kind](max([step, *done]))
        survive(functools.partial(Training(volume).fit, checkpoints=policy, **hooks))
        volume = DyingVolume(volume.root, f"view-{len(list(volume.root.glob('view-*')))}")
    Training(volume).fit(checkpoints=policy)
    Outcome(volume).assert_equals(uninterrupted)


def fit_by_epoch(training: Training, hook=lambda run: None) -> None:
    """A loop per epoch, with a loader and an evaluation of its own that draw in between."""
    with training.open() as run:
        per_epoch = run.batches(23, 4).steps_per_epoch
        for epoch in range(run.step // per_epoch, 3):
            end = min(STEPS, (epoch + 1) * per_epoch)
            for _step, batch in zip(run.steps(end), training.loader(run), strict=False):
                hook(run)
                training.step(run, batch)
            torch.rand(5 + epoch)


@pytest.mark.parametrize("step", [1, 4, 5, 9, 10, 11])
def test_a_loop_per_epoch_draws_what_one_loop_draws(volume, uninterrupted, step):
    survive(lambda: fit_by_epoch(Training(volume), at(step, fail())))
    volume = volume.next_container()
    fit_by_epoch(Training(volume))
    Outcome(volume).assert_equals(uninterrupted)


def fit_finite(training: Training, hook=lambda run: None, *, holds: bool) -> None:
    """Finite data, a loop per epoch, as `tqdm(zip(...))` writes it: the last loop is held."""
    held = []
    with training.open() as run:
        batches = run.batches(23, 4)
        while run.step < STEPS:
            left = batches.steps_per_epoch - run.step % batches.steps_per_epoch
            loop = zip(run.steps(STEPS), itertools.islice(training.loader(run), left), strict=False)
            held.append(loop if holds else None)
            for _step, batch in loop:
                hook(run)
                training.step(run, batch)


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("step", [1, 4, 5, 6, 11])
def test_data_may_end_with_each_epoch(volume, uninterrupted, step, holds):
    survive(lambda: fit_finite(Training(volume), at(step, fail()), holds=holds))
    volume = volume.next_container()
    fit_finite(Training(volume), holds=holds)
    Outcome(volume).assert_equals(uninterrupted)


def fit_data_first(training: Training, hook=lambda run: None) -> None:
    with training.open() as run:
        for batch, _step in zip(training.loader(run), run.steps(STEPS), strict=False):
            hook(run)
            training.step(run, batch)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_the_data_may_come_first(volume, uninterrupted, step):
    survive(lambda: fit_data_first(Training(volume), at(step, fail())))
    volume = volume.next_container()
    fit_data_first(Training(volume))
    Outcome(volume).assert_equals(uninterrupted)


def test_what_is_drawn_in_the_block_before_the_loop_is_the_same_on_every_attempt(volume):
    """A split of the data made inside the block must not differ when the run resumes."""
    splits = []
    for step in (2, 5, None):
        training = Training(volume)
        with training.open() as run:
            splits.append(torch.randperm(50).tolist())
            for batch, _ in zip(training.loader(run), run.steps(8), strict=False):
                if run.step == step:
                    break
                training.step(run, batch)
        volume = volume.next_container()
    assert splits[0] == splits[1] == splits[2]


class Endless:
    """A loader of its own kind, with state, that shuffles by a generator it keeps."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.fetched = 0

    def __iter__(self):
        while True:
            self.fetched += 1
            indices = torch.randint(0, 23, (4,), generator=self.generator)
            yield torch.rand(4, 4, generator=self.generator), indices

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state(), "fetched": self.fetched}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        self.fetched = state["fetched"]


def fit_with_loader(volume: DirectoryVolume, hook=lambda run: None) -> Endless:
    training, loader = Training(volume), Endless()
    policy = modalkit.CheckpointPolicy(every_steps=3)
    with modalkit.run(
        "r",
        volume=volume,
        mount=volume.mount,
        checkpoints=policy,
        model=training.model,
        optimizer=training.optimizer,
        scheduler=training.scheduler,
        loader=loader,
    ) as run:
        for _step, batch in zip(run.steps(STEPS), loader, strict=False):
            hook(run)
            training.step(run, batch)
    return loader


@pytest.mark.parametrize("step", [0, 5, 6])
def test_a_loader_with_a_state_of_its_own_goes_on(tmp_path, step):
    whole, volume = DirectoryVolume(tmp_path / "whole"), DirectoryVolume(tmp_path / "cut")
    fit_with_loader(whole)
    survive(lambda: fit_with_loader(volume, at(step, fail())))
    volume = volume.next_container()
    assert fit_with_loader(volume).fetched == STEPS
    Outcome(volume).assert_equals(Outcome(whole))


def test_a_save_outside_the_loop_does_not_save_what_is_drawn_there(volume, uninterrupted):
    training = Training(volume)
    with training.open() as run:
        torch.rand(3)
        run.checkpoint_now()
        for _step, batch in zip(run.steps(5), training.loader(run), strict=False):
            training.step(run, batch)
        torch.rand(3)
        run.checkpoint_now()
        assert list(run.steps(5)) == []
        torch.rand(3)
        run.checkpoint_now()
    Training(volume).fit()
    Outcome(volume).assert_equals(uninterrupted)


def test_each_step_sees_its_own_batch_on_every_attempt(volume):
    first = Training(volume)
    survive(lambda: first.fit(after=at(7, fail())))
    second = Training(volume.next_container(), workers=2)
    second.fit()
    assert [step for step, _ in first.seen] == list(range(8))
    assert [step for step, _ in second.seen] == list(range(6, STEPS))
    assert second.seen[:2] == first.seen[6:], "steps 6 and 7 were computed twice"
