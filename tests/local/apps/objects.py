"""Dicts, Queues and Secrets in containers, by name and as arguments."""

import os
import time

import modal

app = modal.App("objects")
files = modal.Volume.from_name("handed-over", create_if_missing=True)


@app.function()
def keys(names: list[str]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


@app.function(max_containers=3)
def claim(job: str) -> bool:
    locks = modal.Dict.from_name("locks", create_if_missing=True)
    return locks.put(job, os.environ["MODAL_TASK_ID"], skip_if_exists=True)


@app.function(max_containers=3)
def drain(numbers: modal.Queue, patience_s: float) -> list[int]:
    found = []
    while (number := numbers.get(timeout=patience_s)) is not None:
        found.append(number)
    return found


@app.function()
def fill(numbers: modal.Queue, count: int, pause_s: float = 0.0) -> modal.Queue:
    for number in range(count):
        numbers.put(number)
        time.sleep(pause_s)
    return numbers


@app.function()
def note(notes: modal.Dict, key: str, value: object) -> modal.Dict:
    notes[key] = value
    return notes


@app.function(volumes={"/files": files})
def write(text: str) -> modal.Volume:
    with open("/files/written.txt", "w") as file:
        file.write(text)
    files.commit()
    return files


@app.function()
def read(volume: modal.Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.function()
def apply(f: modal.Function, x: int) -> int:
    return f.remote(x)


@app.function()
def apply_later(f: modal.Function, x: int) -> modal.FunctionCall:
    return f.spawn(x)


@app.function()
def await_call(call: modal.FunctionCall) -> int:
    return call.get()


@app.cls()
class Adder:
    amount: int = modal.parameter(default=1)

    @modal.method()
    def add(self, x: int) -> int:
        return x + self.amount


@app.function()
def nested_names() -> list[int]:
    numbers = modal.Queue.from_name("from-a-container", create_if_missing=True)
    numbers.put_many([1, 2])
    total = modal.Dict.from_name("totals", create_if_missing=True)
    total["sum"] = sum(numbers.get_many(2))
    found = modal.Function.from_name("objects", "double").remote(total["sum"])
    return [found, modal.Cls.from_name("objects", "Adder")(amount=5).add.remote(found)]
