"""The ways to call that an app in the manner of Modal's documentation uses."""

import asyncio
import os
import time

import modal

app = modal.App("calls")
volume = modal.Volume.from_name("calls", create_if_missing=True)


@app.function()
def nap(seconds: float, value: int = 0) -> int:
    print("NAP", value, flush=True)
    time.sleep(seconds)
    return value


@app.function()
async def async_square(x: int) -> int:
    await asyncio.sleep(0.01)
    return x * x


@app.function()
async def async_count(n: int):
    for i in range(n):
        yield i


@app.function()
@modal.concurrent(max_inputs=2)
async def async_naps(name: str, seconds: float) -> str:
    print("ASYNC NAP", name, flush=True)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        print("ASYNC CANCELLED", name, flush=True)
        raise
    return name


@app.function(max_containers=1)
@modal.concurrent(max_inputs=2)
def thread_naps(name: str, seconds: float) -> str:
    print("THREAD NAP", name, flush=True)
    time.sleep(seconds)
    return name


@app.function()
def told_when_cancelled() -> None:
    print("WAITING TO BE CANCELLED", flush=True)
    try:
        time.sleep(60)
    except modal.exception.InputCancellation:
        print("TOLD OF THE CANCELLATION", flush=True)
        raise


@app.function(timeout=4, retries=1, max_containers=2)
def answers_after_its_timeout(name: str) -> str:
    print("ATTEMPT AT", name, flush=True)
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        print("SAVED", name, flush=True)
    return "too late"


@app.function()
def calls_itself(depth: int) -> int:
    return depth if depth == 0 else 1 + calls_itself.remote(depth - 1)


@app.function()
def spawns(x: int) -> str:
    return nap.spawn(0.0, x).object_id


@app.function()
def where() -> tuple[str | None, str | None]:
    return modal.current_function_call_id(), modal.current_input_id()


@app.cls()
class Greeter:
    greeting: str = modal.parameter(default="hello")
    times: int = modal.parameter(default=1)

    @modal.enter()
    def start(self):
        self.started = True

    @modal.method()
    def greet(self, name: str) -> str:
        assert self.started
        return " ".join([f"{self.greeting} {name}"] * self.times)

    @modal.method()
    def letters(self, name: str):
        yield from name

    @modal.method()
    async def async_greet(self, name: str) -> str:
        return f"async {self.greeting} {name}"

    @modal.method()
    def twice(self, name: str) -> str:
        return self.greet.local(name) + "!" + Greeter(greeting="nested").greet.remote(name)


@app.function()
def settings() -> dict[str, object]:
    return {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


@app.function()
def echo(x: object) -> object:
    return x


@app.function()
def batchable(xs: list[int]) -> list[int]:
    return [len(xs)] * len(xs)
