"""Volumes and their private views, without a plane."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from modalkit.errors import LocalPlaneError
from modalkit.local import boot, trees
from modalkit.local.open_files import held_below
from modalkit.local.views import Kind, View, overlay_problem
from modalkit.local.volumes import Volume, VolumeRegistry

Content = dict[str, bytes | None]  # None: a directory


@pytest.fixture(scope="module")
def overlays(tmp_path_factory):
    return overlay_problem(tmp_path_factory.mktemp("probe"))


@pytest.fixture(params=["copy", "overlay"])
def kind(request, overlays) -> Kind:
    """Both kinds of view that can be written to pass the same tests."""
    if request.param == "overlay" and overlays is not None:
        pytest.skip(f"no overlays here: {overlays}")
    return request.param


@pytest.fixture
def volume(tmp_path):
    return VolumeRegistry(tmp_path / "volumes").get_or_create("data", 0, create=True)


def test_nobody_else_reads_them(tmp_path):
    VolumeRegistry(tmp_path / "volumes")
    assert (tmp_path / "volumes").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def seen(volume, tmp_path, kind):
    """Makes views as containers have them; they go at the end."""
    made = []

    def make(name, **options):
        made.append(Seen(volume, tmp_path / "views" / name / "data", **{"kind": kind, **options}))
        return made[-1]

    yield make
    for view in made:
        view.close()


@pytest.fixture
def views(seen):
    return seen("first"), seen("second")


class Seen:
    """A view, and a container's process that has mounted it."""

    def __init__(self, volume: Volume, root: Path, **options) -> None:
        self.view = View(volume, root, **options)
        self.commit, self.uncommitted = self.view.commit, self.view.uncommitted
        self.path, self.process = self.view.path, None
        if self.view.overlay:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CONTAINER, boot.__file__, self.view.overlay],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert self.process.stdout.readline() == b"ready\n"
            self.path = Path(f"/proc/{self.process.pid}/root{self.view.path}")

    def reload(self) -> None:
        self.view.reload(self.process.pid if self.process else 0)

    def close(self) -> None:
        if self.process:
            self.process.communicate()
        self.view.close()


CONTAINER = """
import importlib.util, sys, tempfile
boot_file, overlay = sys.argv[1:]
spec = importlib.util.spec_from_file_location("mounts", boot_file.replace("boot.py", "mounts.py"))
mounts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mounts)
mount = {"source": overlay + "/merged/tree", "target": "/mnt/volume", "read_only": False}
with tempfile.TemporaryDirectory() as scratch:
    mounts.enter([{**mount, "overlay": overlay}], scratch)
    print("ready", flush=True)
    sys.stdin.read()
"""


def content(root: Path) -> Content:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }


# ---------------------------------------------------------------------------- what others see


def test_nothing_is_seen_before_commit_and_reload(views):
    """Written, then committed, then reloaded: only the last step shows it to another container."""
    first, second = views
    (first.path / "a").write_text("1")
    second.reload()
    assert not (second.path / "a").exists()

    first.commit()
    assert not (second.path / "a").exists()

    second.reload()
    assert (second.path / "a").read_text() == "1"


def test_a_new_view_starts_from_what_is_committed(views, seen):
    """A container that starts later sees commits, and never what was not committed."""
    first, _ = views
    (first.path / "kept").write_text("1")
    first.commit()
    (first.path / "lost").write_text("2")

    late = seen("late")

    assert content(late.path) == {"kept": b"1"}


def test_directories_are_part_of_a_commit(views):
    """Empty directories appear, and a removed tree leaves none behind."""
    first, second = views
    (first.path / "runs/a/empty").mkdir(parents=True)
    (first.path / "runs/a/f").write_text("1")
    assert first.commit() == 4
    second.reload()
    assert (second.path / "runs/a/empty").is_dir()

    subprocess.run(["rm", "-r", second.path / "runs"], check=True)
    second.commit()
    first.reload()

    assert content(first.path) == {}


def test_a_removed_directory_keeps_the_files_that_others_put_there(views):
    """Removal concerns what the remover saw."""
    first, second = views
    (first.path / "d").mkdir()
    first.commit()
    second.reload()
    (first.path / "d/new").write_text("1")
    first.commit()

    (second.path / "d").rmdir()
    second.commit()
    second.reload()

    assert content(second.path) == {"d": None, "d/new": b"1"}


