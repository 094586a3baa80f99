"""
Which distributions an install command brings: pip, uv, conda, poetry, apt and the files they read.

Pure: files are looked up by their path in the image. What cannot be read is an `Unreadable`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from modalkit.local.markers import holds
from modalkit.local.reports import PackageInfo

# A distribution's canonical name, with extras: "fastapi[standard]" -> what was asked: "==2.9.1".
Packages = dict[str, str]
Lookup = Callable[[str], str | None]
"""The text of a file by its absolute path in the image; None when it is not known."""

# Options of pip and uv that take the next word as their value.
_VALUED = (
    "-c --constraint --constraints -e --editable -f --find-links -i --index-url --index"
    " --default-index --extra-index-url -p --python -t --target --prefix --root --platform"
    " --python-version --python-platform --implementation --abi --only-binary --no-binary"
    " -P --upgrade-package --upgrade-strategy -C --config-settings --config-setting"
    " --global-option --cache-dir --proxy --retries --timeout --trusted-host --cert"
    " --client-cert --progress-bar --link-mode --index-strategy --keyring-provider"
    " --resolution --prerelease --exclude-newer --torch-backend --src --log --report"
    " --no-build-package --no-build-isolation-package --refresh-package --reinstall-package"
    " --extra --group --only-group --overrides --build-constraints --color --directory --project"
    " --with --without --only -n --name --channel --file -r --requirement --requirements"
)
VALUED: Final = frozenset(_VALUED.split())
FILES: Final = frozenset({"-r", "--requirement", "--requirements"})
EDITABLE: Final = frozenset({"-e", "--editable"})
INSTALLERS: Final = re.compile(
    r"\b(pip3?|uv|conda|mamba|micromamba|poetry|pdm|pixi|easy_install|setup\.py)\b"
)
HARMLESS: Final = frozenset({"--version", "rm", "echo", "which", "ln", "mkdir", "chmod", "curl"})
REQUIREMENT: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?\s*((?:$|[@=<>!~;( ]).*)"
)
PROJECT: Final = re.compile(r"(\.{0,2}|[^=<>@]*/[^=<>@]*|\.)(?:\[([^\]]*)\])?")
# A command that only runs the rest of its line.
PREFIXES: Final = frozenset(
    {"sudo", "env", "exec", "command", "nice", "time", "then", "do", "else"}
)
BUILTINS: Final = frozenset({"set", "export", "true", ":"})
# conda's and Debian's names where they are neither the distribution's nor the module's.
CONDA: Final = {
    "pytorch": "torch",
    "pytorch-gpu": "torch",
    "pytorch-cpu": "torch",
    "opencv": "opencv-python",
    "py-opencv": "opencv-python",
    "matplotlib-base": "matplotlib",
    "pytables": "tables",
    "faiss": "faiss-cpu",
    "tensorflow-gpu": "tensorflow",
}
DEBIAN: Final = {"opencv": "cv2"}
OF_DEBIAN: Final = "(apt)"
"""Asked of a package that apt installs, which is named by its module."""
TOOLS: Final = frozenset({"pip", "wheel", "uv", "setuptools", "poetry"})
"""For building an image; that they are missing here says nothing."""


class Unreadable(Exception):  # noqa: N818 - a finding about the image, not a mistake
    """
    It may bring packages that cannot be named.

    Attributes:
        packages: Those that can.
    """

    def __init__(self, packages: Packages | None = None) -> None:
        super().__init__()
        self.packages = packages or {}


def canonical(name: str) -> str:
    """
    Return the canonical form of a distribution's name.

    Source: https://packaging.python.org/en/latest/specifications/name-normalization/
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(words: Sequence[str], directory: str, look_up: Lookup) -> Packages | None:
    """
    Read one simple command.

    Args:
        words: The command, without a shell's syntax.
        directory: Where it runs.
        look_up: The files of the image.

    Returns:
        What it installs; None where it is no command that installs.

    Raises:
        Unreadable: It may install what it does not name.
    """
    words = _program(words)
    if not words or words[0] in BUILTINS:
        return {}
    name, rest = PurePosixPath(words[0]).name, list(words[1:])
    if re.fullmatch(r"python[\d.]*", name) and rest[:1] == ["-m"]:
        name, rest = (rest[1] if len(rest) > 1 else ""), rest[2:]
    read = READERS.get(re.sub(r"^pip[\d.]+$", "pip", name))
    if read is not None:
        return read(rest, _Project(directory, look_up))
    if INSTALLERS.search(" ".join(words)) and not HARMLESS & set(words):
        raise Unreadable
    return None


