"""A container that should be dead, and its successor: neither damages what the other saved."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import modalkit
from modalkit.checkpoint.store import load_newest, read
from modalkit.runs.attempts import read_attempts
from modalkit.telemetry.events import read_metrics
from tests.support.volumes import DirectoryVolume

STEPS = 12


class Counter:
    """A model whose state is the step that it was made by."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict:
        return {"value": self.value, "bytes": bytes([self.value]) * 1000}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


class Container:
    """An attempt that advances when it is told to."""

    def __init__(self, volume: DirectoryVolume) -> None:
        self.volume = volume
        self.counter = Counter()
        self.run = modalkit.run(
            "r",
            volume=volume,
            mount=volume.mount,
            checkpoints=modalkit.CheckpointPolicy(every_steps=1, keep_last=1),
            counter=self.counter,
        )
        self.run.__enter__()
        self.steps = self._steps()

    def _steps(self) -> Iterator[int]:
        for step in self.run.steps(STEPS):
            yield step
            self.counter.value += 1
            self.run.log(attempt=self.run.attempt)

    def advance(self, count: int) -> None:
        for _ in range(count):
            next(self.steps)

    def finish(self) -> dict:
        for _ in self.steps:
            pass
        self.run.__exit__(None, None, None)
        return self.run.summary()


def check(volume: DirectoryVolume, epoch: int) -> None:
    """Every checkpoint that was committed is whole, and the newest is the successor's."""
    directory = volume.committed / "runs" / "r"
    loaded, skipped = load_newest(directory / "checkpoints")
    assert loaded is not None
    assert (loaded.epoch, skipped) == (epoch, ())
    assert loaded.objects["counter"]["value"] == loaded.step


@pytest.mark.parametrize("zombie_steps", [1, 3, 8])
def test_a_zombie_and_its_successor(tmp_path, zombie_steps):
    zombie = Container(DirectoryVolume(tmp_path))
    zombie.advance(3)
    successor = Container(zombie.volume.next_container())
    assert (successor.run.attempt, successor.run.resumed_at) == (2, 2)
    zombie.advance(zombie_steps)
    check(zombie.volume, epoch=1)
    successor.advance(2)
    check(zombie.volume, epoch=2)
    zombie.advance(1)
    check(zombie.volume, epoch=2)
    assert successor.finish()["status"] == "finished"
    assert zombie.finish()["status"] == "finished"
    check(zombie.volume, epoch=2)
    directory = zombie.volume.committed / "runs" / "r"
    assert [a.cause for a in read_attempts(directory)] == ["finished", "finished"]
    assert [m["attempt"] for m in read_metrics(directory).values()] == [1, 1] + [2] * 10


def test_two_attempts_that_start_at_once_are_told_apart(tmp_path):
    """Modal may give an input to two containers; both see no attempt yet."""
    volume = DirectoryVolume(tmp_path)
    other = volume.next_container()
    other.reload = lambda: None
    first, second = Container(volume), Container(other)
    del other.reload
    assert first.run.attempt == second.run.attempt == 1
    first.advance(4)
    second.advance(6)
    first.advance(4)
    assert first.finish()["status"] == second.finish()["status"] == "finished"
    directory = volume.committed / "runs" / "r"
    assert [a.number for a in read_attempts(directory)] == [1, 1]
    assert len({a.container for a in read_attempts(directory)}) == 2
    assert read(directory).step == STEPS
    third = Container(volume.next_container())
    assert (third.run.attempt, third.run.resumed_at) == (2, STEPS)
    third.finish()


def test_of_two_first_calls_with_different_configurations_the_later_gives_way(tmp_path):
    volume = DirectoryVolume(tmp_path)
    other = volume.next_container()
    other.reload = lambda: None
    calls = {
        seed: modalkit.run("r", volume=v, mount=v.mount, seed=seed, counter=Counter())
        for seed, v in ((1, volume), (2, other))
    }
    real = other.commit

    def commit() -> None:
        # The other has begun after this one looked, and before it committed.
        vars(other).pop("reload", None)
        if not calls[1].attempt:
            calls[1].__enter__()
        real()

    other.commit = commit
    with pytest.raises(modalkit.RunConfigMismatchError, match="seed: was 1, is 2"):
        calls[2].__enter__()
    directory = volume.committed / "runs" / "r"
    assert json.loads((directory / "run.json").read_text())["seed"] == 1
    assert len(list((directory / "checkpoints").glob("ckpt-*"))) == 1
    assert list(calls[1].steps(2)) == [0, 1]
    calls[1].__exit__(None, None, None)
    third = volume.next_container()
    with modalkit.run("r", volume=third, mount=third.mount, seed=1, counter=Counter()) as run:
        assert run.resumed_at == 2
