"""Functions for tests that interrupt them, hold them up and move the clock."""

import os
import pathlib
import time

import modal

app = modal.App("shaken")
volume = modal.Volume.from_name("shaken", create_if_missing=True)
other = modal.Volume.from_name("untouched", create_if_missing=True)
HERE = pathlib.Path("/shaken")


@app.function(timeout=600, max_containers=2)
def walk(name: str, steps: int, pause_s: float = 0.05) -> str:
    for step in range(steps):
        print(f"{name} STEP {step}", flush=True)
        time.sleep(pause_s)
    return os.environ["MODAL_TASK_ID"]


@app.function(volumes={"/shaken": volume, "/untouched": other})
def save(*names: str, keep: bool = False) -> list[str]:
    """Write and commit one file after the other; say what became of each commit."""
    said = []
    for name in names:
        (HERE / name).write_text(name)
        pathlib.Path("/untouched", name).write_text(name)
        other.commit()
        try:
            volume.commit()
        except (RuntimeError, modal.exception.Error) as error:
            said.append(f"{type(error).__name__}: {error}")
            if not keep:
                (HERE / name).unlink()
        else:
            said.append("committed")
    return said


@app.function(scaledown_window=300)
def brief() -> str:
    return os.environ["MODAL_TASK_ID"]


@app.function(timeout=86400)
def endless() -> None:
    print("ENDLESS", flush=True)
    time.sleep(3600)


@app.function(timeout=86400)
def until(path: str) -> str:
    print("UNTIL", flush=True)
    while not os.path.exists(path):
        time.sleep(0.05)
    return "it is there"


@app.function(
    volumes={"/shaken": volume},
    retries=modal.Retries(max_retries=1, initial_delay=60.0, backoff_coefficient=1.0),
)
def fails_once(name: str) -> str:
    path = HERE / name
    if path.exists():
        return "the second time"
    path.write_text("tried")
    volume.commit()
    raise RuntimeError("the first time")


@app.function(secrets=[modal.Secret.from_dict({"API_TOKEN": "correct-horse-battery"})])
def tells_its_secret(payload: bytes) -> None:
    print(len(payload), flush=True)
    raise ValueError(f"cannot log in with {os.environ['API_TOKEN']}")
