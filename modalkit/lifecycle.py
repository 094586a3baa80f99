"""
What Modal would do with a class, against what the class says.

Modal finds hooks, methods and parameters by rules of its own: for each kind of decorator it walks
the bases from the last to the first and keeps the *decorated* members by name, and it looks for
parameters in the class itself only. Where that differs from Python's rules, it accepts the class
in silence and runs something else than it says. Each such case is a `LifecycleError` here, with
the fix.

Source: `_find_partial_methods_for_user_cls` and `_use_annotation_parameters` of modal 1.6.4.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

from modalkit._bytecode import Read, reads_of_self
from modalkit._modal_introspect import Role, is_parameter, raw_function, roles
from modalkit.errors import LifecycleError

RESERVED_PREFIX = "_modalkit_"

_HOOKS: Final = frozenset({Role.BEFORE_SNAPSHOT, Role.AFTER_START, Role.EXIT})


def check_class(
    cls: type, *, base: type, plain: Mapping[str, tuple[str, ...]], final: tuple[str, ...]
) -> None:
    """
    Refuse *cls*, a subclass of *base*, if Modal would run it differently than it is written.

    Args:
        cls: The class, as `__init_subclass__` gets it.
        base: The class of modalkit whose hooks call the plain methods.
        plain: The plain methods that users override, with the arguments that they are called with.
        final: Methods of *base* that users call and must not override.

    Raises:
        LifecycleError: It has one of the traps; the message has the fix.
    """
    _check_constructor(cls)
    _check_final(cls, base, final)
    for name, arguments in plain.items():
        _check_plain(cls, name, arguments)
    _check_overrides(cls)
    _check_calls(cls, base)
    _check_parameters(cls)


def reads_attribute(cls: type, name: str, *, base: type) -> bool:
    """
    Return whether a method of *cls* reads `self.<name>`, outside *base* and its bases.

    It reads the compiled methods, so it sees `self.run(...)` and misses what is spelt differently,
    such as `getattr(self, "run")` or a call from a function outside the class.
    """
    return any(read.name == name for _, _, read in _reads(cls, base))


def _reads(cls: type, base: type) -> Iterator[tuple[type, str, Read]]:
    """Yield each read of `self` in a method of *cls*, after the method's owner and name."""
    for owner in cls.__mro__:
        if owner in base.__mro__:
            continue
        for name, member in vars(owner).items():
            if function := raw_function(member):
                for read in reads_of_self(inspect.unwrap(function)):
                    yield owner, name, read


def _check_constructor(cls: type) -> None:
    if cls.__init__ is not object.__init__:  # type: ignore[misc]
        owner = next(owner for owner in cls.__mro__ if "__init__" in vars(owner))
        raise LifecycleError(
            f"{cls.__name__} has a constructor, {owner.__name__}.__init__: Modal makes the object "
            f"itself and allows none. Set attributes in load(), and declare arguments as "
            f"`name: str = modal.parameter()`."
        )


def _check_final(cls: type, base: type, final: tuple[str, ...]) -> None:
    for owner in cls.__mro__:
        if owner in base.__mro__:
            continue
        for name in vars(owner):
            if name in final:
                raise LifecycleError(
                    f"{owner.__name__}.{name} shadows {base.__name__}.{name}, which resumes a run. "
                    f"Give yours another name, such as `train`."
                )
            if name.startswith(RESERVED_PREFIX):
                raise LifecycleError(
                    f"{owner.__name__}.{name}: names that begin with {RESERVED_PREFIX!r} are the "
                    f"hooks of {base.__name__}. Override load(), place(device) or close() instead."
                )


def _check_plain(cls: type, name: str, arguments: tuple[str, ...]) -> None:
    signature = f"def {name}({', '.join(('self', *arguments))})"
    for owner in cls.__mro__:
        member = vars(owner).get(name)
        if decorators := roles(member):
            raise LifecycleError(
                f"{owner.__name__}.{name} is decorated with {_spelt(decorators)}: modalkit calls "
                f"{name}() itself, so Modal would run it twice. Remove the decorator."
            )
    member = inspect.getattr_static(cls, name)
    if not inspect.isfunction(member):
        raise LifecycleError(
            f"{cls.__name__}.{name} = {member!r} is no method. Write `{signature}: ...`, or leave "
            f"it out to do nothing."
        )
    if (
        inspect.iscoroutinefunction(member)
        or inspect.isgeneratorfunction(member)
        or inspect.isasyncgenfunction(member)
    ):
        raise LifecycleError(
            f"{cls.__name__}.{name} is async or a generator: it is called once and not awaited, so "
            f"its body would never run. Write a plain `{signature}`, without `async` and `yield`."
        )
    try:
        inspect.signature(member).bind(None, *arguments)
    except TypeError as error:
        raise LifecycleError(
            f"{cls.__name__}.{name} is called as {name}({', '.join(arguments)}): {error}. "
            f"Write `{signature}`."
        ) from None


