"""Apps by name, their versions, logs and containers, as the client and `modal app` see them."""

import json
from pathlib import Path

import modal
import modal.call_graph
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS

VERSION = """
import modal

app = modal.App("versions")


@app.function()
def version() -> int:
    return helper.remote() * 10 + {version}


@app.function()
def helper() -> int:
    return {version}


@app.cls()
class Kept:
    name: str = modal.parameter(default="x")

    @modal.method()
    def version(self) -> str:
        return self.name + "{version}"
"""


def rows(plane: LocalPlane, *command: str) -> list[dict[str, str]]:
    return json.loads(plane.modal(*command, "--json", capture=True).stdout)


def app_id(plane: LocalPlane, name: str) -> str:
    return next(row["app_id"] for row in rows(plane, "app", "list") if row["description"] == name)


def deploy(plane: LocalPlane, directory: Path, version: int, tag: str) -> None:
    path = directory / "versions.py"
    path.write_text(VERSION.replace("{version}", str(version)))
    plane.modal("deploy", "--tag", tag, str(path), capture=True)


def test_an_app_is_looked_up_or_made(plane: LocalPlane, client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="'unborn' not found"):
        modal.App.lookup("unborn", client=client)
    made = modal.App.lookup("made", create_if_missing=True, client=client)
    assert modal.App.lookup("made", client=client).app_id == made.app_id
    assert modal.App.lookup(made.app_id, client=client).app_id == made.app_id
    made.set_tags({"a": "b"})
    assert made.get_tags() == {"a": "b"}
    assert app_id(plane, "made") == made.app_id


@pytest.mark.slow
def test_versions_are_kept_and_can_be_called(
    plane: LocalPlane, client: modal.Client, tmp_path: Path
) -> None:
    for version, tag in ((1, "first"), (2, "second"), (3, "third")):
        deploy(plane, tmp_path, version, tag)
    history = rows(plane, "app", "history", "versions")
    assert [row["version"] for row in history] == ["v3", "v2", "v1"]
    assert [row["tag"] for row in history] == ["third", "second", "first"]

    def find(version: int | None) -> modal.Function:
        return modal.Function.from_name("versions", "version", version=version, client=client)

    # What an old version calls by its own global name is the deployed function.
    assert [find(version).remote() for version in (1, 2, 3, None)] == [31, 32, 33, 33]
    old = modal.Cls.from_name("versions", "Kept", version=1, client=client)
    assert old().version.remote() == "x1"
    assert old(name="y").version.remote() == "y1"
    with pytest.raises(modal.exception.NotFoundError, match="versions 1 to 3"):
        find(4).remote()
    with pytest.raises(modal.exception.NotFoundError, match=r"'nothing'.*is not there"):
        modal.Function.from_name("versions", "nothing", client=client).remote()
    with pytest.raises(modal.exception.NotFoundError, match="is a class"):
        modal.Function.from_name("versions", "Kept", client=client).remote()
    plane.modal("app", "stop", "--yes", "versions", capture=True)
    assert len(rows(plane, "app", "history", "versions")) == 3
    again = plane.modal("app", "stop", "--yes", "versions", capture=True, check=False)
    assert "already stopped" in again.stdout + again.stderr


def test_a_misspelt_name_is_suggested(plane: LocalPlane) -> None:
    plane.deploy(str(APPS / "composed.py"))
    done = plane.modal("app", "history", "composd", capture=True, check=False)
    assert done.returncode == 1
    assert "composed" in done.stdout + done.stderr


def test_unusual_ways_to_make_an_app_work(plane: LocalPlane) -> None:
    done = plane.run(f"{APPS / 'composed.py'}::main", capture=True)
    assert "MAIN 2 101" in done.stdout


def test_functions_made_inside_of_a_function_are_serialized(client: modal.Client) -> None:
    def main() -> list[int]:
        app = modal.App("inline")
        step = 5

        @app.function(serialized=True)
        def advance(x: int) -> int:
            return x + step

        with app.run(client=client):
            return [advance.remote(1), *advance.map([2, 3])]

    assert main() == [6, 7, 8]


