"""State trees: what goes in comes out, type for type, and nothing needs pickle."""

from __future__ import annotations

import collections
import enum
import json
import math
import random
import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalkit.checkpoint import tree
from modalkit.errors import CheckpointCorruptError, CheckpointError

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**5000)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
)
keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
states = st.recursive(
    scalars | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(collections.deque)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict)
        | st.dictionaries(st.sampled_from(["$bulk", "$tuple", "a"]), inner, max_size=3)
        | st.sets(st.integers(), max_size=4)
        | st.frozensets(st.text(), max_size=4)
    ),
    max_leaves=20,
)


def through_json(state: object) -> object:
    leaves = tree.Leaves()
    text = json.dumps(tree.flatten(state, "root", leaves), allow_nan=False)
    return tree.unflatten(json.loads(text), leaves)


def same(a: object, b: object) -> bool:
    """Equality that tells 1 from True and 1.0, tuple from list, 0.0 from -0.0, and NaN as equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (
            a == b and math.copysign(1, a) == math.copysign(1, b)
        )
    if isinstance(a, dict):
        # A dict in order: optimizers and OrderedDicts depend on it.
        return len(a) == len(b) and all(map(same, a.items(), b.items()))
    if isinstance(a, (list, tuple, collections.deque)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(states)
def test_what_goes_in_comes_out(state):
    assert same(state, through_json(state))


@pytest.mark.parametrize(
    "state",
    [
        random.Random(3).getstate(),
        collections.Counter({30: 1, 80: 2}),
        collections.deque([1, 2], maxlen=5),
        {0: {"exp_avg": None}, "param_groups": [{"betas": (0.9, 0.999)}]},
        float("nan"),
        -float("inf"),
        -0.0,
        2**19937,
    ],
    ids=lambda state: type(state).__name__,
)
def test_states_of_generators_and_schedulers(state):
    result = through_json(state)
    assert same(state, result)
    if isinstance(state, collections.deque):
        assert result.maxlen == state.maxlen


def test_a_counter_is_still_one():
    assert list(through_json(collections.Counter("aab")).elements()) == ["a", "a", "b"]


def test_bulk_leaves_are_named_by_their_path():
    leaves = tree.Leaves()
    state = {"a": [torch.zeros(1), b"x"], "b": {0: np.zeros(2)}}
    skeleton = tree.flatten(state, "model", leaves)
    assert list(leaves) == ["model.a.0", "model.a.1", "model.b.0"]
    assert tree.unflatten(skeleton, leaves)["a"][0] is state["a"][0]


def test_two_leaves_with_one_path_have_two_names():
    leaves = tree.Leaves()
    state = {"a.b": b"1", "a": {"b": b"2"}, "__metadata__": b"3"}
    assert same(state, tree.unflatten(tree.flatten(state, "m", leaves), leaves))
    assert len(leaves) == 3


def test_names_that_a_pack_uses_itself_are_not_given():
    leaves = tree.Leaves()
    assert leaves.add("__metadata__", b"") != "__metadata__"
    assert leaves.add("__pad__.3", b"") != "__pad__.3"


def test_numpy_scalars_become_numbers():
    state = [np.float64(0.1), np.int32(3), np.bool_(True), np.float32(0.5)]
    assert same(through_json(state), [0.1, 3, True, 0.5])


class Colour(enum.IntEnum):
    RED = 1


class Point(typing.NamedTuple):
    x: int


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"a": [1, {"f": print}]}, r"root\.a\.1\.f: .*builtin_function_or_method"),
        ({"a": object()}, r"root\.a: .*builtins\.object"),
        (Colour.RED, r"Colour"),
        ([Point(1)], r"named tuple.*_asdict"),
        ({"a": 1j}, r"complex"),
        ({object(): 1}, r"\(key\)"),
    ],
    ids=["function", "object", "enum", "named-tuple", "complex", "key"],
)
def test_what_would_need_pickle_is_refused_by_its_path(state, says):
    with pytest.raises(CheckpointError, match=says):
        tree.flatten(state, "root", tree.Leaves())


def test_a_state_that_holds_itself_is_refused():
    state: list = []
    state.append(state)
    with pytest.raises(CheckpointError, match="nested deeper than 100"):
        tree.flatten(state, "root", tree.Leaves())


def nested(depth: int) -> list:
    state: list = []
    for _ in range(depth):
        state = [state]
    return state


@pytest.mark.parametrize(
    "skeleton",
    [
        {"$bulk": "no such leaf"},
        {"$unknown": 1},
        {"$int": "no number"},
        {"$int": 5},
        {"$float": "1e5"},
        {"$tuple": 3},
        {"$dict": [[1]]},
        {"$dict": [[[], 1]]},
        {"$deque": []},
        {"$set": [[]]},
        nested(100_000),
    ],
    ids=["leaf", "tag", "int", "int-type", "float", "tuple", "dict", "key", "deque", "set", "deep"],
)
def test_a_skeleton_that_flatten_never_writes_is_corrupt(skeleton):
    with pytest.raises(CheckpointCorruptError):
        tree.unflatten(skeleton, {})
