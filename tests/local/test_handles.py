"""Handles as arguments and results, and looked up by name inside of containers."""

import threading

import modal
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS


@pytest.fixture(scope="module")
def functions(plane: LocalPlane, client: modal.Client):
    plane.deploy(str(APPS / "objects.py"))

    def find(name: str) -> modal.Function:
        return modal.Function.from_name("objects", name, client=client)

    return find


def test_queues_and_dicts_go_there_and_back(functions, client: modal.Client) -> None:
    numbers = modal.Queue.from_name("handed", create_if_missing=True, client=client).hydrate()
    assert functions("fill").remote(numbers, 3).get_many(3) == [0, 1, 2]
    with modal.Queue.ephemeral(client=client) as anonymous:
        functions("fill").remote(anonymous, 2)
        assert anonymous.get_many(2) == [0, 1]
    with modal.Dict.ephemeral(client=client) as notes:
        assert functions("note").remote(notes, "x", [1])["x"] == [1]
        # A handle inside of a value.
        functions("note").remote(notes, "queue", numbers)
        notes["queue"].put("through the Dict")
        assert numbers.get() == "through the Dict"


def test_volumes_go_there_and_back(functions, client: modal.Client) -> None:
    volume = functions("write").remote("hello")
    assert b"".join(volume.read_file("written.txt")) == b"hello"
    assert functions("read").remote(volume, "written.txt") == b"hello"


def test_functions_methods_and_calls_go_there_and_back(functions, client: modal.Client) -> None:
    double = functions("double").hydrate()
    assert functions("apply").remote(double, 4) == 8
    call = functions("apply_later").remote(double, 5)
    assert call.get() == 10
    assert functions("await_call").remote(call) == 10
    adder = modal.Cls.from_name("objects", "Adder", client=client)(amount=7)
    assert functions("apply").remote(adder.add.hydrate(), 1) == 8
    # The whole instance does not arrive on Modal either: the client cannot read it back.
    with pytest.raises(modal.exception.DeserializationError):
        functions("apply").remote(adder, 1)


def test_containers_find_objects_by_name(functions, client: modal.Client) -> None:
    assert functions("nested_names").remote() == [6, 11]
    assert modal.Dict.from_name("totals", client=client)["sum"] == 3


def test_a_dict_is_a_lock_between_containers(functions, client: modal.Client) -> None:
    jobs = [f"job {n % 5}" for n in range(30)]
    claimed = list(functions("claim").map(jobs))
    assert sum(claimed) == 5


def test_containers_share_a_queue_and_no_item_comes_twice(functions, client) -> None:
    numbers = modal.Queue.from_name("shared", create_if_missing=True, client=client).hydrate()
    drains = [functions("drain").spawn(numbers, 60.0) for _ in range(3)]
    thread = threading.Thread(target=numbers.put_many, args=[list(range(100))])
    thread.start()
    functions("fill").remote(numbers, 20)
    thread.join()
    for _ in drains:
        numbers.put(None)
    found = [n for drain in drains for n in drain.get()]
    assert sorted(found) == sorted([*range(100), *range(20)])
