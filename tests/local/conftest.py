"""One plane for the tests of a module; apps are files, as users have them."""

from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane

APPS = Path(__file__).with_name("apps")


@pytest.fixture(scope="module")
def plane() -> Iterator[LocalPlane]:
    with LocalPlane(
        engine="inline",
        snapshots=False,
        strict_image=True,
        background_commit_s=0,  # what is committed, and when, is up to the test
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(plane: LocalPlane) -> modal.Client:
    return plane.client()


def lines(plane: LocalPlane, *, container: str | None = None) -> list[str]:
    """Return the text of what containers wrote."""
    return [line.text for line in plane.logs() if container in (None, line.container)]