def test_the_last_commit_of_a_file_wins_and_other_files_stay(views):
    """Two writers of one file: the later commit. Of two files: both."""
    first, second = views
    for view, text in ((first, "1"), (second, "2")):
        (view.path / "same").write_text(text)
        (view.path / f"own-{text}").write_text(text)
    first.commit()
    second.commit()
    first.reload()

    assert content(first.path) == {"same": b"2", "own-1": b"1", "own-2": b"2"}


def test_rewriting_a_file_in_place_at_once_is_noticed(views):
    """Same size, same inode, within one step of the kernel's clock."""
    first, second = views
    for text in ("aa", "bb", "cc", "dd"):
        (first.path / "f").write_text(text)
        assert first.commit() == 1
        second.reload()
        assert (second.path / "f").read_text() == text


def test_a_commit_without_changes_writes_nothing(views):
    first, _ = views
    (first.path / "f").write_text("1")
    first.commit()
    assert first.commit() == 0


def test_links_stay_links(views):
    first, second = views
    (first.path / "f").write_text("1")
    (first.path / "latest").symlink_to("f")
    first.commit()
    second.reload()
    assert (second.path / "latest").readlink() == Path("f")


@pytest.mark.parametrize("shown", ["copy", "links"])
def test_a_read_only_view_commits_nothing_but_reloads(volume, views, seen, shown):
    reader = seen("reader", kind=shown, read_only=True)
    (reader.path / "x").write_text("not from here")
    (views[0].path / "y").write_text("1")
    views[0].commit()

    assert reader.commit() == 0
    reader.reload()

    assert content(volume.committed) == {"y": b"1"}
    assert (reader.path / "y").read_text() == "1"


def test_a_read_only_view_shares_the_committed_files(volume, views, seen):
    (views[0].path / "weights").write_text("1")
    views[0].commit()
    reader = seen("reader", kind="links", read_only=True)
    assert (reader.path / "weights").samefile(volume.committed / "weights")
    (views[0].path / "weights").write_text("2")
    views[0].commit()
    assert (reader.path / "weights").read_text() == "1"


def test_an_overlay_copies_nothing_that_is_not_written_to(volume, seen, overlays):
    if overlays is not None:
        pytest.skip(f"no overlays here: {overlays}")
    (volume.committed / "large").write_text("1")
    view = seen("reader", kind="overlay")
    assert (view.path / "large").read_text() == "1"
    assert (view.view.root / "lower/tree/large").samefile(volume.committed / "large")
    assert [p for p in (view.view.root / "upper").rglob("*") if p.is_file()] == []


def test_what_is_known_to_differ_in_an_overlay(volume, seen, overlays):
    """A directory of the layer below cannot be renamed; one that the container made can."""
    if overlays is not None:
        pytest.skip(f"no overlays here: {overlays}")
    (volume.committed / "committed").mkdir()
    view = seen("writer", kind="overlay")
    with pytest.raises(OSError, match="cross-device"):
        (view.path / "committed").rename(view.path / "other")
    (view.path / "made").mkdir()
    (view.path / "made").rename(view.path / "other")
    view.commit()
    assert content(volume.committed) == {"committed": None, "other": None}


def test_generations_go_when_no_view_shows_them(volume, seen, overlays, tmp_path):
    if overlays is not None:
        pytest.skip(f"no overlays here: {overlays}")
    generations = tmp_path / "views/generations"
    first, same = seen("first", kind="overlay"), seen("same", kind="overlay")
    assert len(list(generations.iterdir())) == 1
    (first.path / "f").write_text("1")
    first.commit()
    later = seen("later", kind="overlay")
    assert len(list(generations.iterdir())) == 2
    for view in (first, same):
        view.close()
    assert len(list(generations.iterdir())) == 1
    (later.path / "f").write_text("2")
    later.commit()
    later.close()
    assert list(generations.iterdir()) == []


