"""
The import guard: it stands for the image, since containers run in the caller's own interpreter.

There a module that the user's image lacks would be found all the same, and the app would die on
Modal at its first line. So the imports that the app's own mounted modules make are compared with
the packages that the image's commands install, with what those require, and with modal.

What other packages import is their own affair, and so is an import in a `try` that handles its
failure: strict, it fails as it would on Modal; else it is let pass without a word.

The standard library only: this runs in the container's interpreter.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.metadata
import json
import opcode
import re
import site
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .markers import holds

HANDLERS: Final = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
HANDLED: Final = "handled"
IMPORTS: Final = "imports"
REQUIREMENT: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")


def install(**arguments: Any) -> None:
    """Guard all imports from here on; the arguments are those of `Guard`."""
    guard = Guard(**arguments)
    builtins.__import__ = guard.wrap_statement(builtins.__import__)
    importlib.import_module = guard.wrap_function(importlib.import_module)


class Guard:
    """
    Decides what the app's own code may import.

    Args:
        packages: Distributions that the image installs, extras in brackets; or modules, where it
            names no distributions, as apt does.
        client: Distributions that Modal mounts for its client, without what these require.
        strict: Raise ModuleNotFoundError for a missing one; False prints a line on stderr, once
            for each module.
        roots: Directories of the app's own mounted code.
        python: The series of the image's Python, for what depends on it; None for this one's.
        elsewhere: Distributions that other images of the app install: an `image.imports()` block
            may be for one of those.
    """

    def __init__(
        self,
        packages: Iterable[str],
        *,
        client: Iterable[str] = (),
        strict: bool,
        roots: Sequence[str],
        python: str | None = None,
        elsewhere: Iterable[str] = (),
    ) -> None:
        self._packages = list(packages)
        self._elsewhere = list(elsewhere)
        self._client = {"modal", *map(_canonical, client)}
        self._strict = strict
        self._roots = _directories(roots)
        # An interpreter may lie below a root: of /root, say.
        self._foreign = _directories([sys.prefix, sys.base_prefix, site.getusersitepackages()])
        self._python = python
        self._own_files: dict[str, bool] = {}
        self._faults: dict[str, str | None] = {}
        self._told: set[tuple[str, str]] = set()

    def wrap_statement(self, original: Callable[..., types.ModuleType]) -> Callable[..., Any]:
        """Wrap what import statements call."""

        def guarded(
            name: str,
            globals: Mapping[str, object] | None = None,  # noqa: A002 - the builtin's own names
            locals: Mapping[str, object] | None = None,  # noqa: A002
            fromlist: Sequence[str] = (),
            level: int = 0,
        ) -> types.ModuleType:
            # The import comes first: one that fails anyway is nothing to speak about.
            module = original(name, globals, locals, fromlist, level)
            if level == 0 and globals is not None and self._is_own(globals.get("__file__")):
                caller = sys._getframe(1)  # noqa: SLF001 - as inspect does, but quick
                if _is_statement(caller):
                    for judged in _judged(name, fromlist or ()):
                        self._check(judged, caller)
            return module

        return guarded

    def wrap_function(self, original: Callable[..., types.ModuleType]) -> Callable[..., Any]:
        """Wrap `importlib.import_module`, which does not go through the statement's function."""

        def guarded(name: str, package: str | None = None) -> types.ModuleType:
            module = original(name, package)
            caller = sys._getframe(1)  # noqa: SLF001
            if not name.startswith(".") and self._is_own(caller.f_globals.get("__file__")):
                for judged in _judged(name):
                    self._check(judged, caller)
            return module

        return guarded

    def _is_own(self, file: object) -> bool:
        if not isinstance(file, str):
            return False
        if (known := self._own_files.get(file)) is None:
            own, foreign = (
                max((len(place) for place in places if file.startswith(place)), default=0)
                for places in (self._roots, self._foreign)
            )
            known = self._own_files[file] = own > foreign
        return known

    def _check(self, name: str, caller: types.FrameType) -> None:
        if name not in self._faults:
            self._faults[name] = None  # what follows may import, too
            self._faults[name] = self._fault(name)
        if (fault := self._faults[name]) is None:
            return
        if self._strict:
            raise ModuleNotFoundError(f"No module named {name!r} in the image: {fault}", name=name)
        told = (name.partition(".")[0], fault)
        if told in self._told or (block := _block(caller)) == HANDLED:
            return
        if block != IMPORTS or not self._has(name, self._elsewhere):
            self._told.add(told)
            where = f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"
            print(f"modalkit: {where} imports {name!r}: {fault}", file=sys.stderr, flush=True)  # noqa: T201

    def _fault(self, name: str) -> str | None:
        """Say what the image lacks and the line that adds it; None where all is well."""
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or self._is_mounted(top):
            return None
        # What every app imports comes first: reading all metadata costs a third of a second.
        if _canonical(name) in self._client or self._has(name, self._packages):
            return None
        owners = _owners(name)
        if self._client & set(map(_canonical, owners)):
            return None
        if owners and not _is_editable(owners[0]):
            line = f'.uv_pip_install("{owners[0]}")'
            return f"the image does not install {owners[0]!r}; add {line} to it"
        # An editable install may be found before the image's copy of it.
        if any(_holds_module(Path(root), top) for root in self._roots):
            return None
        line = f'.add_local_python_source("{top}")'
        return f"it is local code that the image does not hold; add {line} to it"

    def _has(self, name: str, packages: Iterable[str]) -> bool:
        """Tell whether a module comes with some packages."""
        named = {_canonical(package.partition("[")[0]) for package in packages}
        if _canonical(name) in named:
            return True  # most are called like their distribution
        if _canonical(name) in _with_requirements(packages, self._python):
            return True
        owned = importlib.metadata.packages_distributions()
        of_modules = [owner for module in named for owner in owned.get(module, [])]
        permitted = _with_requirements([*packages, *of_modules], self._python)
        return bool(permitted & {_canonical(owner) for owner in [name, *_owners(name)]})

    def _is_mounted(self, top: str) -> bool:
        module = sys.modules.get(top)
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        # Neither file nor path: made at run time, or built in.
        return any(self._is_own(f"{p}/") for p in places if p) or not any(places)


