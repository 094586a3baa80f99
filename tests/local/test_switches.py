"""Every reading of every switch: what an app meets under it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import modal
import pytest

from modalkit.errors import UsageError
from modalkit.local import LocalPlane
from modalkit.local.switches import LENIENT, STRICT, Switches, profile

from .conftest import APPS, lines

READINGS = [
    (field.name, reading)
    for field in attrs.fields(Switches)
    for reading in field.metadata["readings"]
]


def test_lenient_is_the_best_and_strict_the_worst_reading_of_each() -> None:
    for field in attrs.fields(Switches):
        best, *_, worst = field.metadata["readings"]
        assert (getattr(LENIENT, field.name), getattr(STRICT, field.name)) == (best, worst)


def test_a_seed_draws_the_same_again_and_seeds_differ() -> None:
    assert profile("7") == profile("7")
    drawn = {profile(str(seed)) for seed in range(40)}
    assert len(drawn) > 20
    for name, reading in READINGS:
        assert any(getattr(switches, name) == reading for switches in drawn)


def test_single_switches_can_be_changed() -> None:
    expected = attrs.evolve(STRICT, same_input_twice="never", restore="works")
    assert profile("strict,same_input_twice=never, restore=works") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("severe", "'severe'"),
        ("strict,reboot=yes", "no switch 'reboot': there are interrupt"),
        ("strict,restore=yes", "restore has no reading 'yes': take works or fails_once"),
        ("", "lenient, strict"),
    ],
)
def test_a_wrong_profile_says_what_there_is(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LocalPlane(profile=text)


def test_the_profile_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALKIT_LOCAL_PROFILE", "severe")
    with pytest.raises(UsageError, match="'severe'"):
        LocalPlane()
    LocalPlane(profile="lenient")


Lookup = Callable[[str], modal.Function]


@contextmanager
def unknowns(changes: str, **options: object) -> Iterator[tuple[LocalPlane, Lookup]]:
    with LocalPlane(
        profile=f"lenient,{changes}", engine="inline", strict_image=True, **options
    ) as plane:
        plane.deploy(str(APPS / "unknowns.py"))
        client = plane.client()
        yield plane, lambda name: modal.Function.from_name("unknowns", name, client=client)


def await_line(plane: LocalPlane, text: str) -> str:
    deadline = time.monotonic() + 60
    while not (found := [line.container for line in plane.logs() if text in line.text]):
        assert time.monotonic() < deadline, lines(plane)[-20:]
        time.sleep(0.01)
    return found[-1]


@pytest.mark.parametrize(("reading", "hears"), [("main", False), ("group", True)])
def test_whom_the_interrupt_reaches(reading: str, *, hears: bool) -> None:
    with unknowns(f"interrupt={reading}") as (plane, function):
        call = function("with_child").spawn("one")
        plane.preempt(await_line(plane, "CHILD READY"))
        assert call.get(timeout=60) == 2
        assert ("CHILD HEARD" in lines(plane)) == hears


@pytest.mark.parametrize(
    ("reading", "times", "result"),
    [
        ("requeued", 1, 2),
        ("counted", 1, 2),
        ("fails", 1, None),
        pytest.param("requeued", 10, 11, marks=pytest.mark.slow),
        pytest.param("counted", 8, 9, marks=pytest.mark.slow),
        pytest.param("counted", 9, None, marks=pytest.mark.slow),
    ],
)
def test_what_becomes_of_an_interrupt_that_nobody_sent(
    reading: str, times: int, result: int | None
) -> None:
    with unknowns(f"stray_interrupt={reading}") as (_, function):
        call = function("interrupts_itself").spawn("one", times)
        if result is None:
            with pytest.raises(modal.exception.InternalFailure, match="code 0"):
                call.get(timeout=90)
        else:
            assert call.get(timeout=90) == result


@pytest.mark.slow
@pytest.mark.parametrize(("reading", "ends"), [("requeued", 0), ("retried", 0), ("final", 1)])
def test_what_becomes_of_an_output_sent_while_preempted(reading: str, ends: int) -> None:
    with unknowns(f"preempted_output={reading}") as (plane, function):
        call = function("asynchronous").spawn("one")
        plane.preempt(await_line(plane, "ASYNC SLEEPS"))
        if ends:
            with pytest.raises(modal.exception.RemoteError):
                call.get(timeout=60)
        else:
            assert call.get(timeout=60) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("reading", "overlap"), [("never", False), ("briefly", True)])
def test_whether_two_attempts_overlap(reading: str, *, overlap: bool) -> None:
    with unknowns(f"same_input_twice={reading}") as (plane, function):
        call = function("saves_slowly").spawn("one")
        plane.preempt(await_line(plane, "SAVES SLOWLY"))
        second_started, first_ended = call.get(timeout=90)
        assert (second_started < first_ended) == overlap


@pytest.mark.slow
def test_retries_that_the_client_waits_for() -> None:
    with unknowns("retry_delay=client") as (_, function):
        first, second, third = function("fails_twice").remote("waited-for")
        assert second - first >= 1  # the client's floor, whatever the policy says
        assert third - second >= 1
        for times in function("fails_twice").map(["a", "b"]):
            assert times[2] - times[0] > 1  # it rounds to whole seconds
        with pytest.raises(ValueError, match="never 1"):
            function("always_fails").remote(1)
        errors = list(function("always_fails").map([2, 3], return_exceptions=True))
        assert [str(error) for error in errors] == ["never 2", "never 3"]
        spawned = function("fails_twice").spawn("spawned").get(timeout=60)
        assert len(spawned) == 3


@pytest.mark.slow
def test_a_client_that_retries_is_told_when_an_input_was_lost_too_often() -> None:
    with unknowns("retry_delay=client") as (plane, function):
        with pytest.raises(modal.exception.ConflictError, match="was lost with 9 containers"):
            function("kills_itself").remote()
        assert len([c for c in plane.containers(all=True) if c.function == "kills_itself"]) == 9


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fork", "inline"])
def test_a_restore_that_fails_falls_back_to_a_cold_start(engine: str) -> None:
    with LocalPlane(profile="lenient,restore=fails_once", engine=engine) as plane:
        plane.deploy(str(APPS / "unknowns.py"))
        restored = modal.Cls.from_name("unknowns", "Restored", client=plane.client())()
        for _ in range(3):
            restored.which.remote()
        kinds = [c.kind for c in plane.containers(all=True) if "Restored" in c.function]
        assert kinds.count("cold") == 1
        assert any("restoring a snapshot of Restored" in line for line in lines(plane))


def test_several_snapshots_are_all_restored_from() -> None:
    with LocalPlane(profile="lenient,snapshots=several", engine="fork") as plane:
        plane.deploy(str(APPS / "unknowns.py"))
        restored = modal.Cls.from_name("unknowns", "Restored", client=plane.client())()
        seen: set[str] = set()
        for _ in range(60):
            template, container = restored.which.remote()
            assert template != container
            seen.add(template)
            made = [c.id for c in plane.containers() if c.kind == "snapshotting"]
            if len(seen) > 1 and seen == set(made):
                break
        assert len(seen) > 1
        assert seen <= set(made)
