"""Functions of which one input is disturbed, and others must not be."""

import asyncio
import os
import time

import modal

app = modal.App("disturbed")


@app.function(timeout=2, startup_timeout=60, max_containers=1)
@modal.concurrent(max_inputs=2)
async def crowded(seconds: float) -> float:
    print("BEGUN", flush=True)
    await asyncio.sleep(seconds)
    return seconds


@app.function(max_containers=1)
@modal.batched(max_batch_size=2, wait_ms=3000)
def batch(numbers: list[int]) -> list[int]:
    print("BATCH", flush=True)
    time.sleep(2.0)
    return numbers


@app.function(timeout=3, startup_timeout=60, max_containers=1)
def stubborn(seconds: float) -> float:
    print("STUBBORN", flush=True)
    end = time.time() + seconds
    while time.time() < end:
        try:
            time.sleep(0.2)
        except BaseException:  # noqa: BLE001 - as some do
            print("IGNORED", flush=True)
    return seconds


@app.function(timeout=10, startup_timeout=60, max_containers=1)
def told() -> str:
    print("TOLD", flush=True)
    return "told"


@app.function(max_containers=1, retries=modal.Retries(max_retries=1, initial_delay=1.0))
def interrupts_itself() -> None:
    print("ATTEMPT", flush=True)
    raise KeyboardInterrupt


@app.function(max_containers=2, retries=1)
def dies(number: int) -> int:
    if not number:
        os._exit(3)
    return number