def _judged(name: str, fromlist: Sequence[str] = ()) -> list[str]:
    """
    Name the modules that an import statement is judged by.

    That is the top one, or the first below a namespace, such as `google`, which many share.
    """
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        if not _is_namespace(module := ".".join(parts[:count])):
            return [module]
    below = [f"{name}.{part}" for part in fromlist if f"{name}.{part}" in sys.modules]
    return below or parts[:1]


def _is_namespace(name: str) -> bool:
    module = sys.modules.get(name)
    return hasattr(module, "__path__") and getattr(module, "__file__", None) is None


def _owners(name: str) -> list[str]:
    """Return the distributions that a module is of; below a namespace, those with its files."""
    top, _, below = name.partition(".")
    owners = importlib.metadata.packages_distributions().get(top, [])
    if not below:
        return owners
    start = re.compile(rf"{re.escape(name.replace('.', '/'))}[/.]")
    holding = [
        o for o in owners if any(start.match(str(f)) for f in importlib.metadata.files(o) or ())
    ]
    return holding or owners


def _holds_module(directory: Path, top: str) -> bool:
    found = directory if directory.name == top else directory / top
    return (directory / f"{top}.py").is_file() or any(found.glob("*.py"))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _directories(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple({f"{path}/" for given in paths for path in (given, Path(given).resolve())})


def _with_requirements(packages: Iterable[str], python: str | None) -> set[str]:
    """Follow the installed metadata."""
    seen: set[tuple[str, str]] = set()
    waiting = [pair for package in packages for pair in _named(package)]
    while waiting:
        name, extra = pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        for requirement in _requirements(name):
            if holds(requirement, python, extra):
                waiting += _named(requirement)
    return {name for name, _ in seen}


def _named(requirement: str) -> Iterator[tuple[str, str]]:
    if found := REQUIREMENT.match(requirement):
        name = _canonical(found[1])
        yield name, ""
        for extra in (found[2] or "").split(","):
            yield name, _canonical(extra.strip())


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []  # in the image but not here: an import of it fails anyway


def _is_editable(distribution: str) -> bool:
    origin = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    return bool(json.loads(origin or "{}").get("dir_info", {}).get("editable"))


def _is_statement(caller: types.FrameType) -> bool:
    """Tell an import statement from a call of compiled code, whose imports have no frame."""
    return caller.f_code.co_code[caller.f_lasti] == opcode.opmap["IMPORT_NAME"]


def _block(caller: types.FrameType) -> str:
    """Tell whether the import is in a block that expects it to fail: HANDLED, IMPORTS or ""."""
    try:
        tree = ast.parse(Path(caller.f_code.co_filename).read_bytes())
    except (OSError, SyntaxError):
        return ""
    kinds = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try | ast.With):
            first, last = node.body[0].lineno, node.body[-1].end_lineno or 0
            if first <= caller.f_lineno <= last:
                kinds.add(_kind(node))
    return HANDLED if HANDLED in kinds else IMPORTS if IMPORTS in kinds else ""


def _kind(node: ast.Try | ast.With) -> str:
    if isinstance(node, ast.Try):
        caught = any(h.type is None or _names(h.type) & HANDLERS for h in node.handlers)
        return HANDLED if caught else ""
    calls = [i.context_expr for i in node.items if isinstance(i.context_expr, ast.Call)]
    suppressed = [c for c in calls if "suppress" in _names(c.func)]
    if any(_names(a) & HANDLERS for c in suppressed for a in c.args):
        return HANDLED
    return IMPORTS if any("imports" in _names(c.func) for c in calls) else ""


def _names(expression: ast.expr) -> set[str]:
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(expression) if isinstance(node, ast.Attribute)}