def requirement(text: str) -> tuple[str, str]:
    """
    Return a requirement's canonical name with its extras, and what it asks of the version.

    Raises:
        Unreadable: It names no distribution.
    """
    if text.endswith(".whl"):
        name, version = PurePosixPath(text).name.split("-")[:2]
        return canonical(name), f"=={version}"
    if egg := re.search(r"#egg=([A-Za-z0-9._-]+)", text):
        return canonical(egg[1]), ""
    if not (found := REQUIREMENT.fullmatch(text.strip())):
        raise Unreadable
    extras = sorted(canonical(e.strip()) for e in (found[2] or "").split(",") if e.strip())
    asked = re.sub(r"\s+", "", found[3].partition(";")[0]).strip("()")
    name = canonical(found[1]) + (f"[{','.join(extras)}]" if extras else "")
    return name, "" if asked.startswith("@") else asked


def compare(packages: Packages, here: Mapping[str, str]) -> list[PackageInfo]:
    """
    Compare what an image installs with what an interpreter has.

    Args:
        packages: As in `ImageFacts`.
        here: Versions of the interpreter's distributions by their canonical names.
    """
    found = []
    for name, asked in sorted((name.partition("[")[0], asked) for name, asked in packages.items()):
        version = here.get(name)
        is_known = version is not None or asked == OF_DEBIAN or name in TOOLS
        exact = re.fullmatch(r"===?([^,]+)", asked)
        is_other = bool(exact and version) and not _is_version(
            version or "", exact[1] if exact else ""
        )
        found.append(PackageInfo(name, asked, version, differs=is_other or not is_known))
    return found


def _is_version(found: str, wanted: str) -> bool:
    # Of a local version only what was asked for counts: 2.13.0+cpu is 2.13.0.
    if "+" not in wanted:
        found = found.partition("+")[0]
    if wanted.endswith(".*"):
        return f"{found}.".startswith(wanted[:-1])
    return _trimmed(found) == _trimmed(wanted)


def _trimmed(version: str) -> str:
    return re.sub(r"(\.0)+$", "", version.lower().lstrip("v"))


def _program(words: Sequence[str]) -> Sequence[str]:
    # RUN --mount=..., VARIABLE=value before a program, and programs that run another one.
    while words and (
        words[0].startswith("-") or re.match(r"\w+=", words[0]) or words[0] in PREFIXES
    ):
        words = words[1:]
    return words


class _Project:
    """Files of the image, seen from a directory."""

    def __init__(self, directory: str, look_up: Lookup) -> None:
        self.directory = PurePosixPath(directory)
        self._look_up = look_up

    def at(self, directory: str) -> _Project:
        return _Project(str(self.directory / directory), self._look_up)

    def text(self, name: str) -> str:
        path = PurePosixPath(self.directory, name)
        if (found := self._look_up(str(path))) is None:
            raise Unreadable
        return found

    def toml(self, name: str) -> dict[str, Any]:
        try:
            return tomllib.loads(self.text(name))
        except tomllib.TOMLDecodeError as error:
            raise Unreadable from error


