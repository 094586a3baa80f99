"""
Live objects and their state: what is captured for a checkpoint, and how it goes back.

Nothing of an object is changed before all of the state is known to fit all of the objects; what
was put back is read again and compared, because `load_state_dict` may convert in silence.
torch and numpy are looked at only if the program has loaded them.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

from modalkit.checkpoint import bulk, tree
from modalkit.errors import CheckpointError, CheckpointMismatchError, RunError

_SHOWN_DIFFERENCES: Final = 20


@attrs.frozen
class _Difference:
    """One line of the table that a mismatch shows."""

    name: str
    saved: str
    live: str


@attrs.frozen
class _Kind:
    """How objects of one kind give and take their state."""

    name: str
    save: Callable[[Any], Any]
    load: Callable[[Any, Any], None]
    about: Callable[[Any], Any] = lambda _: None
    """What must be equal in the object that the state goes back into."""
    is_exact: bool = True
    """Whether the state can be read back and compared after it was loaded."""


def capture(objects: Mapping[str, object]) -> dict[str, Any]:
    """
    Return the state of each object, tensors not yet copied.

    Raises:
        RunError: An object has no state that can be saved.
    """
    return {name: _kind(name, value).save(value) for name, value in objects.items()}


def describe(objects: Mapping[str, object]) -> dict[str, Any]:
    """Return what `restore` compares before it touches anything, as plain values."""
    described = {}
    for name, value in objects.items():
        kind = _kind(name, value)
        described[name] = {"kind": kind.name, "about": kind.about(value)}
    return described


def restore(
    objects: Mapping[str, object], saved: Mapping[str, Any], described: Mapping[str, Any]
) -> None:
    """
    Put *saved* back into the live objects, on the devices where they are.

    Args:
        objects: The live objects by name.
        saved: What `capture` returned, read back.
        described: What `describe` returned at that time.

    Raises:
        CheckpointMismatchError: The state does not fit; nothing was changed.
        CheckpointError: An object did not take its state as it was saved.
    """
    _check_fit(objects, described)
    for name, value in objects.items():
        kind = _kind(name, value)
        try:
            kind.load(value, saved[name])
        except (ValueError, RuntimeError, KeyError) as error:
            raise CheckpointMismatchError(
                f"{name} ({type(value).__qualname__}) refused the state of the checkpoint: "
                f"{error}. Pass the same object as in the run's first attempt."
            ) from error
        if kind.is_exact:
            _verify(name, kind.save(value), saved[name])


def _kind(name: str, value: object) -> _Kind:
    for applies, kind in _kinds():
        if applies(value):
            return kind
    if callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    ):
        return _STATEFUL
    raise RunError(
        f"{name}={value!r:.80}: a {type(value).__qualname__} has no state that can be saved. "
        f"Pass a module, an optimizer, a tensor, an array, a random generator, or anything with "
        f"state_dict and load_state_dict; plain values go into run.extra."
    )


def _kinds() -> Iterator[tuple[Callable[[object], bool], _Kind]]:
    """Yield the special kinds that can occur, given the libraries that are loaded."""
    yield (lambda value: isinstance(value, random.Random)), _PYTHON_GENERATOR
    if torch := sys.modules.get("torch"):
        yield (lambda value: isinstance(value, torch.nn.Module)), _MODULE
        yield (lambda value: isinstance(value, torch.optim.Optimizer)), _OPTIMIZER
        yield (lambda value: isinstance(value, torch.optim.lr_scheduler.LRScheduler)), _SCHEDULER
        yield (lambda value: isinstance(value, torch.Tensor)), _TENSOR
        yield (lambda value: isinstance(value, torch.Generator)), _TORCH_GENERATOR
    if numpy := sys.modules.get("numpy"):
        yield (lambda value: isinstance(value, numpy.ndarray)), _ARRAY
        yield (lambda value: isinstance(value, numpy.random.Generator)), _NUMPY_GENERATOR
        yield (lambda value: isinstance(value, numpy.random.RandomState)), _NUMPY_LEGACY


# ---- fitting ------------------------------------------------------------------------------------


def _check_fit(objects: Mapping[str, object], described: Mapping[str, Any]) -> None:
    differences = list(_differences(objects, described))
    if not differences:
        return
    rows = [("name", "in the checkpoint", "here")]
    rows += [(d.name, d.saved, d.live) for d in differences[:_SHOWN_DIFFERENCES]]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    if (hidden := len(differences) - _SHOWN_DIFFERENCES) > 0:
        lines.append(f"  ... and {hidden} more")
    raise CheckpointMismatchError(
        "the checkpoint does not fit the objects of this run; nothing was changed:\n"
        + "\n".join(lines)
        + "\nBuild the same objects as in the run's first attempt, or begin a new run id."
    )


def _differences(
    objects: Mapping[str, object], described: Mapping[str, Any]
) -> Iterator[_Difference]:
    live = describe(objects)
    for name in [*described, *(n for n in live if n not in described)]:
        if name not in live or name not in described:
            saved_kind, live_kind = (
                side.get(name, {}).get("kind", "-") for side in (described, live)
            )
            yield _Difference(name, saved_kind, live_kind)
        elif described[name]["kind"] != live[name]["kind"]:
            yield _Difference(name, described[name]["kind"], live[name]["kind"])
        else:
            yield from _compare(name, described[name]["about"], live[name]["about"])


def _compare(name: str, saved: Any, live: Any) -> Iterator[_Difference]:
    if not isinstance(saved, dict) or not isinstance(live, dict):
        if saved != live:
            yield _Difference(name, str(saved), str(live))
        return
    for key in [*saved, *(k for k in live if k not in saved)]:
        if saved.get(key) != live.get(key):
            yield _Difference(f"{name}.{key}", str(saved.get(key, "-")), str(live.get(key, "-")))


def _verify(name: str, live: object, saved: object) -> None:
    """Compare every tensor, array and byte string of what is live now with what was saved."""
    live_leaves, saved_leaves = tree.Leaves(), tree.Leaves()
    tree.flatten(live, name, live_leaves)
    tree.flatten(saved, name, saved_leaves)
    for leaf, value in saved_leaves.items():
        if leaf not in live_leaves or bulk.digest(leaf, live_leaves[leaf]) != bulk.digest(
            leaf, value
        ):
            raise CheckpointError(
                f"{leaf}: after it was restored, {name} holds other bytes than the checkpoint. Its "
                f"load_state_dict changes what it is given; save it from an object of your own."
            )


# ---- kinds --------------------------------------------------------------------------------------


def _shape(value: Any) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {list(value.shape)}" if hasattr(value, "shape") else type(value).__qualname__


def _tensors(state: Mapping[str, Any]) -> dict[str, str]:
    """Describe the entries of a module's state; extra state is whatever the module makes it."""
    return {k: _shape(v) if hasattr(v, "shape") else "extra state" for k, v in state.items()}


