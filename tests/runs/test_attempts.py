"""The ledger: every attempt has a file of its own, and a killed one is found out."""

from __future__ import annotations

import json

import attrs
import pytest

from modalkit.runs import attempts as ledger
from modalkit.runs import files
from modalkit.runs.attempts import Attempt, read_attempts
from modalkit.telemetry.events import Events


def make(number: int = 1, container: str = "ta", **values) -> Attempt:
    values = {"started_at": float(number), "resumed_at": None, "step": 0} | values
    return Attempt(number=number, container=container, **values)


def test_what_is_written_is_read(tmp_path):
    attempt = make(
        cause="error",
        ended_at=2.5,
        error="ValueError: x",
        config={"a": [1, None]},
        versions={"python": "3.11"},
        summary={"metrics": {"loss": "nan"}},
    )
    ledger.write(tmp_path, attempt)
    assert read_attempts(tmp_path) == [attempt]
    assert [p.name for p in (tmp_path / "attempts").iterdir()] == ["1-ta.json"]


def test_attempts_are_in_the_order_in_which_they_began(tmp_path):
    for number, container, started_at in (
        (10, "b", 9.0),
        (2, "z", 3.0),
        (2, "a", 4.0),
        (1, "c", 1.0),
    ):
        ledger.write(tmp_path, make(number, container, started_at=started_at))
    assert [(a.number, a.container) for a in read_attempts(tmp_path)] == [
        (1, "c"), (2, "z"), (2, "a"), (10, "b"),
    ]  # fmt: skip


def test_without_an_end_an_attempt_is_lost_if_a_later_one_exists(tmp_path):
    for number in (1, 2, 3):
        ledger.write(
            tmp_path, make(number, f"t{number}", cause="error" if number == 2 else "running")
        )
    assert [a.cause for a in read_attempts(tmp_path)] == ["lost", "error", "running"]


def test_a_lost_attempt_came_as_far_as_its_committed_events_show(tmp_path):
    ledger.write(tmp_path, make(1, "t1", step=3, resumed_at=3))
    ledger.write(tmp_path, make(2, "t2"))
    events = Events(tmp_path / "events" / "1-t1.jsonl", run_id="r")
    events.emit("checkpoint", step=6)
    events.log_metrics(8, {"loss": 1})
    events.flush(9)
    events.flush()
    assert [a.step for a in read_attempts(tmp_path)] == [9, 0]


def test_a_new_number_is_above_all_that_were_given(tmp_path):
    assert ledger.next_number(tmp_path) == 1
    ledger.write(tmp_path, make(9, "a"))
    (tmp_path / "attempts" / "10-b.json").write_text("torn")
    (tmp_path / "attempts" / "99.json").write_text("{}")
    assert ledger.next_number(tmp_path) == 11


def test_files_that_are_torn_or_foreign_are_left_out(tmp_path):
    ledger.write(tmp_path, make())
    (tmp_path / "attempts" / "2-t.json").write_text('{"number": 2')
    (tmp_path / "attempts" / "notes.json").write_text("{}")
    (tmp_path / "attempts" / "x.txt").write_text("")
    assert [a.number for a in read_attempts(tmp_path)] == [1]
    assert read_attempts(tmp_path / "nowhere") == []


def test_a_field_of_a_later_version_is_left_out(tmp_path):
    ledger.write(tmp_path, make())
    path = tmp_path / "attempts" / "1-ta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": 1}))
    assert read_attempts(tmp_path) == [make()]


def test_a_replaced_file_is_whole_whenever_the_writer_dies(tmp_path, monkeypatch):
    ledger.write(tmp_path, make())

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        ledger.write(tmp_path, make(step=5))
    assert read_attempts(tmp_path) == [make()]
    assert [p.name for p in tmp_path.iterdir()] == ["attempts"], "nothing is left behind"


def test_what_a_killed_attempt_was_writing_is_removed_by_the_next(tmp_path):
    ledger.write(tmp_path, make(1, "t1"))
    (tmp_path / ".tmp-1-t1.json").write_text('{"number"')
    (tmp_path / ".tmp-2-t2.json").write_text('{"number"')
    ledger.remove_leftovers(tmp_path, read_attempts(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-2-t2.json", "attempts"]


def attempts(*spans: tuple[int | None, int]) -> list[Attempt]:
    return [
        make(number, resumed_at=resumed_at, step=step)
        for number, (resumed_at, step) in enumerate(spans, start=1)
    ]


@pytest.mark.parametrize(
    ("spans", "recomputed"),
    [
        ([], 0),
        ([(None, 10)], 0),
        ([(None, 4), (4, 10)], 0),
        ([(None, 7), (6, 10)], 1),
        ([(None, 7), (3, 5), (3, 10)], 4 + 2),
        ([(None, 8), (6, 6), (6, 9)], 2),
        ([(None, 8), (6, 7)], 1),
    ],
)
def test_recomputed_steps_are_those_computed_more_than_once(spans, recomputed):
    assert ledger.recomputed_steps(attempts(*spans)) == recomputed


def test_only_the_summary_of_a_finished_attempt_at_that_step_counts():
    one, two, three = attempts((None, 5), (5, 9), (5, 9))
    finished = [
        attrs.evolve(one, cause="finished", summary={"n": 1}),
        attrs.evolve(two, cause="finished", summary={"n": 2}),
        attrs.evolve(three, cause="stopped", summary={"n": 3}),
    ]
    assert ledger.finished_summary(finished, 9) == {"n": 2}
    assert ledger.finished_summary(finished, 5) == {"n": 1}
    assert ledger.finished_summary(finished, 7) is None


def test_a_container_is_named_by_modal_or_by_something_unique(monkeypatch):
    monkeypatch.setenv("MODAL_TASK_ID", "ta-01ABC")
    assert files.container_id() == "ta-01ABC"
    monkeypatch.setenv("MODAL_TASK_ID", "../ta/1")
    assert "/" not in files.container_id()
    monkeypatch.delenv("MODAL_TASK_ID")
    assert files.container_id() != files.container_id()


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"number": "2"}', '{"number": 2, "container": "b"}']
)
def test_a_file_that_is_no_attempt_is_as_good_as_absent_but_its_number_counts(tmp_path, content):
    ledger.write(tmp_path, make(1, "a"))
    (tmp_path / "attempts" / "2-b.json").write_text(content)
    assert [a.number for a in read_attempts(tmp_path)] == [1]
    assert ledger.next_number(tmp_path) == 3
