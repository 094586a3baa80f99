"""What becomes of inputs when containers end in unusual ways."""

import time
from collections.abc import Callable, Iterator

import modal
import pytest

from modalkit.errors import LocalPlaneError, UnknownContainerError
from modalkit.local import LocalPlane
from tests.support.profiles import PROFILE

from .conftest import APPS, lines
from .test_leaves_nothing import is_running

Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def plane() -> Iterator[LocalPlane]:
    with LocalPlane(engine="fork", strict_image=True, profile=PROFILE) as running:
        running.deploy(str(APPS / "endings.py"))
        yield running


@pytest.fixture(scope="module")
def function(plane: LocalPlane) -> Lookup:
    client = plane.client()
    return lambda name: modal.Function.from_name("endings", name, client=client)


@pytest.fixture(scope="module")
def cls(plane: LocalPlane) -> Callable[[str], modal.Cls]:
    client = plane.client()
    return lambda name: modal.Cls.from_name("endings", name, client=client)


def await_line(plane: LocalPlane, text: str) -> str:
    deadline = time.monotonic() + 30
    while not (found := [line.container for line in plane.logs() if line.text == text]):
        assert time.monotonic() < deadline, lines(plane)[-20:]
        time.sleep(0.01)
    return found[-1]


def test_an_exit_hook_that_raises_fails_nobody(cls: Callable[[str], modal.Cls]) -> None:
    trainer = cls("RaisesInExit")()
    calls = [trainer.f.spawn(x) for x in range(3)]
    assert [call.get(timeout=30) for call in calls] == [0, 1, 2]


@pytest.mark.slow
def test_a_retry_after_a_timeout_waits_for_the_last_words(
    plane: LocalPlane, function: Lookup
) -> None:
    attempts = function("saves_after_its_timeout").remote("timeout.txt")
    first, second = [c for c in plane.containers(all=True) if c.id in attempts]
    assert attempts == [first.id, second.id]
    assert first.exited_at <= second.launched_at


@pytest.mark.parametrize(
    ("name", "line"),
    [("asynchronous", "ASYNC ATTEMPT"), ("leaves_by_system_exit", "EXIT ATTEMPT")],
)
def test_a_preempted_attempt_is_run_again_after_it_saved(
    plane: LocalPlane, function: Lookup, name: str, line: str
) -> None:
    call = function(name).spawn(f"{name}.txt")
    victim = await_line(plane, line)
    plane.preempt(victim)
    attempts = call.get(timeout=30)
    assert attempts[0] == victim
    assert len(attempts) == 2


@pytest.mark.slow
def test_a_container_that_always_quits_fails_its_input_at_last(
    plane: LocalPlane, function: Lookup
) -> None:
    with pytest.raises(modal.exception.InternalFailure, match="code 0"):
        function("quits").remote()


@pytest.mark.parametrize("start", ["cold", "restored"])
def test_what_a_container_started_ends_with_it(
    plane: LocalPlane, function: Lookup, cls: Callable[[str], modal.Cls], start: str
) -> None:
    leave = function("leaves_children") if start == "cold" else cls("Restored")().leaves_children
    pids = leave.remote()
    for container in plane.containers():
        if container.kind == "restored":
            plane.kill(container.id)
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)):  # each has a session of its own, one is an orphan
        assert time.monotonic() < deadline, [pid for pid in pids if is_running(pid)]
        time.sleep(0.05)


def test_the_death_of_a_template_loses_no_call(
    plane: LocalPlane, cls: Callable[[str], modal.Cls]
) -> None:
    restored = cls("Restored")()
    calls = [restored.nap.spawn(2.0) for _ in range(3)]
    plane.wait_for(lambda found: sum(bool(c.inputs) and c.kind == "restored" for c in found) == 3)
    [template] = [c for c in plane.containers() if c.state == "template"]
    with pytest.raises(UnknownContainerError, match="holds a snapshot"):
        plane.preempt(template.id)
    plane.kill(template.id)
    assert len({call.get(timeout=60) for call in calls}) == 3
    kinds = [c.kind for c in plane.containers(all=True) if "Restored" in c.function]
    assert kinds.count("snapshotting") == 2


def test_a_snapshot_maker_that_is_killed_is_followed_by_another(
    plane: LocalPlane, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with LocalPlane(engine="fork", profile=PROFILE) as other:
        other.deploy(str(APPS / "endings.py"))
        restored = modal.Cls.from_name("endings", "Restored", client=other.client())()
        call = restored.nap.spawn(0.0)
        other.wait_for(lambda found: any(c.kind == "snapshotting" and c.pid for c in found))
        [maker] = [c for c in other.containers() if c.kind == "snapshotting"]
        other.kill(maker.id)
        by_id = {c.id: c for c in other.containers(all=True)}
        answered = call.get(timeout=30)
        by_id = {c.id: c for c in other.containers(all=True)}
        assert by_id[answered].kind == "restored"


@pytest.mark.slow
def test_app_stop_fails_what_waits_for_its_retry() -> None:
    with LocalPlane(engine="inline") as plane:
        plane.deploy(str(APPS / "endings.py"))
        client = plane.client()
        call = modal.Function.from_name("endings", "fails_with_a_long_delay", client=client).spawn()
        plane.wait_for(lambda found: any(c.first_input_at and not c.inputs for c in found))
        plane.modal("app", "stop", "endings", "--yes", capture=True)
        with pytest.raises(modal.exception.RemoteError, match="stopped"):
            call.get(timeout=10)


def test_a_bad_volume_name_is_refused(plane: LocalPlane) -> None:
    with pytest.raises(LocalPlaneError, match=r"\.\./x"):
        plane.volume("../x").committed()
