"""
Which distributions an install command brings: pip, uv, conda, poetry, apt and the files they read.

Pure: files are looked up by their path in the image. What cannot be read is an `Unreadable`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from modalkit.local.image_projects import dependencies, poetry_install, uv_sync
from modalkit.local.image_requirements import (
    Directory,
    Option,
    Packages,
    Unreadable,
    canonical,
    gather,
    options,
    requested,
)
from modalkit.local.reports import PackageInfo

FILES: Final = frozenset({"-r", "--requirement", "--requirements"})
EDITABLE: Final = frozenset({"-e", "--editable"})
INSTALLERS: Final = re.compile(
    r"\b(pip3?|uv|conda|mamba|micromamba|poetry|pdm|pixi|easy_install|setup\.py)\b"
)
HARMLESS: Final = frozenset({"--version", "rm", "echo", "which", "ln", "mkdir", "chmod", "curl"})
PROJECT: Final = re.compile(r"(\.{0,2}|[^=<>@\[]*/[^=<>@\[]*)(?:\[([^\]]*)\])?")
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


def installed_by(words: Sequence[str], here: Directory) -> Packages | None:
    """
    Read one simple command.

    Args:
        words: The command, without a shell's syntax.
        here: Where it runs.

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
        return read(rest, here)
    if INSTALLERS.search(" ".join(words)) and not HARMLESS & set(words):
        raise Unreadable
    return None


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


# ---------------------------------------------------------------------------- pip, uv and poetry


def _pip(words: Iterable[str], here: Directory) -> Packages | None:
    return _pip_command(list(options(words)), here)


def _uv(words: Iterable[str], here: Directory) -> Packages | None:
    command, given = _command(list(options(words)))
    match command:
        case "pip":
            return _pip_command(given, here)
        case "add":
            return _install(given, here)
        case "sync":
            return uv_sync(given, here)
        case "run" | "export":
            raise Unreadable
    return None  # `uv venv`, `uv python`, `uv tool` and the like give the app no module


def _poetry(words: Iterable[str], here: Directory) -> Packages | None:
    command, given = _command(list(options(words)))
    if command == "add":
        return _install(given, here)
    return poetry_install(given, here) if command in {"install", "sync"} else None


def _command(given: Sequence[Option]) -> tuple[str, Sequence[Option]]:
    """Take the first plain word out; options before it count like those after it."""
    for at, (option, value) in enumerate(given):
        if not option:
            return value, [*given[:at], *given[at + 1 :]]
    return "", given


def _pip_command(given: Sequence[Option], here: Directory) -> Packages | None:
    command, given = _command(given)
    if command == "sync":  # of uv: its plain words are files
        given = [(option or "-r", value) for option, value in given]
    return _install(given, here) if command in {"install", "sync"} else None


def _install(given: Sequence[Option], here: Directory) -> Packages:
    names = {option for option, _ in given}
    extras = [value for option, value in given if option == "--extra"]
    of_projects = None if "--all-extras" in names else extras
    return gather(partial(_given, option, value, here, of_projects) for option, value in given)


def _given(option: str, value: str, here: Directory, extras: Sequence[str] | None = ()) -> Packages:
    if option in FILES and value.endswith(".toml"):
        return dependencies(here.toml(value), extras, here.python)
    if option in FILES:
        return _requirements_file(value, here)
    return _argument(value, here) if option in EDITABLE or not option else {}


def _argument(text: str, here: Directory) -> Packages:
    is_project = (found := PROJECT.fullmatch(text)) and "://" not in text and text[-4:] != ".whl"
    if not is_project:
        return requested([text], here.python)
    assert found is not None
    project = here.at(found[1] or ".").toml("pyproject.toml")
    packages = dependencies(project, (found[2] or "").split(","), here.python)
    tables = project.get("project", {}), project.get("tool", {}).get("poetry", {})
    names = [canonical(table["name"]) for table in tables if "name" in table]
    return packages | dict.fromkeys(names, "")


def _requirements_file(name: str, here: Directory) -> Packages:
    text = re.sub(r"\\\n", " ", here.text(name))
    lines = (re.sub(r"(^|\s)#.*", "", written).strip() for written in text.splitlines())
    return gather(partial(_line, line, name, here) for line in lines if line)


def _line(line: str, file: str, here: Directory) -> Packages:
    line = re.split(r"\s--", line)[0].strip()
    if not line.startswith("-"):
        return _argument(line, here)
    option, value = next(options(line.split(maxsplit=1)))
    if option in FILES:  # relative to this one; a project is not
        value = str(PurePosixPath(file).parent / value)
    return _given(option, value, here)


# ---------------------------------------------------------------------------- conda and apt


def _conda(words: list[str], here: Directory) -> Packages | None:
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


def _conda_file(name: str, here: Directory) -> Packages:
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
            packages |= requested([item], here.python)
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


def _apt(words: list[str], _here: Directory) -> Packages | None:
    """Name Debian's Python packages by their module: `python3-yaml` is that of `import yaml`."""
    if "install" not in words:
        return None
    found = [w.partition("=")[0] for w in words if w.startswith("python3-")]
    names = [name.removeprefix("python3-") for name in found]
    ignored = {"dev", "venv", "pip", "distutils", "minimal", "full"}
    return {canonical(DEBIAN.get(n, n)): OF_DEBIAN for n in names if n not in ignored}


READERS: Final[Mapping[str, Callable[[list[str], Directory], Packages | None]]] = {
    "pip": _pip,
    "uv": _uv,
    "poetry": _poetry,
    "conda": _conda,
    "mamba": _conda,
    "micromamba": _conda,
    "apt": _apt,
    "apt-get": _apt,
}
