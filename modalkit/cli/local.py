"""`modalkit local`: Modal apps on this machine."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click
from rich.console import Console
from rich.table import Table

from modalkit.cli.images import images
from modalkit.cli.secret import secret
from modalkit.errors import PlaneStartError
from modalkit.local import ContainerInfo, LocalPlane

Command = TypeVar("Command", bound=Callable[..., Any])

STRAY_SETTINGS = ("MODAL_PROFILE", "MODAL_ENVIRONMENT", "MODAL_TASK_ID", "MODAL_IS_REMOTE")
"""Of modal's: they would lead its client elsewhere than to the plane."""


def _plane_options(command: Command) -> Command:
    """Give *command* the options of a new plane; it gets them as `state` and `options`."""
    for option in reversed(_PLANE_OPTIONS):
        command = option(command)
    return command


def _comma_list(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


_state_option = click.option(
    "--state",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The state directory of the plane.",
)
_PLANE_OPTIONS = (
    click.option(
        "--state",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        help="Keep Volumes, deployed apps and results in this directory.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "inline", "fork"]),
        default="auto",
        show_default=True,
        help="How snapshots are taken: in the same process, or by fork, restored in milliseconds.",
    ),
    click.option(
        "--snapshots",
        is_flag=True,
        help="Take snapshots under `modal run` too, which never does; deployed apps always do.",
    ),
    click.option(
        "--strict-image",
        is_flag=True,
        help="Fail on an import that the app's image does not install.",
    ),
    click.option(
        "--profile",
        metavar="lenient|strict|SEED",
        help="How to behave where Modal's behaviour is not public: as is best for the app, as is "
        "worst, or a mix drawn by a number.  [default: $MODALKIT_LOCAL_PROFILE, or lenient]",
    ),
    click.option(
        "--gpus",
        metavar="0,1",
        default="",
        callback=_comma_list,
        help="GPUs of this machine that containers with a `gpu=` may use; none is visible else.",
    ),
    click.option(
        "--provides",
        metavar="NAME,...",
        default="",
        callback=_comma_list,
        help="Distributions that base images bring and the plane cannot read.",
    ),
    click.option(
        "--background-commit-s",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        default=5.0,
        show_default=True,
        help="Time between background commits of Volumes; 0 for none.",
    ),
)


def _new_plane(state: Path | None, options: dict[str, Any]) -> LocalPlane:
    # A flag that is not given leaves the choice to the plane: deployed apps only.
    return LocalPlane(state, **{**options, "snapshots": options["snapshots"] or None})


@click.group()
def local() -> None:
    """
    Run Modal apps on this machine, without an account.

    \b
    One app, and nothing is left:   modalkit local run app.py::train
    A plane that stays:             modalkit local up
                                    eval "$(modalkit local env)"
                                    modal deploy app.py
                                    modalkit local ps
                                    modalkit local down
    """


# ---------------------------------------------------------------------- one app


local.add_command(secret)


local.add_command(images)


@local.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run an app as `modal run` does, here.",
)
@_plane_options
@click.argument("app_ref")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(*, state: Path | None, app_ref: str, arguments: tuple[str, ...], **options: Any) -> None:
    """
    Run APP_REF with its ARGUMENTS as `modal run APP_REF ARGUMENTS` would on Modal.

    The real modal client and the real container entrypoint run on this machine; nothing leaves it.
    The plane is a new one, also beside one that is up, and ends with the app. The exit code is
    modal's, or 128 and the number of the signal that ended it.

    \b
    Examples:
      modalkit local run app.py
      modalkit local run app.py::train --epochs 3
      modalkit local run --state ./volumes --strict-image app.py::train --run-id first
    """
    with _new_plane(state, options) as plane, _interrupts_left_to_modal():
        completed = plane.run(app_ref, *arguments, check=False)
    code = completed.returncode
    sys.exit(code if code >= 0 else 128 - code)  # as a shell does


@contextmanager
def _interrupts_left_to_modal() -> Iterator[None]:
    """
    Let a Ctrl-C do what it does under `modal run`: the client stops the app, containers may save.

    The client is in this process's group and hears it too. A handler, unlike SIG_IGN, is not
    inherited by it.
    """
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


# ---------------------------------------------------------------------- a plane that stays


