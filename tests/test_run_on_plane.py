"""`modalkit.run` in real containers: preempted, killed, failed, called again."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane
from modalkit.runs.attempts import read_attempts

APP = Path(__file__).parent / "local" / "apps" / "function_run.py"
Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def plane() -> Iterator[LocalPlane]:
    with LocalPlane(snapshots=False, strict_image=True) as running:
        running.deploy(str(APP))
        yield running


@pytest.fixture(scope="module")
def function(plane: LocalPlane) -> Lookup:
    client = plane.client()
    return lambda name: modal.Function.from_name("function-run", name, client=client)


def directory(plane: LocalPlane, run_id: str) -> Path:
    return plane.volume("function-outputs").committed() / "runs" / run_id


def await_step(plane: LocalPlane, step: int) -> str:
    """Wait until the container that lives prints that it begins *step*; return its id."""
    deadline = time.monotonic() + 60
    while True:
        busy = [c.id for c in plane.containers() if c.inputs]
        printed = [line.container for line in plane.logs() if line.text == f"STEP {step}"]
        if found := [container for container in busy if container in printed]:
            return found[0]
        assert time.monotonic() < deadline, plane.containers(all=True)
        time.sleep(0.005)


def test_a_preemption_saves_the_last_step_and_costs_none(
    plane: LocalPlane, function: Lookup
) -> None:
    call = function("train").spawn("preempted", 40)
    container = await_step(plane, 22)
    plane.preempt(container)
    summary = call.get(timeout=60)
    assert summary["status"] == "finished"
    assert (summary["step"], summary["attempts"], summary["recomputed_steps"]) == (40, 2, 0)
    assert summary["resumed_at"] >= 23
    first, second = read_attempts(directory(plane, "preempted"))
    assert (first.cause, first.step, first.container) == (
        "preempted",
        summary["resumed_at"],
        container,
    )
    assert second.cause == "finished"
    names = {path.name for path in (directory(plane, "preempted") / "attempts").iterdir()}
    assert names == {f"{a.number}-{a.container}.json" for a in (first, second)}


@pytest.mark.slow
def test_a_preemption_waits_for_the_end_of_the_step(plane: LocalPlane, function: Lookup) -> None:
    call = function("train").spawn("long-step", 8, 6.0)
    container = await_step(plane, 0)
    plane.preempt(container)
    plane.wait_for(lambda found: any(c.id == container and not c.is_alive for c in found))
    [first] = read_attempts(directory(plane, "long-step"))
    assert (first.cause, first.step) == ("preempted", 1)
    call.cancel(terminate_containers=True)


@pytest.mark.slow
def test_a_step_that_outlasts_the_grace_is_interrupted_and_loses_itself_only(
    plane: LocalPlane, function: Lookup
) -> None:
    call = function("train").spawn("endless-step", 8, 600.0)
    container = await_step(plane, 0)
    started = time.monotonic()
    plane.preempt(container)
    [gone] = [
        c
        for c in plane.wait_for(lambda found: any(c.exited_at for c in found if c.id == container))
        if c.id == container
    ]
    assert gone.returncode == 0  # by KeyboardInterrupt, not by the SIGKILL after 30 s
    assert 20 < time.monotonic() - started < 30
    [first] = read_attempts(directory(plane, "endless-step"))
    assert (first.cause, first.step) == ("preempted", 0)
    call.cancel(terminate_containers=True)


@pytest.mark.slow
def test_a_swallowed_interrupt_still_gives_the_input_to_the_next_container(
    plane: LocalPlane, function: Lookup
) -> None:
    call = function("swallow").spawn("swallowed", 40)
    container = await_step(plane, 10)
    plane.preempt(container)
    assert call.get(timeout=60)["status"] == "finished"
    assert "SWALLOWED" in [line.text for line in plane.logs() if line.container == container]
    causes = [attempt.cause for attempt in read_attempts(directory(plane, "swallowed"))]
    assert causes == ["preempted", "finished"]


def test_an_error_uses_retries_and_goes_on_from_the_last_checkpoint(
    plane: LocalPlane, function: Lookup
) -> None:
    summary = function("fail_twice").remote("failing")
    assert (summary["status"], summary["step"], summary["attempts"]) == ("finished", 12, 3)
    attempts = read_attempts(directory(plane, "failing"))
    assert [attempt.cause for attempt in attempts] == ["error", "error", "finished"]
    assert [attempt.resumed_at for attempt in attempts] == [None, 5, 10]


@pytest.mark.slow
def test_a_finished_run_called_again_returns_its_summary_and_says_so(
    plane: LocalPlane, function: Lookup
) -> None:
    train = function("train")
    once = train.remote("again", 6)
    twice = train.remote("again", 6)
    assert twice == once
    assert any("nothing left to do" in line.text for line in plane.logs())
    more = train.remote("again", 9)
    assert (more["status"], more["step"], more["resumed_at"]) == ("finished", 9, 6)


@pytest.mark.slow
def test_the_volume_holds_no_pickle_and_its_manifests_are_json(
    plane: LocalPlane, function: Lookup
) -> None:
    function("train").remote("formats", 6)
    found = directory(plane, "formats")
    suffixes = {path.suffix for path in found.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors"}
    for manifest in (found / "checkpoints").glob("ckpt-*.json"):
        assert json.loads(manifest.read_text().splitlines()[0])["v"] == 1
