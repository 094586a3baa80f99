"""The files of an image are where they are on Modal, and each container has its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane
from tests.support.profiles import PROFILE

from .conftest import APPS, lines

APP = str(APPS / "image_files.py")
TEXTS = {"top.txt": "top", "sub/deep.txt": "deep"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    (directory / "sub").mkdir()
    for name, text in TEXTS.items():
        (directory / name).write_text(text)
    return directory


@pytest.fixture(scope="module")
def plane(data: Path) -> Iterator[LocalPlane]:
    with LocalPlane(engine="fork", env={"DATA": str(data)}, profile=PROFILE) as running:
        running.deploy(APP)
        yield running


def call(plane: LocalPlane, name: str):
    return modal.Function.from_name("image-files", name, client=plane.client()).remote()


def check(seen: dict) -> None:
    assert {path: Path(path).name for path in seen["texts"]}.keys() == seen["texts"].keys()
    for path, text in seen["texts"].items():
        assert text == ("deep" if path.endswith("deep.txt") else "top"), path
    assert seen["file"] == "/root/image_files.py"
    assert seen["cwd"] == "/workdir/deep"
    assert seen["env"] == "yes"
    assert seen["listed"] == ["data", "image_files.py"]
    assert seen["data"] == ["all", "one"]
    assert seen["tools"]


def test_files_are_at_the_paths_that_they_have_on_modal(plane: LocalPlane) -> None:
    check(call(plane, "look"))
    assert not Path("/root/image_files.py").exists()
    assert not Path("/by-line").exists()


def test_what_one_container_writes_no_other_sees(plane: LocalPlane) -> None:
    function = modal.Function.from_name("image-files", "scribble", client=plane.client())
    assert function.remote() == []
    (container,) = [c for c in plane.containers() if c.function == "scribble"]
    plane.kill(container.id)
    plane.wait_for(lambda all_: not any(c.is_alive and c.id == container.id for c in all_))
    assert function.remote() == []
    check(call(plane, "look"))


def test_a_volume_may_be_mounted_among_them(plane: LocalPlane) -> None:
    assert call(plane, "with_volume") == "top"
    assert (plane.volume("image-files-volume").committed() / "kept").read_text() == "kept"


def test_without_a_workdir_it_is_root(plane: LocalPlane) -> None:
    assert tuple(call(plane, "plain")) == ("/root/image_files.py", "/root", "found")


def test_restored_containers_have_files_of_their_own(plane: LocalPlane) -> None:
    snapped = modal.Cls.from_name("image-files", "Snapped", client=plane.client())
    first = snapped().look.remote()
    (restored,) = [c for c in plane.containers() if c.kind == "restored"]
    plane.kill(restored.id)
    second = snapped().untouched.remote()  # in another one
    check(second)
    assert first["here"] == ["mine"]
    assert first["cwd"] == second["cwd"]


def test_an_image_made_by_a_function_is_taken_and_that_is_said(plane: LocalPlane) -> None:
    assert call(plane, "on_built") is True
    [said] = [line for line in lines(plane) if "run_function" in line]
    assert said == ('modalkit: not run here: run_function(make_weights) | ENTRYPOINT ["/serve"]')


FORBIDDING = """
echo 0 > /proc/sys/user/max_mnt_namespaces && echo 0 > /proc/sys/user/max_user_namespaces &&
exec "$@"
"""
WITHOUT_MOUNTS = """
import sys, modal
from modalkit.local import LocalPlane
with LocalPlane(engine="fork") as plane:
    plane.deploy(sys.argv[1])
    for name in ("plain", "elsewhere", "with_volume"):
        function = modal.Function.from_name("image-files", name, client=plane.client())
        try:
            print(name, function.remote())
        except Exception as error:
            print(name, "FAILED", error)
    for line in plane.logs():
        print(line.text)
"""


@pytest.fixture(scope="module")
def without_mounts(data: Path) -> dict[str, str]:
    """What a plane does where the kernel gives no mount namespaces."""
    command = [sys.executable, "-c", WITHOUT_MOUNTS, APP]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", FORBIDDING, "sh", *command],
        env={**os.environ, "DATA": str(data)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"no user namespace to try it in: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())


def test_plain_code_needs_no_mounts(without_mounts: dict[str, str]) -> None:
    """It runs elsewhere, which is said."""
    assert without_mounts["plain"].endswith("'elsewhere')"), without_mounts
    assert "nothing is found below /root by an absolute path here" in without_mounts["modalkit:"]


@pytest.mark.parametrize("name", ["elsewhere", "with_volume"])
def test_what_needs_mounts_is_refused_with_the_remedy(
    without_mounts: dict[str, str], name: str
) -> None:
    assert without_mounts[name].startswith("FAILED"), without_mounts
    assert "no private mounts" in without_mounts[name]
    assert "sysctl" in without_mounts[name] or "--cap-add" in without_mounts[name]
