"""Calls through the real client: results, errors, generators, logs, retries, timeouts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS, lines

Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def function(plane: LocalPlane, client: modal.Client) -> Lookup:
    plane.deploy(str(APPS / "functions.py"))
    return lambda name: modal.Function.from_name("functions", name, client=client)


def test_remote_returns_what_the_function_returns(function: Lookup) -> None:
    assert function("square").remote(12) == 144


def test_spawn_gives_a_handle_whose_result_can_be_fetched_twice(function: Lookup) -> None:
    call = function("square").spawn(7)
    assert [call.get(), call.get()] == [49, 49]


def test_map_keeps_the_order_of_its_inputs(function: Lookup) -> None:
    assert list(function("square").map(range(20))) == [x * x for x in range(20)]


def test_map_returns_the_exceptions_that_it_is_asked_to_return(function: Lookup) -> None:
    results = list(function("fail").map([1, 2], return_exceptions=True))
    assert [str(error.args[0]) for error in results] == ["unlucky 1", "unlucky 2"]


def test_starmap_for_each_and_spawn_map(function: Lookup, plane: LocalPlane) -> None:
    assert list(function("add").starmap([(1, 2), (3, 4)])) == [3, 7]
    function("square").for_each([1001, 1002])
    function("square").spawn_map([1003])
    wanted = {f"squaring {number}" for number in (1001, 1002, 1003)}
    deadline = time.monotonic() + 20
    while not wanted <= set(lines(plane)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_concurrent_inputs_share_a_container(function: Lookup) -> None:
    calls = [function("together").spawn(1.5) for _ in range(3)]
    tasks, starts, ends = zip(*[call.get() for call in calls], strict=True)
    assert len(set(tasks)) == 1
    assert max(starts) < min(ends)


def test_batched_inputs_come_as_one_list(function: Lookup) -> None:
    calls = [function("batch").spawn(number) for number in (1, 2, 3)]
    assert [call.get() for call in calls] == [13, 23, 33]


def test_generators_stream_their_values(function: Lookup) -> None:
    assert list(function("count").remote_gen(5)) == [0, 1, 2, 3, 4]


def test_an_exception_arrives_with_its_type_and_the_line_that_raised_it(function: Lookup) -> None:
    with pytest.raises(ValueError, match="unlucky 13") as caught:
        function("fail").remote(13)
    frames = [entry.path for entry in caught.traceback]
    assert any(str(path).endswith("functions.py") for path in frames)


def test_functions_call_functions(function: Lookup) -> None:
    assert function("nested").remote(6) == 37


def test_large_payloads_travel_both_ways(function: Lookup) -> None:
    payload = bytes(range(256)) * (5 << 12)  # 5 MiB: beyond what a message holds
    assert function("echo_size").remote(payload) == payload[::-1]


def test_retries_run_the_same_input_until_it_succeeds(function: Lookup) -> None:
    assert function("flaky").remote(2) == 2


def test_retries_end_with_the_last_error_when_the_policy_is_spent(function: Lookup) -> None:
    with pytest.raises(RuntimeError, match="attempt 3"):
        function("flaky").remote(99)


def test_an_input_that_outlasts_its_timeout_fails_and_its_container_ends(
    function: Lookup, plane: LocalPlane
) -> None:
    with pytest.raises(modal.exception.FunctionTimeoutError):
        function("sleeper").remote(60)
    [container] = [c.id for c in plane.containers(all=True) if c.function == "sleeper"]
    plane.wait_for(
        lambda found: next(c for c in found if c.id == container).returncode is not None,
        timeout_s=20,
    )


def test_a_retry_waits_for_its_delay(function: Lookup) -> None:
    first, second = function("patient").remote()
    assert 1.5 <= second - first < 15


def test_the_environment_is_modals_and_holds_no_token(function: Lookup) -> None:
    found = function("environment").remote()
    assert found["GREETING"] == "hello"
    assert found["MODAL_IS_REMOTE"] == "1"
    assert found["MODAL_TASK_ID"].startswith("ta-")
    assert found["MODAL_TOKEN_ID"] is None


def test_an_input_that_kills_every_container_fails_at_last(
    function: Lookup, plane: LocalPlane
) -> None:
    before = len(plane.containers(all=True))
    with pytest.raises(modal.exception.InternalFailure, match="code -9"):
        function("unlucky_process").remote("")
    assert len(plane.containers(all=True)) - before == 9


def test_an_unknown_function_is_not_found_and_the_error_says_what_there_is(
    client: modal.Client, function: Lookup
) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="functions"):
        modal.Function.from_name("nothing", "square", client=client).remote(1)


def test_output_is_kept_line_by_line_with_its_stream(function: Lookup, plane: LocalPlane) -> None:
    function("square").remote(777)
    deadline = time.monotonic() + 5
    while "and to stderr 777" not in lines(plane) and time.monotonic() < deadline:
        time.sleep(0.02)
    streams = {line.text: line.stream for line in plane.logs()}
    assert streams["squaring 777"] == "stdout"
    assert streams["and to stderr 777"] == "stderr"


def test_modal_run_streams_logs_while_it_runs(plane: LocalPlane, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    target = [f"{APPS / 'functions.py'}::talk_until", "--path", str(stop)]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "modal", "run", *target],
        env={**os.environ, **plane.env},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "TALKING" in line:
                stop.touch()  # the function goes on only when its line was seen here
                break
        assert "TOLD TO STOP" in process.stdout.read()
    assert process.returncode == 0


def test_modal_run_passes_arguments(plane: LocalPlane) -> None:
    done = plane.run(str(APPS / "functions.py"), "--n", "9", "--greeting", "hi", capture=True)
    assert "answer 81 hi" in done.stdout
    assert "squaring 9" in done.stdout + done.stderr


def test_modal_run_fails_with_the_code_of_modal(plane: LocalPlane) -> None:
    done = plane.run(f"{APPS / 'functions.py'}::fail", "--x", "1", check=False, capture=True)
    assert done.returncode == 1
    assert "unlucky 1" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("broken_import.py::f", "the module fails in the container"),
        ("broken_hook.py::Broken.f", "the hook fails"),
    ],
)
def test_a_failing_import_or_hook_reaches_the_caller(
    plane: LocalPlane, app: str, said: str
) -> None:
    done: subprocess.CompletedProcess[str] = plane.run(str(APPS / app), check=False, capture=True)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    # The true traceback: the app's own file and the line that raised.
    assert app.partition("::")[0] in done.stdout + done.stderr
    assert "raise " in done.stdout + done.stderr


def test_an_rpc_that_is_not_modelled_says_its_name(client: modal.Client) -> None:
    said = r"network file systems.*SharedVolumeGetOrCreate, modal 1\."
    with pytest.raises(modal.exception.UnimplementedError, match=said):
        modal.NetworkFileSystem.from_name("q", create_if_missing=True, client=client).hydrate()
