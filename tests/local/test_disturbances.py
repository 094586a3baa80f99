"""What befalls one input, reply or client befalls no other."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS, lines

Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def function(plane: LocalPlane, client: modal.Client) -> Lookup:
    plane.deploy(str(APPS / "disturbed.py"))
    return lambda name: modal.Function.from_name("disturbed", name, client=client)


@pytest.fixture(scope="module")
def impatient() -> Iterator[LocalPlane]:
    """A plane whose clients wait and retry by themselves, and where a stray interrupt fails."""
    profile = "lenient,stray_interrupt=fails,retry_delay=client"
    with LocalPlane(engine="inline", snapshots=False, profile=profile) as running:
        running.deploy(str(APPS / "disturbed.py"))
        yield running


def test_the_timeout_of_one_input_is_not_its_neighbours(
    plane: LocalPlane, function: Lookup
) -> None:
    late = function("crowded").spawn(60.0)
    plane.wait_for_line("BEGUN")
    time.sleep(1.0)
    neighbour = function("crowded").spawn(1.5)
    with pytest.raises(modal.exception.FunctionTimeoutError):
        late.get(timeout=30)
    assert neighbour.get(timeout=30) == 1.5


def test_cancelling_one_call_of_a_batch_runs_the_other_again(
    plane: LocalPlane, function: Lookup
) -> None:
    first, second = function("batch").spawn(1), function("batch").spawn(2)
    plane.wait_for_line("BATCH")
    first.cancel()
    assert second.get(timeout=30) == 2


@pytest.mark.slow
def test_who_ignores_a_cancellation_has_no_more_than_his_timeout(
    plane: LocalPlane, function: Lookup
) -> None:
    call = function("stubborn").spawn(600.0)
    plane.wait_for_line("STUBBORN")
    call.cancel()
    assert function("stubborn").spawn(0.0).get(timeout=40) == 0.0


def test_an_input_whose_delivery_was_lost_is_delivered_again(
    plane: LocalPlane, function: Lookup
) -> None:
    with plane.faults.fail("FunctionGetInputs", applied=True) as fault:
        assert function("told").remote() == "told"
    assert fault.strikes == 1
    assert lines(plane).count("TOLD") == 1


def test_an_end_for_good_is_no_clients_to_retry(impatient: LocalPlane) -> None:
    client = impatient.client()
    with pytest.raises(modal.exception.RemoteError):
        modal.Function.from_name("disturbed", "interrupts_itself", client=client).remote()
    assert lines(impatient).count("ATTEMPT") == 1


@pytest.mark.slow
def test_one_lost_input_of_a_map_loses_no_other(impatient: LocalPlane) -> None:
    dies = modal.Function.from_name("disturbed", "dies", client=impatient.client())
    one, lost, two = dies.map([1, 0, 2], return_exceptions=True)
    assert (one, two) == (1, 2)
    assert "ended with code 3" in str(lost)


@pytest.mark.slow
def test_an_app_is_stopped_though_who_asked_for_it_has_gone(tmp_path: Path) -> None:
    with LocalPlane(engine="inline", snapshots=False, grace_s=3.0) as plane:
        plane.deploy(str(APPS / "disturbed.py"))
        stubborn = modal.Function.from_name("disturbed", "stubborn", client=plane.client())
        stubborn.with_options(timeout=600).spawn(600.0)
        plane.wait_for_line("STUBBORN")
        command = [sys.executable, "-P", "-m", "modal", "app", "stop", "--yes", "disturbed"]
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **plane.env}
        with subprocess.Popen(command, env=env) as client:
            plane.wait_for_line("IGNORED")
            client.kill()
        plane.wait_for(lambda found: not any(c.is_alive for c in found), timeout_s=20)
