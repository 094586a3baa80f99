"""Queues as the real client and the `modal queue` commands see them."""

import asyncio
import json
import queue
import threading
import time
from pathlib import Path

import modal
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import given, settings
from hypothesis import strategies as st
from modal_proto import api_pb2

from modalkit.local import LocalPlane
from modalkit.local.clock import Clock, Pulse
from modalkit.local.object_store import ObjectStore
from modalkit.local.services.queues import MAX_ITEM_BYTES, QueueService


class Parts:
    """What the service needs of a plane."""

    def __init__(self, root: Path) -> None:
        self.objects = ObjectStore(root)
        self.clock = Clock()
        self.queue_pulses = {"qu-1": Pulse()}


class Service(QueueService):
    """One Queue, without a client."""

    def __init__(self, root: Path) -> None:
        super().__init__(Parts(root))
        self.parts = self._plane
        self.id = self._store.create("qu").id
        self.parts.queue_pulses = {self.id: Pulse()}

    async def put(self, *values: bytes, key: bytes = b"", ttl_s: int = 0) -> None:
        await self.QueuePut(
            api_pb2.QueuePutRequest(
                queue_id=self.id, values=values, partition_key=key, partition_ttl_seconds=ttl_s
            )
        )

    async def get(self, n: int = 1, *, key: bytes = b"", timeout: float = 0) -> list[bytes]:
        request = api_pb2.QueueGetRequest(
            queue_id=self.id, n_values=n, partition_key=key, timeout=timeout
        )
        return list((await self.QueueGet(request)).values)

    async def length(self, *, total: bool = False) -> int:
        return (await self.QueueLen(api_pb2.QueueLenRequest(queue_id=self.id, total=total))).len


@pytest.fixture
def numbers(client: modal.Client) -> modal.Queue:
    numbers = modal.Queue.from_name("numbers", create_if_missing=True, client=client)
    numbers.clear(all=True)
    return numbers


def test_first_in_first_out(numbers: modal.Queue) -> None:
    numbers.put(1)
    numbers.put_many([2, "three", None])
    assert numbers.len() == 4
    assert list(numbers.iterate()) == [1, 2, "three", None]
    assert numbers.get() == 1
    assert numbers.get_many(10) == [2, "three", None]
    assert numbers.get(block=False) is None
    assert numbers.get_many(3, block=False) == []
    with pytest.raises(queue.Empty):
        numbers.get(timeout=0.1)


def test_partitions_are_apart(numbers: modal.Queue) -> None:
    numbers.put_many([1, 2])
    numbers.put_many([3, 4, 5], partition="a")
    assert (numbers.len(), numbers.len(partition="a"), numbers.len(total=True)) == (2, 3, 5)
    assert numbers.get(partition="a") == 3
    assert list(numbers.iterate(partition="a")) == [4, 5]
    numbers.clear(partition="a")
    assert (numbers.len(partition="a"), numbers.len(total=True)) == (0, 2)
    numbers.put(6, partition="b")
    numbers.clear(all=True)
    assert numbers.len(total=True) == 0


@pytest.mark.slow
def test_a_blocked_getter_gets_what_comes(numbers: modal.Queue) -> None:
    threading.Timer(0.5, numbers.put, ["late"]).start()
    assert numbers.get(timeout=60) == "late"
    threading.Timer(0.5, numbers.put, ["seen"]).start()
    assert list(numbers.iterate(item_poll_timeout=5)) == ["seen"]


def test_a_full_partition_is_full_until_there_is_room(numbers: modal.Queue) -> None:
    numbers.put_many(list(range(5000)))
    with pytest.raises(queue.Full):
        numbers.put(5000, block=False)
    with pytest.raises(queue.Full):
        numbers.put(5000, timeout=0.2)
    numbers.put(5000, partition="other")
    assert numbers.get() == 0
    numbers.put(5000)
    with pytest.raises(modal.exception.InvalidError, match="5001 items at once"):
        numbers.put_many(list(range(5001)), partition="new")
    with pytest.raises(modal.exception.InvalidError, match="the limit is 1 MiB"):
        numbers.put(b"x" * MAX_ITEM_BYTES)


def test_names_and_ids(client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="'nowhere' not found"):
        modal.Queue.from_name("nowhere", client=client).len()
    modal.Queue.objects.create("made", client=client)
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Queue.objects.create("made", client=client)
    made = modal.Queue.from_name("made", client=client)
    made.put("x")
    assert modal.Queue.from_id(made.object_id, client=client).get() == "x"
    assert made.info().name == "made"
    assert "made" in [found.name for found in modal.Queue.objects.list(client=client)]
    waiting: list[BaseException] = []

    def wait() -> None:
        try:
            made.get(timeout=60)
        except modal.exception.NotFoundError as error:
            waiting.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    modal.Queue.objects.delete("made", client=client)
    thread.join(30)
    assert len(waiting) == 1  # and did not wait for its minute
    with modal.Queue.ephemeral(client=client) as first, modal.Queue.ephemeral(client=client) as two:
        first.put(1)
        assert two.get(block=False) is None


