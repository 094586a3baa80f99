"""The pytest plugin, as it behaves in somebody else's test run."""

from collections.abc import Callable

import pytest

from modalkit import testing
from tests.support.profiles import under

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]

APP = """
import modal

app = modal.App("walks")


@app.function()
def walk():
    print("STEP 3", flush=True)
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run pytest in a process of its own, on the files that were made."""
    return lambda *arguments: pytester.runpytest_subprocess("-p", "no:xdist", *arguments)


def test_the_plugin_loads_itself(pytestconfig: pytest.Config):
    assert pytestconfig.pluginmanager.has_plugin("modalkit")


def test_a_test_gets_a_plane_made_by_its_markers_and_the_command_line(
    pytester: pytest.Pytester, run: Run
):
    pytester.makepyfile(
        """
        import os
        import pytest

        pytestmark = pytest.mark.modalkit(engine="inline", grace_s=3)
        PIDS = set()

        @pytest.mark.modalkit(profile="7", engine="auto")
        def test_its_own_marker_wins(plane):
            assert (plane.profile, plane._engine, plane._options["grace_s"]) == ("7", "auto", 3)
            PIDS.add(plane.pid)

        def test_the_rest_comes_from_the_module_and_the_command_line(plane):
            assert (plane.profile, plane._engine, plane._options["grace_s"]) == ("4", "inline", 3)
            assert plane.pid not in PIDS
            [ended] = PIDS
            with pytest.raises(ProcessLookupError):
                os.kill(ended, 0)

        def test_a_plane_of_ones_own_has_the_profile_too():
            from modalkit.local import LocalPlane
            assert LocalPlane().profile == "4"
        """
    )
    result = run("--modalkit-profile", "4", "--strict-markers")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["modalkit: profile 4"])


def test_a_failure_shows_what_the_plane_was_doing(pytester: pytest.Pytester, run: Run):
    pytester.makefile(".py", app_walks=APP)
    pytester.makepyfile(
        """
        import modal

        def test_it(plane):
            plane.deploy("app_walks.py")
            modal.Function.from_name("walks", "walk", client=plane.client()).remote()
            plane.wait_for_line("STEP 3")
            assert False

        def test_it_passes(plane):
            pass
        """
    )
    result = run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- local plane 'plane' -*",
            f"profile: {under()}",
            "containers (1 in all):",
            "ta-* walks/walk (cold): *",
            "last lines:",
            "ta-* stdout: STEP 3",
        ]
    )
    assert result.stdout.str().count("- local plane 'plane' -") == 1


@pytest.mark.slow
def test_a_plane_that_has_died_does_not_hide_the_failure(pytester: pytest.Pytester, run: Run):
    pytester.makepyfile(
        """
        import os, signal

        def test_it(plane):
            os.kill(plane.pid, signal.SIGKILL)
            assert "the true reason" == ""
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the true reason*", "*the local plane*"])


def test_a_fixture_of_that_name_goes_first(pytester: pytest.Pytester, run: Run):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="module")
        def plane():
            return "my own"
        """
    )
    pytester.makepyfile(
        """
        import sys

        def test_it(plane):
            assert plane == "my own"

        def test_nothing_of_the_plane_is_loaded_for_it():
            heavy = {"modalkit.local", "modal", "torch", "structlog", "grpclib", "attrs"}
            assert not heavy & set(sys.modules)
        """
    )
    run("-p", "no:anyio", "-p", "no:hypothesispytest").assert_outcomes(passed=2)


@pytest.mark.slow
def test_tests_can_share_a_plane(pytester: pytest.Pytester, run: Run):
    pytester.makeini("[pytest]\nmodalkit_plane_scope = module\n")
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.modalkit(profile="strict")
        PIDS = []

        def test_one(plane):
            PIDS.append(plane.pid)
            assert plane.profile == "strict"

        def test_two(plane):
            assert plane.pid == PIDS[0]
        """
    )
    run().assert_outcomes(passed=2)


MARKED = """
import pytest
MODULE

@pytest.mark.modalkit(engine="inline")
class TestClass:
    def test_in_a_class(self, plane):
        pass

@pytest.mark.modalkit(engine="inline")
def test_alone(plane):
    pass

@pytest.mark.modalkit(engine="inline")
def test_without():
    pass
"""


@pytest.mark.parametrize(
    ("scope", "module", "refused"),
    [
        ("class", "", {}),
        ("module", "", dict.fromkeys(("test_in_a_class", "test_alone"), "as `pytestmark`")),
        (
            "session",
            "pytestmark = pytest.mark.modalkit(strict_image=True)",
            dict.fromkeys(("test_in_a_class", "test_alone"), "in conftest.py"),
        ),
        (
            "module",
            "pytestmark = pytest.mark.modalkit(engine='inline')",  # says the same
            {},
        ),
    ],
)
def test_a_marker_that_does_not_reach_the_plane_is_refused(
    pytester: pytest.Pytester, scope: str, module: str, refused: dict[str, str]
):
    pytester.makeini(f"[pytest]\nmodalkit_plane_scope = {scope}\n")
    items = pytester.getitems(MARKED.replace("MODULE", module))
    said = {}
    for item in items:
        try:
            testing.pytest_runtest_setup(item)
        except pytest.UsageError as error:
            said[item.name] = str(error)
    assert said.keys() == refused.keys()
    for name, remedy in refused.items():
        assert "has no effect here" in said[name]
        assert remedy in said[name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modalkit-profile", "harsh"], "*no profile 'harsh'*"),
        (["-o", "modalkit_plane_scope=galaxy"], "*modalkit_plane_scope='galaxy'*"),
    ],
)
def test_an_option_that_cannot_be_ends_the_run(
    pytester: pytest.Pytester, run: Run, arguments: list[str], said: str
):
    pytester.makepyfile("def test_it(): pass")
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])
