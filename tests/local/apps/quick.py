"""Containers that tell what they start from."""

import os
import sys

import modal

app = modal.App("quick")


def start() -> dict:
    return {
        "hash": hash("modalkit"),
        "parent": os.getppid(),
        "task": os.environ["MODAL_TASK_ID"],
        "leader": os.getsid(0) == os.getpid(),
        "token": os.environ.get("TOKEN"),
        "argv": sys.argv,
        "path": sys.path[:4],
        "main": sys.modules["__main__"].__name__,
    }


@app.function(single_use_containers=True)
def plain() -> dict:
    return start()


@app.function(single_use_containers=True, secrets=[modal.Secret.from_dict({"TOKEN": "x"})])
def secret() -> dict:
    return start()


@app.function(single_use_containers=True, env={"PYTHONHASHSEED": "7"})
def seeded() -> dict:
    return start()


@app.function(single_use_containers=True)
def quits(code: int) -> None:
    os._exit(code)
