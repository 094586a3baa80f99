"""Cold containers that are forked from a process which has imported modal."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import modal
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS

Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def plane() -> Iterator[LocalPlane]:
    with LocalPlane(engine="inline", snapshots=False, quick_starts=True) as running:
        running.deploy(str(APPS / "quick.py"))
        yield running


@pytest.fixture(scope="module")
def function(plane: LocalPlane) -> Lookup:
    return lambda name: modal.Function.from_name("quick", name, client=plane.client())


def test_containers_share_the_seed_of_hashes_and_nothing_else(function: Lookup) -> None:
    first, second, third = (function(name).remote() for name in ("plain", "secret", "plain"))
    assert first["hash"] == second["hash"] == third["hash"]
    assert first["parent"] == second["parent"] == third["parent"]
    assert len({found["task"] for found in (first, second, third)}) == 3
    assert [found["token"] for found in (first, second, third)] == [None, "x", None]
    assert first["leader"]


def test_they_are_as_containers_with_an_interpreter_of_their_own(function: Lookup) -> None:
    with LocalPlane(engine="inline", snapshots=False, quick_starts=False) as other:
        other.deploy(str(APPS / "quick.py"))
        slow = modal.Function.from_name("quick", "plain", client=other.client())
        found, again, quick = slow.remote(), slow.remote(), function("plain").remote()
    assert found["hash"] != again["hash"]
    for key in ("argv", "path", "main", "leader"):
        assert found[key] == quick[key]


def test_what_an_interpreter_reads_at_its_start_gets_one_of_its_own(function: Lookup) -> None:
    command = [sys.executable, "-c", "print(hash('modalkit'))"]
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    expected = int(subprocess.check_output(command, env=env))
    assert function("seeded").remote()["hash"] == expected


def test_one_that_is_killed_is_replaced(function: Lookup, plane: LocalPlane) -> None:
    parent = function("plain").remote()["parent"]
    os.kill(parent, signal.SIGKILL)
    assert function("plain").remote()["parent"] != parent


def test_exit_codes_are_those_of_the_container(function: Lookup, plane: LocalPlane) -> None:
    call = function("quits").spawn(5)
    plane.wait_for(lambda _: any(c.returncode == 5 for c in plane.containers(all=True)))
    call.cancel()
