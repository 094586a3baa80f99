"""
What modal's client knows about a class or a Volume and does not tell by any public name.

Together with `local/_private.py` the only place that uses private names of modal; checked against
modal 1.6.4. Everything here serves checks at definition time on the laptop; nothing that runs in a
container needs it.
"""

from __future__ import annotations

from enum import Enum
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import modal


class Role(Enum):
    """One reason for which Modal picks up a decorated method; it looks for each separately."""

    BEFORE_SNAPSHOT = "modal.enter(snap=True)"
    AFTER_START = "modal.enter()"
    EXIT = "modal.exit()"
    METHOD = "modal.method()"
    BATCHED = "modal.batched()"
    CLUSTERED = "modal.clustered()"
    CONCURRENT = "modal.concurrent()"


def roles(member: object) -> frozenset[Role]:
    """Return the roles that a class's *member* has for Modal; none for an ordinary attribute."""
    from modal._partial_function import _PartialFunctionFlags as Flags
    from modal._utils.async_utils import synchronizer
    from modal.partial_function import PartialFunction

    if not isinstance(member, PartialFunction):
        return frozenset()
    flags = synchronizer._translate_in(member).flags  # type: ignore[no-untyped-call]
    masks = {
        Role.BEFORE_SNAPSHOT: Flags.ENTER_PRE_SNAPSHOT,
        Role.AFTER_START: Flags.ENTER_POST_SNAPSHOT,
        Role.EXIT: Flags.EXIT,
        Role.METHOD: Flags.interface_flags(),
        Role.BATCHED: Flags.BATCHED,
    }
    return frozenset(role for role, mask in masks.items() if flags & mask)


def raw_function(member: object) -> FunctionType | None:
    """Return the function that *member* of a class is or decorates; None for anything else."""
    from modal._utils.async_utils import synchronizer
    from modal.partial_function import PartialFunction

    if isinstance(member, PartialFunction):
        member = synchronizer._translate_in(member).raw_f  # type: ignore[no-untyped-call]
    return member if isinstance(member, FunctionType) else None


def is_parameter(member: object) -> bool:
    """Return whether *member* of a class is a `modal.parameter()` of its constructor."""
    from modal.cls import is_parameter as modal_is_parameter

    return bool(modal_is_parameter(member))


def user_class(decorated: object) -> object:
    """Return the class inside `@modal.clustered(...)` and its like; anything else as it is."""
    from modal._utils.async_utils import synchronizer
    from modal.partial_function import PartialFunction

    if not isinstance(decorated, PartialFunction):
        return decorated
    inner: Any = synchronizer._translate_in(decorated)  # type: ignore[no-untyped-call]
    return inner.user_cls


def volume_environment(volume: modal.Volume) -> str | None:
    """Return the Modal environment that *volume* was named in, None for the default one."""
    from modal._utils.async_utils import synchronizer

    inner: Any = synchronizer._translate_in(volume)  # type: ignore[no-untyped-call]
    name: str | None = inner._load_context_overrides._environment_name
    return name or None


def is_read_only(volume: modal.Volume) -> bool:
    """Return whether *volume* was made read-only by `with_mount_options` or `read_only`."""
    from modal._utils.async_utils import synchronizer

    inner: Any = synchronizer._translate_in(volume)  # type: ignore[no-untyped-call]
    options = inner._mount_options
    return bool(inner._read_only or (options is not None and options.read_only))


def is_secret(value: object) -> bool:
    """Return whether *value* is a `modal.Secret`."""
    import modal

    return isinstance(value, modal.Secret)


def many_at_once(decorated: object) -> Role | None:
    """Return the decorator by which several inputs or containers share the work of a class."""
    from modal._partial_function import _PartialFunctionFlags as Flags
    from modal._utils.async_utils import synchronizer
    from modal.partial_function import PartialFunction

    if not isinstance(decorated, PartialFunction):
        return None
    flags = synchronizer._translate_in(decorated).flags  # type: ignore[no-untyped-call]
    if flags & Flags.CLUSTERED:
        return Role.CLUSTERED
    return Role.CONCURRENT if flags & Flags.CONCURRENT else None
