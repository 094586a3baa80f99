"""A class with every hook, a Volume and a slow method."""

import asyncio
import os
import pathlib
import time

import modal

app = modal.App("lifecycle")
volume = modal.Volume.from_name("progress", create_if_missing=True)
HERE = pathlib.Path("/progress")


def note(text: str) -> None:
    print("NOTE", text, flush=True)


@app.cls(volumes={"/progress": volume}, enable_memory_snapshot=True, max_containers=2, timeout=120)
class Worker:
    name: str = modal.parameter(default="anna")

    @modal.enter(snap=True)
    def before(self):
        self.made_by = os.getpid()
        note("before snapshot")

    @modal.enter()
    def after(self):
        note("after start")

    @modal.exit()
    def leave(self):
        note("exit hook")
        (HERE / f"exit-{os.environ['MODAL_TASK_ID']}").write_text("bye")

    @modal.method()
    def who(self, pause_s: float = 0.0) -> dict:
        time.sleep(pause_s)
        task = os.environ["MODAL_TASK_ID"]
        return {"name": self.name, "pid": os.getpid(), "made_by": self.made_by, "task": task}

    @modal.method()
    def climb(self, steps: int, pause_s: float = 0.05) -> list[int]:
        path = HERE / f"{self.name}.txt"
        start = int(path.read_text()) + 1 if path.exists() else 0
        for step in range(start, steps):
            note(f"{self.name} step {step}")
            time.sleep(pause_s)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(str(step))
            os.replace(temporary, path)
            volume.commit()
        return [start, steps]

    @modal.method()
    async def doze(self, seconds: float) -> str:
        note(f"{self.name} dozes")
        await asyncio.sleep(seconds)
        return os.environ["MODAL_TASK_ID"]

    @modal.method()
    def swallow(self, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                note("swallowing")
                time.sleep(0.2)
            except KeyboardInterrupt:
                note("swallowed an interrupt")
        return "done"

    @modal.method()
    def write_only(self, text: str) -> None:
        (HERE / "uncommitted.txt").write_text(text)
        os.kill(os.getpid(), 9) if text == "die" else None