def _options(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Split arguments into options with their values, and plain words under the name ""."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            yield "", word
        elif "=" in word:
            name, _, value = word.partition("=")
            yield name, value
        else:
            yield word, next(rest, "") if word in VALUED else ""


# ---------------------------------------------------------------------------- pip and uv


def _pip(words: list[str], here: _Project) -> Packages | None:
    if "install" not in words:
        return None
    packages: Packages = {}
    missing = False
    for option, value in _options(words[words.index("install") + 1 :]):
        try:
            if option in FILES:
                packages |= _requirements_file(value, here)
            elif option in EDITABLE or option == "":
                packages |= _argument(value, here)
        except Unreadable as unreadable:
            packages |= unreadable.packages
            missing = True
    if missing:
        raise Unreadable(packages)
    return packages


def _argument(text: str, here: _Project) -> Packages:
    is_project = (found := PROJECT.fullmatch(text)) and "://" not in text and text[-4:] != ".whl"
    if not is_project:
        return _asked([text])
    assert found is not None
    project = here.at(found[1] or ".").toml("pyproject.toml")
    extras = [extra.strip() for extra in (found[2] or "").split(",") if extra.strip()]
    name = project.get("project", {}).get("name")
    packages = _declared(project, extras, [])
    return packages | ({canonical(name): ""} if name else {})


def _requirements_file(name: str, here: _Project) -> Packages:
    packages: Packages = {}
    missing = False
    text = re.sub(r"\\\n", " ", here.text(name))
    for written in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", written).strip()
        option, _, value = re.sub(r"^(--\w+)=", r"\1 ", line).partition(" ")
        try:
            if option in FILES:
                there = here.at(str(PurePosixPath(name).parent))
                packages |= _requirements_file(value.strip(), there)
            elif option in EDITABLE:
                packages |= _argument(value.strip(), here)
            elif line and not line.startswith("-"):
                packages |= _argument(re.split(r"\s--", line)[0].strip(), here)
        except Unreadable as unreadable:
            packages |= unreadable.packages
            missing = True
    if missing:
        raise Unreadable(packages)
    return packages


def _declared(project: Mapping[str, Any], extras: Sequence[str], groups: Sequence[str]) -> Packages:
    """Read what a pyproject.toml asks for: PEP 621 and PEP 735."""
    told = project.get("project", {})
    if "dependencies" in told.get("dynamic", ()):
        raise Unreadable
    wanted = list(told.get("dependencies", ()))
    for extra in extras:
        wanted += told.get("optional-dependencies", {}).get(extra, ())
    known = project.get("dependency-groups", {})
    waiting = list(groups)
    for group in waiting:  # grows as it is read
        for item in known.get(group, ()):
            if isinstance(item, str):
                wanted.append(item)
            elif (other := item.get("include-group")) not in waiting:
                waiting.append(other)
    return _asked(wanted)


def _asked(requirements: Iterable[str]) -> Packages:
    return dict(requirement(text) for text in requirements if holds(text))


def _uv(words: list[str], here: _Project) -> Packages | None:
    if words[:1] == ["pip"]:
        return _pip(words[1:], here)
    if words[:1] == ["add"]:
        return _pip(["install", *words[1:]], here)
    if words[:1] != ["sync"]:
        if words[:1] in (["run"], ["export"]):
            raise Unreadable
        return None  # `uv venv`, `uv python`, `uv tool` and the like give the app no module
    options = list(_options(words[1:]))
    given = dict(options)
    there = here.at(given.get("--project", given.get("--directory", ".")))
    project = there.toml("pyproject.toml")
    extras = [value for option, value in options if option == "--extra"]
    groups = [value for option, value in options if option in {"--group", "--only-group"}]
    optional, grouped = (
        project.get("project", {}).get("optional-dependencies", {}),
        project.get("dependency-groups", {}),
    )
    if "--all-extras" in given:
        extras += optional
    if "--all-groups" in given:
        groups += grouped
    elif not given.keys() & {"--no-dev", "--no-default-groups"}:
        default = project.get("tool", {}).get("uv", {}).get("default-groups", ["dev"])
        groups += grouped if default == "all" else default
    direct = _declared(project, extras, groups)
    try:
        lock = there.toml("uv.lock")
    except Unreadable:
        return direct
    return _locked(direct, lock)


def _locked(direct: Packages, lock: Mapping[str, Any]) -> Packages:
    """Follow a uv.lock or poetry.lock from what a project asks for itself."""
    known = {canonical(package["name"]): package for package in lock.get("package", ())}
    packages: Packages = {}
    waiting = [(name.partition("[")[0], _extras(name)) for name in direct]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        name, extras = item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        package = known.get(name, {})
        packages[name] = f"=={package['version']}" if "version" in package else ""
        waiting += _dependencies(package.get("dependencies", ()))
        for extra in extras:
            waiting += _dependencies(package.get("optional-dependencies", {}).get(extra, ()))
            waiting += [
                (requirement(text)[0].partition("[")[0], ())
                for text in package.get("extras", {}).get(extra, ())
            ]
    return packages


def _extras(name: str) -> tuple[str, ...]:
    return tuple(filter(None, name.partition("[")[2].rstrip("]").split(",")))


def _dependencies(listed: Any) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(listed, Mapping):  # poetry's: name -> what it asks for
        return [
            (canonical(name), tuple(asked.get("extras", ())) if isinstance(asked, Mapping) else ())
            for name, asked in listed.items()
            if not (isinstance(asked, Mapping) and asked.get("optional"))
        ]
    return [(canonical(item["name"]), tuple(item.get("extra", ()))) for item in listed]


# ---------------------------------------------------------------------------- the others


def _poetry(words: list[str], here: _Project) -> Packages | None:
    if words[:1] == ["add"]:
        return _pip(["install", *words[1:]], here)
    if words[:1] not in (["install"], ["sync"]):
        return None
    given = {option: set(value.split(",")) for option, value in _options(words[1:])}
    project = here.toml("pyproject.toml")
    told = project.get("tool", {}).get("poetry", {})
    groups = {"main": told.get("dependencies", {})}
    chosen = {"main"}
    for name, group in told.get("group", {}).items():
        groups[name] = group.get("dependencies", {})
        if not group.get("optional") or name in given.get("--with", ()):
            chosen.add(name)
    chosen = given.get("--only", chosen - given.get("--without", set()))
    direct = _declared(project, [], []) if "main" in chosen else {}
    for name in chosen & groups.keys():
        for package, asked in groups[name].items():
            if package != "python" and not (isinstance(asked, Mapping) and asked.get("optional")):
                version = asked.get("version", "") if isinstance(asked, Mapping) else asked
                direct[canonical(package)] = str(version).replace("*", "")
    try:
        return _locked(direct, here.toml("poetry.lock"))
    except Unreadable:
        return direct


def _conda(words: list[str], here: _Project) -> Packages | None:
    if not {"install", "create", "update"} & set(words):
        return None
    packages: Packages = {}
    start = min(words.index(w) for w in ("install", "create", "update") if w in words) + 1
    rest = iter(words[start:])
    for word in rest:
        if word in {"-f", "--file"} or word.startswith("--file="):
            packages |= _conda_file(word.partition("=")[2] or next(rest, ""), here)
        elif word in {"-c", "-n", "-p", "--channel", "--name", "--prefix"}:
            next(rest, None)
        elif not word.startswith("-"):
            packages |= _conda_spec(word)
    return packages


def _conda_file(name: str, here: _Project) -> Packages:
    packages: Packages = {}
    is_yaml, is_list = name.endswith((".yml", ".yaml")), False
    pip_indent: int | None = None
    for written in here.text(name).splitlines():
        line = re.sub(r"(^|\s)#.*", "", written).rstrip()
        if not is_yaml:
            packages |= _conda_spec(line) if line and line[0] not in "@-" else {}
            continue
        if line and line[0] not in " -":
            is_list, pip_indent = line.startswith("dependencies:"), None
        item = line.strip().removeprefix("-").strip().strip("'\"")
        if not is_list or not line.strip().startswith("-"):
            continue
        indent = len(line) - len(line.lstrip())
        if item == "pip:":
            pip_indent = indent
        elif pip_indent is not None and indent > pip_indent:
            packages |= _asked([item])
        else:
            pip_indent = None
            packages |= _conda_spec(item)
    return packages


def _conda_spec(text: str) -> Packages:
    found = re.match(r"(?:.*::)?([\w.-]+)\s*([^\[]*)", text)
    if found is None or found[1] in {"python", "pip"}:
        return {}
    name, version = canonical(CONDA.get(found[1], found[1])), found[2].strip()
    exact = re.fullmatch(r"=?=?(\d[\w.]*)(?:=.*)?", version)
    return {name: f"=={exact[1]}.*" if exact else version}


def _apt(words: list[str], _here: _Project) -> Packages | None:
    """Name Debian's Python packages by their module: `python3-yaml` is that of `import yaml`."""
    if "install" not in words:
        return None
    found = [w.partition("=")[0] for w in words if w.startswith("python3-")]
    names = [name.removeprefix("python3-") for name in found]
    ignored = {"dev", "venv", "pip", "distutils", "minimal", "full"}
    return {canonical(DEBIAN.get(n, n)): OF_DEBIAN for n in names if n not in ignored}


READERS: Final[Mapping[str, Callable[[list[str], _Project], Packages | None]]] = {
    "pip": _pip,
    "uv": _uv,
    "poetry": _poetry,
    "conda": _conda,
    "mamba": _conda,
    "micromamba": _conda,
    "apt": _apt,
    "apt-get": _apt,
}
