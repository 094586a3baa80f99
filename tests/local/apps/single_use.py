"""A class whose containers take one input each."""

import os

import modal

app = modal.App("single-use", image=modal.Image.debian_slim())


@app.cls(enable_memory_snapshot=True, single_use_containers=True)
class Once:
    @modal.method()
    def task(self) -> str:
        return os.environ["MODAL_TASK_ID"]
