"""Dicts as the real client and the `modal dict` commands see them."""

import asyncio
import json
import os
import signal
from pathlib import Path

import modal
import pytest
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local import LocalPlane
from modalkit.local.clock import Clock
from modalkit.local.object_store import ObjectStore
from modalkit.local.services.dicts import UNUSED_S, DictService


class Parts:
    """What the service needs of a plane."""

    def __init__(self, root: Path) -> None:
        self.objects = ObjectStore(root)
        self.clock = Clock()


@pytest.fixture
def numbers(client: modal.Client) -> modal.Dict:
    numbers = modal.Dict.from_name("numbers", create_if_missing=True, client=client)
    numbers.clear()
    return numbers


def test_it_is_a_dictionary(numbers: modal.Dict) -> None:
    numbers["one"] = 1
    numbers.put(2, "two")
    numbers.update({"three": [3]}, four=4)
    assert numbers["one"] == numbers.get("one") == 1
    assert numbers.get("none") is None
    assert numbers.get("none", 7) == 7
    assert (2 in numbers, "none" in numbers, numbers.contains("four")) == (True, False, True)
    assert numbers.len() == 4
    assert sorted(map(str, numbers.keys())) == ["2", "four", "one", "three"]
    assert sorted(map(str, numbers.values())) == ["1", "4", "[3]", "two"]
    assert dict(numbers.items()) == {"one": 1, 2: "two", "three": [3], "four": 4}
    assert numbers.pop("one") == 1
    del numbers[2]
    with pytest.raises(KeyError, match="one not in dict"):
        numbers.pop("one")
    with pytest.raises(KeyError):
        numbers["one"]
    assert numbers.pop("one", None) is None
    numbers.clear()
    assert numbers.len() == 0


def test_put_says_whether_it_put(numbers: modal.Dict) -> None:
    assert numbers.put("lock", "a", skip_if_exists=True)
    assert not numbers.put("lock", "b", skip_if_exists=True)
    assert numbers["lock"] == "a"
    assert numbers.put("lock", "c")
    assert numbers["lock"] == "c"


def test_names_and_ids(client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="'nowhere' not found"):
        modal.Dict.from_name("nowhere", client=client).get("x")
    modal.Dict.objects.create("made", client=client)
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Dict.objects.create("made", client=client)
    modal.Dict.objects.create("made", allow_existing=True, client=client)
    made = modal.Dict.from_name("made", client=client)
    made["x"] = 1
    assert modal.Dict.from_id(made.object_id, client=client)["x"] == 1
    info = made.info()
    assert info.name == "made"
    modal.Dict.objects.create("made-later", client=client)
    names = [found.name for found in modal.Dict.objects.list(client=client)]
    assert names.index("made-later") < names.index("made")
    [newest] = modal.Dict.objects.list(max_objects=1, client=client)
    assert newest.name == "made-later"
    modal.Dict.objects.delete("made", client=client)
    with pytest.raises(modal.exception.NotFoundError):
        made["x"]
    with pytest.raises(modal.exception.NotFoundError):
        modal.Dict.objects.delete("made", client=client)
    modal.Dict.objects.delete("made", allow_missing=True, client=client)


def test_an_ephemeral_one_has_no_name(client: modal.Client) -> None:
    with modal.Dict.ephemeral(client=client) as first, modal.Dict.ephemeral(client=client) as other:
        first["x"] = 1
        assert "x" not in other
        assert first.object_id not in [d.object_id for d in modal.Dict.objects.list(client=client)]


@pytest.mark.slow
def test_the_dict_commands_of_modal_work(plane: LocalPlane, client: modal.Client) -> None:
    plane.modal("dict", "create", "shown", capture=True)
    shown = modal.Dict.from_name("shown", client=client)
    shown["greeting"] = "hey"
    assert "hey" in plane.modal("dict", "get", "shown", "greeting", capture=True).stdout
    listed = json.loads(plane.modal("dict", "list", "--json", capture=True).stdout)
    assert "shown" in [row["name"] for row in listed]
    items = json.loads(plane.modal("dict", "items", "shown", "--json", capture=True).stdout)
    assert items == [{"key": "greeting", "value": "hey"}]
    plane.modal("dict", "clear", "--yes", "shown", capture=True)
    assert shown.len() == 0
    plane.modal("dict", "delete", "--yes", "shown", capture=True)
    with pytest.raises(modal.exception.NotFoundError):
        shown.len()


def test_named_ones_outlive_a_killed_plane_and_others_do_not(tmp_path: Path) -> None:
    with LocalPlane(tmp_path, engine="inline") as plane:
        kept = modal.Dict.from_name("kept", create_if_missing=True, client=plane.client())
        kept.update({f"key {n}": n for n in range(100)})
        lost = ephemeral(plane.client())
        os.kill(plane.pid, signal.SIGKILL)
    with LocalPlane(tmp_path, engine="inline") as plane:
        kept = modal.Dict.from_name("kept", client=plane.client())
        assert dict(kept.items()) == {f"key {n}": n for n in range(100)}
        with pytest.raises(modal.exception.NotFoundError):
            modal.Dict.from_id(lost, client=plane.client()).len()


def ephemeral(client: modal.Client) -> str:
    """Return the id of an ephemeral Dict that nobody closes."""
    with modal.Dict.ephemeral(client=client) as anonymous:
        anonymous["x"] = 1
        return anonymous.object_id


def test_an_entry_that_is_not_used_for_a_week_is_gone(tmp_path: Path) -> None:
    async def run() -> None:
        plane = Parts(tmp_path)
        service = DictService(plane)
        made = await service.DictGetOrCreate(api_pb2.DictGetOrCreateRequest())

        async def get(key: bytes) -> bool:
            request = api_pb2.DictGetRequest(dict_id=made.dict_id, key=key)
            return (await service.DictGet(request)).found

        await service.DictUpdate(
            api_pb2.DictUpdateRequest(
                dict_id=made.dict_id,
                updates=[api_pb2.DictEntry(key=key, value=b"v") for key in (b"read", b"unread")],
            )
        )
        plane.clock.advance(UNUSED_S / 2)
        assert await get(b"read")
        plane.clock.advance(UNUSED_S / 2 + 60)
        assert await get(b"read")
        assert not await get(b"unread")
        length = await service.DictLen(api_pb2.DictLenRequest(dict_id=made.dict_id))
        assert length.len == 1

    asyncio.run(run())


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", "x" * 65, "ap-" + "a" * 22, "é"])
def test_names_that_modals_client_refuses_are_refused(tmp_path: Path, name: str) -> None:
    request = api_pb2.DictGetOrCreateRequest(
        deployment_name=name,
        object_creation_type=api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
    )
    with pytest.raises(modal.exception.InvalidError):
        modal.Dict.from_name(name)
    with pytest.raises(GRPCError, match="is no name"):
        asyncio.run(DictService(Parts(tmp_path)).DictGetOrCreate(request))
