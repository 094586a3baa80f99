"""What is defined at import time is the same in a container, and costs nothing there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def define(tmp_path, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.define"],
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("MODAL")},
            "MODAL_CONFIG_PATH": str(tmp_path / "none.toml"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    return define(tmp_path_factory.mktemp("laptop"))


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    return define(tmp_path_factory.mktemp("container"), MODAL_IS_REMOTE="1")


def test_no_file_process_or_network_is_touched_in_a_container(container):
    assert container["control"].startswith("open(")
    assert container["work"] == []


def test_it_takes_less_than_five_milliseconds_in_a_container(container):
    assert container["best_ms"] < 5


@pytest.mark.parametrize("what", ["keywords", "env", "volumes", "image"])
def test_the_container_gets_what_the_laptop_sent(laptop, container, what):
    assert container[what] == laptop[what]
    assert laptop[what]


def test_the_container_has_as_many_objects_in_the_same_order(laptop, container):
    """Modal pairs them with the ids that the laptop got, by position."""
    assert [kind(o) for o in container["objects"]] == [kind(o) for o in laptop["objects"]]
    assert [kind(o) for o in laptop["objects"]] == [
        "modal.Secret.from_name",
        "Secret.from_dict",
        "Image",
        "modal.Volume.from_name",
        "modal.Volume.from_name",
    ]


def kind(description):
    return description.partition("(")[0]