def test_the_call_graph_shows_who_called_whom(plane: LocalPlane, client: modal.Client) -> None:
    plane.deploy(str(APPS / "composed.py"))
    call = modal.Function.from_name("composed", "root", client=client).spawn()
    assert call.get() == 3
    [top] = call.get_call_graph()
    [middle] = top.children
    assert (top.function_name, middle.function_name) == ("root", "branch")
    assert [child.function_name for child in middle.children] == ["leaf"] * 3
    assert {child.status for child in middle.children} == {modal.call_graph.InputStatus.SUCCESS}
    assert top.task_id.startswith("ta-")
    below = modal.FunctionCall.from_id(middle.function_call_id, client=client).get_call_graph()
    assert [info.function_name for info in below] == ["branch"]


@pytest.mark.slow
def test_logs_stats_and_containers_are_shown(
    plane: LocalPlane, client: modal.Client, tmp_path: Path
) -> None:
    plane.deploy(str(APPS / "slow.py"))
    wait = modal.Function.from_name("slow", "until_told", client=client)
    call = wait.spawn(str(tmp_path / "go"))
    plane.wait_for(lambda found: any("WAITING" in line.text for line in plane.logs()))
    stats = wait.get_current_stats()
    assert (stats.backlog, stats.num_total_runners, stats.num_running_inputs) == (0, 1, 1)
    slow = app_id(plane, "slow")
    [container] = rows(plane, "container", "list", "--app-id", slow)
    assert container["app_name"] == "slow"
    (tmp_path / "go").touch()
    name = call.get()
    assert name == container["container_id"]
    plane.wait_for_line("aside")  # output is read beside the result

    def logs(*options: str) -> str:
        return plane.modal("app", "logs", "slow", *options, capture=True).stdout

    assert logs().split() == ["WAITING", "TOLD", "aside"]
    assert logs("--since", "1h").split() == ["WAITING", "TOLD", "aside"]
    assert logs("--tail", "1").split() == ["aside"]
    assert logs("--source", "stderr").split() == ["aside"]
    assert logs("--search", "TOL").split() == ["TOLD"]
    assert logs("--function-call", call.object_id).split() == ["WAITING", "TOLD", "aside"]
    assert logs("--function-call", "fc-none") == ""
    assert [entry.message for entry in call.logs.fetch(source="stderr")] == ["aside\n"]
    again = modal.FunctionCall.from_id(call.object_id, client=client)
    assert "".join(e.message for e in again.logs.tail(2)).split() == ["TOLD", "aside"]
    assert "".join(e.message for e in call.logs.stream()).split()[-2:] == ["TOLD", "aside"]
    assert logs("--container", "ta-none") == ""
    fetched = plane.modal("container", "logs", name, "--all", capture=True).stdout
    assert fetched.split() == ["WAITING", "TOLD", "aside"]
    # A container that is stopped ends, and who follows its logs is told.
    plane.modal("container", "stop", "--yes", name, capture=True)
    followed = plane.modal("container", "logs", "-f", name, capture=True).stdout
    assert followed.split()[:2] == ["WAITING", "TOLD"]
    assert all(row["container_id"] != name for row in rows(plane, "container", "list"))
    stopped = plane.modal("container", "stop", "--yes", name, capture=True, check=False)
    assert "already stopped" in stopped.stdout + stopped.stderr


@pytest.mark.slow
def test_a_stopped_containers_input_runs_in_another(
    plane: LocalPlane, client: modal.Client, tmp_path: Path
) -> None:
    plane.deploy(str(APPS / "slow.py"))
    wait = modal.Function.from_name("slow", "until_told", client=client)
    call = wait.spawn(str(tmp_path / "go"))
    plane.wait_for(lambda found: any(c.inputs for c in found))
    [first] = [c.id for c in plane.containers() if c.inputs]
    plane.modal("container", "stop", "--yes", first, capture=True)
    (tmp_path / "go").touch()
    assert call.get() != first


@pytest.mark.slow
def test_a_detached_app_lives_until_its_calls_are_done(tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = tmp_path / "left.py"
    script.write_text(
        (APPS / "slow.py").read_text().replace('"slow"', '"left"')
        + f"\n\n@app.local_entrypoint()\ndef main():\n    until_told.spawn({str(go)!r})\n"
    )
    with LocalPlane(engine="inline", env={"MODAL_LOGS_TIMEOUT": "1"}) as detached:
        detached.modal("run", "--detach", f"{script}::main", capture=True)
        [row] = rows(detached, "app", "list")
        assert row["state"] == "ephemeral (detached)"
        go.touch()
        detached.wait_for(lambda found: rows(detached, "app", "list")[0]["state"] == "stopped")
        assert "TOLD" in [line.text for line in detached.logs()]