@pytest.mark.slow
def test_the_queue_commands_of_modal_work(plane: LocalPlane, client: modal.Client) -> None:
    plane.modal("queue", "create", "shown", capture=True)
    shown = modal.Queue.from_name("shown", client=client)
    shown.put_many(["first", "second"])
    shown.put("third", partition="p")
    listed = json.loads(plane.modal("queue", "list", "--json", capture=True).stdout)
    [row] = [row for row in listed if row["name"] == "shown"]
    assert (row["partitions"], row["total_size"]) == (2, 3)
    peeked = plane.modal("queue", "peek", "shown", "2", capture=True).stdout
    assert peeked.split() == ["first", "second"]
    assert "3" in plane.modal("queue", "len", "--total", "shown", capture=True).stdout
    plane.modal("queue", "clear", "--yes", "shown", capture=True)
    assert shown.len(total=True) == 1
    plane.modal("queue", "delete", "--yes", "shown", capture=True)
    with pytest.raises(modal.exception.NotFoundError):
        shown.len()


def test_items_outlive_the_plane(tmp_path: Path) -> None:
    with LocalPlane(tmp_path, engine="inline") as plane:
        modal.Queue.from_name("kept", create_if_missing=True, client=plane.client()).put("x")
    with LocalPlane(tmp_path, engine="inline") as plane:
        assert modal.Queue.from_name("kept", client=plane.client()).get() == "x"


def test_a_partition_ends_a_while_after_its_last_put(tmp_path: Path) -> None:
    async def run() -> None:
        service = Service(tmp_path)
        await service.put(b"default")
        await service.put(b"short", key=b"short", ttl_s=10)
        service.parts.clock.advance(9)
        await service.put(b"again", key=b"short", ttl_s=10)
        service.parts.clock.advance(9)
        assert await service.get(1, key=b"short") == [b"short"]
        service.parts.clock.advance(2)
        assert await service.get(1, key=b"short") == []
        assert await service.length(total=True) == 1
        service.parts.clock.advance(24 * 3600)
        assert await service.length(total=True) == 0

    asyncio.run(run())


def test_a_partition_holds_64_mib_and_keys_have_64_bytes(tmp_path: Path) -> None:
    async def run() -> None:
        service = Service(tmp_path)
        for _ in range(64):
            await service.put(bytes(1 << 20))
        with pytest.raises(GRPCError, match="64 MiB") as refusal:
            await service.put(b"x")
        assert refusal.value.status is Status.RESOURCE_EXHAUSTED
        with pytest.raises(GRPCError, match="bytes at once") as never:
            await service.put(*[bytes(1 << 20)] * 65, key=b"empty")
        assert never.value.status is Status.INVALID_ARGUMENT
        with pytest.raises(GRPCError, match="64 bytes at most"):
            await service.put(b"x", key=b"k" * 65)

    asyncio.run(run())


def test_two_blocked_getters_never_get_the_same_item(tmp_path: Path) -> None:
    async def run() -> None:
        service = Service(tmp_path)
        getters = [asyncio.ensure_future(service.get(2, timeout=30)) for _ in range(20)]
        await asyncio.sleep(0)
        for number in range(25):
            await service.put(b"%d" % number)
            await asyncio.sleep(0)
        await service.put(*[b"%d" % number for number in range(25, 40)])
        got = [value for getter in getters for value in await getter]
        rest = await service.get(100)
        assert sorted(map(int, got + rest)) == list(range(40))

    asyncio.run(run())


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("put"), st.lists(st.binary(max_size=3), max_size=4), st.binary(max_size=1)
            ),
            st.tuples(st.just("get"), st.integers(1, 4), st.binary(max_size=1)),
        ),
        max_size=30,
    )
)
def test_it_is_a_list_per_partition(tmp_path_factory, steps) -> None:
    async def run() -> None:
        service = Service(tmp_path_factory.mktemp("store"))
        model: dict[bytes, list[bytes]] = {}
        for step, argument, key in steps:
            held = model.setdefault(key, [])
            if step == "put":
                await service.put(*argument, key=key)
                held += argument
            else:
                taken, held[:] = held[:argument], held[argument:]
                assert await service.get(argument, key=key) == taken
            assert await service.length(total=True) == sum(map(len, model.values()))

    asyncio.run(run())
