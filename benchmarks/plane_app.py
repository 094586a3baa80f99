"""What `benchmarks.plane` deploys: as little work as an app can have."""

import os
import time

import modal

image = modal.Image.debian_slim().uv_pip_install("torch")
app = modal.App("bench", image=image)
WARM_S = 600


@app.function(max_containers=1, scaledown_window=WARM_S)
def echo(payload: bytes) -> bytes:
    return payload


@app.function(max_containers=8, scaledown_window=WARM_S)
def trivial(number: int, seconds: float = 0.0) -> int:
    if seconds:
        time.sleep(seconds)
    return number


@app.function(max_containers=1, single_use_containers=True)
def start() -> tuple[float, str]:
    return time.time(), os.environ["MODAL_TASK_ID"]


class Torch:
    """Both classes below do this; only one has a snapshot to start from."""

    def load(self) -> None:
        import torch

        self.model = torch.nn.Linear(256, 256)

    @modal.method()
    def start(self) -> tuple[float, str]:
        return time.time(), os.environ["MODAL_TASK_ID"]


@app.cls(max_containers=1, single_use_containers=True)
class ColdTorch(Torch):
    @modal.enter()
    def enter(self) -> None:
        self.load()


@app.cls(max_containers=1, single_use_containers=True, enable_memory_snapshot=True)
class RestoredTorch(Torch):
    @modal.enter(snap=True)
    def enter(self) -> None:
        self.load()