@local.command()
@_plane_options
def up(*, state: Path | None, **options: Any) -> None:
    """
    Start a plane that stays until `modalkit local down`.

    Deployed apps, Volumes, and the results of calls are in its state directory, by default
    ~/.local/state/modalkit/plane. The next `up` goes on with them, also after a crash: inputs that
    were accepted and not finished run again. Logs are not kept.

    \b
    Examples:
      modalkit local up
      modalkit local up --state ./plane --profile strict
      eval "$(modalkit local env)"     # then plain `modal run`, `modal deploy`, `modal app list`
    """
    greeting = _new_plane(state, options).up()
    _say("A local plane is up.")
    if greeting.was_killed:
        _say("The one before it was killed; this one recovered.")
    if greeting.apps or greeting.inputs:
        _say(f"Deployed apps: {greeting.apps}. Inputs that run again: {greeting.inputs}.")
    option = f" --state {shlex.quote(str(state))}" if state else ""
    _say(f'Use it in this shell: eval "$(modalkit local env{option})"')


@local.command()
@_state_option
def down(*, state: Path | None) -> None:
    """
    End the plane that is up.

    Its containers end as by a lost machine: what they committed is kept, and their inputs run again
    after the next `up`. Deployed apps stay deployed; `modal app stop` takes one away for good.

    \b
    Examples:
      modalkit local down
      modalkit local down --state ./plane
    """
    try:
        plane = LocalPlane.attach(state)
    except PlaneStartError:
        _say("No local plane is up.")
        return
    plane.down()
    _say("The local plane has ended.")


@local.command()
@_state_option
@click.option("--unset", is_flag=True, help="Print what unsets them all.")
def env(*, state: Path | None, unset: bool) -> None:
    """
    Print the settings that lead modal's own commands to the plane, for a shell to read.

    \b
    Examples:
      eval "$(modalkit local env)"
      modal deploy app.py && modal app logs my-app
      eval "$(modalkit local env --unset)"
    """
    if unset:
        names = [*LocalPlane.settings(Path()), *STRAY_SETTINGS]
        click.echo("unset " + " ".join(names))
        return
    try:
        plane = LocalPlane.attach(state)
    except PlaneStartError:
        click.echo("false")  # `eval` of nothing would succeed, and the next command go to Modal
        raise
    for name, value in plane.env.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    click.echo("unset " + " ".join(STRAY_SETTINGS))


@local.command()
@_state_option
@click.option("--all", "show_all", is_flag=True, help="Show containers that have ended, too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with every field.")
def ps(*, state: Path | None, show_all: bool, as_json: bool) -> None:
    """
    Show the containers of the plane that is up.

    \b
    Examples:
      modalkit local ps
      modalkit local ps --all --json
    """
    containers = LocalPlane.attach(state).containers(all=show_all)
    if as_json:
        click.echo(json.dumps([attrs.asdict(container) for container in containers], indent=2))
    else:
        Console().print(_table(containers))


def _table(containers: list[ContainerInfo]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("container", "app", "function", "state", "kind"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "container")
    for heading in ("inputs", "pid", "age"):
        table.add_column(heading, justify="right")
    for found in containers:
        state = found.state if found.is_alive else f"exited ({found.returncode})"
        age = _duration((found.exited_at or time.time()) - found.launched_at)
        row = (found.id, found.app, found.function, state, found.kind)
        table.add_row(*row, str(len(found.inputs)), str(found.pid or "-"), age)
    return table


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


# ---------------------------------------------------------------------- poking


@local.command()
@_state_option
@click.argument("container")
@click.option(
    "--grace-s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="Time between the interrupt and the kill.  [default: 30, as on Modal]",
)
def preempt(*, state: Path | None, container: str, grace_s: float | None) -> None:
    """
    Preempt CONTAINER of the plane that is up, as Modal does: SIGINT, a grace period, SIGKILL.

    Its inputs go to a new container, and no retry is used.

    \b
    Examples:
      modalkit local ps
      modalkit local preempt ta-3f9a1c000017
      modalkit local preempt ta-3f9a1c000017 --grace-s 2
    """
    LocalPlane.attach(state).preempt(container, grace_s)


@local.command()
@_state_option
@click.argument("container")
def kill(*, state: Path | None, container: str) -> None:
    """
    Kill every process of CONTAINER, now, as a lost machine would.

    \b
    Examples:
      modalkit local kill ta-3f9a1c000017
    """
    LocalPlane.attach(state).kill(container)


def _say(text: str) -> None:
    """Tell a person; stdout is for data."""
    click.echo(text, err=True)