def test_a_closed_view_commits_nothing(views, volume):
    """A background commit may come when the container's files are already being removed."""
    first, _ = views
    (first.path / "f").write_text("1")
    first.commit()
    first.close()
    assert first.commit() == 0
    assert content(volume.committed) == {"f": b"1"}


def test_files_that_are_being_written_are_left_out_of_a_background_commit(views, volume):
    """Those that are named, and those that change while they are copied."""
    first, _ = views
    for name in ("open", "closed", "changing"):
        (first.path / name).write_text("1")

    def busy():
        (first.path / "changing").write_text("12")
        return {"open"}

    first.commit(busy)
    assert content(volume.committed) == {"closed": b"1"}
    assert first.uncommitted() == ["changing", "open"]
    first.commit(set)
    assert content(volume.committed) == {"closed": b"1", "changing": b"12", "open": b"1"}


def test_a_reload_leaves_the_directory_that_is_mounted_by_itself(volume, views, seen):
    first, _ = views
    (first.path / "run1").mkdir()
    (first.path / "run1" / "log").write_text("x")
    (first.path / "run2").mkdir()
    first.commit()
    mounted = seen("mounted", sub_path="run1")
    (first.path / "run1" / "log").unlink()
    for name in ("run1", "run2"):
        (first.path / name).rmdir()
    first.commit()
    before = (mounted.path / "run1").stat().st_ino
    mounted.reload()
    assert (mounted.path / "run1").stat().st_ino == before
    assert content(mounted.path) == {"run1": None}


@pytest.mark.parametrize("path", ["link", "link/below", "file", "file/below"])
def test_a_sub_path_through_a_link_or_a_file_is_refused(volume, path, tmp_path):
    """What is mounted there would not be a part of this Volume."""
    (volume.committed / "real").mkdir()
    (volume.committed / "link").symlink_to("real")
    (volume.committed / "file").touch()
    with pytest.raises(ValueError, match="is no directory"):
        volume.require_directory(path, create=True)
    volume.require_directory("real/made", create=True)
    assert (volume.committed / "real/made").is_dir()


def test_a_file_written_on_during_the_commit_is_committed_whole_later(views):
    """A copy of a file in progress may be torn; the next commit replaces it."""
    first, second = views
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            (first.path / "busy").write_bytes(b"%020d" % number * 5000)
        return number

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            first.commit()
    finally:
        stop.set()
        thread.join()
    first.commit()
    second.reload()

    assert (second.path / "busy").read_bytes() == (first.path / "busy").read_bytes()


