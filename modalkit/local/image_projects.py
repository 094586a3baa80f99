"""What a project asks for: its pyproject.toml, in the standard's form or Poetry's, and its lock."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from modalkit.local.image_requirements import (
    Directory,
    Option,
    Packages,
    Unreadable,
    canonical,
    requested,
    with_extras,
)
from modalkit.local.markers import holds

Project = Mapping[str, Any]
"""A pyproject.toml."""


def dependencies(project: Project, extras: Collection[str] | None, python: str | None) -> Packages:
    """
    Return what a project requires, without its groups.

    Args:
        project: Its pyproject.toml.
        extras: Those that were asked for; None for all.
        python: The series to decide markers for.

    Raises:
        Unreadable: It is told elsewhere: in a setup.py, say.
    """
    told, poetry = project.get("project", {}), _tool(project, "poetry")
    is_told = "project" in project and "dependencies" not in told.get("dynamic", ())
    if not is_told and not poetry:
        raise Unreadable
    wanted = [
        *told.get("dependencies", ()),
        *_of_names(told.get("optional-dependencies", {}), extras),
    ]
    optional = {canonical(name) for name in _of_names(poetry.get("extras", {}), extras)}
    return requested(wanted, python) | _listed(poetry.get("dependencies", {}), optional, python)


def uv_sync(given: Sequence[Option], here: Directory) -> Packages:
    """Read `uv sync`."""
    values, here = dict(given), _directory(given, here, "--directory", "--project")
    project = here.toml("pyproject.toml")
    uv, groups = _tool(project, "uv"), _groups(project)
    if "project" not in project and "workspace" in uv:
        raise Unreadable  # it is all members', which have files of their own
    only = _values(given, "--only-group") | ({"dev"} if "--only-dev" in values else set())
    chosen = only or _values(given, "--group") | _default_groups(values, uv, groups)
    chosen -= _values(given, "--no-group") | ({"dev"} if "--no-dev" in values else set())
    direct = requested(_of_groups(groups, chosen), here.python)
    if "project" in project and not only:
        extras = None if "--all-extras" in values else _values(given, "--extra")
        direct = dependencies(project, extras, here.python) | direct
    return _locked(direct, here, "uv.lock")


def poetry_install(given: Sequence[Option], here: Directory) -> Packages:
    """Read `poetry install`."""
    values, here = dict(given), _directory(given, here, "-C", "--directory", "-P", "--project")
    project = here.toml("pyproject.toml")
    poetry, groups = _tool(project, "poetry"), _groups(project)
    own = dict(poetry.get("group", {}))
    if before_groups := poetry.get("dev-dependencies"):
        own["dev"] = {
            "dependencies": {**before_groups, **own.get("dev", {}).get("dependencies", {})}
        }
    optional = {name for name, group in own.items() if group.get("optional")}
    chosen = {"main", *own, *groups} - (optional - _values(given, "--with"))
    chosen -= _values(given, "--without") | ({"dev"} if "--no-dev" in values else set())
    chosen = _values(given, "--only") or chosen
    direct = requested(_of_groups(groups, chosen), here.python)
    for name in chosen & own.keys():
        direct |= _listed(own[name].get("dependencies", {}), (), here.python)
    if "main" in chosen:
        extras = None if "--all-extras" in values else _values(given, "-E", "--extras")
        direct = dependencies(project, extras, here.python) | direct
    return _locked(direct, here, "poetry.lock")


def _directory(given: Iterable[Option], here: Directory, *names: str) -> Directory:
    for option, value in given:
        here = here.at(value) if option in names else here
    return here


def _tool(project: Project, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = project.get("tool", {}).get(name, {})
    return found


def _values(given: Iterable[Option], *names: str) -> set[str]:
    listed = ",".join(value for option, value in given if option in names)
    return set(filter(None, re.split(r"[,\s]+", listed)))


def _of_names(table: Mapping[str, Any], names: Collection[str] | None) -> list[str]:
    wanted = None if names is None else {canonical(name) for name in names}
    return [
        item
        for name, of in table.items()
        if wanted is None or canonical(name) in wanted
        for item in of
    ]


def _groups(project: Project) -> dict[str, list[Any]]:
    """Return the groups of PEP 735, with what uv had for them before."""
    groups = dict(project.get("dependency-groups", {}))
    if before_groups := _tool(project, "uv").get("dev-dependencies"):
        groups["dev"] = [*groups.get("dev", ()), *before_groups]
    return groups


def _default_groups(
    values: Mapping[str, str], uv: Mapping[str, Any], groups: Mapping[str, Any]
) -> set[str]:
    if "--all-groups" in values:
        return set(groups)
    if "--no-default-groups" in values:
        return set()
    default = uv.get("default-groups", ["dev"])
    return set(groups if default == "all" else default)


def _of_groups(groups: Mapping[str, list[Any]], names: Collection[str]) -> list[str]:
    wanted, waiting = [], list(names)
    for group in waiting:  # grows as it is read
        for item in groups.get(group, ()):
            if isinstance(item, str):
                wanted.append(item)
            elif (other := item.get("include-group")) not in waiting:
                waiting.append(other)
    return wanted


def _listed(table: Mapping[str, Any], optional: Collection[str], python: str | None) -> Packages:
    """
    Read a table of Poetry's: a name, and the version or all that is asked of it, or several such.

    Args:
        table: As it is in a pyproject.toml or a poetry.lock.
        optional: Those of the optional ones that are wanted.
        python: The series to decide markers for.
    """
    packages: Packages = {}
    for name, told in table.items():
        several = told if isinstance(told, list) else [told]
        asked = [item if isinstance(item, Mapping) else {"version": item} for item in several]
        counting = [
            item
            for item in asked
            if (not item.get("optional") or canonical(name) in optional) and _counts(item, python)
        ]
        if counting and name != "python":
            extras = [extra for item in counting for extra in item.get("extras", ())]
            version = str(counting[0].get("version", "")) if len(counting) == 1 else ""
            packages[with_extras(name, extras)] = "" if version == "*" else version
    return packages


def _counts(item: Mapping[str, Any], python: str | None) -> bool:
    platform = f"sys_platform == '{item['platform']}'" if "platform" in item else ""
    markers = [item.get("markers", ""), item.get("marker", ""), platform]
    # Which extras these speak of is the lock's own business: uv's `extra-7-project-gpu`, say.
    return all(holds(f";{marker}", python, extra=None) for marker in markers)


# ---------------------------------------------------------------------------- locks


def _locked(direct: Packages, here: Directory, name: str) -> Packages:
    """Follow a uv.lock or poetry.lock, if there is one, from what a project asks for itself."""
    try:
        lock = here.toml(name)
    except Unreadable:
        return direct
    known = {canonical(p["name"]): p for p in lock.get("package", ()) if _is_for(p, here.python)}
    packages: Packages = {}
    waiting = list(direct)
    seen: set[str] = set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        name, _, extras = asked.rstrip("]").partition("[")
        package = known.get(name, {})
        packages[name] = f"=={package['version']}" if "version" in package else ""
        waiting += _required(package, extras.split(","), here.python)
    return packages


def _is_for(package: Mapping[str, Any], python: str | None) -> bool:
    """Tell whether this is the version that is locked for a Python: there may be several."""
    forks = package.get("resolution-markers", [package.get("markers", "")])
    return any(_counts({"marker": marker}, python) for marker in forks)


def _required(
    package: Mapping[str, Any], extras: Collection[str], python: str | None
) -> Iterable[str]:
    """Return what a locked package requires, in uv's form or in Poetry's."""
    required = package.get("dependencies", ())
    if isinstance(required, Mapping):
        yield from _listed(required, (), python)
        yield from requested(_of_names(package.get("extras", {}), extras), python)
        return
    for item in [*required, *_of_names(package.get("optional-dependencies", {}), extras)]:
        if _counts(item, python):
            yield with_extras(item["name"], item.get("extra", ()))
