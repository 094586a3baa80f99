"""`LocalPlane`: handles on a plane that runs in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import attrs

from modalkit._environment import PROFILE, QUICK_STARTS
from modalkit.errors import LocalPlaneError, PlaneStartError, UsageError
from modalkit.local import plane_process, switches
from modalkit.local.claim import POLL_S
from modalkit.local.faults import Faults
from modalkit.local.reports import ContainerInfo, ImageInfo, LogLine, PackageInfo, Rpc
from modalkit.local.watch import Trigger, Watch

if TYPE_CHECKING:
    import modal


@attrs.frozen
class VolumeHandle:
    """A Volume, as its committed tree."""

    name: str
    _plane: RunningPlane

    def committed(self) -> Path:
        """
        Return the directory that holds what was committed; read it, do not write to it.

        Raises:
            LocalPlaneError: No app has created this Volume.
        """
        return Path(self._plane.ask("volume", name=self.name))

    def uncommitted(self) -> dict[str, list[str]]:
        """
        Return, for each live container that mounts it, the paths that a kill now would lose.

        A path is in the list when the container added, changed or removed it since its last
        commit, its own or one in the background.

        Raises:
            LocalPlaneError: No app has created this Volume.
        """
        found: dict[str, list[str]] = self._plane.ask("uncommitted", volume=self.name)
        return found


@attrs.frozen
class PlaneClock:
    """
    The clock by which the plane waits: timeouts, retry delays, scale-down windows, expiry.

    Processes, in containers and of clients, have the machine's clock, which nobody moves.
    """

    _plane: RunningPlane

    def time(self) -> float:
        """Return its Unix seconds."""
        found: float = self._plane.ask("time")
        return found

    def advance(self, seconds: float) -> float:
        """
        Move it on by *seconds*: what would fall due in that time falls due now.

        All that the plane waits for has then waited so much longer: also a container that is
        starting (`startup_timeout`) or stopping (the grace period), and an input that is running.

        Returns:
            The new time.

        Raises:
            UsageError: *seconds* is negative.
        """
        if not seconds >= 0:
            raise UsageError(f"the clock moves forwards only, not by {seconds} s")
        found: float = self._plane.ask("advance", seconds=seconds)
        return found


class RunningPlane:
    """
    A plane that is up, and how it is used, asked and poked.

    Args:
        directory: The plane's own directory, with its sockets.
        env: Further environment variables for the `modal` commands that are started here.
    """

    def __init__(self, directory: Path, env: Mapping[str, str] | None = None) -> None:
        self._runtime: Path | None = directory
        self._watch = Watch(self)
        self._extra_env = dict(env or {})

    @property
    def _directory(self) -> Path:
        if self._runtime is None:
            raise PlaneStartError(
                "the local plane is not running: use it inside of `with LocalPlane() as plane:`"
            )
        return self._runtime

    # ------------------------------------------------------------------ modal's own tools

    @property
    def env(self) -> dict[str, str]:
        """The variables that point a modal client here; no token of yours is among them."""
        return self.settings(self._directory)

    @staticmethod
    def settings(directory: Path) -> dict[str, str]:
        """Return the variables that point a modal client at the plane in *directory*."""
        return {
            "MODAL_SERVER_URL": f"unix://{directory}/plane.sock",
            "MODAL_TOKEN_ID": "ak-local",
            "MODAL_TOKEN_SECRET": "as-local",
            "MODAL_CONFIG_PATH": str(directory / "modal.toml"),
            plane_process.PLANE_VARIABLE: str(directory),
        }

    def client(self) -> modal.Client:
        """
        Return a modal client of this plane.

        It goes into lookups: `modal.Cls.from_name("app", "Class", client=plane.client())`.
        """
        from modalkit.local._private import open_client

        env = self.env
        client: modal.Client = open_client(
            env["MODAL_SERVER_URL"], env["MODAL_TOKEN_ID"], env["MODAL_TOKEN_SECRET"]
        )
        return client

    def modal(
        self,
        *arguments: str,
        check: bool = True,
        capture: bool = False,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """
        Run `modal ARGUMENTS` against this plane.

        Args:
            arguments: As on the command line.
            check: Raise `subprocess.CalledProcessError` when it exits with another code than 0;
                output that was captured is a note of the error.
            capture: Keep its output in the result instead of passing it on.
            cwd: Directory to run it in: modal finds local modules there first. Default: this one.
        """
        done = subprocess.run(
            # -P: a modal.py in the working directory is not modal. For the app's own modules modal
            # puts that directory on its path later.
            [sys.executable, "-P", "-m", "modal", *arguments],
            env={**plane_process.without_modal(os.environ), **self._extra_env, **self.env},
            cwd=cwd,
            check=False,
            capture_output=capture,
            text=True,
        )
        if check:
            _check(done)
        return done

    def run(
        self,
        app_ref: str,
        *arguments: str,
        check: bool = True,
        capture: bool = False,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `modal run APP_REF ARGUMENTS`; see `modal`."""
        return self.modal("run", app_ref, *arguments, check=check, capture=capture, cwd=cwd)

    def deploy(
        self,
        app_ref: str,
        *,
        check: bool = True,
        capture: bool = True,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `modal deploy APP_REF`, see `modal`; what it warns of goes to stderr in any case."""
        done = self.modal("deploy", app_ref, check=check, capture=capture, cwd=cwd)
        sys.stderr.write(done.stderr or "")
        return done

    # ------------------------------------------------------------------ looking and poking

    def containers(self, *, all: bool = False) -> list[ContainerInfo]:  # noqa: A002 - the word of every `ps`
        """Return the containers that live, or *all* that there were, oldest first."""
        found = [ContainerInfo(**fields) for fields in self.ask("containers")]
        return [container for container in found if all or container.is_alive]

    def preempt(
        self,
        container: str | None = None,
        grace_s: float | None = None,
        *,
        after: Trigger | None = None,
        timeout_s: float = 60.0,
    ) -> ContainerInfo:
        """
        Preempt a container as Modal does: SIGINT, *grace_s* seconds, SIGKILL.

        Its input goes to a new container, and no retry is used.

        Args:
            container: Its id; None for the first one to which *after* happens.
            grace_s: Default: that of the plane.
            after: Wait first, until a live container writes a line with this text, or one that
                this pattern is found in; until it has run an input for this many seconds, from when
                this call first sees it; or until this function of its `ContainerInfo` returns true.
                A line that was written before counts too, once: the next call looks at later lines
                only.
            timeout_s: How long to wait for it.

        Returns:
            The container, as it was just before.

        Raises:
            UnknownContainerError: There is no such live container, or it ends meanwhile.
            LocalPlaneError: What it should come after did not happen in time.
        """
        return self._strike("preempt", container, after, timeout_s, grace_s=grace_s)

    def kill(
        self,
        container: str | None = None,
        *,
        after: Trigger | None = None,
        timeout_s: float = 60.0,
    ) -> ContainerInfo:
        """
        SIGKILL every process of a container, now; see `preempt`.

        Raises:
            UnknownContainerError: There is no such live container, or it ends meanwhile.
            LocalPlaneError: What it should come after did not happen in time.
        """
        return self._strike("kill", container, after, timeout_s)

    def _strike(
        self,
        operation: str,
        container: str | None,
        after: Trigger | None,
        timeout_s: float,
        **arguments: Any,
    ) -> ContainerInfo:
        if after is not None:
            return self._watch.strike(
                after,
                container,
                timeout_s,
                lambda found: self.ask(operation, container=found, **arguments),
            )
        if container is None:
            raise UsageError(f"{operation} which container? Name its id, or after= what")
        self.ask(operation, container=container, **arguments)
        return next(found for found in self.containers(all=True) if found.id == container)

    @property
    def faults(self) -> Faults:
        """What can be made to go wrong."""
        return Faults(self)

    @property
    def clock(self) -> PlaneClock:
        """The plane's clock, which can be moved on."""
        return PlaneClock(self)

    def transcript(self, since: int = 0, *, name: str | None = None) -> list[Rpc]:
        """
        Return the RPCs that the plane answered, the last 20,000 or 64 MiB of them.

        Args:
            since: The number of the first one.
            name: Only those of this name, such as "VolumeCommit".
        """
        found: list[Rpc] = []
        while page := [Rpc(**fields) for fields in self.ask("transcript", since=since)]:
            found += page
            since = page[-1].index + 1
        return [rpc for rpc in found if name in (None, rpc.name)]

    def logs(self, since: int = 0) -> list[LogLine]:
        """Return what containers wrote, from line number *since* on."""
        return [LogLine(**fields) for fields in self.ask("logs", since=since)]

    def images(self) -> list[ImageInfo]:
        """Return what the images of all apps would hold, and what this machine has instead."""
        return [
            ImageInfo(**{**fields, "packages": [PackageInfo(**p) for p in fields["packages"]]})
            for fields in self.ask("images")
        ]

    def volume(self, name: str) -> VolumeHandle:
        """Return a handle on a Volume."""
        return VolumeHandle(name, self)

    def wait_for_line(
        self, text: str | re.Pattern[str], timeout_s: float = 60.0, *, since: int = 0
    ) -> LogLine:
        """
        Wait until a container has written a line with *text*, and return that line.

        Args:
            text: A part of the line, or a pattern to be found in it.
            timeout_s: How long to wait for it.
            since: The number of the first line to look at.

        Raises:
            LocalPlaneError: There was none in time.
        """
        return self._watch.line(text, since, timeout_s)

    def wait_for(
        self, predicate: Callable[[Sequence[ContainerInfo]], bool], timeout_s: float = 60.0
    ) -> list[ContainerInfo]:
        """
        Wait until *predicate* holds for `containers(all=True)`, and return them.

        Raises:
            LocalPlaneError: It did not within *timeout_s* seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not predicate(found := self.containers(all=True)):
            if time.monotonic() > deadline:
                raise LocalPlaneError(f"waited {timeout_s:g} s in vain; the containers are {found}")
            time.sleep(POLL_S)
        return found

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Send one request to the plane's control socket and return the result."""
        return plane_process.ask(self._directory / "control.sock", operation, arguments)

    def down(self) -> None:
        """End a plane that stays: its containers as by SIGKILL, everything of it is gone then."""
        plane_process.end(self._directory)


def _check(done: subprocess.CompletedProcess[str]) -> None:
    """Raise where a command failed, with what it said: pytest shows the notes of an error."""
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        if said := f"{done.stdout or ''}{done.stderr or ''}".strip():
            error.add_note(said)
        raise


def _several(name: str, values: Sequence[str | int]) -> list[str]:
    if isinstance(values, str):  # it would be read letter by letter
        raise UsageError(f"{name}={values!r} is a str: write {name}={values.split(',')!r}")
    return [str(value) for value in values]


def _quick_starts() -> bool:
    return os.environ.get(QUICK_STARTS, "0") not in ("", "0")


class LocalPlane(RunningPlane):
    """
    Run Modal apps on this machine: the real client, the real entrypoint, no account.

    A context manager. The plane ends with its block, however that ends, and leaves no process and
    no file behind but what is in *state*.

    Args:
        state: Directory that keeps Volumes, deployed apps and results from one plane to the next;
            None for a temporary one.
        engine: How a memory snapshot is taken: "inline" goes on in the same process (works
            with every modal, no speed-up), "fork" restores in milliseconds, "auto" is fork where
            the installed modal allows it.
        snapshots: None for deployed apps only, as on Modal; True also under `run`; False never.
        strict_image: An import that the image's install steps do not cover fails, as it would on
            Modal; else it warns.
        quick_starts: Fork cold containers from a process that has imported modal already, instead
            of starting an interpreter for each: a tenth of the time. Nothing else differs, but
            that the seed of Python's hashes is the same in all of them. Default: only where
            $MODALKIT_LOCAL_QUICK_STARTS is 1.
        profile: How it behaves where Modal's behaviour is unknown: "lenient", "strict", a number
            that seeds a draw, and changes such as "strict,same_input_twice=never"; see
            `modalkit.local.switches`. Default: $MODALKIT_LOCAL_PROFILE, or "lenient".
        background_commit_s: Seconds between background commits of Volumes; 0 for none. Modal says
            "every few seconds".
        provides: Distributions that base images bring which the plane cannot read.
        gpus: Indices or UUIDs of the GPUs here that containers with a `gpu=` may use. Default:
            none is visible.
        grace_s: Seconds between the interrupt and the kill of a preemption. Default: Modal's 30.
        heartbeat_timeout_s: Seconds of silence after which a container is taken for dead. Modal's
            limit is not public.
        python: Interpreter of the containers. Default: this one.
        env: Further environment variables for the `modal` commands that are started here.
        echo_logs: Copy all container output to this process's stderr.

    Raises:
        PlaneStartError: It did not start; the reason is in the message.
    """

    def __init__(
        self,
        state: str | Path | None = None,
        *,
        engine: Literal["auto", "inline", "fork"] = "auto",
        snapshots: bool | None = None,
        strict_image: bool = False,
        quick_starts: bool | None = None,
        profile: str | int | None = None,
        background_commit_s: float = 5.0,
        provides: Sequence[str] = (),
        gpus: Sequence[str | int] = (),
        grace_s: float = 30.0,
        heartbeat_timeout_s: float = 300.0,
        python: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        echo_logs: bool = False,
    ) -> None:
        self._state = Path(state).absolute() if state is not None else None
        named = os.environ.get(PROFILE) or "lenient"
        self.profile = str(named if profile is None else profile)
        """How it behaves where Modal's behaviour is unknown."""
        self._options: dict[str, Any] = {
            "snapshots": snapshots,
            "strict_image": strict_image,
            "quick_starts": _quick_starts() if quick_starts is None else quick_starts,
            "switches": attrs.asdict(switches.profile(self.profile)),
            "background_commit_s": background_commit_s,
            "provides": _several("provides", provides),
            "gpus": _several("gpus", gpus),
            "grace_s": grace_s,
            "heartbeat_timeout_s": heartbeat_timeout_s,
            "python": str(python or sys.executable),
            "echo_logs": echo_logs,
        }
        self._engine = engine
        self._extra_env = dict(env or {})
        self._watch = Watch(self)
        self._process: subprocess.Popen[str] | None = None
        self._runtime = None
        self.pid = 0
        """Process id of the plane; its parent is the warden."""

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        runtime, configuration = self._configure(stays=False)
        self._runtime, self._watch = runtime, Watch(self)
        try:
            self._process = plane_process.start(configuration)
            self.pid = plane_process.greeting(self._process).pid
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        runtime, self._runtime = self._runtime, None
        if process is not None:
            plane_process.stop(process)
        if runtime is not None and self._state is None:  # else it may be the next plane's by now
            shutil.rmtree(runtime, ignore_errors=True)

    def up(self) -> plane_process.Greeting:
        """
        Start a plane that stays, also when this process ends; `LocalPlane.attach` finds it.

        Without a *state* it has the one of this user's planes that stay.
        """
        self._state = self._state or plane_process.default_state()
        _, configuration = self._configure(stays=True)
        log = self._state / plane_process.LOG
        process = plane_process.start(configuration, log)
        try:
            return plane_process.greeting(process, log)
        except BaseException:
            process.terminate()
            raise
        finally:
            plane_process.let_go(process)

    @staticmethod
    def attach(state: str | Path | None = None) -> RunningPlane:
        """
        Return the plane that is up with this *state*.

        Without one: the plane that $MODALKIT_LOCAL_PLANE names, or the one with the default state.

        Raises:
            PlaneStartError: There is none.
        """
        runtime = plane_process.find(Path(state).absolute() if state is not None else None)
        if runtime is None:
            named = os.environ.get(plane_process.PLANE_VARIABLE)
            where = state or named or plane_process.default_state()
            option = f" --state {state}" if state else ""
            raise PlaneStartError(
                f"no local plane is up at {where}; `modalkit local up{option}` starts one"
            )
        return RunningPlane(runtime)

    def _configure(self, *, stays: bool) -> tuple[Path, dict[str, Any]]:
        """Make its directories; return its own one, and what its process is told."""
        if sys.platform != "linux":
            raise PlaneStartError(
                f"the local plane needs Linux (namespaces, /proc), and this is {sys.platform}; "
                "run it in a Linux virtual machine or container"
            )
        engine = choose_engine(self._engine)
        runtime, state = plane_process.make_directories(self._state)
        return runtime, {
            **self._options,
            "runtime": str(runtime),
            "state": str(state),
            "engine": engine,
            "kept": self._state is not None,
            "stays": stays,
        }


def choose_engine(wanted: Literal["auto", "inline", "fork"]) -> Literal["inline", "fork"]:
    """
    Return the snapshot engine to use.

    Raises:
        PlaneStartError: "fork" was asked for and the installed modal does not allow it.
    """
    if wanted == "inline":
        return "inline"
    from modalkit.local._private import probe

    missing = probe()
    if missing is None:
        return "fork"
    if wanted == "fork":
        raise PlaneStartError(
            f"the fork engine cannot be used here: {missing}; use engine='inline'"
        )
    return "inline"
