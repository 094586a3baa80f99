"""What an owner does to a plane: strike at a moment, plant faults, freeze, move the clock."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import modal
import pytest

from modalkit.errors import LocalPlaneError, UnknownContainerError, UsageError
from modalkit.local import ContainerInfo, LocalPlane
from modalkit.local.lifesigns import LOOK_EVERY_S

from .conftest import APPS, lines

Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def plane() -> Iterator[LocalPlane]:
    """Without background commits: what is committed here is what the app commits."""
    with LocalPlane(
        engine="inline", snapshots=False, strict_image=True, background_commit_s=0
    ) as running:
        yield running


@pytest.fixture(scope="module")
def function(plane: LocalPlane, client: modal.Client) -> Lookup:
    plane.deploy(str(APPS / "shaken.py"))
    return lambda name: modal.Function.from_name("shaken", name, client=client)


def committed(plane: LocalPlane, volume: str = "shaken") -> set[str]:
    return {path.name for path in plane.volume(volume).committed().iterdir()}


def ended(container: str) -> Callable[[Sequence[ContainerInfo]], bool]:
    """Return a predicate for `wait_for`: the container has ended."""
    return lambda found: any(c.id == container and not c.is_alive for c in found)


# ------------------------------------------------------------------ at a moment


def test_a_preemption_after_a_line_strikes_who_wrote_it(plane: LocalPlane, function: Lookup):
    calls = [function("walk").spawn(name, 50, 0.1) for name in ("ann", "ben")]
    victim = plane.preempt(after="ben STEP 7")
    first, second = (call.get() for call in calls)
    written = lines(plane, container=victim.id)
    assert "ben STEP 7" in written
    assert "ben STEP 49" not in written
    assert first != victim.id
    assert second != victim.id
    assert victim.inputs
    gone = next(c for c in plane.containers(all=True) if c.id == victim.id)
    assert not gone.is_alive


@pytest.mark.slow
def test_a_line_counts_once_so_the_second_kill_strikes_the_second_attempt(
    plane: LocalPlane, function: Lookup
):
    call = function("walk").spawn("cas", 40, 0.1)
    victims = [plane.kill(after=re.compile(r"^cas STEP 3$")).id for _ in range(2)]
    assert call.get() not in victims
    assert len(set(victims)) == 2
    codes = {c.id: c.returncode for c in plane.containers(all=True)}
    assert [codes[victim] for victim in victims] == [-9, -9]


@pytest.mark.slow
def test_a_kill_after_seconds_of_running_or_when_a_predicate_holds(
    plane: LocalPlane, function: Lookup
):
    call = function("walk").spawn("dan", 30, 0.1)
    begin = time.monotonic()
    first = plane.kill(after=0.5)
    assert time.monotonic() - begin >= 0.5
    second = plane.kill(after=lambda found: bool(found.inputs) and found.id != first.id)
    assert call.get() not in {first.id, second.id}


def test_what_does_not_happen_in_time_is_an_error_that_shows_what_did(
    plane: LocalPlane, function: Lookup
):
    task = function("walk").remote("eve", 2)
    with pytest.raises(LocalPlaneError, match=r"0\.3 s in vain for 'no such line'") as caught:
        plane.preempt(after="no such line", timeout_s=0.3)
    assert task in str(caught.value)
    assert "stdout: eve STEP 1" in str(caught.value)
    with pytest.raises(LocalPlaneError, match="in vain"):
        plane.wait_for_line("no such line", 0.3)
    with pytest.raises(UsageError, match="kill which container"):
        plane.kill()


def test_a_line_of_a_container_that_has_ended_strikes_nobody(plane: LocalPlane, function: Lookup):
    task = function("walk").remote("flo", 1)
    plane.kill(task)
    plane.wait_for(ended(task))
    with pytest.raises(LocalPlaneError, match="in vain"):
        plane.kill(after="flo STEP 0", timeout_s=0.3)


# ------------------------------------------------------------------ faults


def test_a_commit_that_fails_reaches_the_app_and_commits_nothing(
    plane: LocalPlane, function: Lookup
):
    with plane.faults.fail_commit("shaken", nth=2) as fault:
        said = function("save").remote("one", "two", "three")
    assert said[0] == said[2] == "committed"
    assert said[1].startswith("RuntimeError: the commit was made to fail")
    assert fault.strikes == 1
    assert {"one", "three"} <= committed(plane)
    assert "two" not in committed(plane)
    assert {"one", "two", "three"} <= committed(plane, "untouched")
    assert function("save").remote("four") == ["committed"]


def test_the_client_tries_again_after_unavailable(plane: LocalPlane, function: Lookup):
    begin = len(plane.transcript())
    with plane.faults.fail("VolumeCommit", volume="shaken", times=2) as fault:
        assert function("save").remote("patience") == ["committed"]
    assert fault.strikes == 2
    commits = [
        rpc.status
        for rpc in plane.transcript(begin, name="VolumeCommit")
        if rpc.request["volume_id"] == _id_of_the_struck_volume(plane)
    ]
    assert commits[:3] == ["UNAVAILABLE", "UNAVAILABLE", "OK"]
    assert "patience" in committed(plane)


def _id_of_the_struck_volume(plane: LocalPlane) -> str:
    [found] = {
        rpc.request["volume_id"]
        for rpc in plane.transcript(name="VolumeCommit")
        if rpc.status == "UNAVAILABLE"
    }
    return found


def test_an_answer_that_is_lost_leaves_what_was_done(plane: LocalPlane, function: Lookup):
    with plane.faults.fail_commit("shaken", applied=True):
        [said] = function("save").remote("lost-answer", keep=True)
    assert said.startswith("RuntimeError")
    assert "lost-answer" in committed(plane)


def test_a_full_disk_ends_when_it_is_emptied(plane: LocalPlane, function: Lookup):
    disk = plane.faults.fill_disk("shaken")
    said = function("save").remote("big", "bigger")
    assert [text.partition(":")[0] for text in said] == ["RuntimeError"] * 2
    assert "no space left" in said[0]
    assert not {"big", "bigger"} & committed(plane)
    disk.remove()
    assert function("save").remote("fits") == ["committed"]
    assert disk.strikes == 2


def test_a_fault_of_the_clients_spares_containers(plane: LocalPlane, function: Lookup):
    with plane.faults.fail("VolumeCommit", caller="client", times=None, status="ABORTED") as fault:
        assert function("save").remote("spared") == ["committed"]
    assert fault.strikes == 0
    with (
        plane.faults.fail("VolumeCommit", caller="container", status="ABORTED", volume="shaken"),
    ):
        assert function("save").remote("struck") != ["committed"]


def test_an_output_is_held_back_until_the_clock_has_moved(plane: LocalPlane, function: Lookup):
    with plane.faults.delay("FunctionPutOutputs", seconds=200) as fault:
        call = function("brief").spawn()
        plane.wait_for(lambda _: fault.strikes == 1)
        with pytest.raises(TimeoutError):
            call.get(timeout=1)
        plane.clock.advance(200)
        assert call.get(timeout=30).startswith("ta-")


@pytest.mark.slow
def test_a_frozen_container_stands_still_until_it_thaws(plane: LocalPlane, function: Lookup):
    call = function("walk").spawn("gil", 40)
    line = plane.wait_for_line("gil STEP 5")
    with plane.faults.freeze(line.container):
        [pid] = [c.pid for c in plane.containers() if c.id == line.container]
        assert "State:\tT" in Path(f"/proc/{pid}/status").read_text()
        time.sleep(3)  # longer than it would take to the end
        assert "gil STEP 39" not in lines(plane, container=line.container)
    assert call.get() == line.container


@pytest.mark.slow
def test_a_frozen_container_can_be_killed(plane: LocalPlane, function: Lookup):
    call = function("walk").spawn("hal", 40, 0.1)
    line = plane.wait_for_line("hal STEP 2")
    plane.faults.freeze(line.container)
    plane.kill(line.container)
    assert call.get() != line.container
    plane.faults.clear()  # thaws nothing that is not there
    with pytest.raises(UnknownContainerError, match=line.container):
        plane.faults.freeze(line.container)


@pytest.mark.slow
def test_a_container_without_a_heartbeat_is_taken_for_dead_and_its_input_runs_again():
    with LocalPlane(engine="inline", snapshots=False, heartbeat_timeout_s=20) as plane:
        plane.deploy(str(APPS / "shaken.py"))
        walk = modal.Function.from_name("shaken", "walk", client=plane.client())
        call = walk.spawn("ida", 40, 0.1)
        line = plane.wait_for_line("ida STEP 2")
        plane.faults.freeze(line.container)
        assert call.get(timeout=90) != line.container
        said = plane.wait_for_line("sent no heartbeat").text
        assert line.container in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rpc": "VolumeComit"}, "is it VolumeCommit"),
        ({"rpc": "VolumeCommit", "status": "BROKEN"}, "no gRPC status 'BROKEN'"),
        ({"rpc": "VolumeCommit", "nth": 0}, "count from 1"),
        ({"rpc": "FunctionGetInputs", "volume": "shaken"}, "is about no Volume"),
        ({"rpc": "SandboxCreateV2"}, "does not model Sandboxes"),
        ({"rpc": "VolumeCommit", "caller": "ta-1"}, "no caller 'ta-1': take client"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(plane: LocalPlane, options: dict, said: str):
    with pytest.raises(UsageError, match=said):
        plane.faults.fail(**options)


def test_nobody_waits_to_strike_a_container_that_is_not_there(plane: LocalPlane):
    with pytest.raises(UnknownContainerError, match="ta-nowhere"):
        plane.kill("ta-nowhere", after="no such line")


# ------------------------------------------------------------------ the clock


def test_a_scaledown_window_of_five_minutes_passes_at_once(plane: LocalPlane, function: Lookup):
    task = function("brief").remote()
    plane.wait_for(lambda found: any(c.id == task and c.state == "idle" for c in found))
    plane.clock.advance(290)
    assert task in {c.id for c in plane.containers()}
    assert function("brief").remote() == task  # and its window begins again
    plane.clock.advance(301)
    found = plane.wait_for(ended(task), timeout_s=30)
    gone = next(c for c in found if c.id == task)
    assert gone.returncode == 0
    assert gone.exited_at - gone.first_input_at >= 590


def test_a_day_long_timeout_ends_at_once(plane: LocalPlane, function: Lookup):
    call = function("endless").spawn()
    plane.wait_for_line("ENDLESS")
    before = plane.clock.time()
    assert plane.clock.advance(86400) - before >= 86400
    with pytest.raises(modal.exception.FunctionTimeoutError):
        call.get(timeout=60)


def test_a_retry_delay_of_a_minute_passes_at_once(plane: LocalPlane, function: Lookup):
    call = function("fails_once").spawn("once")
    plane.wait_for(
        lambda found: any(
            c.function == "fails_once" and c.first_input_at and not c.inputs for c in found
        )
    )
    assert "once" in committed(plane)
    with pytest.raises(TimeoutError):
        call.get(timeout=1)
    plane.clock.advance(60)
    assert call.get(timeout=40) == "the second time"


@pytest.mark.slow
def test_a_result_is_given_up_after_seven_days(plane: LocalPlane, function: Lookup):
    call = function("brief").spawn()
    call.get(timeout=60)
    plane.clock.advance(7 * 86400 + 1)
    time.sleep(2 * LOOK_EVERY_S)
    with pytest.raises(modal.exception.OutputExpiredError):
        call.get(timeout=0)


def test_a_client_is_not_late_because_the_clock_was_moved(plane: LocalPlane, tmp_path: Path):
    goal = tmp_path / "goal"
    since = len(plane.logs())
    target = [f"{APPS / 'shaken.py'}::until", "--path", str(goal)]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "modal", "run", *target],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **plane.env},
    ) as client:
        plane.wait_for_line("UNTIL", since=since)
        plane.clock.advance(3600)
        time.sleep(1)
        goal.touch()
        assert client.wait(60) == 0


def test_the_clock_does_not_run_backwards(plane: LocalPlane):
    with pytest.raises(UsageError, match="forwards only"):
        plane.clock.advance(-1)
