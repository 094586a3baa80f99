"""In the manner of Modal's documentation: a class that trains, checkpoints, and is preempted."""

import json
import os
import pathlib
import time

import modal

app = modal.App("documented-training")
checkpoints = modal.Volume.from_name("documented-checkpoints", create_if_missing=True)
HERE = pathlib.Path("/checkpoints")


@app.cls(
    volumes={HERE: checkpoints},
    retries=modal.Retries(initial_delay=0.0, max_retries=10),
    single_use_containers=True,
    timeout=600,
)
class Trainer:
    name: str = modal.parameter(default="first")

    @modal.enter()
    def load(self):
        self.path = HERE / f"{self.name}.json"
        self.state = {"step": 0, "weight": 0.0}
        if self.path.exists():
            self.state = json.loads(self.path.read_text())
            print(f"resuming at step {self.state['step']}", flush=True)

    @modal.method()
    def train(self, steps: int) -> dict:
        while self.state["step"] < steps:
            self.state["step"] += 1
            self.state["weight"] += 0.5
            print(f"step {self.state['step']}", flush=True)
            time.sleep(0.1)
            if self.state["step"] % 5 == 0:
                self.save()
        return {**self.state, "containers": self.containers()}

    def save(self):
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.path)
        checkpoints.commit()

    def containers(self) -> list[str]:
        return [os.environ["MODAL_TASK_ID"]]

    @modal.exit()
    def leave(self):
        print("leaving", flush=True)


@app.local_entrypoint()
def main(steps: int = 30):
    call = Trainer(name="second").train.spawn(steps)
    print(f"training is {call.object_id}")
    print("trained", json.dumps(call.get()))
