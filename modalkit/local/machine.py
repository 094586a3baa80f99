"""What this machine and the containers' interpreter can do; found out once, when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from modalkit.local.boot import mounts_available
from modalkit.local.interpreter import ask_interpreter


@attrs.define
class Machine:
    """
    Facts that do not change while a plane runs.

    Attributes:
        refusal: Why private mounts are not possible, with the remedy; None where they are.
        version: Of the containers' interpreter.
        distributions: Those that it has: versions by canonical names.
        needs: Directories without which it does not run.
    """

    python: str
    environment: Mapping[str, str]
    refusal: str | None = None
    version: str = ""
    distributions: dict[str, str] = attrs.field(factory=dict)
    needs: list[Path] = attrs.field(factory=list)

    def learn(self) -> None:
        """
        Fill in what is not known yet; takes a moment the first time.

        Raises:
            OSError: The interpreter cannot be run.
        """
        if self.version:
            return
        self.refusal = mounts_available()
        answer = ask_interpreter(self.python, self.environment)
        self.distributions = answer["distributions"]
        self.needs = [Path(path) for path in answer["needs"]]
        self.version = answer["version"]

    @property
    def series(self) -> str:
        """The version without its last part, such as "3.12"."""
        return ".".join(self.version.split(".")[:2])
