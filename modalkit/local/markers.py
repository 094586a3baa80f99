"""
Environment markers of requirements, as far as they can be decided; what cannot is taken to hold.

The standard library only: this runs in the container's interpreter.
Source: https://packaging.python.org/en/latest/specifications/dependency-specifiers/
"""

from __future__ import annotations

import ast
import operator
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

OPERATORS: Final[Mapping[type, Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


def holds(requirement: str, python: str | None = None, extra: str | None = "") -> bool:
    """
    Tell whether a requirement counts.

    Args:
        requirement: With its marker, if it has one: `a>=1; python_version < "3.12"`.
        python: The series to decide for, such as "3.12"; None for this interpreter's.
        extra: The extra that was asked for, in canonical form; None if that is not known.
    """
    _, _, marker = requirement.partition(";")
    series = python or "{}.{}".format(*sys.version_info[:2])
    known = {
        "python_version": series,
        "python_full_version": (python and f"{python}.0") or platform.python_version(),
        "sys_platform": sys.platform,
        "os_name": os.name,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "implementation_name": sys.implementation.name,
        "extra": extra,
    }
    try:
        return not marker.strip() or _holds(ast.parse(marker.strip(), mode="eval").body, known)
    except (SyntaxError, TypeError, ValueError):
        return True


def _holds(node: ast.expr, known: Mapping[str, str | None]) -> bool:
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return combine([_holds(value, known) for value in node.values])
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return True
    sides = (node.left, node.comparators[0])
    values = [_value(side, known) for side in sides]
    names = [side.id for side in sides if isinstance(side, ast.Name)]
    compare = OPERATORS.get(type(node.ops[0]))
    if compare is None or None in values:
        return True
    if names == ["extra"]:
        values = [re.sub(r"[-_.]+", "-", str(value)).lower() for value in values]
    elif (
        names and names[0].startswith("python_") and not isinstance(node.ops[0], ast.In | ast.NotIn)
    ):
        return compare(*_versions(*map(str, values)))
    return compare(*values)


def _versions(*values: str) -> list[list[int]]:
    """Make versions comparable: 3.12 is 3.12.0, and beside 3.12.* all its releases are 3.12."""
    parts = [value.split(".") for value in values]
    if series := [len(part) - 1 for part in parts if part[-1] == "*"]:
        parts = [part[: series[0]] for part in parts]
    longest = max(map(len, parts))
    return [[int(p) for p in (*part, *["0"] * (longest - len(part)))] for part in parts]


def _value(node: ast.expr, known: Mapping[str, str | None]) -> str | None:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    return str(node.value) if isinstance(node, ast.Constant) else None
