"""The trainers that README and guides show run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modalkit.local import LocalPlane

ROOT = Path(__file__).parents[2]
TRAIN_STEP = """
def train_step(model, optimizer):
    optimizer.zero_grad()
    loss = model(torch.randn(16, 8)).square().mean()
    loss.backward()
    optimizer.step()
    return loss
"""


@pytest.mark.parametrize(
    ("document", "arguments", "steps"),
    [
        ("README.md", ["--steps", "20"], 20),
        pytest.param("docs/guides/first-trainer.md", ["--epochs", "1"], 64, marks=pytest.mark.slow),
    ],
)
def test_the_first_trainer_runs(
    document: str, arguments: list[str], steps: int, tmp_path: Path
) -> None:
    """Copied into a file, it trains to the end."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)[0]
    app = tmp_path / "app.py"
    app.write_text(code + TRAIN_STEP)

    with LocalPlane(strict_image=True) as plane:
        plane.run(f"{app}::Trainer.train", "--run-id", "first", *arguments)
        logs = "\n".join(line.text for line in plane.logs())

    assert f"finished at step {steps}" in logs


@pytest.mark.slow
def test_the_plane_in_python_preempts_the_first_trainer(tmp_path: Path) -> None:
    """The guide's own lines, with the guide's own app beside them."""
    first, plane = (
        re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides" / name).read_text(), re.DOTALL)[0]
        for name in ("first-trainer.md", "local-plane.md")
    )
    (tmp_path / "app.py").write_text(first)
    (tmp_path / "plane.py").write_text(plane)
    done = subprocess.run(
        [sys.executable, "plane.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'attempts': 2" in done.stdout
    assert "runs/one/run.json" in done.stdout
