"""Containers, deploys and who waits for whom, by the plane's own objects, without containers."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Coroutine
from pathlib import Path

import pytest
from grpclib import GRPCError
from modal_proto import api_pb2

from modalkit.local.containers import Launcher
from modalkit.local.core import Config, Plane, default_max_containers
from modalkit.local.outcomes import stopped
from modalkit.local.scheduler import Scheduler
from modalkit.local.services.apps import AppService
from modalkit.local.services.calls import CallService
from modalkit.local.services.functions import FunctionService
from modalkit.local.services.inspection import InspectionService
from modalkit.local.state import App, Call, Container, Event, Function, Input, State


class World:
    """A plane with one published function, none of whose containers has a process."""

    def __init__(self, directory: Path) -> None:
        self.plane = Plane(Config(runtime=str(directory), state=str(directory)), "1.6.4")
        self.launcher = Launcher(self.plane, lambda _: None)
        self.scheduler = Scheduler(self.plane, self.launcher)
        self.fleet = self.scheduler.fleet
        self.app = App("ap-1", "app", api_pb2.APP_STATE_DEPLOYED)
        self.plane.apps[self.app.id] = self.app
        self.function = self.add_function("fu-1")
        self.app.function_ids["f"] = "fu-1"

    def add_function(self, function_id: str, base: Function | None = None) -> Function:
        definition = api_pb2.Function(function_name=function_id)
        metadata = api_pb2.FunctionHandleMetadata()
        function = Function(function_id, self.app, definition, metadata, base=base, version=1)
        self.plane.functions[function_id] = function
        return function

    def add_input(self, function: Function, *, caller: Input | None = None) -> Input:
        number = len(self.plane.calls)
        parent = caller.id if caller else ""
        call = Call(f"fc-{number}", function, 0, parent_input_id=parent, unfinished=1)
        item = Input(f"in-{number}", call, 0, api_pb2.FunctionInput())
        call.inputs.append(item)
        self.plane.calls[call.id], self.plane.inputs[item.id] = call, item
        return item

    def add_container(self, *events: Event, holds_snapshot: bool = False) -> Container:
        kind = "snapshotting" if holds_snapshot else "cold"
        container = self.launcher.new_container(self.function, kind)
        container.holds_snapshot = holds_snapshot
        if holds_snapshot:
            self.function.snapshot_makers.append(container)
        for event in events:
            container.on(event)
        return container

    def add_busy(self) -> Input:
        container = self.add_container(Event.ASKED, Event.ASSIGNED)
        item = self.add_input(self.function)
        container.running[item.id], item.owner = item, container
        return item


def run(coroutine: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 10))


# ------------------------------------------------------------------ how many


@pytest.mark.parametrize(
    ("waits", "is_nested", "limit", "has_room"),
    [
        (True, True, 0, True),
        (True, False, 0, False),  # a `.map()` of callers needs no process for each
        (False, True, 0, False),
        (True, True, default_max_containers(), False),  # a limit of the app's is Modal's too
    ],
)
def test_who_only_waits_does_not_count_against_the_cores(
    tmp_path: Path, *, waits: bool, is_nested: bool, limit: int, has_room: bool
) -> None:
    world = World(tmp_path)
    world.function.definition.autoscaler_settings.max_containers = limit
    callers = [world.add_busy() for _ in range(default_max_containers())]
    for caller in callers:
        caller.awaited = int(waits)
    item = world.add_input(world.function, caller=callers[0] if is_nested else None)
    world.function.pending.append(item)
    assert world.fleet.has_room(world.function) == has_room


def test_an_input_waits_as_long_as_it_asks_for_a_result_of_its_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        caller = world.add_busy()
        nested = world.add_input(world.add_function("fu-2"), caller=caller)
        request = api_pb2.FunctionGetOutputsRequest(function_call_id=nested.call.id, timeout=9)
        service = CallService(world.plane, world.scheduler)
        waiting = asyncio.create_task(service.FunctionGetOutputs(request))
        await asyncio.sleep(0)
        assert caller.awaited == 1
        world.function.pending.append(nested)
        world.scheduler.fail_pending(world.function, stopped())
        assert len((await waiting).outputs) == 1
        assert caller.awaited == 0

    run(scenario())


def test_a_variant_is_kept_warm_only_while_its_base_is_published(tmp_path: Path) -> None:
    world = World(tmp_path)
    variant = world.add_function("fu-2", base=world.function)
    variant.definition.autoscaler_settings.min_containers = 1
    world.launcher.new_container(variant, "cold").on(Event.ASKED)
    assert not world.fleet.is_spare(variant)
    world.app.function_ids.clear()
    assert world.fleet.is_spare(variant)


# ------------------------------------------------------------------ starts that fail


@pytest.mark.parametrize(
    ("events", "is_retired", "failed"),
    [((Event.SNAPSHOT,), False, 0), ((), False, 1), ((), True, 0), ((Event.SNAPSHOT,), True, 0)],
)
def test_a_snapshot_that_ends_is_no_failed_start(
    tmp_path: Path, events: tuple[Event, ...], *, is_retired: bool, failed: int
) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        maker = world.add_container(*events, holds_snapshot=True)
        maker.returncode = -signal.SIGKILL
        if is_retired:
            world.fleet.retire(world.function)
        world.fleet._bury(maker)
        assert world.function.starts_failed == failed

    run(scenario())


def test_a_pause_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        world.fleet._pause(world.function, "crashes")
        first = world.function.pause
        world.fleet._pause(world.function, "crashes again")
        assert first is not None
        assert first.action is None

    run(scenario())


@pytest.mark.parametrize("has_asked", [False, True])
def test_a_drained_container_too_has_to_start_in_time(tmp_path: Path, *, has_asked: bool) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        world.function.definition.startup_timeout_secs = 60
        container = world.add_container(Event.DRAINED)
        container.has_asked = has_asked
        watching = asyncio.create_task(world.launcher._watch_start(container))
        await asyncio.sleep(0)
        world.plane.clock.advance(61)
        await watching
        assert container.is_doomed != has_asked

    run(scenario())


# ------------------------------------------------------------------ containers that are stopped


def test_what_holds_a_snapshot_is_neither_shown_nor_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        service = InspectionService(world.plane, world.scheduler)
        maker = world.add_container(Event.SNAPSHOT, holds_snapshot=True)
        with pytest.raises(GRPCError, match="holds a snapshot"):
            await service.ContainerStop(api_pb2.ContainerStopRequest(task_id=maker.id))
        assert maker.state is State.TEMPLATE
        assert not (await service.TaskList(api_pb2.TaskListRequest())).tasks

    run(scenario())


def test_an_interrupt_reaches_nobody_who_got_the_pid_of_a_dead_container(tmp_path: Path) -> None:
    container = (world := World(tmp_path)).add_container()
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        child = other.stdout.readline().decode().strip()
        container.pid, container.returncode = other.pid, 0
        assert int(child) in container.pids()
        world.launcher.interrupt(container, everyone=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.3)
        subprocess.run(["kill", child], check=True)


# ------------------------------------------------------------------ deploys


def published(*function_ids: str, name: str = "app") -> api_pb2.AppPublishRequest:
    return api_pb2.AppPublishRequest(
        app_id="ap-1",
        name=name,
        app_state=api_pb2.APP_STATE_DEPLOYED,
        function_ids={f"f{number}": i for number, i in enumerate(function_ids)},
    )


def test_a_function_is_what_was_published_until_the_next_version_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        functions = FunctionService(world.plane, world.scheduler)
        apps = AppService(world.plane, world.scheduler)
        variant = world.add_function("fu-2", base=world.function)
        variant.options = api_pb2.FunctionOptions(buffer_containers=2)
        new = api_pb2.Function(function_name="new", timeout_secs=7)
        precreated = await functions.FunctionPrecreate(
            api_pb2.FunctionPrecreateRequest(existing_function_id="fu-1", function_name="new")
        )
        created = await functions.FunctionCreate(
            api_pb2.FunctionCreateRequest(existing_function_id="fu-1", function=new)
        )
        assert precreated.handle_metadata.function_name == "new"
        assert created.function.timeout_secs == 7
        for old in (world.function, variant):
            assert old.definition.timeout_secs == 0
            assert not old.metadata.function_name
        await apps.AppPublish(published("fu-1"))
        for now in (world.function, variant):
            assert now.definition.timeout_secs == 7
            assert now.metadata.function_name == "new"
        assert variant.definition.autoscaler_settings.buffer_containers == 2

    run(scenario())


def test_an_app_with_a_name_that_is_none_is_not_published(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        world.app.app_state = api_pb2.APP_STATE_INITIALIZING
        service = AppService(world.plane, world.scheduler)
        with pytest.raises(GRPCError, match="no app's name"):
            await service.AppPublish(published(name="no name"))
        assert world.app.app_state == api_pb2.APP_STATE_INITIALIZING
        assert world.app.function_ids == {"f": "fu-1"}

    run(scenario())


@pytest.mark.parametrize(
    ("app_state", "stops"),
    [
        (api_pb2.APP_STATE_INITIALIZING, True),
        (api_pb2.APP_STATE_EPHEMERAL, True),
        (api_pb2.APP_STATE_DEPLOYED, False),
    ],
)
def test_an_app_that_was_never_published_ends_with_its_client(
    tmp_path: Path, app_state: int, *, stops: bool
) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        world.app.app_state = app_state
        await world.scheduler.leave_app(world.app)
        assert world.app.is_done == stops

    run(scenario())
