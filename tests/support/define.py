"""
Define an app's objects in this process, and tell as JSON what they are and what that took.

Run as a program, on the laptop or with MODAL_IS_REMOTE=1 as in a container.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import modal

from modalkit import CheckpointPolicy, Deployment, RetryPolicy, SnapshotTrainer, images

volume = modal.Volume.from_name("outputs")
data = modal.Volume.from_name("data")
secret = modal.Secret.from_name("token")

WORK = ("open", "os.", "pathlib.", "shutil.", "socket.", "subprocess.", "tempfile.", "glob.")


def define():
    recipe = (
        images.slim(python="3.12")
        .apt_install("git")
        .env({"HF_HOME": "/data/hf"})
        .uv_pip_install("torch==2.9.1", "attrs==25.4.0")
        .add_local_python_source("some_module_that_is_nowhere")
        .add_local_dir("missing", "/root/missing")
        .add_local_file("missing.txt", "/root/missing.txt")
    )
    image = recipe.to_modal()
    deployment = Deployment.training(
        outputs=("/outputs", volume),
        retries=RetryPolicy(max_retries=3),
        checkpoints=CheckpointPolicy(every_s=30),
    )
    options = deployment.options(
        gpu="T4", volumes={"/data": data}, secrets=[secret], env={"A": "1"}, image=image
    )

    class Trainer(SnapshotTrainer):
        @modal.method()
        def train(self):
            with self.run("x") as run:
                return run.summary()

    return deployment, options, Trainer


def main():
    seen = []
    recording = []

    def audit(event, arguments):
        if recording and event.startswith(WORK):
            seen.append(f"{event}{arguments!r}")

    define()  # what is imported at the first use is imported now
    sys.addaudithook(audit)
    recording.append(True)
    Path(__file__).open().close()  # a control: this must be seen
    control = seen.pop()
    deployment, options, trainer = define()
    recording.clear()

    durations = []
    for _ in range(20):
        begin = time.perf_counter()
        define()
        durations.append(time.perf_counter() - begin)

    app = modal.App("define")
    cls = deployment.cls(app, serialized=True, **without_ours(options))(trainer)
    inner = modal._utils.async_utils.synchronizer._translate_in(cls)
    service = inner._get_class_service_function()
    json.dump(
        {
            "control": control,
            "work": seen,
            "best_ms": min(durations) * 1e3,
            "keywords": sorted(options),
            "env": sorted(options["env"]),
            "volumes": list(options["volumes"]),
            "objects": [str(o) for o in service._deps_(only_explicit_mounts=True)],
            "image": layers(options["image"]),
        },
        sys.stdout,
    )


def without_ours(options):
    """Return what the user said: `cls` adds the rest again."""
    return {key: options[key] for key in ("gpu", "secrets", "image")} | {
        "volumes": {"/data": data},
        "env": {"A": "1"},
    }


def layers(image):
    """Return the layers of an image from its top down, by modal's description of each."""
    found = []
    pending = [modal._utils.async_utils.synchronizer._translate_in(image)]
    while pending:
        layer = pending.pop()
        found.append(str(layer).partition(" at ")[0])
        pending += list(layer._deps_()) if layer._deps else []
    return found


if __name__ == "__main__":
    main()
