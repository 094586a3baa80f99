"""
Kill a real training before each change that it makes to a disk, and see what becomes of it.

Run as a program, because it kills itself: `victim.py ROOT` prints one JSON line per crash point.
It needs no torch, so an attempt takes milliseconds and every point can be tried. Each attempt is
a process of its own, forked from this one, which has one thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import struct
import sys
from pathlib import Path

import structlog  # noqa: F401 (once here, not again in every child)

import modalkit
from modalkit.checkpoint.store import read
from modalkit.errors import CheckpointError
from modalkit.runs.attempts import read_attempts
from modalkit.telemetry.events import read_events, read_metrics
from tests.support.volumes import DirectoryVolume

STEPS = 2
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "fsync")


class Weights:
    """A model of plain floats: each step depends on all before it and on the generator."""

    def __init__(self) -> None:
        self.values = [0.0] * 200

    def step(self) -> float:
        self.values = [0.9 * v + random.random() for v in self.values]
        return sum(self.values)

    def state_dict(self) -> dict:
        return {"values": struct.pack("200d", *self.values)}

    def load_state_dict(self, state: dict) -> None:
        self.values = list(struct.unpack("200d", state["values"]))


def train(volume: DirectoryVolume) -> None:
    weights = Weights()
    policy = modalkit.CheckpointPolicy(every_steps=1, keep_last=1)
    with modalkit.run(
        "r", volume=volume, mount=volume.mount, checkpoints=policy, weights=weights
    ) as run:
        for _ in run.steps(STEPS):
            run.log(loss=weights.step())


class Killer:
    """Counts a run's changes to the disk, and kills the process before the one it was told."""

    def __init__(self, root: Path, number: int) -> None:
        self.root = str(root)
        self.number = number
        self.count = 0
        self.is_paused = False
        sys.addaudithook(self.on_event)
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self.on_event("fsync", (f"{self.root}/view",))
            real(descriptor)

        os.fsync = fsync

    @contextlib.contextmanager
    def paused(self):
        before, self.is_paused = self.is_paused, True
        yield
        self.is_paused = before

    def on_event(self, event: str, arguments: tuple) -> None:
        if self.is_paused or event not in OPERATIONS or not arguments:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if not os.fspath(arguments[0] or "").startswith(f"{self.root}/view"):
            return
        self.count += 1
        if self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedVolume(DirectoryVolume):
    """A commit is Modal's affair, and whole; what it acknowledged is written down outside."""

    def __init__(self, root: Path, name: str, killer: Killer) -> None:
        self.killer = killer
        with killer.paused():
            super().__init__(root, name)

    def commit(self) -> None:
        with self.killer.paused():
            super().commit()
            newest = read(self.committed / "runs" / "r").step
            (self.root / "acknowledged").write_text(str(newest))

    def reload(self) -> None:
        with self.killer.paused():
            super().reload()


def in_child(act) -> int:
    """Return the wait status of a child that does *act*."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def outcome(directory: Path) -> list:
    """All that must be equal at the end; not how long saves took."""
    loaded = read(directory)
    values = {n: v for n, v in loaded.values.items() if n not in ("objects", "measured_s")}
    return [loaded.step, loaded.objects, values, read_metrics(directory)]


def crash(root: Path, number: int) -> int:
    """Run an attempt that is killed before changing operation *number*."""

    def attempt() -> None:
        sys.stderr = (root / "stderr").open("w")
        train(WatchedVolume(root, "view-0", Killer(root, number)))

    return in_child(attempt)


def resume(root: Path, name: str) -> dict:
    """Run the next attempt on the tree *name* of *root*, and tell where it began and ended."""
    volume = DirectoryVolume(root / f"next-{name}")
    shutil.copytree(root / name, volume.committed, dirs_exist_ok=True)
    volume.reload()
    status = in_child(lambda: (silence(root), train(volume)))
    directory = volume.committed / "runs" / "r"
    folder = directory / "checkpoints"
    return {
        "status": status,
        "resumed_at": read_attempts(directory)[-1].resumed_at if status == 0 else None,
        "outcome": repr(outcome(directory)) if status == 0 else None,
        "skipped": [
            event.fields["message"]
            for event in read_events(directory)
            if event.kind == "checkpoint_skipped"
        ],
        "litter": sorted(p.name for p in folder.glob(".tmp*")) if status == 0 else [],
        "manifests": len(list(folder.glob("ckpt-*"))),
        "packs": len(list(folder.glob("pack-*"))),
    }


def silence(root: Path) -> None:
    sys.stderr = (root / "stderr").open("a")


def main() -> None:
    base = Path(sys.argv[1])
    whole = DirectoryVolume(base / "whole")
    assert in_child(lambda: (silence(base), train(whole))) == 0
    print(json.dumps({"outcome": repr(outcome(whole.committed / "runs" / "r"))}))
    number = 0
    while True:
        number += 1
        root = base / str(number)
        root.mkdir()
        status = crash(root, number)
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, (root / "stderr").read_text()
        acknowledged = root / "acknowledged"
        result = {
            "number": number,
            "acknowledged": int(acknowledged.read_text()) if acknowledged.exists() else None,
            # What the last commit published, as after a kill on Modal ...
            "committed": resume(root, "committed"),
            # ... and what lay there at that moment, as a background commit may publish it.
            "view": resume(root, "view-0"),
        }
        print(json.dumps(result), flush=True)
        shutil.rmtree(root)


if __name__ == "__main__":
    try:
        main()
    except CheckpointError as error:
        sys.exit(f"no checkpoint: {error}")
