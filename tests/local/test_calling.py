"""Ways to call, to wait and to give up, as Modal's documentation has them."""

import asyncio
import time
from collections.abc import Callable

import modal
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS, lines

Lookup = Callable[[str], modal.Function]


@pytest.fixture(scope="module")
def function(plane: LocalPlane, client: modal.Client) -> Lookup:
    plane.deploy(str(APPS / "calls.py"))
    return lambda name: modal.Function.from_name("calls", name, client=client)


@pytest.fixture(scope="module")
def greeter(function: Lookup, client: modal.Client) -> modal.Cls:
    return modal.Cls.from_name("calls", "Greeter", client=client)


def await_line(plane: LocalPlane, text: str, count: int = 1) -> str:
    deadline = time.monotonic() + 60
    while len(found := [line.container for line in plane.logs() if line.text == text]) < count:
        assert time.monotonic() < deadline, lines(plane)[-20:]
        time.sleep(0.01)
    return found[-1]


@pytest.mark.slow
def test_map_without_order_yields_what_is_ready(function: Lookup) -> None:
    inputs = [(3.0, 1), (0.0, 2)]
    assert list(function("nap").starmap(inputs, order_outputs=False)) == [2, 1]
    assert list(function("nap").starmap(inputs)) == [1, 2]


def test_map_takes_many_iterators_and_kwargs(function: Lookup) -> None:
    assert list(function("nap").map([0.0, 0.0], [5, 6])) == [5, 6]
    assert list(function("nap").map([0.0], kwargs={"value": 9})) == [9]


def test_an_empty_map_ends(function: Lookup) -> None:
    assert list(function("nap").map([])) == []


def test_async_callers(function: Lookup) -> None:
    async def main() -> list[object]:
        square = function("async_square")
        one = await square.remote.aio(3)
        many = [x async for x in square.map.aio(range(4))]
        counted = [x async for x in function("async_count").remote_gen.aio(3)]
        call = await square.spawn.aio(5)
        return [one, many, counted, await call.get.aio()]

    assert asyncio.run(main()) == [9, [0, 1, 4, 9], [0, 1, 2], 25]


def test_methods_parameters_and_generators_of_a_class(greeter: modal.Cls) -> None:
    assert greeter().greet.remote("you") == "hello you"
    assert greeter(greeting="hi", times=2).greet.remote("you") == "hi you hi you"
    assert list(greeter().letters.remote_gen("abc")) == ["a", "b", "c"]
    assert greeter().async_greet.remote("you") == "async hello you"
    assert greeter().twice.remote("x") == "hello x!nested x"
    assert list(greeter().greet.map(["a", "b"])) == ["hello a", "hello b"]


def test_variants_have_containers_and_options_of_their_own(
    function: Lookup, greeter: modal.Cls, plane: LocalPlane
) -> None:
    patient = function("nap").with_options(timeout=1)
    with pytest.raises(modal.exception.FunctionTimeoutError):
        patient.remote(30)
    assert function("nap").remote(1.5, 7) == 7
    assert greeter.with_options(timeout=100)().greet.remote("me") == "hello me"


def test_with_concurrency_and_with_batching(function: Lookup) -> None:
    together = function("nap").with_concurrency(max_inputs=3).with_options(max_containers=1)
    started = [together.spawn(2.0, i) for i in range(3)]
    assert [call.get(timeout=60) for call in started] == [0, 1, 2]
    batched = function("batchable").with_batching(max_batch_size=3, wait_ms=5000)
    calls = [batched.with_options(max_containers=1).spawn(i) for i in range(3)]
    assert [call.get(timeout=60) for call in calls] == [3, 3, 3]


def test_calls_are_nested_to_any_depth(function: Lookup) -> None:
    assert function("calls_itself").with_options(max_containers=4).remote(0) == 0
    assert function("calls_itself").remote(1) == 1


def test_a_call_is_found_by_its_id_from_anywhere(function: Lookup, client: modal.Client) -> None:
    call_id = function("spawns").remote(11)
    call = modal.FunctionCall.from_id(call_id, client=client)
    assert call.get(timeout=60) == 11
    assert call.num_inputs() == 1


