"""The training that the campaign kills: everything that can go wrong on a resume is in it."""

import os
import time

import modal

from modalkit import CheckpointPolicy, Deployment, SnapshotTrainer, images

EVERY_STEPS = 10
outputs = modal.Volume.from_name("kills-outputs", create_if_missing=True)
recipe = images.slim(python="3.12").uv_pip_install("torch==2.13.0", "numpy==2.4.6")
app = modal.App("kills", image=recipe.to_modal())
training = Deployment.training(
    outputs=("/outputs", outputs),
    checkpoints=CheckpointPolicy(every_steps=EVERY_STEPS, keep_last=2),
    timeout_s=300,
)

if not modal.is_local():
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Noisy(Dataset):
        """Items whose augmentation draws from all three generators."""

        def __len__(self) -> int:
            return 48

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            clean = torch.linspace(0, 1 + index / 10, 32)
            item = clean + 0.1 * torch.randn(32) + float(np.random.rand())
            return item, torch.tensor(index % 4)


@training.cls(app, gpu=os.environ.get("KILLS_GPU"))
class Victim(SnapshotTrainer):
    seed = 5

    def load(self) -> None:
        torch.set_num_threads(2)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(32, 64),
            torch.nn.BatchNorm1d(64),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(64, 4),
        )

    def place(self, device: str) -> None:
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 100)

    @modal.method()
    def train(self, run_id: str, steps: int, num_workers: int = 0) -> dict:
        with self.run(
            run_id,
            config={"steps": steps},
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
        ) as run:
            data = Noisy()
            batches = run.batches(len(data), 8)
            loader = DataLoader(data, batch_sampler=batches, num_workers=num_workers)
            for step, (x, y) in zip(run.steps(steps), loader, strict=False):
                print(f"RUN {run_id} STEP {step}", flush=True)
                time.sleep(0.01)
                loss = torch.nn.functional.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.schedule.step()
                run.extra["seen"] = run.extra.get("seen", 0) + len(x)
                run.log(loss=loss)
        return run.summary()
