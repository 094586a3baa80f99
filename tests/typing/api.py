"""
The API as users write it; never run, only read by a type checker.

`mypy --strict tests/typing` must pass, and each `type: ignore` below must be needed.
"""

from __future__ import annotations

from typing import assert_type

import modal

import modalkit
from modalkit import (
    CheckpointPolicy,
    CommitPolicy,
    Deployment,
    ImageRecipe,
    RetryPolicy,
    Run,
    SnapshotTrainer,
    images,
)

volume = modal.Volume.from_name("outputs", create_if_missing=True)
recipe = (
    images.slim(python="3.12")
    .apt_install("git")
    .env({"HF_HOME": "/data/hf"})
    .uv_pip_install("torch==2.9.1", index_url=None)
    .add_local_python_source("tiny_cats")
    .add_local_dir("conf", "/root/conf", ignore=["*.bak"])
    .add_local_file("labels.txt", "/root/labels.txt")
    .with_modalkit()
)
assert_type(recipe, ImageRecipe)
assert_type(recipe.to_modal(), modal.Image)
assert_type(modalkit.add_to(modal.Image.debian_slim()), modal.Image)

app = modal.App("typed", image=recipe.to_modal())
retries = RetryPolicy(max_retries=3, initial_delay_s=1)
assert_type(retries.schedule(), tuple[float, ...])
assert_type(retries.to_modal(), modal.Retries)
RetryPolicy(3)  # type: ignore[call-arg]
CheckpointPolicy(every_steps="1")  # type: ignore[arg-type]

cats = Deployment.training(
    outputs=("/outputs", volume),
    retries=retries,
    checkpoints=CheckpointPolicy(every_s=60, keep_last=3),
    commits=CommitPolicy(min_interval_s=5),
    timeout_s=3600,
)
Deployment.training(outputs="/outputs")  # type: ignore[arg-type]


@cats.cls(app, gpu="T4")
class CatTrainer(SnapshotTrainer):
    seed = 1
    outputs = volume
    mount = "/outputs"
    checkpoints = CheckpointPolicy(every_steps=10)

    def load(self) -> None:
        self.weights = [0.0]

    def place(self, device: str) -> None:
        self.device = device

    def close(self) -> None: ...

    @modal.method()
    def train(self, run_id: str, epochs: int = 10) -> int:
        with self.run(run_id, config={"epochs": epochs}, may_change=("epochs",)) as run:
            assert_type(run, Run)
            for _step in run.steps(epochs):
                run.log(loss=0.5)
        return run.step


assert_type(CatTrainer().train.remote("cats-1"), int)


@app.function(**cats.options(gpu="T4"))
def train(run_id: str) -> None:
    with modalkit.run(run_id, volume=volume, mount="/outputs") as run:
        assert_type(run, Run)
