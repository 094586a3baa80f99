"""`modalkit local secret`: the Secrets of a state directory, with no plane running or with one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from modalkit.errors import MissingDependencyError, UsageError
from modalkit.local.object_store import ObjectStore, Stored, object_directory
from modalkit.local.plane_process import default_state


@click.group()
def secret() -> None:
    """
    Set, list and delete named Secrets; their values are never shown.

    A container gets the values that a Secret has when it starts.
    """


def _state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_state,
        help="The state directory, as given to `modalkit local run` or `up`.  "
        "[default: the one of `modalkit local up`]",
    )(command)


@contextlib.contextmanager
def _open(state: Path) -> Iterator[ObjectStore]:
    if not object_directory(state).is_dir():
        raise UsageError(f"no plane or `modalkit local secret set` has used {state} yet")
    with contextlib.closing(ObjectStore(object_directory(state))) as store:
        yield store


def _find(store: ObjectStore, name: str, state: Path) -> Stored:
    if (found := store.find("st", name=name)) is None:
        raise UsageError(f"no Secret {name!r} in {state}; see `modalkit local secret list`")
    return found


@secret.command("set")
@_state_option
@click.option(
    "--from-dotenv",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read variables from this .env file.",
)
@click.argument("name")
@click.argument("variables", nargs=-1, metavar="[KEY=VALUE]...")
def set_(*, state: Path, from_dotenv: Path | None, name: str, variables: tuple[str, ...]) -> None:
    """
    Set the Secret NAME to these variables and no others.

    \b
    Examples:
      modalkit local secret set --state ./state wandb WANDB_API_KEY=...
      modalkit local secret set --state ./state all --from-dotenv .env
    """
    values = _from_file(from_dotenv) if from_dotenv else {}
    for number, variable in enumerate(variables, 1):
        key, equals, value = variable.partition("=")
        if not equals or not key:
            # Not the argument itself: it may be the value.
            raise UsageError(f"variable {number} of the Secret {name!r} is not KEY=VALUE")
        values[key] = value
    if not values:
        raise UsageError(f"no variable for the Secret {name!r}: give KEY=VALUE or --from-dotenv")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    object_directory(state).mkdir(mode=0o700, exist_ok=True)
    with _open(state) as store:
        try:
            stored = store.find("st", name=name) or store.create("st", name)
        except ValueError as error:
            raise UsageError(str(error)) from error
        store.set_secret(stored.id, values, replace=True)
    click.echo(f"Secret {name}: {', '.join(sorted(values))}")


def _from_file(path: Path) -> dict[str, str]:
    try:
        from dotenv import dotenv_values
    except ImportError as error:
        raise MissingDependencyError(
            f"to read {path}, as modal too does, run `pip install python-dotenv`"
        ) from error
    return {key: value for key, value in dotenv_values(path).items() if value is not None}


@secret.command("list")
@_state_option
def list_(*, state: Path) -> None:
    """List the Secrets and the names of their variables."""
    with _open(state) as store:
        for stored in sorted(store.named("st"), key=lambda found: found.name):
            click.echo(f"{stored.name}: {', '.join(sorted(store.secret(stored.id)))}")


@secret.command("delete")
@_state_option
@click.argument("name")
def delete(*, state: Path, name: str) -> None:
    """Delete the Secret NAME."""
    with _open(state) as store:
        store.delete(_find(store, name, state).id)
