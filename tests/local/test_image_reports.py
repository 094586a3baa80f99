"""What is said of images that are not built: in the logs, by the guard, and by `images`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import modal
import numpy as np
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS, lines

APP = str(APPS / "image_reports.py")
PYPROJECT = '[project]\nname = "x"\nversion = "1"\ndependencies = ["numpy"]\n'
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    (directory / "requirements.txt").write_text("numpy\n")
    (directory / "pyproject.toml").write_text(PYPROJECT)
    return directory


@pytest.fixture(scope="module")
def plane(files: Path) -> Iterator[LocalPlane]:
    with LocalPlane(engine="inline", env={"FILES": str(files)}) as running:
        running.deploy(APP)
        yield running


def call(plane: LocalPlane, name: str) -> None:
    modal.Function.from_name("image-reports", name, client=plane.client()).remote()


@pytest.mark.slow
def test_other_versions_and_what_is_missing_here_are_said_once(plane: LocalPlane) -> None:
    call(plane, "with_pins")
    call(plane, "with_pins_too")
    [said] = [line for line in lines(plane) if "results may differ" in line and "numpy" in line]
    assert said == (
        f"modalkit: the image has Python 3.13 ({HERE} here), no-such-thing==2.0 (missing here), "
        f"numpy==1.0 ({np.__version__} here); results may differ"
    )
    steps = [line for line in lines(plane) if "not run here" in line]
    assert steps == ["modalkit: not run here: RUN apt-get install -y git"]


@pytest.mark.parametrize("name", ["with_file", "with_sync"])
def test_the_guard_reads_uploaded_files(plane: LocalPlane, name: str) -> None:
    call(plane, name)
    container = [c.id for c in plane.containers(all=True) if c.function == name][-1]
    warned = [text for text in lines(plane, container=container) if " imports '" in text]
    assert len(warned) == 1
    assert "imports 'skimage'" in warned[0]


def test_an_imports_block_is_for_its_own_image(plane: LocalPlane) -> None:
    """What another image of the app installs is not missed; what its own lacks is."""
    call(plane, "plot")
    call(plane, "read")
    for name, missed in (("plot", ["skimage"]), ("read", ["skimage"]), ("with_pins", ["skimage"])):
        call(plane, name)
        container = [c.id for c in plane.containers(all=True) if c.function == name][-1]
        warned = [text for text in lines(plane, container=container) if " imports '" in text]
        assert [text.split("imports ")[1].split("'")[1] for text in warned] == missed


@pytest.mark.slow
def test_strict_an_imports_block_fails_for_its_own_image_only(files: Path) -> None:
    with LocalPlane(engine="inline", env={"FILES": str(files)}, strict_image=True) as plane:
        plane.deploy(APP)
        call(plane, "plot")
        # Modal's entrypoint reports nothing of it, and a deployed app's containers start again.
        modal.Function.from_name("image-reports", "read", client=plane.client()).spawn()
        missing = "ModuleNotFoundError: No module named 'skimage' in the image"
        plane.wait_for(lambda _: any(missing in line for line in lines(plane)))


@pytest.mark.parametrize(
    ("name", "base"),
    [("on_foreign", "nvcr.io/nvidia/pytorch:25.01-py3"), ("on_id", "im-somewhere-else")],
)
def test_what_cannot_be_read_is_said_with_the_remedy(
    plane: LocalPlane, name: str, base: str
) -> None:
    call(plane, name)
    said = [line for line in lines(plane) if f"cannot be read: FROM {base}" in line]
    assert len(said) == 1
    assert "provides=[...]" in said[0]


@pytest.mark.slow
def test_provides_declares_an_opaque_base(files: Path) -> None:
    with LocalPlane(
        engine="inline", env={"FILES": str(files)}, provides=["NumPy"], strict_image=True
    ) as plane:
        plane.deploy(APP)
        call(plane, "on_id")
        with pytest.raises(ModuleNotFoundError, match="scikit-image"):
            call(plane, "on_foreign")


def test_images_shows_what_was_recorded(plane: LocalPlane) -> None:
    found = {image.functions[0].partition(".")[2]: image for image in plane.images()}
    image = found["with_pins"]
    assert image.functions == ["image-reports.with_pins", "image-reports.with_pins_too"]
    assert image.base.startswith("python:3.13")
    assert (image.python, image.python_here.rsplit(".", 1)[0]) == ("3.13", HERE)
    packages = {p.name: (p.asked, p.here, p.differs) for p in image.packages}
    assert packages["numpy"] == ("==1.0", np.__version__, True)
    assert packages["no-such-thing"] == ("==2.0", None, True)
    assert packages["torch"][::2] == ("", False)
    assert image.env == {"A": "1"}
    assert image.workdir == "/root"
    assert "/root/image_reports.py" in image.files
    assert image.not_run == ["RUN apt-get install -y git"]
    assert image.unread == []
    assert found["on_id"].unread == ["FROM im-somewhere-else"]
    assert "/.requirements.txt" in found["with_file"].files


def images(named: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "MODALKIT_LOCAL_PLANE": named}
    return subprocess.run(
        [sys.executable, "-m", "modalkit.cli", "local", "images", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_json(plane: LocalPlane) -> None:
    done = images(plane.env["MODALKIT_LOCAL_PLANE"], "--json")
    assert done.returncode == 0, done.stderr
    ids = {image["id"] for image in json.loads(done.stdout)}
    assert ids == {image.id for image in plane.images()}


def test_the_command_prints_tables(plane: LocalPlane) -> None:
    done = images(plane.env["MODALKIT_LOCAL_PLANE"])
    for text in ("image-reports.with_pins", "==1.0", np.__version__, "missing", "A=1", "git"):
        assert text in done.stdout, done.stdout + done.stderr


def test_the_command_needs_a_plane(tmp_path: Path) -> None:
    done = images(str(tmp_path / "of-before"))
    assert done.returncode == 1
    assert "`modalkit local up` starts one" in done.stderr


def test_the_command_finds_a_plane_by_its_state(plane: LocalPlane, tmp_path: Path) -> None:
    state = Path(plane.env["MODALKIT_LOCAL_PLANE"], "state").resolve()
    done = images(str(tmp_path), "--json", "--state", str(state))
    assert len(json.loads(done.stdout)) == len(plane.images())
