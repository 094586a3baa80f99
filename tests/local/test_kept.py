"""What one plane kept, as the next one finds it, by the planes' own objects."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from modal_proto import api_pb2

from modalkit.errors import LocalPlaneError
from modalkit.local.core import Config, Plane
from modalkit.local.lifesigns import RESULTS_KEPT_S
from modalkit.local.outcomes import Outcome
from modalkit.local.services.apps import AppService
from modalkit.local.services.calls import CallService
from modalkit.local.services.functions import FunctionService
from modalkit.local.state import Event, State, Status

from .test_fleet import World, published, run


def next_plane(world: World) -> Plane:
    world.plane.keep.close()
    plane = Plane(world.plane.config, "1.6.4")
    for directory in (plane.blob_store, plane.file_store):
        directory.mkdir(exist_ok=True)
    plane.keep.restore(plane)
    return plane


async def deploy(world: World, *gpus: str) -> None:
    ranked = [
        api_pb2.FunctionData.RankedFunction(
            function=api_pb2.Function(
                function_name="f",
                resources=api_pb2.Resources(gpu_config=api_pb2.GPUConfig(gpu_type=gpu)),
            )
        )
        for gpu in gpus
    ]
    functions = FunctionService(world.plane, world.scheduler)
    await functions.FunctionCreate(
        api_pb2.FunctionCreateRequest(
            existing_function_id="fu-1",
            function_data=api_pb2.FunctionData(ranked_functions=ranked),
        )
    )
    await AppService(world.plane, world.scheduler).AppPublish(published("fu-1"))


def mapped(**fields: object) -> api_pb2.FunctionMapRequest:
    return api_pb2.FunctionMapRequest(function_id="fu-1", **fields)  # type: ignore[arg-type]


def test_choices_of_gpus_stay_with_their_versions(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        await deploy(world, "H100", "A100")
        await deploy(world, "T4", "L4")
        asked = api_pb2.FunctionGetRequest(app_name="app", object_tag="f0", app_version=1)
        old = await FunctionService(world.plane, world.scheduler).FunctionGet(asked)
        plane = next_plane(world)
        for function_id, gpus in (("fu-1", ["T4", "L4"]), (old.function_id, ["H100", "A100"])):
            for function in (world.plane.functions[function_id], plane.functions[function_id]):
                assert [choice.gpu_type for choice in function.gpu_choices] == gpus

    run(scenario())


def test_a_call_stays_what_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        await deploy(world, "T4")
        calls = CallService(world.plane, world.scheduler)
        made = await calls.FunctionMap(
            mapped(
                parent_input_id="in-7",
                function_call_type=api_pb2.FUNCTION_CALL_TYPE_MAP,
            )
        )
        chunks = [api_pb2.DataChunk(index=1, data=b"a"), api_pb2.DataChunk(index=2, data=b"b")]
        await calls.FunctionCallPutDataOut(
            api_pb2.FunctionCallPutDataRequest(
                function_call_id=made.function_call_id, data_chunks=chunks
            )
        )
        call = next_plane(world).calls[made.function_call_id]
        assert (call.parent_input_id, call.is_map, call.data_out) == ("in-7", True, chunks)
        assert not call.inputs

    run(scenario())


def test_what_a_generator_yielded_keeps_its_payloads(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        await deploy(world, "T4")
        calls = CallService(world.plane, world.scheduler)
        call_id = (await calls.FunctionMap(mapped())).function_call_id
        world.plane.blob_store.mkdir()
        for name in ("bl-needed", "bl-left"):
            (world.plane.blob_store / name).write_bytes(b"large")
        chunk = api_pb2.DataChunk(index=1, data_blob_id="bl-needed")
        await calls.FunctionCallPutDataOut(
            api_pb2.FunctionCallPutDataRequest(function_call_id=call_id, data_chunks=[chunk])
        )
        blobs = next_plane(world).blob_store.iterdir()
        assert [path.name for path in blobs] == ["bl-needed"]

    run(scenario())


def test_a_call_without_inputs_goes_after_seven_days(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        await deploy(world, "T4")
        calls = CallService(world.plane, world.scheduler)
        old = (await calls.FunctionMap(mapped())).function_call_id
        world.plane.clock.advance(RESULTS_KEPT_S + 60)
        new = (await calls.FunctionMap(mapped())).function_call_id
        world.plane.keep._drop_old(world.plane.clock.time())
        found = next_plane(world).calls
        assert old not in found
        assert new in found

    run(scenario())


def test_apps_made_by_name_and_later_tags_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        apps = AppService(world.plane, world.scheduler)
        create = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        named = await apps.AppGetOrCreate(
            api_pb2.AppGetOrCreateRequest(app_name="empty", object_creation_type=create)
        )
        await deploy(world, "T4")
        for app_id in (named.app_id, "ap-1"):
            request = api_pb2.AppSetTagsRequest(app_id=app_id, tags={"team": "cats"})
            await apps.AppSetTags(request)
        plane = next_plane(world)
        assert plane.deployed == {"empty": named.app_id, "app": "ap-1"}
        assert [app.tags for app in plane.apps.values()] == [{"team": "cats"}] * 2

    run(scenario())


def fill_disk(plane: Plane) -> None:
    pages = plane.keep._number("PRAGMA page_count")
    plane.keep._db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_deploy_that_cannot_be_kept_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        await deploy(world, "T4")
        old = world.function.definition
        container = world.add_container(Event.ASKED)
        fill_disk(world.plane)
        with pytest.raises(LocalPlaneError, match="is there room on its disk"):
            await deploy(world, *["H100"] * 1000)
        assert world.function.definition is old
        assert [choice.gpu_type for choice in world.function.gpu_choices] == ["T4"]
        assert len(world.app.deployments) == 1
        assert container.state is State.IDLE
        plane = next_plane(world)
        assert plane.functions["fu-1"].definition == old

    run(scenario())


def test_a_first_deploy_that_cannot_be_kept_deploys_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        world.app.app_state = api_pb2.APP_STATE_INITIALIZING
        fill_disk(world.plane)
        with pytest.raises(LocalPlaneError, match="is there room on its disk"):
            await deploy(world, *["H100"] * 1000)
        assert not world.plane.deployed
        assert world.app.app_state == api_pb2.APP_STATE_INITIALIZING
        await CallService(world.plane, world.scheduler).FunctionMap(mapped())
        assert not next_plane(world).apps

    run(scenario())


# ------------------------------------------------------------------ what is not kept


def test_a_container_that_has_got_over_a_cancellation_is_like_any_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        item = world.add_busy()
        container = item.owner
        assert container is not None
        world.scheduler.cancel(item.call, kill_containers=False)
        assert container.is_told_to_cancel
        ended = Outcome(
            api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        )
        world.scheduler.record(item, container, ended)
        other = world.add_input(world.function)
        world.function.pending.append(other)
        assert world.scheduler._assign(container, 1) == [other]
        world.scheduler.record(other, container, ended)
        assert other.status is Status.DONE

    run(scenario())


def test_lines_of_the_plane_have_the_time_of_all_others(tmp_path: Path) -> None:
    plane = Plane(Config(runtime=str(tmp_path), state=str(tmp_path)), "1.6.4")
    app = World(tmp_path).app
    plane.clock.advance(3600)
    plane.tell(app, "about the app")
    assert app.logs[-1].items[0].timestamp == pytest.approx(time.time(), abs=60)
