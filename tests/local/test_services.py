"""The RPCs of apps and functions, on the plane's own objects: no process, no client."""

import asyncio
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local.containers import Launcher
from modalkit.local.core import Config, Mount, Plane
from modalkit.local.scheduler import Scheduler
from modalkit.local.services.functions import FunctionService
from modalkit.local.state import App


def new_plane(directory: Path) -> Plane:
    return Plane(Config(runtime=str(directory), state=str(directory)), "1.6.4")


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    plane = new_plane(tmp_path)
    plane.apps["ap-1"] = App("ap-1", "app", api_pb2.APP_STATE_EPHEMERAL)
    return plane


@pytest.fixture
def functions(plane: Plane) -> FunctionService:
    return FunctionService(plane, Scheduler(plane, Launcher(plane, lambda _: None)))


def create(functions: FunctionService, **definition: object) -> api_pb2.FunctionCreateResponse:
    function = api_pb2.Function(function_name="f", **definition)
    request = api_pb2.FunctionCreateRequest(app_id="ap-1", function=function)
    return asyncio.run(functions.FunctionCreate(request))


# ------------------------------------------------------------------ objects of another plane


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"mount_ids": ["mo-1", "mo-2"]}, "no Mount mo-2: "),
        (
            {"volume_mounts": [api_pb2.VolumeMount(volume_id="vo-2", mount_path="/v")]},
            "no Volume vo-2: ",
        ),
    ],
)
def test_objects_of_another_plane_are_refused_with_the_remedy(
    plane: Plane, functions: FunctionService, definition: dict[str, object], said: str
) -> None:
    plane.mounts["mo-1"] = Mount(())
    volume_id = plane.volumes.get_or_create("v", 1, create=True).id
    own = api_pb2.VolumeMount(volume_id=volume_id, mount_path="/own")
    made = create(functions, mount_ids=["mo-1"], volume_mounts=[own])
    with pytest.raises(GRPCError, match=said) as refusal:
        create(functions, **definition)
    assert refusal.value.status is Status.INVALID_ARGUMENT
    assert "plane.run or plane.deploy" in str(refusal.value.message)
    bind = api_pb2.FunctionBindParamsRequest(
        function_id=made.function_id, function_options=api_pb2.FunctionOptions(**definition)
    )
    with pytest.raises(GRPCError, match=said):
        asyncio.run(functions.FunctionBindParams(bind))
