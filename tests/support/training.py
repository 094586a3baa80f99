"""
A small real training with everything random in it: dropout, augmentation, shuffled data.

Used to compare an interrupted run with an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import modalkit
from modalkit.checkpoint.store import read
from modalkit.runs.run import Run
from modalkit.telemetry.events import read_metrics
from tests.support.volumes import DirectoryVolume

ITEMS, BATCH = 23, 4
STEPS = 12
"""More than two epochs of 5 steps."""


class Photos(torch.utils.data.Dataset):
    """Items augmented by all three libraries, from their global generators."""

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(4) + float(np.random.rand()) + random.random()
        return torch.full((4,), index / ITEMS) + noise, index


class Training:
    """One attempt's live objects and loop."""

    def __init__(self, volume: DirectoryVolume, run_id: str = "r", *, workers: int = 0) -> None:
        torch.manual_seed(7)
        self.volume = volume
        self.run_id = run_id
        self.workers = workers
        self.model = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5)
        self.seen: list[tuple[int, list[int]]] = []

    def open(self, **options: Any) -> Run:
        options.setdefault("checkpoints", modalkit.CheckpointPolicy(every_steps=3))
        return modalkit.run(
            self.run_id,
            volume=self.volume,
            mount=self.volume.mount,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            **options,
        )

    def loader(self, run: Run) -> DataLoader:
        return DataLoader(
            Photos(), batch_sampler=run.batches(ITEMS, BATCH), num_workers=self.workers
        )

    def step(self, run: Run, batch: Any) -> None:
        inputs, indices = batch
        self.seen.append((run.step, indices.tolist()))
        noise = random.random() + float(np.random.rand())
        loss = (self.model(inputs) - indices[:, None] / ITEMS).square().mean() * noise
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        run.log(loss=loss)

    def fit(
        self,
        n: int = STEPS,
        *,
        before: Callable[[Run], None] = lambda run: None,
        after: Callable[[Run], None] = lambda run: None,
        **options: Any,
    ) -> dict[str, Any]:
        """Train; *before* and *after* are called in the body of each step, around its work."""
        with self.open(**options) as run:
            for _step, batch in zip(run.steps(n), self.loader(run), strict=False):
                before(run)
                self.step(run, batch)
                after(run)
        return run.summary()


def at(step: int, act: Callable[[], Any]) -> Callable[[Run], None]:
    """Return a hook that acts at one step."""

    def hook(run: Run) -> None:
        if run.step == step:
            act()

    return hook


def fail(error: BaseException | type[BaseException] = KeyboardInterrupt) -> Callable[[], Any]:
    """Return what raises *error*."""

    def act() -> None:
        raise error

    return act


class Killed(BaseException):
    """Ends an attempt whose view of the Volume reaches nobody any more, as SIGKILL would."""


def survive(attempt: Callable[[], Any]) -> BaseException | None:
    """Return what ended the attempt."""
    try:
        attempt()
    except BaseException as error:  # noqa: BLE001 (interrupts are the subject)
        return error
    return None


class Outcome:
    """All that must be equal between an interrupted run and an uninterrupted one."""

    def __init__(self, volume: DirectoryVolume, run_id: str = "r") -> None:
        directory = volume.committed / "runs" / run_id
        loaded = read(directory)
        self.step = loaded.step
        self.tensors = loaded.tensors
        self.objects = loaded.objects
        self.generators = {k: v for k, v in loaded.values["rng"].items() if k != "torch"}
        self.metrics = read_metrics(directory)

    def assert_equals(self, other: Outcome) -> None:
        assert self.step == other.step
        assert self.tensors.keys() == other.tensors.keys()
        for name, tensor in self.tensors.items():
            assert torch.equal(tensor, other.tensors[name]), name
        assert (
            self.objects["optimizer"]["param_groups"] == other.objects["optimizer"]["param_groups"]
        )
        assert self.objects["scheduler"] == other.objects["scheduler"]
        np.testing.assert_equal(self.generators, other.generators)
        assert self.metrics == other.metrics


@contextlib.contextmanager
def unchanged_generators():
    """Leave the process's generators as they were, for tests that seed."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
