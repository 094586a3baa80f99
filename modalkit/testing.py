"""
A pytest plugin that loads itself: a local plane for each test that asks for one.

    @pytest.mark.modalkit(strict_image=True)
    def test_it_survives_a_preemption(plane):
        plane.deploy("app.py")
        ...
        plane.preempt(after="STEP 12")

It costs a run that does not use it nothing: the plane is imported by the fixture.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import pytest

from modalkit._environment import PROFILE, QUICK_STARTS

if TYPE_CHECKING:
    from modalkit.local import LocalPlane

MARKER = (
    "modalkit(**options): how the `plane` fixture makes its plane: arguments of "
    "modalkit.local.LocalPlane"
)
Scope = Literal["function", "class", "module", "session"]
"""Not "package": that of a plugin's fixture is the session."""
SCOPES = get_args(Scope)
REMEDIES = {
    "class": "put it on the class",
    "module": "put it on the module, as `pytestmark`",
    "session": "set the profile by --modalkit-profile, and the rest in a fixture `plane` of your "
    "own, in conftest.py, around modalkit.local.LocalPlane",
}
"""How to set the options of a plane that tests share."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    parser.getgroup("modalkit").addoption(
        "--modalkit-profile",
        metavar="lenient|strict|SEED",
        help="how local planes behave where Modal's behaviour is unknown; a marker goes first",
    )
    parser.addini(
        "modalkit_plane_scope",
        f"tests that share one `plane`: {', '.join(SCOPES)}",
        default="function",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the options; every plane of this run takes the profile from the environment."""
    config.addinivalue_line("markers", MARKER)
    if (scope := config.getini("modalkit_plane_scope")) not in SCOPES:
        raise pytest.UsageError(f"modalkit_plane_scope={scope!r} is none of {', '.join(SCOPES)}")
    if (profile := config.getoption("--modalkit-profile")) is None:
        return
    from modalkit.errors import UsageError
    from modalkit.local import switches

    try:
        switches.profile(profile)
    except UsageError as error:
        raise pytest.UsageError(f"--modalkit-profile: {error}") from error
    before = os.environ.get(PROFILE)
    os.environ[PROFILE] = profile
    config.add_cleanup(lambda: _restore(before))


def _restore(profile: str | None) -> None:
    if profile is None:
        os.environ.pop(PROFILE, None)
    else:
        os.environ[PROFILE] = profile


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the profile where one was asked for."""
    profile = config.getoption("--modalkit-profile")
    return f"modalkit: profile {profile}" if profile is not None else None


def _plane_scope(fixture_name: str, config: pytest.Config) -> Scope:  # noqa: ARG001 - pytest's
    scope: Scope = config.getini("modalkit_plane_scope")
    return scope


@pytest.fixture(scope=_plane_scope)
def plane(request: pytest.FixtureRequest) -> Iterator[LocalPlane]:
    """
    A local plane of this test's own: Modal's client and containers here, without an account.

    `@pytest.mark.modalkit(...)` on the test, its class or its module sets the arguments of
    `modalkit.local.LocalPlane`; the nearest marker wins, argument by argument. Unlike by default,
    cold containers start quickly (`quick_starts`).
    """
    from modalkit.local import LocalPlane

    options: dict[str, Any] = {} if QUICK_STARTS in os.environ else {"quick_starts": True}
    for marker in reversed(list(request.node.iter_markers("modalkit"))):
        options.update(marker.kwargs)
    with LocalPlane(**options) as running:
        yield running


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a marker that does not reach the plane, which is older than what it stands on."""
    scope: Scope = item.config.getini("modalkit_plane_scope")
    if scope == "function" or "plane" not in getattr(item, "fixturenames", ()):
        return
    reached = list(_owner(item, scope).iter_markers("modalkit"))
    if any(marker not in reached for marker in item.iter_markers("modalkit")):
        raise pytest.UsageError(
            f"{item.nodeid}: its plane has the scope {scope} (modalkit_plane_scope), so this "
            f"modalkit marker has no effect here; {REMEDIES[scope]}"
        )


def _owner(item: pytest.Item, scope: Scope) -> pytest.Item | pytest.Collector:
    """Return what the plane of *item* belongs to: its markers make the plane."""
    if scope == "session":
        return item.session
    owner = item.getparent(pytest.Class if scope == "class" else pytest.Module)
    return owner or item  # a function in no class has a plane of its own


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, in the report of a failed test, what its plane was doing."""
    report = yield
    if report.failed and "modalkit.local" in sys.modules:
        for name, value in _planes(item):
            report.sections.append((f"local plane {name!r}", _account(value)))
    return report


def _planes(item: pytest.Item) -> list[tuple[str, LocalPlane]]:
    from modalkit.local import LocalPlane

    fixtures: dict[str, Any] = getattr(item, "funcargs", {})
    return [(name, value) for name, value in fixtures.items() if isinstance(value, LocalPlane)]


def _account(plane: LocalPlane) -> str:
    from modalkit.errors import LocalPlaneError
    from modalkit.local.watch import describe

    try:
        return f"profile: {plane.profile}\n{describe(plane)}"
    except LocalPlaneError as error:
        return f"profile: {plane.profile}\n{error}"