def _load_module(module: Any, saved: Mapping[str, Any]) -> None:
    state = OrderedDict(saved)
    # Version numbers of the module classes; without them torch migrates from its oldest format.
    state._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined] # noqa: SLF001
    module.load_state_dict(state, strict=True)


def _parameters(optimizer: Any) -> dict[str, str]:
    """
    Describe an optimizer: its class and parameters, since its state, made lazily, says little.

    Classes share names of state: Adam takes AdamW's without a word. (Modules are not compared by
    class, because wrappers come and go.)
    """
    return {"class": _name(optimizer)} | {
        f"param_groups.{g}.params.{p}": _shape(parameter)
        for g, group in enumerate(optimizer.param_groups)
        for p, parameter in enumerate(group["params"])
    }


def _load_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    optimizer.load_state_dict(saved)
    # torch casts state to the dtype of its parameter: fp32 moments of bf16 weights would lose
    # their low bits. The dicts in state_dict() are the optimizer's own, so they can be mended.
    for key, state in optimizer.state_dict()["state"].items():
        if isinstance(state, dict):
            state.update({k: _as_saved(v, saved["state"][key][k]) for k, v in state.items()})


def _as_saved(live: Any, saved: Any) -> Any:
    """Return *live* with the dtypes of *saved*, on the device where it is."""
    torch = sys.modules["torch"]
    if isinstance(saved, torch.Tensor):
        return live if live.dtype == saved.dtype else saved.to(live.device)
    if isinstance(saved, dict):
        return {key: _as_saved(live[key], value) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        return type(saved)(map(_as_saved, live, saved))
    return live


def _load_tensor(tensor: Any, saved: Any) -> None:
    with sys.modules["torch"].no_grad():
        tensor.copy_(saved)


def _load_array(array: Any, saved: Any) -> None:
    array[...] = saved


def _set_bit_generator(generator: Any, saved: Any) -> None:
    generator.bit_generator.state = saved


def _name(value: Any) -> str:
    return type(value).__qualname__


_STATEFUL: Final = _Kind(
    "stateful",
    lambda value: value.state_dict(),
    lambda value, saved: value.load_state_dict(saved),
    # A loader's state may be a plan that it carries out at its next iteration.
    is_exact=False,
)
_MODULE: Final = _Kind(
    "module",
    lambda value: dict(value.state_dict()),
    _load_module,
    lambda value: _tensors(value.state_dict()),
)
_OPTIMIZER: Final = _Kind(
    "optimizer", lambda value: value.state_dict(), _load_optimizer, _parameters
)
_SCHEDULER: Final = _Kind(
    "scheduler",
    lambda value: value.state_dict(),
    lambda value, saved: value.load_state_dict(saved),
    lambda value: {"class": _name(value)},
    is_exact=False,
)
_TENSOR: Final = _Kind("tensor", lambda value: value, _load_tensor, _shape)
_ARRAY: Final = _Kind("array", lambda value: value, _load_array, _shape)
_PYTHON_GENERATOR: Final = _Kind(
    "random.Random", lambda value: value.getstate(), lambda value, saved: value.setstate(saved)
)
_TORCH_GENERATOR: Final = _Kind(
    "torch.Generator",
    lambda value: value.get_state(),
    lambda value, saved: value.set_state(saved),
    lambda value: str(value.device),
)
_NUMPY_GENERATOR: Final = _Kind(
    "numpy.random.Generator",
    lambda value: value.bit_generator.state,
    _set_bit_generator,
    lambda value: _name(value.bit_generator),
)
_NUMPY_LEGACY: Final = _Kind(
    "numpy.random.RandomState",
    lambda value: value.get_state(legacy=False),
    lambda value, saved: value.set_state(saved),
)
