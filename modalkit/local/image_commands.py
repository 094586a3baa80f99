"""
What an image would hold, read from the Dockerfile commands that the client recorded.

Nothing is built here: containers run in the caller's own interpreter. The packages feed the
import guard, `ENV` and `WORKDIR` the containers, and what could not be read is said.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Final

import attrs

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
    " --extra --group --overrides --build-constraints --color --directory --project"
)
VALUED: Final = frozenset(_VALUED.split())
FILES: Final = frozenset({"-r", "--requirement", "--requirements"})
# A base that brings no Python package of its own; any other may bring what an app imports.
BARE_BASES: Final = frozenset(
    {
        *("base", "scratch", "python", "debian", "ubuntu", "alpine", "buildpack-deps"),
        *("nvidia/cuda", "mambaorg/micromamba"),
    }
)
# What Modal's own base layers run; no news to anyone. Source: modal/_image.py, debian_slim.
EXPECTED: Final = frozenset(
    {
        "apt-get update",
        "apt-get install -y gcc gfortran build-essential",
        "echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
        "ln -s /usr/local/bin/python3 /usr/local/bin/python",
    }
)
INSTALLERS: Final = re.compile(r"\b(pip3?|uv|conda|mamba|micromamba|poetry|pdm|pixi)\b")
REQUIREMENT: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?\s*(?:$|[@=<>!~;(])"
)
REFERENCE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@attrs.frozen
class ImageFacts:
    """
    What the commands of an image chain say.

    Attributes:
        packages: Canonical names of the distributions that pip and uv were told to install, with
            the extras asked for: `numpy`, `fastapi[standard]`.
        env: The variables of `ENV`; one that refers to a variable which no command sets is
            left out, as the plane does not have the base image's value.
        workdir: The last `WORKDIR`, or None.
        not_run: `RUN` and `COPY` lines that have no effect on the plane.
        unread: Those lines that may bring packages which `packages` does not name: requirement
            files, conda, a foreign base image. While there are any, "not installed" is a guess.
    """

    packages: frozenset[str] = frozenset()
    env: dict[str, str] = attrs.field(factory=dict)
    workdir: str | None = None
    not_run: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def canonical(name: str) -> str:
    """
    Return the canonical form of a distribution's name.

    Source: https://packaging.python.org/en/latest/specifications/name-normalization/
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(commands: Iterable[str]) -> ImageFacts:
    """
    Read the commands of a whole image chain.

    Args:
        commands: Dockerfile commands, the base image's first.
    """
    facts = ImageFacts()
    for command in commands:
        line = command.replace("\\\n", " ").strip()
        word, _, rest = line.partition(" ")
        match word.upper():
            case "RUN":
                facts = _run(facts, line, rest.strip())
            case "ENV":
                facts = attrs.evolve(facts, env={**facts.env, **_env(rest, facts.env)})
            case "WORKDIR":
                there = PurePosixPath(facts.workdir or "/", _expand(rest.strip(), facts.env) or "")
                facts = attrs.evolve(facts, workdir=str(there))
            case "COPY" | "ADD" if "--from=" not in rest and "/python/." not in rest:
                facts = attrs.evolve(facts, not_run=(*facts.not_run, line))
            case "FROM" if not _is_bare(rest):
                facts = attrs.evolve(facts, unread=(*facts.unread, line))
    return facts


def _is_bare(image: str) -> bool:
    name = image.split(maxsplit=1)[0].partition("@")[0]
    # A registry's port has a colon too; a tag's colon comes after the last slash.
    repository = name[:colon] if (colon := name.rfind(":")) > name.rfind("/") else name
    return repository.removeprefix("docker.io/").removeprefix("library/") in BARE_BASES


def _run(facts: ImageFacts, line: str, script: str) -> ImageFacts:
    if script in EXPECTED:
        return facts
    packages: set[str] = set()
    understood, read = True, True
    for words in _commands(script):
        arguments = _install_arguments(words)
        if arguments is None:
            understood = False
            read = read and not INSTALLERS.search(" ".join(words))
            continue
        names, complete = _requirements(arguments)
        packages |= names
        read = read and complete
    return attrs.evolve(
        facts,
        packages=facts.packages | packages,
        not_run=facts.not_run if understood and read else (*facts.not_run, line),
        unread=facts.unread if read else (*facts.unread, line),
    )


def _commands(script: str) -> Iterator[list[str]]:
    """Split a shell line at `&&`, `||`, `;` and `|` into simple commands."""
    lexer = shlex.shlex(
        re.sub(r"\$\([^)]*\)", "SUBSTITUTED", script), posix=True, punctuation_chars="&|;"
    )
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if set(word) <= set("&|;"):
                yield words
                words = []
            else:
                words.append(word)
    except ValueError:  # unbalanced quotes: a shell's own business
        words = [script]
    if words:
        yield words


def _install_arguments(words: list[str]) -> list[str] | None:
    """Return what follows `pip install`; None for any other command."""
    while words and (words[0].startswith("--") or re.match(r"\w+=", words[0])):
        words = words[1:]  # RUN --mount=..., and VARIABLE=value before a program
    if not words:
        return []
    program = PurePosixPath(words[0]).name
    if re.fullmatch(r"pip[\d.]*", program):
        rest = words[1:]
    elif re.fullmatch(r"python[\d.]*", program) and words[1:3] == ["-m", "pip"]:
        rest = words[3:]
    elif program == "uv" and words[1:2] == ["pip"]:
        rest = words[2:]
    else:
        return None
    return rest[rest.index("install") + 1 :] if "install" in rest else None


def _requirements(arguments: list[str]) -> tuple[set[str], bool]:
    names: set[str] = set()
    complete = True
    words = iter(arguments)
    for word in words:
        if word in FILES or word.startswith(tuple(f"{option}=" for option in FILES)):
            complete = False
            if word in FILES:
                next(words, None)
        elif word in VALUED:
            complete = complete and word not in {"-e", "--editable"}
            next(words, None)
        elif not word.startswith("-"):
            name = _distribution(word)
            complete = complete and name is not None
            names |= {name} if name else set()
    return names, complete


def _distribution(requirement: str) -> str | None:
    if requirement.endswith(".whl"):
        return canonical(PurePosixPath(requirement).name.partition("-")[0])
    if egg := re.search(r"#egg=([A-Za-z0-9._-]+)", requirement):
        return canonical(egg[1])
    if not (found := REQUIREMENT.match(requirement)):
        return None
    extras = sorted(canonical(e.strip()) for e in (found[2] or "").split(",") if e.strip())
    return canonical(found[1]) + (f"[{','.join(extras)}]" if extras else "")


def _env(rest: str, known: dict[str, str]) -> dict[str, str]:
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
    expanded = {name: _expand(value, known) for name, _, value in pairs}
    return {name: value for name, value in expanded.items() if value is not None}


def _expand(value: str, known: dict[str, str]) -> str | None:
    names = {braced or plain for braced, plain in REFERENCE.findall(value)}
    if not names <= known.keys():
        return None
    return REFERENCE.sub(lambda name: known[name[1] or name[2]], value).replace("\0", "$")
