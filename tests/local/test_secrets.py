"""Secrets: where their values go, and where they never do."""

import json
import subprocess
import sys
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane
from modalkit.local.object_store import ObjectStore, object_directory

VALUE = "hunter2-and-nobody-may-see-it"

APP = """
import os
import modal

app = modal.App("secretive")
secrets = [SECRETS]


@app.function(secrets=secrets, env={"OWN": "env"})
def keys(names: list[str]) -> list[str | None]:
    return [os.environ.get(name) for name in names]


@app.local_entrypoint()
def main():
    print("SEEN", *keys.remote(["A", "B", "OWN"]))
"""


def seen(plane: LocalPlane, directory: Path, secrets: str) -> list[str]:
    path = directory / "secretive.py"
    path.write_text(APP.replace("SECRETS", secrets))
    done = plane.run(str(path), capture=True, check=False, cwd=directory)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")] or [
        done.stdout + done.stderr
    ]
    return line.split()[1:]


def modalkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("modalkit")
    return subprocess.run([str(command), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_values_reach_containers_from_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B", "local")
    (tmp_path / ".env").write_text("A=dotenv\n")
    with LocalPlane(engine="inline") as plane:
        modal.Secret.objects.create("named", {"A": "named", "B": "b"}, client=plane.client())
        for secrets, expected in (
            ('modal.Secret.from_dict({"A": "dict", "B": None})', ["dict", "None", "env"]),
            ('modal.Secret.from_name("named")', ["named", "b", "env"]),
            ('modal.Secret.from_name("named", required_keys=["A"])', ["named", "b", "env"]),
            ("modal.Secret.from_dotenv()", ["dotenv", "None", "env"]),
            ('modal.Secret.from_local_environ(["B"])', ["None", "local", "env"]),
            (  # the later one wins
                'modal.Secret.from_name("named"), modal.Secret.from_dict({"A": "dict"})',
                ["dict", "b", "env"],
            ),
        ):
            assert seen(plane, tmp_path, secrets) == expected, secrets


def test_what_is_not_there_is_said_with_modals_errors(client: modal.Client) -> None:
    modal.Secret.objects.create("partial", {"A": VALUE}, client=client)
    with pytest.raises(modal.exception.NotFoundError, match="'nowhere' not found"):
        modal.Secret.from_name("nowhere").hydrate(client)
    with pytest.raises(modal.exception.NotFoundError, match=r"missing key.*B, C") as missing:
        modal.Secret.from_name("partial", required_keys=["C", "A", "B"]).hydrate(client)
    assert VALUE not in str(missing.value)


def test_named_ones_are_made_changed_listed_and_deleted(client: modal.Client) -> None:
    modal.Secret.objects.create("made", {"A": "1"}, client=client)
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Secret.objects.create("made", {"A": "2"}, client=client)
    modal.Secret.objects.create("made", {"Z": "2"}, allow_existing=True, client=client)
    made = modal.Secret.from_name("made").hydrate(client)
    made.update({"B": "2"})
    modal.Secret.from_name("made", required_keys=["A", "B"]).hydrate(client)
    with pytest.raises(modal.exception.NotFoundError, match="Z"):
        modal.Secret.from_name("made", required_keys=["Z"]).hydrate(client)
    assert made.info(refresh=True).name == "made"
    assert "made" in [secret.name for secret in modal.Secret.objects.list(client=client)]
    modal.Secret.objects.delete("made", client=client)
    with pytest.raises(modal.exception.NotFoundError):
        modal.Secret.from_name("made").hydrate(client)


@pytest.mark.slow
def test_the_secret_commands_of_modal_work(plane: LocalPlane, tmp_path: Path) -> None:
    plane.modal("secret", "create", "shown", f"A={VALUE}", capture=True)
    again = plane.modal("secret", "create", "shown", "A=x", capture=True, check=False)
    assert again.returncode != 0
    listed = plane.modal("secret", "list", "--json", capture=True).stdout
    assert "shown" in [row["name"] for row in json.loads(listed)]
    assert VALUE not in listed
    (tmp_path / ".env").write_text("B=2\nC=3\n")
    plane.modal(
        "secret",
        "create",
        "--force",
        "shown",
        "--from-dotenv",
        str(tmp_path / ".env"),
        capture=True,
    )
    shown = modal.Secret.from_name("shown", required_keys=["B", "C"])
    shown.hydrate(plane.client())
    with pytest.raises(modal.exception.NotFoundError):  # --force leaves no key of the old one
        modal.Secret.from_name("shown", required_keys=["A"]).hydrate(plane.client())
    plane.modal("secret", "delete", "--yes", "shown", capture=True)
    assert "shown" not in plane.modal("secret", "list", "--json", capture=True).stdout


@pytest.mark.slow
def test_modalkit_local_secret_needs_no_plane_and_shows_no_value(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state"))
    (tmp_path / ".env").write_text(f"B='{VALUE}'\n")
    done = [
        modalkit("local", "secret", "set", *state, "named", f"A={VALUE}", "OWN=x"),
        modalkit("local", "secret", "set", *state, "other", "--from-dotenv", f"{tmp_path}/.env"),
        modalkit("local", "secret", "set", *state, "gone", "A=1"),
        modalkit("local", "secret", "delete", *state, "gone"),
        modalkit("local", "secret", "list", *state),
    ]
    assert [one.returncode for one in done] == [0] * 5, done
    assert done[-1].stdout.splitlines() == ["named: A, OWN", "other: B"]
    refused = [
        modalkit("local", "secret", "set", *state, "bad", VALUE),
        modalkit("local", "secret", "set", *state, "bad"),
        modalkit("local", "secret", "set", *state, "a/b", f"A={VALUE}"),
        modalkit("local", "secret", "delete", *state, "bad"),
    ]
    assert [one.returncode for one in refused] == [1] * 4, refused
    assert VALUE not in "".join(one.stdout + one.stderr for one in done + refused)
    directory = object_directory(tmp_path / "state")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    with LocalPlane(tmp_path / "state", engine="inline") as plane:
        named = 'modal.Secret.from_name("named"), modal.Secret.from_name("other")'
        assert seen(plane, tmp_path, named) == [VALUE, VALUE, "env"]
        # The running plane sees a change at the next container.
        modalkit("local", "secret", "set", *state, "named", "A=changed")
        assert seen(plane, tmp_path, named) == ["changed", VALUE, "env"]


def test_no_value_in_logs_errors_or_reprs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODALKIT_LOCAL_LOG", "debug")
    with LocalPlane(engine="inline", echo_logs=True) as plane:
        secrets = f'modal.Secret.from_dict({{"A": "{VALUE}", "BAD": "\\0"}})'
        path = tmp_path / "secretive.py"
        path.write_text(APP.replace("SECRETS", secrets))
        # A zero byte cannot be in an environment, so the container does not start.
        failed = plane.run(str(path), capture=True, check=False)
        assert failed.returncode == 1
        told = failed.stdout + failed.stderr
        assert "the value of BAD" in told
    logged = capfd.readouterr().err
    assert "could not be started" in logged
    store = ObjectStore(tmp_path)
    stored = store.create("st", "x")
    store.set_secret(stored.id, {"A": VALUE}, replace=True)
    for text in (told, logged, repr(store), repr(stored), repr(plane)):
        assert VALUE not in text


def test_values_that_a_secret_has_had_are_remembered_where_they_must_be_hidden(
    tmp_path: Path,
) -> None:
    store = ObjectStore(tmp_path)
    stored = store.create("st", "x")
    for value in ("first", "second"):
        store.set_secret(stored.id, {"A": value}, replace=True)
    store.delete(stored.id)
    assert set(store.secret_values()) == {"first", "second"}


def test_a_deleted_secret_is_named_where_a_container_needs_it(
    plane: LocalPlane, client: modal.Client, tmp_path: Path
) -> None:
    modal.Secret.objects.create("brief", {"A": "1"}, client=client)
    path = tmp_path / "secretive.py"
    path.write_text(APP.replace("SECRETS", 'modal.Secret.from_name("brief")'))
    plane.deploy(str(path))
    modal.Secret.objects.delete("brief", client=client)
    keys = modal.Function.from_name("secretive", "keys", client=client)
    with pytest.raises(modal.exception.RemoteError, match=r"Secret st-.* was deleted"):
        keys.remote(["A"])
