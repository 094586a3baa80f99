"""`LocalPlane`: an owner's handle on a plane that runs in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import attrs

from modalkit.errors import LocalPlaneError, PlaneStartError
from modalkit.local import plane_process, switches
from modalkit.local.reports import ContainerInfo, LogLine

if TYPE_CHECKING:
    import modal

POLL_S = 0.02


@attrs.frozen
class VolumeHandle:
    """A Volume, as its committed tree."""

    name: str
    _plane: LocalPlane

    def committed(self) -> Path:
        """
        Return the directory that holds what was committed; read it, do not write to it.

        Raises:
            LocalPlaneError: No app has created this Volume.
        """
        return Path(self._plane.ask("volume", name=self.name))


class LocalPlane:
    """
    Run Modal apps on this machine: the real client, the real entrypoint, no account.

    A context manager. The plane ends with its block, however that ends, and leaves no process and
    no file behind but what is in *state*.

    Args:
        state: Directory that keeps Volumes from one plane to the next; None for a temporary one.
        engine: How a memory snapshot is taken: "inline" goes on in the same process (works
            with every modal, no speed-up), "fork" restores in milliseconds, "auto" is fork where
            the installed modal allows it.
        snapshots: None for deployed apps only, as on Modal; True also under `run`; False never.
        strict_image: An import that the image's install steps do not cover fails, as it would on
            Modal; else it warns.
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
        named = os.environ.get("MODALKIT_LOCAL_PROFILE", "lenient")
        self._options: dict[str, Any] = {
            "snapshots": snapshots,
            "strict_image": strict_image,
            "switches": attrs.asdict(switches.profile(str(named if profile is None else profile))),
            "background_commit_s": background_commit_s,
            "provides": list(provides),
            "gpus": [str(gpu) for gpu in gpus],
            "grace_s": grace_s,
            "heartbeat_timeout_s": heartbeat_timeout_s,
            "python": str(python or sys.executable),
            "echo_logs": echo_logs,
        }
        self._engine = engine
        self._extra_env = dict(env or {})
        self._process: subprocess.Popen[str] | None = None
        self._runtime: Path | None = None
        self.pid = 0
        """Process id of the plane; its parent is the warden."""

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        if sys.platform != "linux":
            raise PlaneStartError(
                f"the local plane needs Linux (namespaces, /proc), and this is {sys.platform}; "
                "run it in a Linux virtual machine or container"
            )
        engine = choose_engine(self._engine)
        self._runtime, state = plane_process.make_directories(self._state)
        configuration = {
            **self._options,
            "runtime": str(self._runtime),
            "state": str(state),
            "engine": engine,
        }
        try:
            self._process = plane_process.start(configuration)
            self.pid = plane_process.greeting(self._process)
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
        if process is not None:
            plane_process.stop(process)
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)

    # ------------------------------------------------------------------ modal's own tools

    @property
    def env(self) -> dict[str, str]:
        """The variables that point a modal client here; no token of yours is among them."""
        return {
            "MODAL_SERVER_URL": f"unix://{self._directory}/plane.sock",
            "MODAL_TOKEN_ID": "ak-local",
            "MODAL_TOKEN_SECRET": "as-local",
            "MODAL_CONFIG_PATH": str(self._directory / "modal.toml"),
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
            check: Raise `subprocess.CalledProcessError` when it exits with another code than 0.
            capture: Keep its output in the result instead of passing it on.
            cwd: Directory to run it in: modal finds local modules there first. Default: this one.
        """
        return subprocess.run(
            # -P: a modal.py in the working directory is not modal. For the app's own modules modal
            # puts that directory on its path later.
            [sys.executable, "-P", "-m", "modal", *arguments],
            env={**plane_process.without_modal(os.environ), **self._extra_env, **self.env},
            cwd=cwd,
            check=check,
            capture_output=capture,
            text=True,
        )

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
        """Run `modal deploy APP_REF`; see `modal`."""
        return self.modal("deploy", app_ref, check=check, capture=capture, cwd=cwd)

    # ------------------------------------------------------------------ looking and poking

    def containers(self, *, all: bool = False) -> list[ContainerInfo]:  # noqa: A002 - the word of every `ps`
        """Return the containers that live, or *all* that there were, oldest first."""
        found = [ContainerInfo(**fields) for fields in self.ask("containers")]
        return [container for container in found if all or container.is_alive]

    def preempt(self, container: str, grace_s: float | None = None) -> None:
        """
        Preempt a container as Modal does: SIGINT, *grace_s* seconds, SIGKILL.

        Its input goes to a new container, and no retry is used.

        Raises:
            UnknownContainerError: There is no such live container.
        """
        self.ask("preempt", container=container, grace_s=grace_s)

    def kill(self, container: str) -> None:
        """
        SIGKILL every process of a container, now.

        Raises:
            UnknownContainerError: There is no such live container.
        """
        self.ask("kill", container=container)

    def logs(self, since: int = 0) -> list[LogLine]:
        """Return what containers wrote, from line number *since* on."""
        return [LogLine(**fields) for fields in self.ask("logs", since=since)]

    def volume(self, name: str) -> VolumeHandle:
        """Return a handle on a Volume."""
        return VolumeHandle(name, self)

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

    @property
    def _directory(self) -> Path:
        if self._process is None or self._runtime is None:
            raise PlaneStartError(
                "the local plane is not running: use it inside of `with LocalPlane() as plane:`"
            )
        return self._runtime


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