def test_concurrent_commits_and_reloads_end_in_one_tree(views, volume):
    """Views of one Volume work at the same time, as containers do."""

    def work(view, name):
        for number in range(15):
            (view.path / f"{name}-{number}").write_text(name)
            view.commit()
            view.reload()

    threads = [threading.Thread(target=work, args=(v, n)) for v, n in zip(views, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for view in views:
        view.reload()

    assert len(content(volume.committed)) == 30
    assert content(views[0].path) == content(views[1].path) == content(volume.committed)


PATHS = ["a", "b", "a/x", "a/y", "b/x", "a/x/deep"]


class TwoViews(RuleBasedStateMachine):
    """Two views and a model of each as a dictionary; names of files and directories collide."""

    kind: Kind = "copy"

    @initialize()
    def start(self):
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        root = Path(self.directory.name)
        self.volume = VolumeRegistry(root / "v").get_or_create("v", 0, create=True)
        self.views = [Seen(self.volume, root / "w" / n / "v", kind=self.kind) for n in ("0", "1")]
        self.committed: Content = {}
        self.seen: list[Content] = [{}, {}]  # when view and model last agreed on what is synced
        self.count = 0

    def teardown(self):
        if hasattr(self, "directory"):
            for view in self.views:
                view.close()
            self.directory.cleanup()

    @rule(which=st.integers(0, 1), path=st.sampled_from(PATHS))
    def write(self, which, path):
        target = self.views[which].path / path
        for parent in reversed(target.parents):
            if parent.is_relative_to(self.views[which].path) and parent.is_file():
                parent.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            subprocess.run(["rm", "-r", target], check=True)
        self.count += 1
        target.write_bytes(b"%d" % self.count)

    @rule(which=st.integers(0, 1), path=st.sampled_from(PATHS))
    def remove(self, which, path):
        subprocess.run(["rm", "-rf", self.views[which].path / path], check=True)

    @rule(which=st.integers(0, 1), path=st.sampled_from(PATHS))
    def make_directory(self, which, path):
        target = self.views[which].path / path
        if not any(p.is_file() for p in (target, *target.parents)):
            target.mkdir(parents=True, exist_ok=True)

    @rule(which=st.integers(0, 1))
    def commit(self, which):
        self.views[which].commit()
        self._model_commit(which)

    @rule(which=st.integers(0, 1))
    def reload(self, which):
        self.views[which].reload()
        self._model_commit(which)
        self.seen[which] = dict(self.committed)
        assert content(self.views[which].path) == self.committed

    @rule(which=st.integers(0, 1))
    def start_anew(self, which):
        """Its container was killed; the next one starts from what is committed."""
        self.views[which].close()
        self.count += 1
        root = Path(self.directory.name, "w", f"again-{self.count}", "v")
        self.views[which] = Seen(self.volume, root, kind=self.kind)
        self.seen[which] = dict(self.committed)
        assert content(self.views[which].path) == self.committed

    def _model_commit(self, which):
        # After a commit the view itself is unchanged; after a reload it holds more than its own.
        before = self.seen[which]
        now = self.now[which]
        for path in sorted(before.keys() - now.keys(), reverse=True):
            inside = any(other.startswith(f"{path}/") for other in self.committed)
            if path in self.committed and not (self.committed[path] is None and inside):
                del self.committed[path]
        for path in sorted(p for p in now if p not in before or before[p] != now[p]):
            for parent in list(Path(path).parents)[:-1]:
                self.committed[str(parent)] = None
            for other in [o for o in self.committed if o.startswith(f"{path}/")]:
                if now[path] is not None:
                    del self.committed[other]
            self.committed[path] = now[path]
        self.seen[which] = dict(now)

    @invariant()
    def committed_as_modelled(self):
        if hasattr(self, "volume"):
            assert content(self.volume.committed) == self.committed
            for view, seen in zip(self.views, self.seen, strict=True):
                now = content(view.path)
                changed = {p for p in now.keys() | seen.keys() if now.get(p, "") != seen.get(p, "")}
                assert set(view.uncommitted()) >= changed
            self.now = [content(view.path) for view in self.views]


TestTwoViews = TwoViews.TestCase
TestTwoViews.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@pytest.mark.slow
def test_two_views_that_are_overlays(overlays):
    if overlays is not None:
        pytest.skip(f"no overlays here: {overlays}")

    class TwoOverlays(TwoViews):
        kind = "overlay"

    run_state_machine_as_test(
        TwoOverlays, settings=settings(TestTwoViews.settings, max_examples=15)
    )


# ---------------------------------------------------------------------------- open files


HOLDER = """
import mmap, os, sys
what, path = sys.argv[1:]
if what == "cwd": os.chdir(path)
if what == "open": held = open(path)
if what == "map":
    with open(path) as file: held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
if what == "directory": held = os.open(path, os.O_DIRECTORY)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("what", "path", "expected"),
    [
        ("open", "d/f", ["d/f"]),
        ("map", "d/f", ["d/f"]),
        ("cwd", "d", ["d"]),
        ("cwd", ".", ["."]),
        ("directory", "d", ["d"]),
        ("nothing", ".", []),
    ],
)
def test_what_a_process_holds_open_is_named(tmp_path, what, path, expected):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x" * mmap.PAGESIZE)
    (tmp_path / "other").write_text("x")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, what, tmp_path / path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    ) as process:
        process.stdout.readline()
        assert {held.path for held in held_below([process.pid], str(tmp_path))} == set(expected)
        process.communicate()
    assert list(held_below([process.pid], str(tmp_path))) == []  # it has ended


def test_files_outside_do_not_count(tmp_path):
    (tmp_path / "volume").mkdir()
    with (tmp_path / "outside").open("w"):
        assert list(held_below([os.getpid()], str(tmp_path / "volume"))) == []


MOUNTED = """
import importlib.util, sys, tempfile
boot_file, source, target = sys.argv[1:]
spec = importlib.util.spec_from_file_location("mounts", boot_file.replace("boot.py", "mounts.py"))
mounts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mounts)
with tempfile.TemporaryDirectory() as scratch:
    mounts.enter([{"source": source, "target": target, "read_only": False}], scratch)
    held = open(target + "/file")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_path_that_is_a_link_here_may_be_a_directory_in_the_container(tmp_path):
    if (problem := boot.mounts_available()) is not None:
        pytest.skip(problem)
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "file").touch()
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to("disk")
    target = str(tmp_path / "data" / "volume")
    command = [sys.executable, "-c", MOUNTED, boot.__file__, str(tmp_path / "view"), target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        assert [held.path for held in held_below([process.pid], target)] == ["file"]
        process.communicate()


# ---------------------------------------------------------------------------- names and paths


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/../etc/passwd", "a/../b"])
def test_paths_that_leave_the_volume_are_refused(volume, path):
    with pytest.raises(ValueError, match="leads out of the Volume 'data'"):
        volume.resolve(path)


def test_a_link_that_leaves_the_volume_is_not_followed(volume, views, tmp_path):
    """A container may commit any link; a client must not read the host through it."""
    (tmp_path / "secret").write_text("s")
    (views[0].path / "link").symlink_to(tmp_path)
    views[0].commit()

    for path in ("link", "link/secret"):
        with pytest.raises(ValueError, match="leads out"):
            volume.resolve(path)
    assert volume.resolve("link", follow=False).is_symlink()


def test_a_commit_does_not_write_through_a_link_of_another_container(views, tmp_path):
    first, second = views
    outside = tmp_path / "outside"
    outside.mkdir()
    (first.path / "d").mkdir()
    first.commit()
    second.reload()
    (second.path / "d").rmdir()
    (second.path / "d").symlink_to(outside)
    second.commit()

    (first.path / "d/f").write_text("1")
    first.commit()

    assert list(outside.iterdir()) == []


def test_a_commit_removes_nothing_through_a_link_of_another_container(views, volume, tmp_path):
    first, second = views
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "model").write_text("precious")
    (first.path / "latest").mkdir()
    (first.path / "latest" / "model").write_text("old")
    first.commit()
    second.reload()
    (second.path / "latest" / "model").unlink()
    (second.path / "latest").rmdir()
    (second.path / "latest").symlink_to(tmp_path / "host")
    second.commit()
    (first.path / "latest" / "model").unlink()
    first.commit()
    assert (tmp_path / "host" / "model").read_text() == "precious"


