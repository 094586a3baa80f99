"""How many containers there are, and when."""

import os
import time
from collections.abc import Callable

import modal
import pytest

from modalkit.local import ContainerInfo, LocalPlane

from .conftest import APPS, lines

Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def function(plane: LocalPlane, client: modal.Client) -> Lookup:
    plane.deploy(str(APPS / "scaling.py"))
    return lambda name: modal.Function.from_name("scaling", name, client=client)


def of(found: list[ContainerInfo], name: str, *, alive: bool = True) -> list[ContainerInfo]:
    return [c for c in found if c.function in (name, f"{name}.*") and (c.is_alive or not alive)]


def test_min_containers_are_there_before_any_call_and_after_a_death(
    function: Lookup, plane: LocalPlane
) -> None:
    ready = plane.wait_for(lambda found: [c.state for c in of(found, "kept_warm")] == ["idle"] * 2)
    victim = of(ready, "kept_warm")[0].id
    plane.kill(victim)
    plane.wait_for(
        lambda found: (
            len([c for c in of(found, "kept_warm") if c.state == "idle" and c.id != victim]) == 2
        )
    )


@pytest.mark.slow
def test_a_buffer_is_kept_while_there_is_work_and_no_longer(
    function: Lookup, plane: LocalPlane
) -> None:
    call = function("buffered").spawn(4.0)
    plane.wait_for(lambda found: sorted(c.state for c in of(found, "buffered")) == ["busy", "idle"])
    call.get(timeout=30)


def test_max_containers_is_never_exceeded(function: Lookup) -> None:
    calls = [function("limited").spawn(0.5) for _ in range(6)]
    spans = [call.get(timeout=60) for call in calls]
    assert len({container for container, _, _ in spans}) == 2
    for _, start, _ in spans:
        assert sum(s <= start < e for _, s, e in spans) <= 2


def test_without_a_limit_there_are_as_many_containers_as_cores(function: Lookup) -> None:
    cores = os.cpu_count() or 1
    calls = [function("unlimited").spawn(0.3) for _ in range(3 * cores)]
    assert len({call.get(timeout=60) for call in calls}) <= cores


def test_an_idle_container_ends_after_its_scaledown_window(
    function: Lookup, plane: LocalPlane
) -> None:
    container = function("short_lived").remote()
    [info] = [
        c
        for c in plane.wait_for(
            lambda found: not next(c for c in found if c.id == container).is_alive, timeout_s=30
        )
        if c.id == container
    ]
    assert info.returncode == 0
    assert info.exited_at is not None
    assert info.first_input_at is not None
    assert info.exited_at - info.first_input_at >= 2


def test_a_single_use_container_takes_one_input(function: Lookup) -> None:
    calls = [function("used_once").spawn() for _ in range(3)]
    assert len({call.get(timeout=60) for call in calls}) == 3


@pytest.mark.slow
def test_beyond_its_target_a_container_goes_only_when_no_other_may_be_launched(
    function: Lookup, plane: LocalPlane
) -> None:
    calls = [function("crowded").spawn(8.0) for _ in range(4)]
    # modal asks every few seconds how many inputs it may run at a time
    plane.wait_for(lambda found: [len(c.inputs) for c in of(found, "crowded")] == [4])
    assert len({call.get(timeout=30) for call in calls}) == 1


@pytest.mark.slow
def test_a_batch_waits_for_what_comes_within_its_time(function: Lookup) -> None:
    batch = function("batch")
    batch.remote(0)  # the container is there, and waits
    calls = []
    for number in (1, 2, 3):
        calls.append(batch.spawn(number))
        time.sleep(0.1)
    assert [call.get(timeout=30) for call in calls] == [[1, 2, 3]] * 3


def test_settings_of_the_autoscaler_are_shown_and_overridden(
    function: Lookup, plane: LocalPlane, client: modal.Client
) -> None:
    limited = function("limited")
    assert limited.autoscaler.settings().max_containers == 2
    assert limited.autoscaler.update(min_containers=1).min_containers == 1
    plane.wait_for(lambda found: len(of(found, "limited")) >= 1)
    limited.autoscaler.update(min_containers=0, max_containers=1, scaledown_window=2)
    plane.wait_for(lambda found: len(of(found, "limited")) <= 1)
    calls = [function("limited").spawn(0.2) for _ in range(4)]
    assert len({call.get(timeout=60)[0] for call in calls}) <= 2
    plane.deploy(str(APPS / "scaling.py"))
    assert limited.autoscaler.settings().max_containers == 2


def test_a_container_over_its_memory_limit_is_killed_and_its_caller_told(
    function: Lookup, plane: LocalPlane
) -> None:
    assert function("hungry").remote(8) == 8 << 20
    call = function("hungry").spawn(600)
    said = plane.wait_for_line("out of memory").text
    call.cancel()
    assert "its memory limit is 400 MiB" in said


def test_calls_may_be_nested_deeper_than_there_are_cores(function: Lookup) -> None:
    depth = 2 * (os.cpu_count() or 1)
    assert function("nested").spawn(depth).get(timeout=100) == depth


@pytest.mark.slow
def test_a_variant_has_a_buffer_and_a_minimum_of_its_own(
    function: Lookup, plane: LocalPlane, client: modal.Client
) -> None:
    call = function("buffered").with_options(buffer_containers=2).spawn(6.0)
    plane.wait_for(lambda found: len([c for c in of(found, "buffered") if c.state == "idle"]) == 2)
    call.get(timeout=30)
    cls = modal.Cls.from_name("scaling", "Parametrised", client=client)
    three = cls(number=3)
    assert three.f.remote() == 3
    three.update_autoscaler(min_containers=2)
    plane.wait_for(lambda found: len(of(found, "Parametrised")) == 2)
    three.update_autoscaler(min_containers=0)


def test_libraries_are_told_how_many_cores_were_asked_for(function: Lookup) -> None:
    assert function("threads").remote() == ["3"] * 4


def test_a_container_that_does_not_start_in_time_fails_its_caller(function: Lookup) -> None:
    with pytest.raises(modal.exception.FunctionTimeoutError, match="startup timeout of 2s"):
        function("never_starts").remote()


def test_a_deployed_function_that_only_crashes_is_started_ever_more_slowly(
    plane: LocalPlane, function: Lookup, client: modal.Client
) -> None:
    dying = modal.Cls.from_name("scaling", "DiesInHook", client=client)()
    call = dying.f.spawn()
    plane.wait_for(lambda found: len(of(found, "DiesInHook", alive=False)) >= 3)
    told = [line for line in lines(plane) if "DiesInHook" in line and "next one starts in" in line]
    assert "starts in 1 s" in told[0]
    assert "code 3" in told[0]
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    call.cancel()


def test_an_ephemeral_app_that_only_crashes_fails_its_calls_and_stops(plane: LocalPlane) -> None:
    done = plane.run(f"{APPS / 'scaling.py'}::DiesInHook.f", check=False, capture=True)
    assert done.returncode == 1
    assert "3 containers of DiesInHook" in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("DYING") == 3
