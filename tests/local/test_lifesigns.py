"""Who is taken for dead, and what is forgotten; by the plane's own objects, without processes."""

import asyncio
import time
from pathlib import Path

import pytest
from modal_proto import api_pb2

from modalkit.local.containers import Launcher
from modalkit.local.core import Config, Plane
from modalkit.local.lifesigns import LifeSigns
from modalkit.local.outcomes import Outcome
from modalkit.local.scheduler import Scheduler
from modalkit.local.state import App, Call, Function, Input, Status

SYNC = api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC
ASYNC = api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
Result = api_pb2.GenericResult


class World:
    """A plane with one waiting input."""

    def __init__(self, directory: Path, kind: int) -> None:
        self.plane = Plane(Config(runtime=str(directory), state=str(directory)), "1.6.4")
        self.scheduler = Scheduler(self.plane, Launcher(self.plane, lambda _: None))
        self.signs = LifeSigns(self.plane, self.scheduler)
        app = App("ap-1", "app", api_pb2.APP_STATE_DEPLOYED)
        function = Function("fu-1", app, api_pb2.Function(), api_pb2.FunctionHandleMetadata())
        self.call = Call("fc-1", function, kind, unfinished=1)
        self.item = Input("in-1", self.call, 0, api_pb2.FunctionInput())
        self.call.inputs.append(self.item)
        self.call.made_at, self.call.last_listened = self.plane.clock.monotonic(), time.monotonic()
        self.plane.calls["fc-1"], self.plane.inputs["in-1"] = self.call, self.item
        function.pending.append(self.item)

    def look(self) -> None:
        self.signs._look_at_call(self.call)


@pytest.mark.parametrize(
    ("kind", "silent_s", "listeners", "is_cancelled"),
    [(SYNC, 121, 0, True), (SYNC, 110, 0, False), (SYNC, 999, 1, False), (ASYNC, 999, 0, False)],
)
def test_a_call_that_is_waited_for_ends_with_its_caller(
    tmp_path: Path, kind: int, silent_s: int, listeners: int, *, is_cancelled: bool
) -> None:
    world = World(tmp_path, kind)
    world.call.last_listened -= silent_s
    world.call.listeners = listeners
    world.look()
    assert (world.item.status is Status.DONE) == is_cancelled
    assert bool(world.call.function.pending) != is_cancelled
    if is_cancelled:
        assert world.call.latest[0].result.status == Result.GENERIC_STATUS_TERMINATED


@pytest.mark.parametrize(("kind", "expires"), [(SYNC, True), (ASYNC, False)])
def test_a_call_that_is_waited_for_expires_after_a_day(
    tmp_path: Path, kind: int, *, expires: bool
) -> None:
    async def main() -> World:
        world = World(tmp_path, kind)
        world.call.listeners = 1
        world.plane.clock.advance(86_000)
        world.look()
        assert world.item.status is Status.PENDING
        world.plane.clock.advance(401)
        world.look()
        return world

    world = asyncio.run(main())
    assert (world.item.status is Status.DONE) == expires
    if expires:
        assert world.call.latest[0].result.status == Result.GENERIC_STATUS_TIMEOUT


@pytest.mark.parametrize(("kind", "kept_s"), [(SYNC, 600), (ASYNC, 7 * 86_400)])
def test_results_are_kept_as_long_as_modal_says_and_then_forgotten(
    tmp_path: Path, kind: int, kept_s: int
) -> None:
    async def main() -> tuple[bool, bool]:
        world = World(tmp_path, kind)
        world.scheduler.finish(world.item, Outcome(Result()))
        world.plane.clock.advance(kept_s - 10)
        world.look()
        before = "fc-1" in world.plane.calls
        world.plane.clock.advance(20)
        world.look()
        return before, "in-1" in world.plane.inputs

    assert asyncio.run(main()) == (True, False)


def test_a_call_that_got_a_further_input_is_not_forgotten_while_that_runs(tmp_path: Path) -> None:
    async def main() -> tuple[bool, bool]:
        world = World(tmp_path, SYNC)
        world.scheduler.finish(world.item, Outcome(Result()))
        world.scheduler.add_input(world.call, 1, api_pb2.FunctionInput())
        world.call.listeners = 1
        world.plane.clock.advance(700)
        world.look()
        return "fc-1" in world.plane.calls, world.call.closed_at is None

    assert asyncio.run(main()) == (True, True)


def test_the_caller_of_a_map_may_take_his_time_with_results(tmp_path: Path) -> None:
    world = World(tmp_path, SYNC)
    world.call.is_map = True
    world.call.last_listened -= 1800
    world.look()
    assert world.item.status is not Status.DONE
    world.call.last_listened -= 1800
    world.look()
    assert world.item.status is Status.DONE


def test_a_call_that_never_got_an_input_is_forgotten_with_its_caller(tmp_path: Path) -> None:
    world = World(tmp_path, SYNC)
    world.call.inputs.clear()
    world.call.last_listened -= 121
    world.look()
    assert "fc-1" not in world.plane.calls


def test_trouble_with_one_call_does_not_end_the_looking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> set[str]:
        world = World(tmp_path, ASYNC)
        world.scheduler.finish(world.item, Outcome(Result()))
        other = Call("fc-2", world.call.function, ASYNC)
        other.closed_at = world.call.closed_at
        ephemeral = Function("fu-2", App("ap-2", "", 0), api_pb2.Function(), None)
        other.function = ephemeral
        world.plane.calls["fc-2"] = other
        world.plane.keep._apps.add("ap-1")
        world.plane.keep.close()  # nothing can be written any more
        world.plane.clock.advance(7 * 86_400 + 1)
        world.signs._look(world.signs._look_at_call, world.plane.calls.values())
        return set(world.plane.calls)

    assert asyncio.run(main()) == {"fc-1"}
    assert "could not look after everything" in caplog.text
