"""
What runs in a container needs its mounts, modal, torch and modalkit's four requirements only.

The example runs through the real entrypoint on an interpreter that has no other package, in an
empty directory, with every file of this checkout out of reach but what the client mounted.
"""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from modalkit.local import LocalPlane
from tests.support.profiles import PROFILE

from .support.venvs import closure_venv

ROOT = Path(__file__).parents[1]
APP = ROOT / "examples" / "tiny_cats" / "app.py"
RUNTIME = ("modal", "torch", "attrs", "tenacity", "structlog", "xxhash")
OF_THE_EXAMPLE = ("numpy", "pillow", "scikit-image")

OUT_OF_REACH = f"""
import sys

def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        path = arguments[0]
        ours = ("{ROOT}/.venv", "{ROOT}/modalkit/local")  # the packages, and the plane's boot shim
        if path.startswith("{ROOT}/") and not path.startswith(ours):
            raise PermissionError(f"{{path}} is not in the image")

sys.addaudithook(watch)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    interpreter = closure_venv(tmp_path_factory.mktemp("venv"), *RUNTIME, *OF_THE_EXAMPLE)
    [site] = interpreter.parents[1].glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(OUT_OF_REACH)
    return interpreter


@pytest.fixture(scope="module")
def plane(python: Path) -> Iterator[LocalPlane]:
    with LocalPlane(
        engine="fork", snapshots=True, strict_image=True, python=python, profile=PROFILE
    ) as running:
        yield running


def test_the_example_trains_with_exactly_what_its_image_has(plane: LocalPlane) -> None:
    done = plane.run(str(APP), "--epochs", "1", "--batch-size", "128", capture=True)
    [result] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert result["status"] == "finished"
    # Without --run-id the caller makes one and prints it: with it the run can be called again.
    assert re.findall(r"^run (cats-[0-9a-f]{8})$", done.stdout, re.MULTILINE) == [
        Path(result["output"]).parent.name
    ]
    [container] = [c for c in plane.containers(all=True) if c.kind == "restored"]
    assert container.returncode == 0


def test_a_file_of_the_checkout_is_out_of_reach_there(plane: LocalPlane, tmp_path: Path) -> None:
    app = tmp_path / "reader.py"
    app.write_text(
        textwrap.dedent(
            f"""
            import modal

            app = modal.App("reader")

            @app.function()
            def read():
                open({str(ROOT / "README.md")!r}).close()
            """
        )
    )
    done = plane.run(f"{app}::read", check=False, capture=True)
    assert done.returncode == 1
    assert "is not in the image" in done.stdout + done.stderr
