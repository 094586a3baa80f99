"""Functions as an app that has never heard of modalkit has them."""

import os
import shutil
import sys
import time

import modal

app = modal.App("functions")
attempts = modal.Volume.from_name("attempts", create_if_missing=True)


@app.function()
def square(x: int) -> int:
    print("squaring", x, flush=True)
    print("and to stderr", x, file=sys.stderr, flush=True)
    return x * x


@app.function()
def fail(x: int) -> int:
    raise ValueError(f"unlucky {x}")


@app.function()
def count(n: int):
    yield from range(n)


@app.function(
    volumes={"/attempts": attempts},
    retries=modal.Retries(max_retries=3, initial_delay=0.0, backoff_coefficient=1.0),
)
def flaky(fails: int) -> int:
    path = f"/attempts/{modal.current_input_id()}"
    done = len(open(path).read()) if os.path.exists(path) else 0
    with open(path, "a") as file:
        file.write("x")
    attempts.commit()
    if done < fails:
        raise RuntimeError(f"attempt {done}")
    return done


@app.function(timeout=2)
def sleeper(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@app.function(timeout=60)
def talk_until(path: str) -> None:
    print("TALKING", flush=True)
    while not os.path.exists(path):
        time.sleep(0.05)
    print("TOLD TO STOP", flush=True)


@app.function(
    volumes={"/attempts": attempts},
    retries=modal.Retries(max_retries=1, initial_delay=1.5, backoff_coefficient=1.0),
)
def patient() -> list[float]:
    with open(f"/attempts/times-{modal.current_input_id()}", "a+") as file:
        file.write(f"{time.time()}\n")
        file.seek(0)
        times = [float(line) for line in file]
    attempts.commit()
    if len(times) == 1:
        raise RuntimeError("once more")
    return times


@app.function()
def interpreter() -> None:
    print("PYTHON", sys.executable, shutil.which("python"), flush=True)


@app.function()
def add(x: int, y: int) -> int:
    print("adding", x, y, flush=True)
    return x + y


@app.function()
@modal.concurrent(max_inputs=3)
def together(seconds: float) -> list:
    started = time.time()
    time.sleep(seconds)
    return [os.environ["MODAL_TASK_ID"], started, time.time()]


@app.function(max_containers=1)
@modal.batched(max_batch_size=3, wait_ms=2000)
def batch(numbers: list[int]) -> list[int]:
    return [number * 10 + len(numbers) for number in numbers]


@app.function()
def nested(x: int) -> int:
    return square.remote(x) + 1


@app.function()
def echo_size(payload: bytes) -> bytes:
    return payload[::-1]


@app.function(env={"GREETING": "hello"})
def environment() -> dict[str, str | None]:
    names = ("GREETING", "MODAL_TASK_ID", "MODAL_IS_REMOTE", "MODAL_TOKEN_ID")
    return {name: os.environ.get(name) for name in names}


@app.function()
def unlucky_process(path: str) -> None:
    os.kill(os.getpid(), 9)


@app.local_entrypoint()
def main(n: int = 3, greeting: str = "none"):
    print(f"answer {square.remote(n)} {greeting}")
