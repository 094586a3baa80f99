"""When to save and when to commit, by a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalkit.checkpoint.checkpointer import Checkpointer
from modalkit.checkpoint.store import Store, read
from modalkit.policies import CheckpointPolicy, CommitPolicy
from modalkit.telemetry.events import Events, read_events
from tests.support.volumes import DirectoryVolume


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A checkpointer on a Volume, with a clock."""

    def __init__(self, root, checkpoints=None, commits=None) -> None:
        self.volume = DirectoryVolume(root)
        self.clock = Clock()
        self.checkpointer = Checkpointer(
            Store(self.volume.mount / "checkpoints", writer="w", epoch=1),
            self.volume,
            checkpoints=checkpoints or CheckpointPolicy(),
            commits=commits or CommitPolicy(),
            events=Events(self.volume.mount / "events" / "1-w.jsonl", run_id="r"),
            clock=self.clock,
        )

    def save(self, step: int, **options) -> None:
        self.checkpointer.save(step, {}, {}, **options)

    def steps_due(self, steps: int, seconds_per_step: float) -> list[int]:
        due = []
        for step in range(1, steps + 1):
            self.clock.now += seconds_per_step
            if self.checkpointer.is_due(step):
                due.append(step)
                self.save(step)
        return due


@pytest.mark.parametrize(
    ("policy", "seconds_per_step", "due"),
    [
        (CheckpointPolicy(), 10, [6, 12, 18]),
        (CheckpointPolicy(every_s=25), 10, [3, 6, 9, 12, 15, 18]),
        (CheckpointPolicy(every_s=5), 10, list(range(1, 21))),
        (CheckpointPolicy(every_steps=7), 10, [7, 14]),
        (CheckpointPolicy(every_steps=7, every_s=50), 10, [5, 7, 12, 14, 19]),
        (CheckpointPolicy(every_steps=7), 1000, [7, 14]),
    ],
)
def test_when_a_save_is_due(tmp_path, policy, seconds_per_step, due):
    assert Bench(tmp_path, policy).steps_due(20, seconds_per_step) == due


def test_a_slow_save_does_not_make_the_next_one_due(tmp_path):
    bench = Bench(tmp_path, CheckpointPolicy(every_s=10))
    real = bench.volume.commit

    def slow() -> None:
        bench.clock.now += 60
        real()

    bench.volume.commit = slow
    bench.clock.now += 10
    assert bench.checkpointer.is_due(1)
    bench.save(1)
    assert not bench.checkpointer.is_due(2)


def test_by_default_every_save_is_committed(tmp_path):
    bench = Bench(tmp_path)
    for step in (1, 2):
        bench.save(step)
        assert read(bench.volume.committed).step == step


def test_commits_keep_their_distance(tmp_path):
    bench = Bench(tmp_path, commits=CommitPolicy(min_interval_s=100))
    committed = []
    for step in range(1, 8):
        bench.clock.now += 40
        bench.save(step)
        committed.append(read(bench.volume.committed).step)
    assert committed == [1, 1, 1, 4, 4, 4, 7]


def test_nothing_is_removed_before_what_replaces_it_is_committed(tmp_path):
    """A container killed between two commits must find what the last commit left."""
    policy = CheckpointPolicy(every_steps=1, keep_last=1)
    bench = Bench(tmp_path, policy, CommitPolicy(on_checkpoint=False))
    for step in (1, 2, 3):
        bench.save(step)
    assert len(list((bench.volume.mount / "checkpoints").glob("ckpt-*"))) == 3
    bench.checkpointer.commit()
    assert len(list((bench.volume.mount / "checkpoints").glob("ckpt-*"))) == 1
    assert read(bench.volume.committed).step == 3


def test_a_commit_that_fails_removes_nothing(tmp_path):
    bench = Bench(tmp_path, CheckpointPolicy(every_steps=1, keep_last=1))
    bench.save(1)

    def refuse() -> None:
        raise ConnectionError("no route to the server")

    bench.volume.commit = refuse
    with pytest.raises(ConnectionError):
        bench.save(2)
    assert len(list((bench.volume.mount / "checkpoints").glob("ckpt-*"))) == 2


def test_metrics_are_written_before_the_checkpoint_that_they_belong_to(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    order = []
    events, store = bench.checkpointer._events, bench.checkpointer._store
    flush, publish = events.flush, store.publish
    monkeypatch.setattr(events, "flush", lambda *a: (order.append("flush"), flush(*a))[1])
    monkeypatch.setattr(store, "publish", lambda *a: (order.append("publish"), publish(*a))[1])
    bench.save(1)
    assert order == ["flush", "publish", "flush"]


def test_what_cannot_be_removed_after_a_commit_is_noted_and_ends_nothing(tmp_path, monkeypatch):
    bench = Bench(tmp_path, CheckpointPolicy(every_steps=1, keep_last=1))
    bench.save(1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        bench.save(2)
    assert read(bench.volume.committed).step == 2
    bench.save(3)
    kinds = [event.kind for event in read_events(bench.volume.mount)]
    assert kinds.count("not_pruned") == 1
    assert len(list((bench.volume.mount / "checkpoints").glob("ckpt-*"))) == 1
