"""What is deployed, called and finished outlives the plane, however that ends."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import modal
import pytest

from modalkit.errors import LocalPlaneError, PlaneStartError
from modalkit.local import LocalPlane
from modalkit.local.keep import Keep
from modalkit.local.lifesigns import RESULTS_KEPT_S

from .conftest import APPS
from .test_leaves_nothing import until

LARGE = 3 << 20  # above the 2 MiB that go into a message


def kill(plane: LocalPlane) -> None:
    os.kill(plane.pid, signal.SIGKILL)
    plane.__exit__(None, None, None)


@pytest.fixture
def planes(tmp_path: Path) -> Iterator[list[LocalPlane]]:
    started: list[LocalPlane] = []
    yield started
    for plane in started:
        plane.__exit__(None, None, None)


def start(planes: list[LocalPlane], state: Path) -> LocalPlane:
    planes.append(LocalPlane(state, engine="inline", snapshots=False, strict_image=True))
    return planes[-1].__enter__()


def function(plane: LocalPlane, name: str) -> modal.Function:
    return modal.Function.from_name("kept", name, client=plane.client())


def result(plane: LocalPlane, call_id: str) -> object:
    return modal.FunctionCall.from_id(call_id, client=plane.client()).get(timeout=60)


def test_a_killed_plane_forgets_no_deployment_no_result_and_no_input(
    planes: list[LocalPlane], tmp_path: Path
) -> None:
    plane = start(planes, tmp_path)
    plane.deploy(str(APPS / "kept.py"))
    greeter = modal.Cls.from_name("kept", "Greeter", client=plane.client())
    assert greeter(word="good day").greet.remote("Ada") == "good day Ada"
    looked = function(plane, "look").spawn(LARGE)
    failed = function(plane, "fail").spawn()
    expected = looked.get()
    assert expected == ("green", "open sesame", "from the helper", b"x" * LARGE)
    with pytest.raises(ValueError, match="as it was"):
        failed.get()
    wait = function(plane, "wait")
    running, waiting = wait.spawn("one", b"y" * LARGE), wait.spawn("two")
    begun = plane.volume("kept-data").committed
    until(lambda: any(p.name.startswith("begun-one") for p in begun().iterdir()), "the start", 60)
    old = {container.id for container in plane.containers(all=True)}
    kill(plane)

    plane = start(planes, tmp_path)
    # Results: a payload, and an exception.
    assert result(plane, looked.object_id) == expected
    with pytest.raises(ValueError, match="as it was"):
        result(plane, failed.object_id)
    # Inputs: one that was running, one that waited; each runs once more.
    plane.wait_for(lambda found: any(c.inputs for c in found))
    volume = modal.Volume.from_name("kept-data", client=plane.client())
    (tmp_path / "go").touch()
    with volume.batch_upload() as batch:
        batch.put_file(tmp_path / "go", "/go")
    assert result(plane, running.object_id) == ("one", LARGE)
    assert result(plane, waiting.object_id) == ("two", 0)
    assert not old & {container.id for container in plane.containers(all=True)}  # ids stay unique
    # Deployments: function, Secret, image, code; a class and a variant of it; their history.
    [version] = json.loads(plane.modal("app", "history", "kept", "--json", capture=True).stdout)
    assert version["version"] == "v1"
    assert function(plane, "look").remote() == (*expected[:3], b"")
    greeter = modal.Cls.from_name("kept", "Greeter", client=plane.client())
    assert greeter(word="good day").greet.remote("Bob") == "good day Bob"
    assert greeter().greet.remote("Bob") == "hello Bob"
    kill(plane)
    assert_nothing_runs_again(start(planes, tmp_path), tmp_path, running.object_id)


def assert_nothing_runs_again(plane: LocalPlane, state: Path, call_id: str) -> None:
    """What is finished runs no third time, and what nothing needs is swept."""
    assert plane.containers(all=True) == []
    assert result(plane, call_id) == ("one", LARGE)
    blobs = [path.stat().st_size for path in (state / "blobs").iterdir()]
    assert len(blobs) == 1
    assert blobs[0] > LARGE  # the result of `look`; the arguments of `wait` are done with
    assert len(list((state / "files").iterdir())) == 2


@pytest.mark.slow
def test_a_stopped_app_stays_stopped_and_its_results_stay(
    planes: list[LocalPlane], tmp_path: Path
) -> None:
    plane = start(planes, tmp_path)
    plane.deploy(str(APPS / "kept.py"))
    call = modal.Cls.from_name("kept", "Greeter", client=plane.client())().greet.spawn("Ada")
    assert call.get() == "hello Ada"
    plane.modal("app", "stop", "kept", "--yes", capture=True)
    kill(plane)
    plane = start(planes, tmp_path)
    with pytest.raises(modal.exception.NotFoundError):
        function(plane, "look").remote()
    assert result(plane, call.object_id) == "hello Ada"
    assert "stopped" in plane.modal("app", "list", "--json", capture=True).stdout


@pytest.mark.slow
def test_versions_stay_apart(planes: list[LocalPlane], tmp_path: Path) -> None:
    path = tmp_path / "numbered.py"
    text = "import modal\napp = modal.App('numbered')\n@app.function()\ndef f(): return {}\n"
    plane = start(planes, tmp_path / "state")
    for number in (1, 2):
        path.write_text(text.format(number))
        plane.deploy(str(path))

    def first(plane: LocalPlane) -> modal.Function:
        return modal.Function.from_name("numbered", "f", version=1, client=plane.client())

    call = first(plane).spawn()
    assert call.get() == 1
    kill(plane)
    plane = start(planes, tmp_path / "state")
    assert result(plane, call.object_id) == 1
    assert first(plane).remote() == 1
    assert modal.Function.from_name("numbered", "f", client=plane.client()).remote() == 2
    history = plane.modal("app", "history", "numbered", "--json", capture=True).stdout
    assert [version["version"] for version in json.loads(history)] == ["v2", "v1"]


@pytest.mark.slow
def test_results_are_dropped_after_seven_days(planes: list[LocalPlane], tmp_path: Path) -> None:
    plane = start(planes, tmp_path)
    plane.deploy(str(APPS / "kept.py"))
    calls = [function(plane, "look").spawn() for _ in range(2)]
    for call in calls:
        call.get()
    plane.__exit__(None, None, None)
    with sqlite3.connect(tmp_path / "plane.db") as database:
        old = (RESULTS_KEPT_S, calls[0].object_id)
        query = "UPDATE inputs SET finished_at = finished_at - ? WHERE call = ?"
        database.execute(query, old)
        database.execute("UPDATE calls SET made_at = made_at - ? WHERE id = ?", old)
    database.close()
    plane = start(planes, tmp_path)
    with pytest.raises(modal.exception.NotFoundError):
        result(plane, calls[0].object_id)
    assert result(plane, calls[1].object_id)


@pytest.mark.slow
def test_an_app_that_was_not_deployed_ends_with_its_plane(
    planes: list[LocalPlane], tmp_path: Path
) -> None:
    plane = start(planes, tmp_path)
    plane.run(f"{APPS / 'kept.py'}::look", capture=True)
    kill(plane)
    database = sqlite3.connect(tmp_path / "plane.db")
    for table in ("apps", "deployments", "functions", "uploads", "calls", "inputs"):
        assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    database.close()
    plane = start(planes, tmp_path)
    assert plane.modal("app", "list", "--json", capture=True).stdout.strip() == "[]"


def test_payloads_are_readable_for_their_owner_only(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "plane.db")
    keep._put("uploads", id="st-1", record=b"value")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    keep.close()


def test_a_file_that_is_damaged_foreign_or_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    Keep(path).close()
    good = path.read_bytes()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(LocalPlaneError, match=r"its format is 99, this one's 3.*delete the file"):
        Keep(path)
    path.write_bytes(good[:100] + b"?" * (len(good) - 100))
    with pytest.raises(LocalPlaneError, match=r"cannot be read.*delete it"):
        Keep(path)
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 20)
    with pytest.raises(PlaneStartError, match=r"plane\.db cannot be read.*delete it"):
        LocalPlane(tmp_path, engine="inline").__enter__()
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(LocalPlaneError, match="was not written by modalkit; move it away"):
        Keep(path)


WRITER = """
import sys
from modalkit.local.keep import Keep
from pathlib import Path
keep = Keep(Path(sys.argv[1]))
for number in range(10**6):
    keep._put("uploads", id=str(number), record=bytes(1000))
    print(number, flush=True)
