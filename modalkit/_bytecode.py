"""
What a compiled function does with `self`, as far as its instructions show it.

It sees attributes by their names, `self.run` and `super().run`, and misses what is spelt otherwise,
such as `getattr(self, "run")`.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import CodeType, FunctionType
from typing import NamedTuple


class Read(NamedTuple):
    """One `self.<name>` or `super().<name>` in a function."""

    name: str
    by_super: bool
    called: bool
    """Whether it is called right there, as in `self.name(1)`; `self.name(*all)` is not seen."""


def reads_of_self(function: FunctionType) -> Iterator[Read]:
    """Yield what *function* and the functions inside it read of its first argument."""
    code = function.__code__
    if code.co_argcount:
        yield from _reads(code, code.co_varnames[0])


def _reads(code: CodeType, self_name: str) -> Iterator[Read]:
    instructions = [*dis.get_instructions(code)]
    for load, attribute in pairwise(instructions):
        if _loads(load, self_name) and attribute.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            yield Read(attribute.argval, by_super=False, called=_is_call(attribute))
    for index, instruction in enumerate(instructions):
        is_super = instruction.opname == "LOAD_GLOBAL" and instruction.argval == "super"
        if is_super and (found := _attribute_of_super(instructions[index + 1 :])):
            yield Read(found.argval, by_super=True, called=_is_call(found))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _reads(constant, self_name)


def _loads(instruction: dis.Instruction, name: str) -> bool:
    # From 3.13 on one instruction may name two variables; the attribute is read of the last.
    value = instruction.argval
    last = value[-1] if isinstance(value, tuple) else value
    return last == name and any(kind in instruction.opname for kind in ("LOAD_FAST", "LOAD_DEREF"))


def _attribute_of_super(rest: list[dis.Instruction]) -> dis.Instruction | None:
    """Return what is read of the `super` that was loaded before *rest*."""
    for index, instruction in enumerate(rest):
        if instruction.opname == "LOAD_SUPER_ATTR":  # from 3.12 on: call and attribute in one
            return instruction
        if instruction.opname == "CALL":
            following = rest[index + 1 : index + 2]
            found = [i for i in following if i.opname in ("LOAD_ATTR", "LOAD_METHOD")]
            return found[0] if found else None
    return None


def _is_call(attribute: dis.Instruction) -> bool:
    # From 3.12 on a flag in the lowest bit; in 3.11 that belongs to the number of the name.
    if sys.version_info >= (3, 12):
        return bool((attribute.arg or 0) & 1)
    return attribute.opname == "LOAD_METHOD"
