"""The tests that the guide prints pass as they are printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs/guides/testing.md"


def files() -> dict[str, str]:
    """Return the guide's files: code blocks that begin with a comment that names one."""
    blocks = re.findall(r"```python\n(# (\w+\.py)\n.*?)```", GUIDE.read_text(), re.DOTALL)
    return {name: code for code, name in blocks}


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["lenient", "strict"])
def test_each_test_of_the_guide_passes(tmp_path: Path, profile: str):
    found = files()
    for name, code in found.items():
        (tmp_path / name).write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--strict-markers", "--modalkit-profile", profile],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert sum(name.startswith("test_") for name in found) == 3