"""


def test_what_was_written_is_there_after_a_kill(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "plane.db")], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(3000)]
    writer.kill()
    writer.wait()
    last = int((writer.stdout.read().split() or said)[-1])
    writer.stdout.close()
    keep = Keep(tmp_path / "plane.db")
    assert keep._number("SELECT count(*) FROM uploads") >= last + 1
    keep.close()


TRIES = """
import modal, time

app = modal.App("tries")
state = modal.Dict.from_name("tries", create_if_missing=True)


@app.function(retries=modal.Retries(max_retries=3, initial_delay=1.0, backoff_coefficient=1.0))
def third_time_lucky(x):
    attempt = state[x] = state.get(x, 0) + 1
    print("attempt", attempt, flush=True)
    if attempt == 1:
        raise ValueError("at first")
    if attempt == 2:
        time.sleep(200)
    return x
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["capped", "client"])
def test_a_map_goes_on_over_the_death_of_the_plane(tmp_path: Path, who: str) -> None:
    app = tmp_path / "tries.py"
    app.write_text(TRIES)
    options = {"engine": "inline", "snapshots": False, "profile": f"lenient,retry_delay={who}"}
    with ThreadPoolExecutor() as pool, LocalPlane(tmp_path / "state", **options) as first:
        first.deploy(str(app))
        found = modal.Function.from_name("tries", "third_time_lucky", client=first.client())
        results = pool.submit(lambda: list(found.map([7])))
        first.wait_for_line("attempt 2")
        kill(first)
        with LocalPlane(tmp_path / "state", **options) as second:
            second.wait_for_line("attempt 3", timeout_s=60)
            assert results.result(timeout=60) == [7]
