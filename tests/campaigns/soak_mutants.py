"""
Defects planted in a copy of modalkit, each of which the soak campaign must report.

The campaign runs where the copy is, in a process of its own: its plane is the copy's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs

import modalkit
import tests

PACKAGE = Path(modalkit.__file__).parent
TESTS = Path(tests.__file__).parent


@attrs.frozen
class Mutant:
    """One defect: texts that stand once in their files, and what replaces them."""

    name: str
    scene: str
    """The misfortune that must show it."""
    expected: str
    """What the campaign must say, as a regular expression."""
    changes: tuple[tuple[str, str, str], ...]
    """File, the text there, what replaces it."""

    def plant(self, directory: Path) -> None:
        """Copy modalkit to *directory* with this defect, and the tests beside it."""
        copy = directory / "modalkit"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "tests").symlink_to(TESTS)
        for file, before, after in self.changes:
            text = (copy / file).read_text()
            if text.count(before) != 1:
                raise AssertionError(f"{self.name}: {before!r} is not once in {file}")
            (copy / file).write_text(text.replace(before, after))

    def soak(self, patience_s: float) -> subprocess.CompletedProcess[str]:
        """Run the scene on the defective plane."""
        with tempfile.TemporaryDirectory() as directory:
            self.plant(Path(directory))
            command = [sys.executable, "-m", "tests.campaigns.soak", "--scene", self.scene]
            return subprocess.run(
                [*command, "--seed", "0", "--patience", str(patience_s)],
                cwd=directory,  # what is there is imported first
                env={**os.environ, "TMPDIR": directory},  # evidence goes with it
                capture_output=True,
                text=True,
                check=False,
            )

    def is_reported(self, done: subprocess.CompletedProcess[str]) -> bool:
        """Tell whether a campaign found this defect."""
        return done.returncode == 1 and bool(re.search(f"WRONG .*{self.expected}", done.stderr))


NO_COMMIT = """
    async def VolumeCommit(self, _):
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def _commit("""
UNCHANGED = Mutant("nothing is changed", "lost", "", ())
HEARS_EARLIER_ATTEMPTS = (
    "local/services/containers.py",
    "if item is not None and output.retry_count >= item.retries:",
    "if item is not None:",
)
"""Takes away the first of two guards against late outputs, or the second would not be tried."""

MUTANTS = (
    Mutant(
        "a late output is accepted",
        "late",
        "was answered by an attempt that had lost it",
        (
            (
                "local/scheduler.py",
                "if item.owner is container:\n            status",
                "if item.status is not Status.DONE:\n            status",
            ),
            HEARS_EARLIER_ATTEMPTS,
        ),
    ),
    Mutant(
        "an input that is done runs again and is answered twice",
        "late",
        "has 2 outputs",
        (
            (
                "local/scheduler.py",
                "if item.owner is container:\n            status",
                "if True:\n            status",
            ),
            HEARS_EARLIER_ATTEMPTS,
            (
                "local/scheduler.py",
                "if item.status is Status.DONE:\n            return\n        item.status",
                "item.status",
            ),
            (
                "local/scheduler.py",
                "if item.status is Status.DONE:\n            return\n        if item.call",
                "if item.call",
            ),
            ("local/scheduler.py", "if item.status is Status.WAITING:\n", "if True:\n"),
        ),
    ),
    Mutant(
        "an input is given to two containers",
        "lost",
        "has two attempts at once|ran again though its attempt",
        (
            (
                "local/scheduler.py",
                "item = pending.popleft()",
                "item = pending.popleft() if pending[0].deliveries % 2 else pending[0]",
            ),
        ),
    ),
    Mutant(
        "a lost input is not queued again",
        "lost",
        "has no result",
        (("local/fleet.py", "self._lose(item, container)", "pass"),),
    ),
    Mutant(
        "descendants survive their container",
        "family",
        "has ended, its process .* has not",
        (
            (
                "local/containers.py",
                "kill_group(container)\n        await asyncio.to_thread",
                "await asyncio.to_thread",
            ),
            (
                "local/containers.py",
                'if mark in environment or name in (process / "mountinfo").read_bytes():',
                "if False:",
            ),
        ),
    ),
    Mutant(
        "the app of a dead client lives on",
        "client",
        "outlive their clients",
        (
            (
                "local/services/logs.py",
                "if app.last_seen <= broke_at and not app.open_streams:",
                "if False:",
            ),
        ),
    ),
    Mutant(
        "the directory of a container stays",
        "lost",
        "directories are left",
        (
            (
                "local/containers.py",
                "shutil.rmtree(container.directory, ignore_errors=True)",
                "pass",
            ),
        ),
    ),
    Mutant(
        "a commit does nothing",
        "commit",
        "was committed and is gone",
        (
            (
                "local/volume_service.py",
                "    async def VolumeCommit(",
                NO_COMMIT,
            ),
        ),
    ),
    Mutant(
        "an item of a Queue is not kept",
        "remember",
        "a Queue has lost",
        (("local/services/queues.py", "values = list(request.values)", "values = []"),),
    ),
    Mutant(
        "an entry of a Dict is not kept",
        "remember",
        "a Dict has lost",
        (
            (
                "local/services/dicts.py",
                "[(entry.key, entry.value) for entry in request.updates]",
                "[]",
            ),
        ),
    ),
)
