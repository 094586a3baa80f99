"""Classes that hold, at the moment of the snapshot, what a fork must not break."""

import asyncio
import os
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import modal

image = modal.Image.debian_slim().uv_pip_install("torch", "numpy")
app = modal.App("forked", image=image)
volume = modal.Volume.from_name("forked", create_if_missing=True)
before = modal.Volume.from_name("forked-lookup", create_if_missing=True)


@app.cls(
    volumes={"/outputs": volume},
    enable_memory_snapshot=True,
    single_use_containers=True,
    max_containers=2,
)
class Trainer:
    @modal.enter(snap=True)
    def load(self) -> None:
        import torch

        torch.set_num_threads(2)
        self.weights = torch.randn(600, 600)
        (self.weights @ self.weights).sum()  # a pool of OpenMP threads lives from here on
        (self.weights + self.weights).sum()
        self.directory = tempfile.TemporaryDirectory()
        Path(self.directory.name, "vocabulary").write_text("words")
        before.listdir("/")  # hydrated on the connection of the process that is snapshotted
        self.made_by = os.getpid()

    @modal.method()
    def train(self, name: str) -> dict:
        import torch
        from torch.utils.data import DataLoader

        for _ in range(3):
            weights = self.weights.clone().requires_grad_()
            ((weights @ weights) + weights).sum().backward()
        Path("relative").write_text(name)
        Path("/outputs", name).write_text("done")
        volume.commit()
        loader = DataLoader(list(range(8)), batch_size=2, num_workers=2)
        return {
            "pid": os.getpid(),
            "made_by": self.made_by,
            "session": os.getsid(0),
            "task": os.environ["MODAL_TASK_ID"],
            "threads": torch.get_num_threads(),
            "vocabulary": Path(self.directory.name, "vocabulary").read_text(),
            "weight": float(self.weights[0, 0]),
            "random": random.random(),
            "batches": sum(int(batch.sum()) for batch in loader),
            "directory": os.stat(".").st_ino,  # its path is /root in each
            "path": str(Path.cwd()),
            "outputs": sorted(os.listdir("/outputs")),
            "listed": [entry.path for entry in before.listdir("/")],
        }

    @modal.method()
    def wait(self) -> int:
        try:
            if not Path("/outputs/interrupted").exists():
                print("WAITING", flush=True)
                time.sleep(60)
        except KeyboardInterrupt:
            main = threading.current_thread() is threading.main_thread()
            Path("/outputs/interrupted").write_text(str(main))
            raise
        return os.getpid()


@app.cls(enable_memory_snapshot=True, max_containers=2, single_use_containers=True)
class Async:
    @modal.enter(snap=True)
    async def load(self) -> None:
        self.lock = asyncio.Lock()
        await asyncio.sleep(0.01)

    @modal.method()
    async def work(self, number: int) -> list:
        async with self.lock:
            values = await asyncio.gather(*(self.later(n) for n in range(number)))
        return [os.getpid(), values]

    async def later(self, number: int) -> int:
        await asyncio.sleep(0.1)
        return number


@app.cls(enable_memory_snapshot=True)
class WithThread:
    @modal.enter(snap=True)
    def load(self) -> None:
        self.made_by = os.getpid()
        self.stop = threading.Event()
        threading.Thread(target=self.stop.wait, name="pump").start()

    @modal.method()
    def pids(self) -> list[int]:
        return [os.getpid(), self.made_by]

    @modal.exit()
    def leave(self) -> None:
        self.stop.set()


@app.cls(enable_memory_snapshot=True, single_use_containers=True)
class Pooled:
    @modal.enter(snap=True)
    def load(self) -> None:
        self.made_by = os.getpid()

    @modal.method()
    def leave_a_pool_open(self) -> list[int]:
        self.pool = ThreadPoolExecutor(1)
        return [self.pool.submit(os.getpid).result(), self.made_by]


@app.cls(enable_memory_snapshot=True, single_use_containers=True)
class Leaving:
    @modal.enter()
    def leave(self) -> None:
        raise ValueError("this hook fails in every restored container")

    @modal.method()
    def never(self) -> None:
        pass
