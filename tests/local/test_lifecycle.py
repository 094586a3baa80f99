"""Classes, hooks, Volumes, preemption and death, through the real client and entrypoint."""

import time
from collections.abc import Iterator, Sequence

import modal
import pytest

from modalkit.errors import UnknownContainerError
from modalkit.local import ContainerInfo, LocalPlane
from tests.support.profiles import PROFILE

from .conftest import APPS, lines


@pytest.fixture(scope="module", params=["fork", pytest.param("inline", marks=pytest.mark.slow)])
def plane(request: pytest.FixtureRequest) -> Iterator[LocalPlane]:
    # No background commits: they may come between what a method writes and its death.
    with LocalPlane(
        engine=request.param, strict_image=True, background_commit_s=0, profile=PROFILE
    ) as running:
        running.deploy(str(APPS / "lifecycle.py"))
        yield running


@pytest.fixture(scope="module")
def worker(plane: LocalPlane) -> modal.Cls:
    return modal.Cls.from_name("lifecycle", "Worker", client=plane.client())


def busy(found: Sequence[ContainerInfo]) -> list[ContainerInfo]:
    return [container for container in found if container.inputs]


def wait_for_line(plane: LocalPlane, text: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in lines(plane):
        assert time.monotonic() < deadline, lines(plane)[-20:]
        time.sleep(0.01)


def notes(plane: LocalPlane, container: str) -> list[str]:
    return [text for text in lines(plane, container=container) if text.startswith("NOTE")]


def test_hooks_run_in_order_and_a_class_parameter_arrives(
    plane: LocalPlane, worker: modal.Cls
) -> None:
    answer = worker(name="otto").who.remote()
    assert answer["name"] == "otto"
    container = answer["task"]
    assert notes(plane, container)[-1] == "NOTE after start"
    assert "NOTE before snapshot" in lines(plane)


def test_two_containers_restored_from_one_snapshot_are_the_same_process_image(
    plane: LocalPlane, worker: modal.Cls, request: pytest.FixtureRequest
) -> None:
    engine = request.node.callspec.params["plane"]
    calls = [worker(name="twins").who.spawn(2.0) for _ in range(2)]
    twins = modal.FunctionCall.gather(*calls)
    kinds = {c.id: c.kind for c in plane.containers(all=True)}
    assert len({twin["task"] for twin in twins}) == 2
    if engine == "fork":
        assert [kinds[twin["task"]] for twin in twins] == ["restored", "restored"]
        assert twins[0]["made_by"] == twins[1]["made_by"]
        assert twins[0]["made_by"] not in {twin["pid"] for twin in twins}
    else:
        assert [kinds[twin["task"]] for twin in twins] == ["snapshotting", "snapshotting"]
        assert [twin["made_by"] for twin in twins] == [twin["pid"] for twin in twins]


def test_a_preempted_input_goes_on_in_a_new_container(plane: LocalPlane, worker: modal.Cls) -> None:
    call = worker(name="preempted").climb.spawn(40)
    wait_for_line(plane, "NOTE preempted step 10")
    [victim] = busy(plane.containers())
    plane.preempt(victim.id)
    start, end = call.get()
    assert end == 40
    assert 9 <= start <= 15
    gone = next(c for c in plane.containers(all=True) if c.id == victim.id)
    assert (gone.state, gone.returncode) == ("exited", 0)
    assert "NOTE exit hook" in notes(plane, victim.id)
    exits = plane.volume("progress").committed() / f"exit-{victim.id}"
    assert exits.read_text() == "bye"  # the commit that follows the exit hooks


def test_a_preempted_async_method_goes_on_in_a_new_container(
    plane: LocalPlane, worker: modal.Cls
) -> None:
    call = worker(name="sleepy").doze.spawn(2.0)
    wait_for_line(plane, "NOTE sleepy dozes")
    [victim] = busy(plane.containers())
    plane.preempt(victim.id)
    assert call.get() != victim.id  # the class has no retries, so none was used


def test_a_killed_container_loses_what_it_did_not_commit(
    plane: LocalPlane, worker: modal.Cls
) -> None:
    with pytest.raises(modal.exception.InternalFailure):
        worker().write_only.remote("die")
    assert not (plane.volume("progress").committed() / "uncommitted.txt").exists()


def test_a_killed_input_goes_on_from_what_was_committed(
    plane: LocalPlane, worker: modal.Cls
) -> None:
    call = worker(name="killed").climb.spawn(30)
    wait_for_line(plane, "NOTE killed step 8")
    [victim] = busy(plane.containers())
    plane.kill(victim.id)
    start, _ = call.get()
    assert start >= 7
    gone = next(c for c in plane.containers(all=True) if c.id == victim.id)
    assert gone.returncode == -9
    with pytest.raises(UnknownContainerError, match=victim.id):
        plane.kill(victim.id)


@pytest.mark.slow
def test_who_swallows_the_interrupt_is_killed_after_the_grace(
    plane: LocalPlane, worker: modal.Cls
) -> None:
    call = worker(name="stubborn").swallow.spawn(3.0)
    wait_for_line(plane, "NOTE swallowing")
    [victim] = busy(plane.containers())
    plane.preempt(victim.id, grace_s=1.0)
    assert call.get() == "done"
    gone = next(c for c in plane.containers(all=True) if c.id == victim.id)
    assert gone.returncode == -9
    assert "NOTE swallowed an interrupt" in notes(plane, victim.id)


@pytest.mark.slow
def test_the_grace_of_the_plane_is_the_default() -> None:
    with LocalPlane(engine="inline", snapshots=False, grace_s=0.5) as short:
        short.deploy(str(APPS / "lifecycle.py"))
        worker = modal.Cls.from_name("lifecycle", "Worker", client=short.client())
        call = worker(name="stubborn").swallow.spawn(6.0)
        wait_for_line(short, "NOTE swallowing")
        [victim] = busy(short.containers())
        short.preempt(victim.id)
        found = short.wait_for(
            lambda found: next(c for c in found if c.id == victim.id).returncode is not None,
            timeout_s=5,
        )
        assert next(c for c in found if c.id == victim.id).returncode == -9
        call.cancel()