def test_a_directory_that_cannot_be_read_is_not_taken_for_empty(views, volume):
    view, _ = views
    (view.path / "kept").write_text("x")
    view.commit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            view.commit()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (volume.committed / "kept").exists()


def test_a_background_commit_removes_nothing_that_is_on_its_way_to_another_name(views, volume):
    view, _ = views
    (view.path / "log").write_text("x")
    view.commit()
    (view.path / "log").rename(view.path / "log.1")
    view.commit(lambda: {"log.1"})  # it is still being written
    assert (volume.committed / "log").exists()
    view.commit()
    assert {path.name for path in volume.committed.iterdir()} == {"log.1"}


KILLED = """
import os, sys
from pathlib import Path
from modalkit.local.views import View
from modalkit.local.volumes import VolumeRegistry

root, changes = Path(sys.argv[1]), int(sys.argv[2])
volume = VolumeRegistry(root / "volumes").get_or_create("data", 0, create=True)
view = View(volume, root / "views" / "one" / "data")
(view.path / "ckpt-1").write_text("1")
view.commit()
(view.path / "ckpt-2").write_text("2")
(view.path / "ckpt-1").unlink()
left = [changes]

def on_change(event, arguments):
    if event in ("os.rename", "os.remove"):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)

sys.addaudithook(on_change)
view.commit()
"""


def test_a_commit_that_is_killed_loses_no_file_for_another(tmp_path):
    codes = []
    for changes in range(6):
        command = [sys.executable, "-c", KILLED, str(tmp_path / str(changes)), str(changes)]
        codes.append(subprocess.run(command, check=False).returncode)
        [committed] = (tmp_path / str(changes) / "volumes").glob("*/committed")
        assert list(committed.glob("ckpt-*")), changes
    assert codes[0] == 9
    assert codes[-1] == 0


