"""
What an image would hold, read from the Dockerfile commands that the client recorded.

Nothing is built here: containers run in the caller's own interpreter. The packages feed the
import guard, the files of `COPY`, `ENV` and `WORKDIR` the containers, and what was not run or could
not be read is said.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

import attrs

from modalkit.local.image_packages import installed_by
from modalkit.local.image_requirements import Directory, Packages, Unreadable

# A base that brings no Python package of its own; any other may bring what an app imports.
BARE_BASES: Final = frozenset(
    {
        *("base", "scratch", "python", "debian", "ubuntu", "alpine", "buildpack-deps"),
        *("nvidia/cuda", "mambaorg/micromamba"),
    }
)
# Bare ones whose Python is the system's: apt's Python packages are for that one only.
SYSTEM_PYTHON: Final = frozenset({"debian", "ubuntu", "buildpack-deps", "nvidia/cuda"})
# What Modal's own base layers run; no news to anyone. Source: modal/_image.py, debian_slim.
EXPECTED: Final = frozenset(
    {
        "apt-get update",
        "apt-get install -y gcc gfortran build-essential",
        "echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
        "ln -s /usr/local/bin/python3 /usr/local/bin/python",
    }
)
REFERENCE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
HEREDOC: Final = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
WITHOUT_EFFECT: Final = frozenset(
    {"CMD", "SHELL", "LABEL", "EXPOSE", "VOLUME", "HEALTHCHECK", "STOPSIGNAL", "USER", "MAINTAINER"}
)

File = Any
"""An uploaded file, as the plane keeps it."""


@attrs.frozen
class Layer:
    """
    One recorded layer of an image.

    Attributes:
        commands: Its Dockerfile commands.
        bases: Facts of the images that its `FROM` lines may name.
        context: Uploaded files by their absolute path in the build context.
        build_args: Values for `ARG`.
        python: The series of the Python that the context holds, for `add_python`.
        function: The name of a `run_function`, which is the whole layer then.
    """

    commands: tuple[str, ...]
    bases: Mapping[str, ImageFacts] = attrs.field(factory=dict)
    context: Mapping[str, File] = attrs.field(factory=dict)
    build_args: Mapping[str, str] = attrs.field(factory=dict)
    python: str | None = None
    function: str = ""


@attrs.frozen
class ImageFacts:
    """
    What the commands of an image chain say.

    Attributes:
        base: The image that it begins with.
        python: The series of its Python, such as "3.12"; None where it is not known.
        has_system_python: Whether that is the distribution's own.
        packages: What pip, uv and the like were told to install: canonical names with the extras
            asked for, `fastapi[standard]`, and what was asked of the version.
        env: The variables of `ENV`; one that refers to a variable which no command sets is
            left out, as the plane does not have the base image's value.
        args: The variables of `ARG`, which only the build sees.
        workdir: The last `WORKDIR`, or None.
        files: The files of `COPY`, by absolute path.
        not_run: Lines that have no effect on the plane.
        unread: Those lines that may bring packages which `packages` does not name: requirement
            files that were not uploaded, a foreign base image. While there are any, "not
            installed" is a guess.
    """

    base: str = ""
    python: str | None = None
    has_system_python: bool = False
    packages: Packages = attrs.field(factory=dict)
    env: dict[str, str] = attrs.field(factory=dict)
    args: dict[str, str] = attrs.field(factory=dict)
    workdir: str | None = None
    files: dict[str, File] = attrs.field(factory=dict)
    not_run: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def without_effect(self, line: str, *, may_install: bool = False) -> ImageFacts:
        """Add a line that was not run."""
        return attrs.evolve(
            self,
            not_run=(*self.not_run, line),
            unread=(*self.unread, line) if may_install else self.unread,
        )


def normal(path: str) -> str:
    """Return a path of the image, or of its build context, as an absolute one without dots."""
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def parse(layer: Layer, read: Callable[[File], str] = str) -> ImageFacts:
    """
    Read one layer on top of what its bases say.

    Args:
        layer: The layer.
        read: Returns the text of an uploaded file.
    """
    facts = next(iter(layer.bases.values()), ImageFacts())
    if layer.function:
        return facts.without_effect(f"run_function({layer.function})")
    stages = dict(layer.bases)
    reader = _Reader(layer, stages, read)
    for line in _lines(layer.commands):
        word, _, rest = line.partition(" ")
        facts = reader.follow(facts, word.upper(), rest.strip(), line)
    return facts


def _lines(commands: Iterable[str]) -> Iterator[str]:
    """Join continued lines, and here-documents to the line that opens them."""
    lines = iter("\n".join(commands).splitlines())
    for first in lines:
        if first.lstrip().startswith("#") or not first.strip():
            continue
        line = first.strip()
        while line.endswith("\\") and (more := next(lines, None)) is not None:
            if not more.lstrip().startswith("#"):
                line = f"{line[:-1].rstrip()} {more.strip()}"
        for opened in HEREDOC.finditer(line):
            while (more := next(lines, opened[1])).strip() != opened[1]:
                line += f"\n{more}"
        yield line


class _Reader:
    """Follows the lines of one layer."""

    def __init__(
        self, layer: Layer, stages: dict[str, ImageFacts], read: Callable[[File], str]
    ) -> None:
        self._layer = layer
        self._stages = stages
        self._stage: tuple[str, ...] = ()
        """What the stage that the lines belong to is called; nothing before the first one."""
        self._count = 0
        self._global_args: dict[str, str] = {}
        self._read = read

    def follow(self, facts: ImageFacts, word: str, rest: str, line: str) -> ImageFacts:
        facts = self._follow(facts, word, rest, line)
        if not self._stage:
            self._global_args = facts.args
        self._stages.update(dict.fromkeys(self._stage, facts))
        return facts

    def _follow(self, facts: ImageFacts, word: str, rest: str, line: str) -> ImageFacts:
        match word:
            case "FROM":
                facts = self._from(rest, line)
            case "RUN":
                facts = self._run(facts, rest, line)
            case "COPY" | "ADD":
                facts = self._copy(facts, rest, line)
            case "ENV":
                facts = attrs.evolve(facts, env={**facts.env, **_assignments(rest, facts)})
            case "ARG":
                given = {n: v for n, v in self._layer.build_args.items() if n in rest}
                values = _assignments(rest, facts) if "=" in rest else {}
                facts = attrs.evolve(facts, args={**facts.args, **values, **given})
            case "WORKDIR":
                there = _expand(" ".join(shlex.split(rest)), facts) or ""
                there = normal(posixpath.join(facts.workdir or "/", there))
                facts = attrs.evolve(facts, workdir=there)
            case _ if word not in WITHOUT_EFFECT and line != "ENTRYPOINT []":
                facts = facts.without_effect(line)
        return facts

    def _from(self, rest: str, line: str) -> ImageFacts:
        words = [word for word in rest.split() if not word.startswith("--")]
        image = _expand(words[0], ImageFacts(args=self._global_args)) or words[0]
        # By its place, and by its name if it has one: FROM image AS name.
        self._stage = (str(self._count), *(name.lower() for name in words[2:3]))
        self._count += 1
        if (stage := self._stages.get(image.lower())) is not None:
            return stage
        name, tag = _repository(image)
        series = re.match(r"\d+\.\d+", tag) if name == "python" else None
        return ImageFacts(
            base=image,
            python=series[0] if series else None,
            has_system_python=name in SYSTEM_PYTHON,
            unread=() if name in BARE_BASES else (line,),
        )

    # ------------------------------------------------------------------ COPY

    def _copy(self, facts: ImageFacts, rest: str, line: str) -> ImageFacts:
        if "/python/." in rest and self._layer.python:
            return attrs.evolve(facts, python=self._layer.python, has_system_python=False)
        options = dict(re.findall(r"--(\w+)=(\S+)", rest))
        rest = re.sub(r"--\w+(=\S+)?\s+", "", rest)
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
        *sources, target = [_expand(word, facts) or word for word in words]
        if "from" in options:
            return self._copy_from(facts, options["from"], sources, target, line)
        return _place(facts, self._layer.context, sources, target, line)

    def _copy_from(
        self, facts: ImageFacts, stage: str, sources: list[str], target: str, line: str
    ) -> ImageFacts:
        if (other := self._stages.get(stage.lower())) is None:
            if all(_name(source) in {"uv", "uvx"} for source in sources):
                return facts
            return facts.without_effect(line, may_install=_repository(stage)[0] not in BARE_BASES)
        # What was installed there may be below what is copied: a virtual environment, say.
        facts = attrs.evolve(
            facts,
            packages={**other.packages, **facts.packages},
            unread=(*facts.unread, *(text for text in other.unread if text not in facts.unread)),
        )
        return _place(facts, other.files, sources, target, line)

    # ------------------------------------------------------------------ RUN

    def _run(self, facts: ImageFacts, script: str, line: str) -> ImageFacts:
        if script in EXPECTED:
            return facts
        first, _, text = script.partition("\n")
        if text:  # a here-document: it is the script, or it is written to a file
            script = text if first.startswith("<<") else HEREDOC.sub("", first)
        python = facts.python or _conda_python(script)
        here = Directory(facts.workdir or "/", partial(self._text, facts), python)
        packages: Packages = {}
        understood, complete = True, True
        for words in _commands(_expand_known(script, facts)):
            if words[0] == "cd" and len(words) > 1:
                here = here.at(words[1])
                continue
            try:
                found = installed_by(words, here)
            except Unreadable as unreadable:
                packages |= unreadable.packages
                complete = False
                continue
            is_apt = _name(words[0]) in {"apt", "apt-get"}
            understood = understood and found is not None and not is_apt
            if not (is_apt and facts.python and not facts.has_system_python):
                packages |= found or {}
        facts = attrs.evolve(facts, packages={**facts.packages, **packages}, python=python)
        if understood and complete:
            return facts
        return facts.without_effect(line, may_install=not complete)

    def _text(self, facts: ImageFacts, path: str) -> str | None:
        file = facts.files.get(normal(path))
        return None if file is None else self._read(file)


def _name(program: str) -> str:
    return PurePosixPath(program).name


def _repository(image: str) -> tuple[str, str]:
    """Return the bare name of an image, and its tag."""
    name = image.partition("@")[0]
    # A registry's port has a colon too; a tag's colon comes after the last slash.
    colon = name.rfind(":")
    name, tag = (name[:colon], name[colon + 1 :]) if colon > name.rfind("/") else (name, "")
    return name.removeprefix("docker.io/").removeprefix("library/"), tag


def _conda_python(script: str) -> str | None:
    found = re.search(r"\b(?:micromamba|mamba|conda)\b.*\spython=+(\d+\.\d+)", script)
    return found[1] if found else None


def _place(
    facts: ImageFacts, context: Mapping[str, File], sources: list[str], target: str, line: str
) -> ImageFacts:
    """Copy as Docker does: a directory's content, or a file into a directory or under a name."""
    where = normal(posixpath.join(facts.workdir or "/", target))
    is_directory = (
        len(sources) > 1
        or target.endswith(("/", "."))
        or where == facts.workdir
        or any(path.startswith(where.rstrip("/") + "/") for path in facts.files)
    )
    files: dict[str, File] = {}
    for source in sources:
        pattern = normal(source).lstrip("/")
        wanted = re.compile(f"(/{_glob(pattern)})(/.*)?" if pattern else "()(/.*)")
        matches = [m for path in context if (m := wanted.fullmatch(path))]
        many = is_directory or len({m[1] for m in matches}) > 1
        for match in matches:
            inside = match[2] or (f"/{_name(match[1])}" if many else "")
            files[normal(where + inside)] = context[match[0]]
    facts = attrs.evolve(facts, files={**facts.files, **files})
    return facts if files else facts.without_effect(line)