def _check_overrides(cls: type) -> None:
    """Walk the bases as Modal does, and refuse what it keeps of one that a later one overrides."""
    kept: dict[str, tuple[type, frozenset[Any]]] = {}
    for owner in reversed(cls.__mro__):
        for name, member in vars(owner).items():
            decorators = roles(member)
            if name in kept and (lost := kept[name][1] - decorators):
                _refuse_override(owner, name, member, kept[name][0], lost)
            if decorators:
                kept[name] = (owner, decorators)


def _refuse_override(
    owner: type, name: str, member: object, base: type, lost: frozenset[Any]
) -> NoReturn:
    original = f"{base.__name__}.{name}"
    override = f"{owner.__name__}.{name}"
    if decorators := roles(member):
        raise LifecycleError(
            f"{override} is decorated with {_spelt(decorators)}, {original} with {_spelt(lost)}: "
            f"Modal looks for each kind apart and runs both. Decorate it with {_spelt(lost)} too, "
            f"or give it another name."
        )
    if inspect.isfunction(member):
        raise LifecycleError(
            f"{override} overrides {original}, which is decorated with {_spelt(lost)}, without a "
            f"decorator: Modal ignores it and runs {original}. Decorate it with {_spelt(lost)}."
        )
    raise LifecycleError(
        f"{override} = {member!r} does not switch off {original}, which is decorated with "
        f"{_spelt(lost)}: Modal still runs it. Override it by a method that does nothing, "
        f"decorated with {_spelt(lost)}."
    )


def _check_calls(cls: type, base: type) -> None:
    """Refuse calls that work on a plain object, and in a container meet a Function of Modal."""
    for owner, method, read in _reads(cls, base):
        decorators = roles(_attribute(cls, owner, read))
        if not decorators:
            continue
        if read.by_super:
            raise LifecycleError(
                f"{owner.__name__}.{method} uses super().{read.name}, which is decorated with "
                f"{_spelt(decorators)}: in the container Modal looks it up by its name alone, not "
                f"in the base, and the call fails. Move the base's work into a plain method, and "
                f"let both call that."
            )
        if decorators & _HOOKS:
            raise LifecycleError(
                f"{owner.__name__}.{method} uses self.{read.name}, which is decorated with "
                f"{_spelt(decorators)}: in the container that is a KeyError. Move its work into a "
                f"plain method, and let both call that."
            )
        if read.called:
            raise LifecycleError(
                f"{owner.__name__}.{method} calls self.{read.name}(...), which is decorated with "
                f"{_spelt(decorators)}: in the container that is a Function of Modal, which cannot "
                f"be called. Write self.{read.name}.local(...), or move its work into a plain "
                f"method."
            )


def _attribute(cls: type, owner: type, read: Read) -> object:
    """Return what *read*, in a method of *owner*, finds on an object of *cls*."""
    mro = cls.__mro__
    searched = mro[mro.index(owner) + 1 :] if read.by_super else mro
    return next((vars(c)[read.name] for c in searched if read.name in vars(c)), None)


def _check_parameters(cls: type) -> None:
    if any(is_parameter(member) for member in vars(cls).values()):
        return
    for name, owner in _inherited_parameters(cls):
        raise LifecycleError(
            f"{cls.__name__} inherits the parameter {owner.__name__}.{name} and declares none of "
            f"its own: Modal then sees no parameters, and {cls.__name__}({name}=...) fails in the "
            f"container. Declare one of them again in {cls.__name__}: "
            f"`{name}: {_annotation(owner, name)} = modal.parameter(...)`."
        )


def _inherited_parameters(cls: type) -> Iterator[tuple[str, type]]:
    for owner in cls.__mro__[1:]:
        for name, member in vars(owner).items():
            if is_parameter(member) and inspect.getattr_static(cls, name) is member:
                yield name, owner


def _annotation(owner: type, name: str) -> str:
    annotation = inspect.get_annotations(owner).get(name, "str")
    return annotation if isinstance(annotation, str) else annotation.__name__


def _spelt(decorators: frozenset[Any]) -> str:
    return " and ".join(sorted(f"@{role.value}" for role in decorators))
