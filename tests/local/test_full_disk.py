"""A disk that is really full: an error in the app, no half file, and a plane that lives on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from grpclib import GRPCError

from modalkit.errors import LocalPlaneError
from modalkit.local.faults import DISK_FULL
from modalkit.local.object_store import ObjectStore
from modalkit.local.wire import _Translated

SCRIPT = Path(__file__).with_name("full_disk.py")


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_no_half_file(tmp_path: Path):
    mount = f'mount -t tmpfs -o size=24m tmpfs {tmp_path} && exec "$0" "$@"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount, sys.executable, SCRIPT, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "no space left" in found["said"].lower()
    assert found["said"].startswith(("OSError", "RuntimeError"))
    assert found["sizes"]
    assert set(found["sizes"]) == {2 << 20}
    assert found["left"] == {"last.txt": "there is room"}
    assert "bug in the local plane" not in done.stderr


def test_a_full_disk_is_called_so_where_objects_are_kept(tmp_path: Path):
    store = ObjectStore(tmp_path)
    store._db.execute("PRAGMA max_page_count = 20")
    stored = store.create("di", "x")
    with pytest.raises(GRPCError, match=DISK_FULL), _Translated("DictUpdate"):
        store.put(stored.id, [(b"key", bytes(1 << 20))], 0.0)


def test_what_the_plane_says_itself_is_no_bug_of_it():
    with pytest.raises(GRPCError) as caught, _Translated("FunctionMap"):
        raise LocalPlaneError("is there room on its disk?")
    assert caught.value.message == "is there room on its disk?"