def _glob(pattern: str) -> str:
    parts = {"*": "[^/]*", "?": "[^/]"}
    return "".join(parts.get(c, re.escape(c)) for c in pattern)


def _commands(script: str) -> Iterator[list[str]]:
    """
    Split a shell line at `&&`, `||`, `;`, `|` and line ends into simple commands.

    Where their streams are led to and from is left out.
    """
    lexer = shlex.shlex(
        re.sub(r"\$\([^)]*\)", "SUBSTITUTED", script).replace("\n", " ; "),
        posix=True,
        punctuation_chars="&|;<>",
    )
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if not set(word) <= set("&|;<>"):
                words.append(word)
            elif set(word) & set("<>"):
                if words and words[-1].isdigit():  # the stream's number
                    words.pop()
                next(lexer, None)
            else:
                if words:
                    yield from _inner(words)
                words = []
    except ValueError:  # unbalanced quotes: a shell's own business
        words = [script]
    if words:
        yield from _inner(words)


def _inner(words: list[str]) -> Iterator[list[str]]:
    """Look into `bash -c "..."`."""
    if _name(words[0]) in {"bash", "sh"} and len(words) > 2:  # noqa: PLR2004
        *options, script = words[1:]
        if all(option.startswith("-") for option in options) and options[-1].endswith("c"):
            yield from _commands(script)
            return
    yield words


def _assignments(rest: str, facts: ImageFacts) -> dict[str, str]:
    # Inside single quotes a $ is a $: hidden from the expansion below.
    hidden = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("$", "\0"), rest)
    try:
        words = shlex.split(hidden)
    except ValueError:
        return {}
    if words and "=" not in words[0]:  # the old form: ENV NAME the whole rest
        name, _, value = hidden.strip().partition(" ")
        words = [f"{name}={value.strip()}"]
    pairs = (word.partition("=") for word in words)
    expanded = {name: _expand(value, facts) for name, _, value in pairs}
    return {name: value for name, value in expanded.items() if value is not None}


def _expand(value: str, facts: ImageFacts) -> str | None:
    known = {**facts.args, **facts.env}
    names = {braced or plain for braced, plain in REFERENCE.findall(value)}
    if not names <= known.keys():
        return None
    return REFERENCE.sub(lambda name: known[name[1] or name[2]], value).replace("\0", "$")


def _expand_known(script: str, facts: ImageFacts) -> str:
    known = {**facts.args, **facts.env}
    return REFERENCE.sub(lambda name: known.get(name[1] or name[2], name[0]), script)
