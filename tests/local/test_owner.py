"""A plane from its owner's side: what it is given, and how it answers."""

import asyncio
import json
from pathlib import Path

import pytest

from modalkit.errors import PlaneStartError, UsageError
from modalkit.local import LocalPlane
from modalkit.local.containers import Launcher
from modalkit.local.control import Control
from modalkit.local.core import Config, Plane
from modalkit.local.faults import FaultTable
from modalkit.local.scheduler import Scheduler
from modalkit.local.transcript import Transcript


def test_an_empty_profile_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALKIT_LOCAL_PROFILE", "")
    assert LocalPlane().profile == "lenient"


@pytest.mark.parametrize(
    ("options", "remedy"),
    [({"provides": "torch"}, "['torch']"), ({"gpus": "0,1"}, "['0', '1']")],
)
def test_a_text_is_no_list(options: dict[str, str], remedy: str) -> None:
    with pytest.raises(UsageError) as refusal:
        LocalPlane(**options)
    assert remedy in str(refusal.value)


def test_each_plane_has_lines_of_its_own() -> None:
    plane = LocalPlane(engine="inline")
    watches = []
    for _ in range(2):
        with plane:
            watches.append(plane._watch)
    assert watches[0] is not watches[1]


def test_a_level_of_logging_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALKIT_LOCAL_LOG", "verbose")
    with pytest.raises(PlaneStartError, match=r"MODALKIT_LOCAL_LOG='verbose'.*take debug"):
        LocalPlane(engine="inline").__enter__()


def test_what_the_disk_refuses_is_answered(tmp_path: Path) -> None:
    plane = Plane(Config(runtime=str(tmp_path), state=str(tmp_path)), "1.6.4")
    control = Control(
        plane,
        Scheduler(plane, Launcher(plane, lambda _: None)),
        FaultTable(str),
        Transcript(plane.clock, plane.hidden_values),
    )
    plane.objects.close()
    reply = asyncio.run(control._answer(json.dumps({"op": "transcript", "since": 0}).encode()))
    assert reply["kind"] == "LocalPlaneError"
    assert "cannot do it" in reply["error"]
