"""Containers that end in every way a container can."""

import asyncio
import os
import pathlib
import subprocess
import sys
import time

import modal

app = modal.App("endings")
volume = modal.Volume.from_name("endings", create_if_missing=True)
HERE = pathlib.Path("/endings")


@app.cls(max_containers=1, single_use_containers=True)
class RaisesInExit:
    @modal.exit()
    def leave(self):
        raise RuntimeError("the exit hook raises")

    @modal.method()
    def f(self, x: int) -> int:
        return x


def mark(name: str) -> list[str]:
    """Add a line to a file of the Volume and return all that are committed."""
    with (HERE / name).open("a") as file:
        file.write(f"{os.environ['MODAL_TASK_ID']}\n")
    return (HERE / name).read_text().splitlines()


@app.function(volumes={"/endings": volume}, timeout=2, retries=1, max_containers=1)
def saves_after_its_timeout(name: str) -> list[str]:
    if (HERE / name).exists():
        return mark(name)
    print("FIRST ATTEMPT", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1.5)
        mark(name)
        raise


@app.function(volumes={"/endings": volume}, max_containers=1)
async def asynchronous(name: str) -> list[str]:
    if (HERE / name).exists():
        return mark(name)
    print("ASYNC ATTEMPT", flush=True)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        mark(name)
        time.sleep(1.0)  # noqa: ASYNC251 - saving blocks
        raise


@app.function(volumes={"/endings": volume})
def leaves_by_system_exit(name: str) -> list[str]:
    if (HERE / name).exists():
        return mark(name)
    print("EXIT ATTEMPT", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        mark(name)
        raise SystemExit(1) from None


def daemon() -> int:
    """Fork twice, as programs do that go to the background; return the pid."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) == 0:
            os.closerange(0, 256)
            time.sleep(600)
        os.write(writer, str(pid).encode())
        os._exit(0)
    return int(os.read(reader, 20))


def started() -> list[int]:
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    own_session = subprocess.Popen(program, start_new_session=True)
    no_environment = subprocess.Popen(program, start_new_session=True, env={})
    return [own_session.pid, no_environment.pid, daemon()]


@app.function(single_use_containers=True)
def leaves_children() -> list[int]:
    return started()


@app.function()
def quits() -> None:
    os._exit(0)


@app.function(retries=modal.Retries(max_retries=1, initial_delay=30.0, backoff_coefficient=1.0))
def fails_with_a_long_delay() -> None:
    raise ValueError("at first")


@app.cls(enable_memory_snapshot=True, max_containers=3)
class Restored:
    @modal.enter(snap=True)
    def load(self):
        self.big = list(range(1000))

    @modal.method()
    def leaves_children(self) -> list[int]:
        return started()

    @modal.method()
    def nap(self, seconds: float) -> str:
        print("NAPPING", flush=True)
        time.sleep(seconds)
        return os.environ["MODAL_TASK_ID"]