def test_gather_waits_for_all_in_order(function: Lookup) -> None:
    calls = [function("nap").spawn(1.0, 1), function("nap").spawn(0.0, 2)]
    assert modal.FunctionCall.gather(*calls) == [1, 2]


def test_a_result_that_is_not_there_yet_is_a_timeout(function: Lookup) -> None:
    call = function("nap").spawn(3.0, 4)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    assert call.get(timeout=60) == 4


def test_an_unknown_call_is_not_found(client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="fc-nothing"):
        modal.FunctionCall.from_id("fc-nothing", client=client).get(timeout=1)


def test_an_attempt_knows_its_call_and_input(function: Lookup) -> None:
    call = function("where").spawn()
    call_id, input_id = call.get(timeout=60)
    assert call_id == call.object_id
    assert input_id.startswith("in-")


def test_a_cancelled_call_raises_there_and_here(function: Lookup, plane: LocalPlane) -> None:
    call = function("told_when_cancelled").spawn()
    container = await_line(plane, "WAITING TO BE CANCELLED")
    call.cancel()
    with pytest.raises(modal.exception.RemoteError, match="cancelled"):
        call.get(timeout=60)
    await_line(plane, "TOLD OF THE CANCELLATION")
    plane.wait_for(lambda found: next(c for c in found if c.id == container).state == "idle")


@pytest.mark.slow
def test_one_of_two_async_inputs_is_cancelled_alone(function: Lookup, plane: LocalPlane) -> None:
    naps = function("async_naps").with_options(max_containers=1)
    kept, dropped = naps.spawn("kept", 6.0), naps.spawn("dropped", 60.0)
    await_line(plane, "ASYNC NAP kept")
    await_line(plane, "ASYNC NAP dropped")
    dropped.cancel()
    await_line(plane, "ASYNC CANCELLED dropped")
    assert kept.get(timeout=60) == "kept"
    assert lines(plane).count("ASYNC NAP kept") == 1


@pytest.mark.slow
def test_cancelling_one_of_two_threads_runs_the_other_again(
    function: Lookup, plane: LocalPlane
) -> None:
    kept = function("thread_naps").spawn("kept", 4.0)
    dropped = function("thread_naps").spawn("dropped", 4.0)
    await_line(plane, "THREAD NAP kept")
    await_line(plane, "THREAD NAP dropped")
    dropped.cancel()
    assert kept.get(timeout=60) == "kept"
    assert lines(plane).count("THREAD NAP kept") == 2


def test_cancelling_may_end_the_container(function: Lookup, plane: LocalPlane) -> None:
    call = function("nap").spawn(60.0, 77)
    container = await_line(plane, "NAP 77")
    call.cancel(terminate_containers=True)
    plane.wait_for(lambda found: not next(c for c in found if c.id == container).is_alive)
    with pytest.raises(modal.exception.RemoteError, match="cancelled"):
        call.get(timeout=10)


def test_what_an_attempt_answers_after_its_timeout_is_not_heard(
    function: Lookup, plane: LocalPlane
) -> None:
    with pytest.raises(modal.exception.FunctionTimeoutError):
        function("answers_after_its_timeout").remote("late")
    assert lines(plane).count("ATTEMPT AT late") == 2
    assert lines(plane).count("SAVED late") >= 1
    first, second = [
        c for c in plane.containers(all=True) if c.function == "answers_after_its_timeout"
    ]
    assert first.exited_at is not None
    assert first.exited_at <= second.launched_at


def test_large_payloads_of_every_kind_of_call(function: Lookup) -> None:
    large = b"x" * (3 << 20)
    echo = function("echo")
    assert echo.spawn(large).get(timeout=60) == large
    assert list(echo.map([large, b"small"])) == [large, b"small"]
    call = echo.spawn(b"y" * 10_000)  # beyond what a spawned call sends inline
    assert call.get(timeout=60) == b"y" * 10_000