def test_put_refuses_the_root(volume, tmp_path):
    (tmp_path / "f").write_text("1")
    with pytest.raises(ValueError, match="names no file"), volume.incoming() as incoming:
        incoming.add(tmp_path / "f", "/")
    assert not list(volume.staging.iterdir())


def test_what_is_being_written_is_no_longer_taken_for_known(tmp_path):
    """Two writes within one step of the kernel's clock may look alike."""
    done = threading.Event()

    def write_on() -> None:
        while not done.wait(0.001):
            (tmp_path / "f").write_text("x")

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write_on)
        try:
            while not (tmp_path / "f").exists():
                pass
            seen = trees.settled_scan(tmp_path)["f"]
        finally:
            done.set()
        writing.result()
    last = trees.settled_scan(tmp_path)["f"]
    assert seen not in (last, trees.stamp_of(tmp_path / "f"))
    assert trees.settled_scan(tmp_path)["f"] == last == trees.stamp_of(tmp_path / "f")
    assert len(seen) > len(last)


def test_named_volumes_are_found_again_and_ephemeral_ones_are_not(tmp_path):
    registry = VolumeRegistry(tmp_path)
    named = registry.get_or_create("data", 2, create=True)
    (named.committed / "f").write_text("1")
    unnamed = registry.get_or_create(None, 0, create=True)
    assert registry.get_or_create("data", 0, create=False) is named
    assert registry.by_id(unnamed.id) is unnamed
    registry.close()

    again = VolumeRegistry(tmp_path)

    assert again.names() == ["data"]
    assert again.by_id(named.id).version == 2
    assert (again.by_id(named.id).committed / "f").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_ephemeral_volumes_of_a_killed_plane_are_removed(tmp_path):
    VolumeRegistry(tmp_path).get_or_create(None, 0, create=True)
    assert VolumeRegistry(tmp_path).names() == []
    assert list(tmp_path.iterdir()) == []


def test_missing_and_deleted_volumes(tmp_path):
    registry = VolumeRegistry(tmp_path)
    with pytest.raises(KeyError):
        registry.get_or_create("data", 0, create=False)
    volume = registry.get_or_create("data", 0, create=True)
    registry.delete(volume.id)
    with pytest.raises(KeyError):
        registry.by_id(volume.id)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a b", "x" * 64])
def test_names_that_modal_refuses(tmp_path, name):
    with pytest.raises(ValueError, match="is not a Volume name"):
        VolumeRegistry(tmp_path).get_or_create(name, 0, create=True)


def test_volume_is_an_identity(tmp_path):
    """Two Volumes are never equal, whatever they hold: each has its own lock."""
    assert Volume("vo-1", "a", 1, tmp_path) != Volume("vo-1", "a", 1, tmp_path)


@pytest.mark.parametrize("record", ["", '{"id": "vo-1", "na', '["vo-1"]', '{"id": "vo-1"}'])
def test_a_damaged_record_is_named_and_its_remedy_keeps_the_files(tmp_path, record):
    volume = VolumeRegistry(tmp_path).get_or_create("data", 2, create=True)
    (volume.committed / "weights").write_text("1")
    damaged = volume.root / "volume.json"
    damaged.write_text(record)
    with pytest.raises(LocalPlaneError, match=f"{damaged}.*delete this file"):
        VolumeRegistry(tmp_path)
    damaged.unlink()
    again = VolumeRegistry(tmp_path).get_or_create("data", 2, create=True)
    assert (again.committed / "weights").read_text() == "1"


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from modalkit.local.volumes import VolumeRegistry
volume = VolumeRegistry(Path(sys.argv[1])).get_or_create("data", 2, create=True)
def write_half(self, text):
    open(self, "w").write(text[: len(text) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
Path.write_text = write_half
volume.save()
"""


def test_a_record_is_whole_though_the_plane_is_killed_while_it_is_written(tmp_path):
    command = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    assert VolumeRegistry(tmp_path).names() == ["data"]
