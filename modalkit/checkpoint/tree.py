"""
State trees as JSON, without pickle: the skeleton of a checkpoint.

A state is dicts, lists, tuples and scalars, with tensors, arrays and bytes as its *bulk* leaves.
`flatten` names each leaf and describes the rest as JSON; `unflatten` puts the tree together again.
A JSON object with one key that starts with `$` is a tag, everything else stands for itself:

    {"$bulk": "model.weight"}      a leaf, by its name in the manifest
    {"$tuple": [...]}  {"$set": [...]}  {"$frozenset": [...]}  {"$deque": [maxlen, [...]]}
    {"$dict": [[key, value], ...]}  {"$ordered": ...}  {"$counter": ...}
    {"$float": "nan"}  {"$int": "0x..."}      what JSON numbers cannot hold

Types outside this list are refused by name: a checkpoint must never need the code that wrote it.
"""

from __future__ import annotations

import collections
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from modalkit.checkpoint import bulk
from modalkit.errors import CheckpointCorruptError, CheckpointError

MAX_DEPTH: Final = 100
"""Containers inside containers; a state that is deeper holds itself, or was made to do harm."""

_MAX_JSON_INT: Final = 2**63
"""Larger integers go as hexadecimal: Python caps the decimal digits it reads."""

_PAIRS: Final[dict[type, str]] = {
    collections.OrderedDict: "$ordered",
    collections.Counter: "$counter",
}
_ITEMS: Final[dict[type, str]] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset"}


class Leaves(dict[str, Any]):
    """The bulk leaves of a state by name, in the order in which they were met."""

    def add(self, path: str, leaf: object) -> str:
        """Return the name under which *leaf* is kept: its path, or path#2 if that is taken."""
        name, copies = path, 1
        while name in self or bulk.is_reserved(name):
            copies += 1
            name = f"{path}#{copies}"
        self[name] = leaf
        return name


def flatten(value: object, path: str, leaves: Leaves, depth: int = 0) -> Any:
    """
    Return the JSON skeleton of *value*, and add its bulk leaves to *leaves*.

    Args:
        value: The state.
        path: Where it stands, such as `optimizer.state.0`; leaves are named by it.
        leaves: Receives tensors, arrays and bytes.
        depth: Containers around *value*.

    Raises:
        CheckpointError: *value* holds something that cannot be stored without pickle.
    """
    if depth > MAX_DEPTH:
        raise CheckpointError(
            f"{path[:80]}...: nested deeper than {MAX_DEPTH} containers. "
            f"Does the state hold itself? Save plain values."
        )
    if bulk.is_bulk(value):
        return {"$bulk": leaves.add(path, value)}
    if isinstance(value, (dict, list, tuple, set, frozenset, collections.deque)):
        return _flatten_container(value, path, leaves, depth + 1)
    return _flatten_scalar(value, path)


def _flatten_scalar(value: object, path: str) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.bool_, numpy.integer, numpy.floating)):
        value = value.item()
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) < _MAX_JSON_INT else {"$int": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    raise CheckpointError(
        f"{path}: a value of type {type(value).__module__}.{type(value).__qualname__} cannot be "
        f"stored without pickle. Store None, bool, int, float, str, bytes, tensors or arrays, in "
        f"dicts, lists, tuples or sets, or pass an object that has state_dict and load_state_dict."
    )


def _flatten_container(value: Any, path: str, leaves: Leaves, depth: int) -> Any:
    kind = type(value)
    if isinstance(value, dict):
        return _flatten_dict(value, path, leaves, depth)
    if kind in (set, frozenset):
        # Sets have no order of their own: sorting makes equal states equal files.
        value = sorted(value, key=repr)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        raise CheckpointError(
            f"{path}: a named tuple ({kind.__qualname__}) cannot be stored without its class. "
            f"Store value._asdict() instead."
        )
    items = [flatten(v, f"{path}.{i}", leaves, depth) for i, v in enumerate(value)]
    if isinstance(value, collections.deque):
        return {"$deque": [value.maxlen, items]}
    if isinstance(value, tuple):
        return {"$tuple": items}
    return {_ITEMS[kind]: items} if kind in _ITEMS else items


def _flatten_dict(value: dict[Any, Any], path: str, leaves: Leaves, depth: int) -> Any:
    is_plain = all(type(key) is str and not key.startswith("$") for key in value)
    if is_plain and type(value) not in _PAIRS:
        return {key: flatten(v, f"{path}.{key}", leaves, depth) for key, v in value.items()}
    pairs = [
        [flatten(key, f"{path} (key)", leaves, depth), flatten(v, f"{path}.{key}", leaves, depth)]
        for key, v in value.items()
    ]
    return {_PAIRS.get(type(value), "$dict"): pairs}


def _float(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(text)
    return float(text)


def unflatten(skeleton: object, leaves: Mapping[str, Any]) -> Any:
    """
    Return the state that *skeleton* describes, its leaves taken from *leaves*.

    Raises:
        CheckpointCorruptError: The skeleton was not made by `flatten`.
    """
    try:
        return _unflatten(skeleton, leaves)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointCorruptError(
            f"the tree of the manifest is not one that modalkit writes ({error!r})"
        ) from error


def _unflatten(skeleton: Any, leaves: Mapping[str, Any]) -> Any:
    if isinstance(skeleton, list):
        return [_unflatten(item, leaves) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if len(skeleton) == 1:
        ((tag, content),) = skeleton.items()
        if tag == "$bulk":
            return leaves[content]
        if tag.startswith("$"):
            return _BUILDERS[tag](content, lambda item: _unflatten(item, leaves))
    return {key: _unflatten(item, leaves) for key, item in skeleton.items()}


_Build = Callable[[Any], Any]

_BUILDERS: Final[dict[str, Callable[[Any, _Build], Any]]] = {
    "$int": lambda text, _: int(text, 16),
    "$float": lambda text, _: _float(text),
    "$tuple": lambda items, build: tuple(map(build, items)),
    "$set": lambda items, build: set(map(build, items)),
    "$frozenset": lambda items, build: frozenset(map(build, items)),
    "$deque": lambda content, build: collections.deque(map(build, content[1]), content[0]),
    "$dict": lambda pairs, build: {build(k): build(v) for k, v in pairs},
    "$ordered": lambda pairs, build: collections.OrderedDict(
        (build(k), build(v)) for k, v in pairs
    ),
    "$counter": lambda pairs, build: collections.Counter({build(k): build(v) for k, v in pairs}),
}
