"""
What the readers of install commands share: requirements, options, and the files of the image.

Pure: files are looked up by their path in the image. What cannot be read is an `Unreadable`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final

import attrs

from modalkit.local.markers import holds

# A distribution's canonical name, with extras: "fastapi[standard]" -> what was asked: "==2.9.1".
Packages = dict[str, str]
Lookup = Callable[[str], str | None]
"""The text of a file by its absolute path in the image; None when it is not known."""
Option = tuple[str, str]
"""An option and its value; a plain word is the value of the option ""."""

# Options of pip, uv and poetry that take the next word as their value.
_VALUED = (
    "-c --constraint --constraints -e --editable -f --find-links -i --index-url --index"
    " --default-index --extra-index-url -p --python -t --target --prefix --root --platform"
    " --python-version --python-platform --implementation --abi --only-binary --no-binary"
    " -P --upgrade-package --upgrade-strategy -C --config-settings --config-setting"
    " --global-option --cache-dir --proxy --retries --timeout --trusted-host --cert"
    " --client-cert --progress-bar --link-mode --index-strategy --keyring-provider"
    " --resolution --prerelease --exclude-newer --torch-backend --src --log --report"
    " --no-build-package --no-build-isolation-package --refresh-package --reinstall-package"
    " -E --extra --extras -G --group --only-group --no-group --no-extra --overrides"
    " -b --build-constraint --build-constraints --color --directory --project --package"
    " --no-install-package --config-file --allow-insecure-host --exists-action --use-feature"
    " --use-deprecated --optional --branch --tag --rev --script -m --marker --bounds --source"
    " --with --without --only -r --requirement --requirements"
)
VALUED: Final = frozenset(_VALUED.split())
REQUIREMENT: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?\s*((?:$|[@=<>!~;( ]).*)"
)


class Unreadable(Exception):  # noqa: N818 - a finding about the image, not a mistake
    """
    It may bring packages that cannot be named.

    Attributes:
        packages: Those that can.
    """

    def __init__(self, packages: Packages | None = None) -> None:
        super().__init__()
        self.packages = packages or {}


@attrs.frozen
class Directory:
    """
    Where a command runs.

    Attributes:
        path: Its path in the image.
        look_up: The files of the image.
        python: The series of the image's Python; None for this interpreter's.
    """

    path: PurePosixPath = attrs.field(converter=PurePosixPath)
    look_up: Lookup
    python: str | None = None

    def at(self, path: str) -> Directory:
        """Return a directory by its path from here."""
        return attrs.evolve(self, path=self.path / path)

    def text(self, name: str) -> str:
        """Return the text of a file; one that the plane does not have is `Unreadable`."""
        if (found := self.look_up(str(self.path / name))) is None:
            raise Unreadable
        return found

    def toml(self, name: str) -> dict[str, Any]:
        """Return what a TOML file says; one that the plane does not have is `Unreadable`."""
        try:
            return tomllib.loads(self.text(name))
        except tomllib.TOMLDecodeError as error:
            raise Unreadable from error


def canonical(name: str) -> str:
    """
    Return the canonical form of a distribution's name.

    Source: https://packaging.python.org/en/latest/specifications/name-normalization/
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def with_extras(name: str, extras: Iterable[str]) -> str:
    """Return a distribution's canonical name, with its extras in brackets."""
    wanted = ",".join(sorted({canonical(extra.strip()) for extra in extras if extra.strip()}))
    return canonical(name) + (f"[{wanted}]" if wanted else "")


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
    asked = re.sub(r"\s+", "", found[3].partition(";")[0]).strip("()")
    name = with_extras(found[1], (found[2] or "").split(","))
    return name, "" if asked.startswith("@") else asked


def requested(requirements: Iterable[str], python: str | None) -> Packages:
    """Return those of some requirements that count for a Python."""
    return dict(requirement(text) for text in requirements if holds(text, python))


def options(words: Iterable[str]) -> Iterator[Option]:
    """
    Split arguments into options with their values, and plain words under the name "".

    Short options may share a dash, and have their value attached: `-Ur base.txt -rmore.txt`.
    """
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            yield "", word
        elif not word.startswith("--"):
            yield from _short_options(word, rest)
        elif "=" in word:
            name, _, value = word.partition("=")
            yield name, value
        else:
            yield word, next(rest, "") if word in VALUED else ""


def _short_options(word: str, rest: Iterator[str]) -> Iterator[Option]:
    for end, letter in enumerate(word[1:], start=2):
        option = f"-{letter}"
        if option in VALUED:
            yield option, word[end:].removeprefix("=") or next(rest, "")
            return
        yield option, ""


def gather(readings: Iterable[Callable[[], Packages]]) -> Packages:
    """
    Return what several readings bring together.

    Raises:
        Unreadable: One of them cannot be read in full; it has the packages of all.
    """
    packages: Packages = {}
    is_complete = True
    for read in readings:
        try:
            packages |= read()
        except Unreadable as unreadable:
            packages |= unreadable.packages
            is_complete = False
    if not is_complete:
        raise Unreadable(packages)
    return packages
