"""The example as its users run it: through the real client, on the local plane, strict image."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modalkit.local import LocalPlane

ROOT = Path(__file__).parents[2]
APP = str(ROOT / "examples" / "tiny_cats" / "app.py")
ARGUMENTS = """
--data-dir /data/cats --epochs 2 --batch-size 4 --lr 0.001 --backbone resnet --num-workers 2
--gradient-clip 0.5 --warmup-epochs 0 --output cats.pt --run-id pets
"""


@pytest.fixture(scope="module")
def plane() -> Iterator[LocalPlane]:
    with LocalPlane(strict_image=True) as plane:
        yield plane


@pytest.fixture
def run_directory(plane: LocalPlane, pets_url: str) -> Path:
    """Fill the data Volume and train on it, with workers; return the run's directory."""
    plane.run(f"{APP}::prepare_data", "--source", pets_url)
    done = plane.run(APP, *ARGUMENTS.split(), capture=True)
    result = json.loads(re.findall(r"^\{.*\}$", done.stdout, re.MULTILINE)[-1])
    assert result.keys() == {"status", "output", "val_acc"}
    assert result["status"] == "finished"
    assert result["output"] == "/outputs/runs/pets/cats.pt"
    assert 0.0 <= result["val_acc"] <= 1.0
    return plane.volume("tiny-cats-outputs").committed() / "runs" / "pets"


@pytest.mark.slow
def test_an_image_folder_is_trained_on(run_directory: Path) -> None:
    """`prepare_data` fills the Volume; weights load without modalkit; the log is in the run."""
    code = """
import sys, torch
weights = torch.load(sys.argv[1], weights_only=True)
assert weights and all(isinstance(w, torch.Tensor) for w in weights.values())
assert not any(name.startswith("modalkit") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", code, run_directory / "cats.pt"], check=True)

    log = (run_directory / "training.log").read_text()
    assert "attempt 1 begins after step 0 of 4" in log
    assert re.search(r"step 4 loss \d\.\d+ val_acc \d\.\d+", log)


@pytest.mark.slow
def test_missing_pictures_are_said_at_once(plane: LocalPlane) -> None:
    """Path, what was looked for and the remedy; no trainer was started for it."""
    before = len(plane.containers(all=True))
    done = plane.run(APP, "--data-dir", "/data/none", check=False, capture=True)

    assert done.returncode != 0
    message = " ".join((done.stdout + done.stderr).split())
    assert "no pictures in --data-dir /data/none: looked for /data/none/cat/*.jpg" in message
    assert "modal run app.py::prepare_data --folder /data/none" in message
    assert {c.function for c in plane.containers(all=True)[before:]} == {"check_data"}


@pytest.mark.slow  # half a minute and more; what it shows, tests/test_kills.py shows by parts
def test_the_demo_ends_as_it_promises(tmp_path: Path) -> None:
    """Three attempts, bit-exact, the exact JSON object as the last line of stdout."""
    demo = [sys.executable, "-m", "examples.tiny_cats.demo", "--epochs", "4", "--starts", "1"]
    done = subprocess.run(
        [*demo, "--output-dir", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert list(report) == [
        *["app", "steps", "attempts", "preempted", "killed", "steps_recomputed", "val_accuracy"],
        *["bit_exact", "cold_start_s", "restored_start_s", "plot"],
    ]
    assert report["steps"] == 480
    assert (report["attempts"], report["preempted"], report["killed"]) == (3, 1, 1)
    assert report["bit_exact"] is True
    assert report["val_accuracy"] >= 0.95
    assert Path(report["plot"]).read_bytes().startswith(b"\x89PNG")
