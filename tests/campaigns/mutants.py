"""
Defects planted in a copy of modalkit, each of which the kill campaign must report.

`modal deploy` is started where the copy is, finds it first and mounts it into the containers: a
mutant runs where the product runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs

import modalkit

from .kills import Plan

PACKAGE = Path(modalkit.__file__).parent


@attrs.frozen
class Mutant:
    """One defect: a text that stands once in a file, and what replaces it."""

    name: str
    file: str
    before: str
    after: str
    plans: tuple[Plan, ...]
    """The interruptions that must show it; three at most."""
    expected: str
    """What the campaign must say about each, as a regular expression."""

    def plant(self, directory: Path) -> Path:
        """Copy modalkit to *directory* with this defect; return where to deploy from."""
        copy = directory / "modalkit"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / self.file
        text = target.read_text()
        if text.count(self.before) != 1:
            raise AssertionError(f"{self.name}: the text to replace is not once in {self.file}")
        target.write_text(text.replace(self.before, self.after))
        return directory


def _plan(*, kill: bool, at_step: int, workers: int = 0) -> Plan:
    return Plan(
        number=0,
        is_kill=kill,
        is_restored=True,
        num_workers=workers,
        at_step=at_step,
        delay_s=0.0,
    )


UNCHANGED = Mutant(
    "nothing is changed",
    "runs/run.py",
    'self._training_stream = values["rng"]',
    'self._training_stream = values["rng"]',
    (_plan(kill=True, at_step=14), _plan(kill=False, at_step=14)),
    "",
)
MUTANTS = (
    Mutant(
        "the generators are not restored",
        "runs/run.py",
        'self._training_stream = values["rng"]',
        "self._training_stream = seeding.capture()",
        (_plan(kill=True, at_step=14),),
        r"tensors: \d+ differ, the first is 'model\.",
    ),
    Mutant(
        "the step is off by one",
        "runs/run.py",
        "self.step = session.resumed_at or 0",
        "self.step = (session.resumed_at or -1) + 1",
        (_plan(kill=True, at_step=14),),
        r"tensors: \d+ differ, the first is 'model\.",
    ),
    Mutant(
        "the manifest is published before the data",
        "checkpoint/store.py",
        "self._path(_TEMPORARY + bytes_name).rename(self._path(bytes_name))",
        """(
                    getattr(self, "late", lambda: None)(),
                    setattr(
                        self,
                        "late",
                        lambda a=self._path(_TEMPORARY + bytes_name), b=self._path(
                            bytes_name
                        ): a.rename(b),
                    ),
                )""",
        (_plan(kill=True, at_step=14),),
        r"it resumed at (0|None), 10 was durable",
    ),
    Mutant(
        "SIGINT is swallowed",
        "runs/run.py",
        'if cause == "preempted" and not isinstance(error, KeyboardInterrupt):',
        'if cause == "preempted":\n            return True\n        if False:',
        (_plan(kill=False, at_step=14),),
        r"it ended as \{.*'status': 'stopped'",
    ),
    Mutant(
        "the commit is skipped",
        "checkpoint/volume.py",
        "        volume.commit()\n",
        "        pass\n",
        (_plan(kill=True, at_step=14),),
        r"it resumed at None, 10 was durable",
    ),
)
