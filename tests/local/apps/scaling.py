"""Functions whose containers are counted."""

import os
import time

import modal

app = modal.App("scaling")


def where() -> str:
    return os.environ["MODAL_TASK_ID"]


@app.function(min_containers=2)
def kept_warm() -> str:
    return where()


@app.function(buffer_containers=1, max_containers=4)
def buffered(seconds: float) -> str:
    time.sleep(seconds)
    return where()


@app.function(max_containers=2)
def limited(seconds: float) -> list:
    started = time.time()
    time.sleep(seconds)
    return [where(), started, time.time()]


@app.function()
def unlimited(seconds: float) -> str:
    time.sleep(seconds)
    return where()


@app.function(scaledown_window=2)
def short_lived() -> str:
    return where()


@app.function(single_use_containers=True, max_containers=1)
def used_once() -> str:
    return where()


@app.function(max_containers=1)
@modal.concurrent(max_inputs=4, target_inputs=2)
def crowded(seconds: float) -> str:
    time.sleep(seconds)
    return where()


@app.function(max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=3000)
def batch(numbers: list[int]) -> list[list[int]]:
    return [numbers] * len(numbers)


@app.function(memory=(64, 400))
def hungry(mib: int) -> int:
    held = bytearray(mib << 20)
    time.sleep(1.5)
    return len(held)


@app.function(timeout=120)
def nested(depth: int) -> int:
    if not depth:
        return 0
    return 1 + (nested.remote(depth - 1) if depth % 2 else nested.spawn(depth - 1).get())


@app.cls(max_containers=3)
class Parametrised:
    number: int = modal.parameter(default=0)

    @modal.method()
    def f(self) -> int:
        return self.number


@app.function(cpu=2.5)
def threads() -> list:
    libraries = ("OMP", "MKL", "OPENBLAS", "ORT_INTRA_OP")
    return [os.environ.get(f"{library}_NUM_THREADS") for library in libraries]


@app.cls()
class DiesInHook:
    @modal.enter()
    def load(self):
        print("DYING", flush=True)
        os._exit(3)

    @modal.method()
    def f(self) -> int:
        return 1


if os.environ.get("MODAL_IS_REMOTE") == "1" and os.environ.get("SLOW_START"):
    time.sleep(30)


@app.function(startup_timeout=2, timeout=60, env={"SLOW_START": "1"})
def never_starts() -> int:
    return 1
