"""An app that shows which reading of the unknowns of Modal it runs under."""

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import time

import modal

app = modal.App("unknowns")
volume = modal.Volume.from_name("unknowns", create_if_missing=True)
HERE = pathlib.Path("/unknowns")
CHILD = """
import signal, time
def heard(*_):
    print("CHILD HEARD", flush=True)
    raise SystemExit
signal.signal(signal.SIGINT, heard)
print("CHILD READY", flush=True)
time.sleep(60)
"""


def attempts(name: str) -> int:
    """Count this attempt, durably."""
    volume.reload()
    with (HERE / name).open("a") as file:
        file.write("x")
    volume.commit()
    return len((HERE / name).read_text())


@app.function(volumes={"/unknowns": volume})
def with_child(name: str) -> int:
    if (number := attempts(name)) == 1:
        child = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True)
        try:
            child.wait()
        finally:
            time.sleep(1.0)
            child.kill()
    return number


@app.function(volumes={"/unknowns": volume})
def interrupts_itself(name: str, times: int) -> int:
    if (number := attempts(name)) <= times:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    return number


@app.function(volumes={"/unknowns": volume}, retries=1)
async def asynchronous(name: str) -> int:
    if (number := attempts(name)) == 1:
        print("ASYNC SLEEPS", flush=True)
        await asyncio.sleep(60)
    return number


@app.function(volumes={"/unknowns": volume}, max_containers=2)
def saves_slowly(name: str) -> list[float]:
    number, started = attempts(name), time.time()
    if number == 1:
        print("SAVES SLOWLY", flush=True)
        try:
            time.sleep(60)
        finally:
            time.sleep(3)
            (HERE / f"{name}-end").write_text(str(time.time()))
            volume.commit()
    else:
        time.sleep(4)
        volume.reload()
    return [started, float((HERE / f"{name}-end").read_text())]


@app.function(
    volumes={"/unknowns": volume},
    retries=modal.Retries(max_retries=2, initial_delay=0.0, backoff_coefficient=1.0),
)
def fails_twice(name: str) -> list[float]:
    volume.reload()  # another container may have had the attempt before
    with (HERE / name).open("a") as file:
        file.write(f"{time.time()}\n")
    volume.commit()
    times = [float(line) for line in (HERE / name).read_text().split()]
    if len(times) < 3:
        raise ValueError(f"attempt {len(times)}")
    return times


@app.function(retries=modal.Retries(max_retries=1, initial_delay=0.0, backoff_coefficient=1.0))
def always_fails(x: int) -> int:
    raise ValueError(f"never {x}")


@app.function(retries=1)
def kills_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.cls(enable_memory_snapshot=True, max_containers=2, single_use_containers=True)
class Restored:
    @modal.enter(snap=True)
    def load(self):
        self.template = os.environ["MODAL_TASK_ID"]

    @modal.method()
    def which(self) -> list[str]:
        return [self.template, os.environ["MODAL_TASK_ID"]]
