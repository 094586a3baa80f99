"""Apps that have never heard of modalkit run unchanged with `modalkit local run`."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modalkit.local import LocalPlane

from .conftest import APPS

RUN = [sys.executable, "-P", "-m", "modalkit.cli", "local", "run", "--strict-image"]


def run(app: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*RUN, *options, str(APPS / app), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_map_with_retries(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path))
    said = run("documented_map.py", "--inputs", "8", "--throws", "5000", options=state)
    assert re.search(r"pi is about 3\.[01]", said)
    [written] = (tmp_path / "volumes").rglob("pi.txt")
    assert written.read_text().startswith("3.")


@pytest.mark.parametrize("profile", ["lenient", pytest.param("strict", marks=pytest.mark.slow)])
def test_a_class_with_a_volume_that_is_preempted(profile: str) -> None:
    with LocalPlane(profile=profile, strict_image=True) as plane:
        done: list[subprocess.CompletedProcess[str]] = []
        app = str(APPS / "documented_training.py")
        client = threading.Thread(
            target=lambda: done.append(plane.run(app, "--steps", "25", capture=True, check=False))
        )
        client.start()
        plane.wait_for(lambda _: any(line.text == "step 7" for line in plane.logs()))
        [container] = [c for c in plane.containers() if c.inputs]
        plane.preempt(container.id)
        client.join(timeout=100)
        said = done[0].stdout
        assert done[0].returncode == 0, said + done[0].stderr
        result = json.loads(said.split("trained ", 1)[1].splitlines()[0])
        assert (result["step"], result["weight"]) == (25, 12.5)
        assert result["containers"] != [container.id]
        assert "resuming at step 5" in said
        assert "leaving" in said


def test_queues_batches_and_timeouts() -> None:
    said = run("documented_pipeline.py")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    assert f"words {words}" in said
    assert "largest batch 4" in said
    assert "timed out: Task's current input hit its timeout of 2s" in said
