"""Which GPUs a container sees. None is needed here: what counts is the variable that hides them."""

from collections.abc import Iterator

import modal
import pytest

from modalkit.local import LocalPlane
from tests.support.profiles import PROFILE

from .conftest import APPS, lines

APP = str(APPS / "gpus.py")


@pytest.fixture(scope="module", params=["fork", pytest.param("inline", marks=pytest.mark.slow)])
def plane(request: pytest.FixtureRequest) -> Iterator[LocalPlane]:
    with LocalPlane(engine=request.param, gpus=[3, "GPU-ab", 7], profile=PROFILE) as running:
        running.deploy(APP)
        yield running


@pytest.fixture(scope="module")
def bare() -> Iterator[LocalPlane]:
    with LocalPlane(engine="inline") as running:
        running.deploy(APP)
        yield running


def function(plane: LocalPlane, name: str):
    return modal.Function.from_name("gpus", name, client=plane.client())


def look(plane: LocalPlane, name: str) -> list[str]:
    return modal.Cls.from_name("gpus", name, client=plane.client())().look.remote()


def test_without_devices_none_is_visible_and_that_is_said_once(
    bare: LocalPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [function(bare, name).remote() for name in ("none", "two", "two", "listed")] == [""] * 4
    said = [line for line in lines(bare) if "asks for gpu" in line]
    rest = "and sees none: this plane has no GPUs for containers (gpus=[0, ...] names them)"
    assert said == [
        f"modalkit: two asks for gpu='H100:2' {rest}",
        f"modalkit: listed asks for gpu='H100, A100:4' {rest}",
    ]


def test_this_machines_own_setting_gives_a_container_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with LocalPlane(engine="inline") as plane:
        plane.deploy(APP)
        assert function(plane, "one").remote() == ""
        assert function(plane, "none").remote() == ""


def test_a_container_gets_as_many_as_it_asks_for(plane: LocalPlane) -> None:
    assert function(plane, "none").remote() == ""
    assert len(function(plane, "two").remote().split(",")) == 2
    assert len(function(plane, "listed").remote().split(",")) == 1  # the first choice
    asked = {c.function: (c.gpu, len(c.gpus)) for c in plane.containers(all=True)}
    assert asked["none"] == ("", 0)
    assert asked["two"] == ("H100:2", 2)
    assert asked["listed"] == ("H100, A100:4", 1)


def test_more_than_there_are_is_said_and_not_refused(plane: LocalPlane) -> None:
    many = function(plane, "one").with_options(gpu="A100:8")
    assert set(many.remote().split(",")) == {"3", "GPU-ab", "7"}
    [said] = [line for line in lines(plane) if "A100:8" in line]
    assert "sees 3, GPU-ab, 7" in said or "asks for gpu='A100:8'" in said
    [container] = [c for c in plane.containers(all=True) if c.gpu == "A100:8"]
    assert len(container.gpus) == 3


@pytest.mark.slow
def test_containers_at_once_get_different_ones() -> None:
    with LocalPlane(engine="inline", gpus=[0, 1]) as plane:
        plane.deploy(APP)
        one = function(plane, "one")
        calls = [one.spawn(2.0) for _ in range(3)]
        plane.wait_for(lambda found: sum(bool(c.inputs) for c in found) == 3)
        given = sorted(gpu for c in plane.containers() if c.inputs for gpu in c.gpus)
        assert given in (["0", "0", "1"], ["0", "1", "1"])  # shared when they run out
        assert sorted(call.get() for call in calls) == given


def test_a_cpu_snapshot_is_made_without_and_restored_with(plane: LocalPlane) -> None:
    at_snapshot, after, then = look(plane, "Snapped")
    assert at_snapshot == ""
    assert after in {"3", "GPU-ab", "7"}
    assert then == after


def test_a_gpu_snapshot_is_made_with(plane: LocalPlane) -> None:
    at_snapshot, then = look(plane, "SnappedWithGpu")
    assert at_snapshot in {"3", "GPU-ab", "7"}
    assert then in {"3", "GPU-ab", "7"}
