"""
Cat or not: an image classifier whose training survives preemption, kills and cold starts.

    modal run app.py                                  # photographs that come with scikit-image
    modal run app.py --epochs 20 --lr 5e-4 --run-id mine   # a known run id goes on where it stopped
    modal run app.py::prepare_data                    # once: the Oxford-IIIT Pet set, to /data/cats
    modal run --detach app.py --data-dir /data/cats --backbone resnet --num-workers 4

Without a Modal account: `modalkit local run app.py` takes the same arguments.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Literal

import modal

from modalkit import CheckpointPolicy, Deployment, RetryPolicy, SnapshotTrainer, images

outputs = modal.Volume.from_name("tiny-cats-outputs", create_if_missing=True)
pictures = modal.Volume.from_name("tiny-cats-data", create_if_missing=True)

image = (
    images.slim(python="3.12")
    .uv_pip_install("torch==2.13.0", "numpy==2.4.6", "pillow==13.0.0", "scikit-image==0.26.0")
    .add_local_python_source("cats")  # the folder beside this file; modalkit itself comes along
    .to_modal()
)
app = modal.App("tiny-cats", image=image)

training = Deployment.training(
    outputs=("/outputs", outputs),
    retries=RetryPolicy(max_retries=10),
    checkpoints=CheckpointPolicy(every_s=5, keep_last=3),  # one megabyte each: often is cheap
    timeout_s=4 * 3600,
)

with image.imports():
    import torch
    from cats import data, model, pets
    from torch.utils.data import DataLoader


@training.cls(app, gpu="T4", cpu=2.0, volumes={"/data": pictures})
class CatTrainer(SnapshotTrainer):
    """Trains one of the networks of `cats.model`; every run lives in `/outputs/runs/<run_id>`."""

    seed = 0

    def load(self) -> None:
        """Build the networks on the CPU: they are in the memory snapshot, ready at each start."""
        torch.set_num_threads(1)  # fixed: CPU results then repeat bit for bit
        self.networks = {name: build() for name, build in model.BACKBONES.items()}

    def place(self, device: str) -> None:
        """Move the networks to the GPU, which is there after the snapshot only."""
        for network in self.networks.values():
            network.to(device)

    @modal.method()
    def train(
        self,
        run_id: str,
        *,
        data_dir: str = "",
        epochs: int = 10,
        batch_size: int = 32,
        lr: float = 1e-3,
        backbone: str = "cnn",
        num_workers: int = 0,
        gradient_clip: float = 1.0,
        warmup_epochs: int = 1,
        output: str = "weights.pt",
    ) -> dict[str, str | float]:
        """Train, or go on where the last attempt stopped; return where the weights are."""
        network = self.networks[backbone]
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
        train_set, val_set = data.load(data_dir)
        config = {
            "data_dir": data_dir,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "backbone": backbone,
            "gradient_clip": gradient_clip,
            "warmup_epochs": warmup_epochs,
        }
        with self.run(
            run_id, config=config, may_change=("epochs",), model=network, optimizer=optimizer
        ) as run:
            batches = run.batches(len(train_set), batch_size)
            loader = DataLoader(train_set, batch_sampler=batches, num_workers=num_workers)
            epoch_steps = batches.steps_per_epoch
            steps, warmup = epochs * epoch_steps, warmup_epochs * epoch_steps
            note(run.directory, f"attempt {run.attempt} begins after step {run.step} of {steps}")
            for step, batch in zip(run.steps(steps), loader, strict=False):
                rate = model.learning_rate(step, peak=lr, warmup_steps=warmup, total_steps=steps)
                loss = model.update(network, optimizer, batch, lr=rate, clip=gradient_clip)
                run.log(loss=loss)
                if (step + 1) % epoch_steps == 0:
                    run.extra["val_acc"] = val_acc = model.accuracy(network, val_set)
                    run.log(val_acc=val_acc)
                    note(run.directory, f"step {step + 1} loss {loss:.4f} val_acc {val_acc:.4f}")
            weights = run.directory / output
            torch.save({k: v.cpu() for k, v in network.state_dict().items()}, weights)
        return {
            "status": run.summary()["status"],
            "output": str(weights),
            "val_acc": run.extra["val_acc"],
        }

    @modal.method()
    def ready(self) -> float:
        """Return the time of the first line of a method: how long a start takes is seen by it."""
        return time.time()


def note(directory: Path, line: str) -> None:
    """Print a line and add it to the run's training.log, which is open no longer than that."""
    print(line)
    with (directory / "training.log").open("a") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


@app.function(volumes={"/data": pictures}, timeout=3600)
def prepare_data(folder: str = "/data/cats", source: str = "", md5: str = "") -> None:
    """Fill the data Volume with the Oxford-IIIT Pet set, once."""
    counts = pets.fill(Path(folder), source, md5)
    pictures.commit()
    print(f"{folder}: {counts}")


@app.function(volumes={"/data": pictures})
def check_data(data_dir: str) -> None:
    """Say at once, without a GPU and without retries, that the pictures are missing."""
    data.find(Path(data_dir))


@app.local_entrypoint()
def main(
    *,
    data_dir: str = "",
    epochs: int = 10,
    batch_size: int = 32,
    lr: float = 1e-3,
    backbone: Literal["cnn", "resnet"] = "cnn",
    num_workers: int = 0,
    gradient_clip: float = 1.0,
    warmup_epochs: int = 1,
    output: str = "weights.pt",
    run_id: str = "",
) -> None:
    """Train, and print the result as JSON."""
    settings = dict(locals())
    if data_dir:
        check_data.remote(data_dir)
    # The run id is made here, not in the container: every attempt must get the same one.
    settings["run_id"] = run_id or f"cats-{uuid.uuid4().hex[:8]}"
    print(f"run {settings['run_id']}")
    # spawn, because Modal cancels a call by .remote() when the caller of `--detach` goes away.
    print(json.dumps(CatTrainer().train.spawn(**settings).get()))
