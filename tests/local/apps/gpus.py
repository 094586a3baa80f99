"""Functions that ask for GPUs, and say which they see."""

import os

import modal

app = modal.App("gpus")


def visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@app.function()
def none() -> str | None:
    return visible()


@app.function(gpu="H100:2")
def two() -> str | None:
    return visible()


@app.function(gpu=["H100", "A100:4"])
def listed() -> str | None:
    return visible()


@app.function(gpu="T4", max_containers=3)
def one(seconds: float = 0.0) -> str | None:
    import time

    time.sleep(seconds)
    return visible()


@app.cls(gpu="L4", enable_memory_snapshot=True)
class Snapped:
    @modal.enter(snap=True)
    def load(self) -> None:
        self.at_snapshot = visible()

    @modal.enter(snap=False)
    def place(self) -> None:
        self.after = visible()

    @modal.method()
    def look(self) -> list[str | None]:
        return [self.at_snapshot, self.after, visible()]


@app.cls(
    gpu="L4", enable_memory_snapshot=True, experimental_options={"enable_gpu_snapshot": "True"}
)
class SnappedWithGpu:
    @modal.enter(snap=True)
    def load(self) -> None:
        self.at_snapshot = visible()

    @modal.method()
    def look(self) -> list[str | None]:
        return [self.at_snapshot, visible()]
