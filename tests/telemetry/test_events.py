"""Events: nothing waits for a device, nothing stays open, nothing global is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalkit.errors import RunError
from modalkit.telemetry.events import Events, read_events, read_metrics


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(directory, name="1-ta", clock=None) -> Events:
    return Events(
        directory / "events" / f"{name}.jsonl", run_id="cats-1a2b", clock=clock or Clock()
    )


def lines(directory, name="1-ta") -> list[dict]:
    text = (directory / "events" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_an_event_is_a_line_of_json_after_a_flush(tmp_path):
    events = make(tmp_path)
    events.emit("checkpoint", step=3, file="f")
    assert not (tmp_path / "events").exists()
    events.flush()
    (line,) = lines(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {"kind": "checkpoint", "step": 3, "file": "f"}


def test_flushes_append(tmp_path):
    events = make(tmp_path)
    for step in range(3):
        events.emit("e", step=step)
        events.flush()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


def test_no_file_is_open_after_a_flush(tmp_path):
    events = make(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    events.log_metrics(0, {"loss": 1.0})
    events.flush(1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- metrics ------------------------------------------------------------------------------------


def test_metrics_are_read_back_exactly(tmp_path):
    events = make(tmp_path)
    loss = torch.rand(())
    events.log_metrics(0, {"loss": loss, "lr": 0.1, "n": 3, "ok": True})
    events.log_metrics(0, {"acc": np.float32(0.5), "one": torch.ones(1, 1, dtype=torch.int64)})
    events.log_metrics(1, {"loss": torch.tensor(0.25, dtype=torch.bfloat16)})
    events.flush()
    metrics = read_metrics(tmp_path)
    first = {"loss": loss.item(), "lr": 0.1, "n": 3, "ok": True, "acc": 0.5, "one": 1}
    assert metrics == {0: first, 1: {"loss": 0.25}}
    assert events.latest == first | {"loss": 0.25}


@given(st.floats())
def test_every_float_survives(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("run")
    events = make(directory)
    events.log_metrics(0, {"x": value})
    events.flush()
    assert len(lines(directory)) == 1
    assert repr(read_metrics(directory)[0]["x"]) == repr(value)


def test_what_is_logged_is_the_value_of_that_moment(tmp_path):
    events = make(tmp_path)
    total, array = torch.zeros(()), np.zeros(1)
    for step in range(3):
        total += 1
        array += 1
        events.log_metrics(step, {"total": total, "array": array})
    events.flush()
    assert [m["total"] for m in read_metrics(tmp_path).values()] == [1, 2, 3]
    assert [m["array"] for m in read_metrics(tmp_path).values()] == [1, 2, 3]


class Watched(torch.Tensor):
    """A tensor that notes when its value is asked for: on a GPU that would wait for it."""

    asked = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("item", "tolist", "__float__", "cpu", "numpy"):
            cls.asked += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def test_logging_never_asks_for_a_value_and_keeps_no_graph(tmp_path):
    events = make(tmp_path)
    weight = torch.ones(1, requires_grad=True)
    loss = (weight * 3).sum().as_subclass(Watched)
    Watched.asked = 0
    events.log_metrics(0, {"loss": loss})
    assert Watched.asked == 0
    (kept,) = events._metrics[0].values()
    assert kept.grad_fn is None
    events.flush()
    assert Watched.asked == 1
    assert read_metrics(tmp_path) == {0: {"loss": 3.0}}


@pytest.mark.parametrize("value", ["0.1", None, torch.zeros(2), np.zeros(0), [1.0], object()])
def test_what_is_not_a_single_number_is_refused_by_name(tmp_path, value):
    with pytest.raises(RunError, match=r"log\(loss=...\): .* is not a single number"):
        make(tmp_path).log_metrics(0, {"loss": value})


def test_of_a_step_computed_twice_the_last_attempt_wins_whole(tmp_path):
    for attempt, steps in ((1, range(4)), (2, range(2, 4)), (10, range(3, 5))):
        events = make(tmp_path, f"{attempt}-ta")
        for step in steps:
            events.log_metrics(step, {f"only_{attempt}": 1, "attempt": attempt})
        events.flush()
    metrics = read_metrics(tmp_path)
    assert [metrics[step]["attempt"] for step in range(5)] == [1, 1, 2, 10, 10]
    assert metrics[3] == {"only_10": 1, "attempt": 10}


def test_a_torn_line_and_a_foreign_file_are_left_out(tmp_path):
    events = make(tmp_path)
    events.log_metrics(0, {"loss": 1.0})
    events.flush()
    path = tmp_path / "events" / "1-ta.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": 1, "kind": "metr\xff')
    (tmp_path / "events" / "notes.txt").write_text("mine")
    (tmp_path / "events" / "2-tb.jsonl").write_text('[1]\n{"kind": "x"}\n5\n')
    assert read_metrics(tmp_path) == {0: {"loss": 1.0}}
    assert len(list(read_events(tmp_path))) == 1
    assert list(read_events(tmp_path / "nowhere")) == []


# ---- readable lines -----------------------------------------------------------------------------


def test_progress_is_a_readable_line_every_two_seconds(tmp_path, capsys):
    clock = Clock()
    events = make(tmp_path, clock=clock)
    for step in range(121):
        clock.now = step * 0.05
        events.log_metrics(step, {"loss": torch.tensor(0.21341)})
        events.flush_if_due(step + 1)
    shown = capsys.readouterr().err.splitlines()
    assert shown[1:] == [
        "step 81  loss 0.2134  20.0 steps/s  run cats-1a2b",
        "step 121  loss 0.2134  20.0 steps/s  run cats-1a2b",
    ]
    assert shown[0] == "step 41  loss 0.2134  run cats-1a2b"


def test_a_run_that_logs_nothing_shows_its_progress_too(tmp_path, capsys):
    clock = Clock()
    events = make(tmp_path, clock=clock)
    for step in range(1, 41):
        clock.now = step * 0.125
        events.flush_if_due(step)
    assert capsys.readouterr().err.splitlines() == [
        "step 16  run cats-1a2b",
        "step 32  8.0 steps/s  run cats-1a2b",
    ]
    assert [(e.kind, e.fields["step"]) for e in read_events(tmp_path)] == [
        ("progress", 16), ("progress", 32),
    ]  # fmt: skip


def test_frequent_saves_do_not_flood_the_terminal(tmp_path, capsys):
    clock = Clock()
    events = make(tmp_path, clock=clock)
    for step in range(100):
        clock.now += 0.125
        events.log_metrics(step, {"loss": 1.0})
        events.flush(step + 1)
    assert len(capsys.readouterr().err.splitlines()) == 6
    assert len(read_metrics(tmp_path)) == 100


def test_a_metric_may_have_any_name(tmp_path, capsys):
    clock = Clock()
    events = make(tmp_path, clock=clock)
    clock.now = 3
    events.log_metrics(0, {"event": 1, "run": 2, "time": 3, "kind": 4, "step": 5})
    events.flush(1)
    assert read_metrics(tmp_path) == {0: {"event": 1, "run": 2, "time": 3, "kind": 4, "step": 5}}
    shown = capsys.readouterr().err
    assert shown == "step 1  event 1  run 2  time 3  kind 4  step 5  run cats-1a2b\n"


def test_what_is_said_is_a_line_and_an_event(tmp_path, capsys):
    events = make(tmp_path)
    events.say("resumed", "resumes at step 3", shown={"loss": 0.5}, step=3)
    events.say_once("open_files", "files are open")
    events.say_once("open_files", "files are open")
    events.flush()
    assert capsys.readouterr().err.splitlines() == [
        "resumes at step 3  loss 0.5  run cats-1a2b",
        "files are open  run cats-1a2b",
    ]
    assert [line["kind"] for line in lines(tmp_path)] == ["resumed", "open_files"]


def test_a_programs_configuration_of_structlog_is_neither_read_nor_changed(tmp_path, capsys):
    structlog.configure(processors=[lambda *_: "theirs"], wrapper_class=structlog.BoundLogger)
    try:
        before = structlog.get_config()
        make(tmp_path).say("x", "ours")
        assert structlog.get_config() == before
    finally:
        structlog.reset_defaults()
    assert capsys.readouterr().err == "ours  run cats-1a2b\n"


def test_a_terminal_that_is_gone_ends_no_training(tmp_path, monkeypatch):
    class Gone:
        def write(self, _text: str) -> None:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    events = make(tmp_path)
    events.say("resumed", "resumes at step 3")
    events.flush()
    assert [line["kind"] for line in lines(tmp_path)] == ["resumed"]


def test_structlog_is_loaded_only_when_a_run_begins():
    code = "import sys, modalkit.telemetry.events; print('structlog' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert result.stdout == "False\n"
