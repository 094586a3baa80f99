"""
Every private name of modal's that modalkit's local plane uses, in this one place.

The fork engine needs most of them: it takes the container entrypoint apart at the moment of the
snapshot and puts it together again in each child. `probe` says whether the installed modal still
has them all; where it does not, the plane uses the inline engine, which needs none.

A repair after a modal release happens here. The standard library only, besides modal itself: this
runs in the container's interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import os
import selectors
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

# module, attribute. What is set on instances only is listed in ASSIGNED.
NAMES: Final = (
    ("modal._runtime.user_code_imports", "maybe_snapshot"),
    ("modal._runtime.user_code_event_loop", "UserCodeEventLoop.__enter__"),
    ("modal._runtime.container_io_manager", "ContainerIOManager.heartbeats"),
    ("modal._runtime.task_lifecycle_manager", "TaskLifecycleManager.memory_restore"),
    ("modal._utils.async_utils", "synchronize_api"),
    ("modal._utils.async_utils", "synchronizer._close_loop"),
    ("modal.client", "_Client._open"),
    ("modal.client", "_Client._stub"),
    ("modal.client", "_Client._prep_for_snapshot"),
    ("modal.client", "_Client._get_channel"),
    ("modal.client", "_Client._client_from_env_lock"),
)
# module, function, attributes that it assigns on its instance.
ASSIGNED: Final = (
    ("modal._runtime.user_code_event_loop", "UserCodeEventLoop.__enter__", ("loop",)),
    (
        "modal._runtime.task_lifecycle_manager",
        "_TaskLifecycleManager._init",
        ("_client", "checkpoint_id"),
    ),
    ("modal.client", "_Client.__init__", ("_shutdown_unregister",)),
)
SNAPSHOT_PARAMETERS: Final = [
    "function_def",
    "snapshot_context_manager",
    "task_lifecycle_manager",
]


def probe() -> str | None:
    """
    Check that all names are there.

    Returns:
        None, or the reason why the fork engine cannot be used with the installed modal.
    """
    missing = [f"{module}.{name}" for module, name in NAMES if _find(module, name) is None]
    for module, name, attributes in ASSIGNED:
        code = getattr(_find(module, name), "__code__", None)
        known = code.co_names if code else ()
        missing += [f"{module}.{name}: self.{a}" for a in attributes if a not in known]
    snapshot = _find(*NAMES[0])
    if snapshot and list(inspect.signature(snapshot).parameters) != SNAPSHOT_PARAMETERS:
        missing.append(f"{NAMES[0][0]}.maybe_snapshot({', '.join(SNAPSHOT_PARAMETERS)})")
    if not missing:
        return None
    version = _find("modal", "__version__") or "(not importable)"
    return f"modal {version} lacks {'; '.join(missing)}, which forking a snapshot needs"


def _find(module: str, name: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return ... if found is None else found  # a class attribute may be None until it is used


def replace_snapshot(take: Callable[[Any], None]) -> None:
    """
    Have `take(task_lifecycle_manager)` called where the entrypoint would take its snapshot.

    The entrypoint's own function still runs for what is not to be snapshotted.
    """
    imports: Any = importlib.import_module("modal._runtime.user_code_imports")
    original = imports.maybe_snapshot

    def maybe_snapshot(
        function_def: Any, snapshot_context_manager: Any, task_lifecycle_manager: Any
    ) -> None:
        enabled = os.environ.get("MODAL_ENABLE_SNAP_RESTORE") == "1"
        if function_def.is_checkpointing_function and enabled:
            take(task_lifecycle_manager)
        else:
            original(function_def, snapshot_context_manager, task_lifecycle_manager)

    imports.maybe_snapshot = maybe_snapshot


def postpone_heartbeats() -> Callable[[], None]:
    """
    Keep the heartbeat task, which lives on an event loop, from existing before the fork.

    Returns:
        What starts it, to be called once after the snapshot.
    """
    manager = importlib.import_module("modal._runtime.container_io_manager").ContainerIOManager
    original = vars(manager)["heartbeats"]  # a descriptor, which binds to an instance only
    start: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def heartbeats(self: Any, wait_for_mem_snap: bool) -> Iterator[None]:  # noqa: FBT001
        with contextlib.ExitStack() as later:
            beats = original.__get__(self, type(self))
            # Its argument asks to wait for the snapshot, which is over when this is called.
            start.append(lambda: later.enter_context(beats(False)))
            yield

    def start_now() -> None:
        start[0]()

    manager.heartbeats = heartbeats
    return start_now


def remember_user_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what finds the event loop of the user's async code, which the main thread runs."""
    events = importlib.import_module("modal._runtime.user_code_event_loop").UserCodeEventLoop
    original = events.__enter__
    loops: list[asyncio.AbstractEventLoop] = []

    def enter(self: Any) -> Any:
        entered = original(self)
        loops.append(self.loop)
        return entered

    events.__enter__ = enter
    return lambda: loops[0]


def quiesce(task_lifecycle_manager: Any) -> None:
    """Report the snapshot, drop the connections, and end modal's thread with its event loop."""
    utils = importlib.import_module("modal._utils.async_utils")
    api_pb2 = importlib.import_module("modal_proto.api_pb2")

    async def report_and_disconnect(manager: Any) -> None:
        client = manager._client
        await client._stub.ContainerCheckpoint(
            api_pb2.ContainerCheckpointRequest(checkpoint_id=manager.checkpoint_id)
        )
        await client._prep_for_snapshot()
        if client._shutdown_unregister is not None:
            # Else the end of the loop closes the client for good, and stubs made before the
            # snapshot could not be used after it.
            client._shutdown_unregister()
            client._shutdown_unregister = None

    utils.synchronize_api(report_and_disconnect)(task_lifecycle_manager)
    utils.synchronizer._close_loop()


def restore(task_lifecycle_manager: Any) -> None:
    """Have modal read its restore state and connect anew."""
    importlib.import_module("modal.client")._Client._client_from_env_lock = None
    task_lifecycle_manager.memory_restore()


def redirect(template_url: str) -> None:
    """
    Send the calls of objects that were hydrated before the snapshot to this process's own socket.

    On Modal the address is the same in every container.
    """
    client = importlib.import_module("modal.client")._Client
    original = client._get_channel

    async def get_channel(self: Any, server_url: str) -> Any:
        own = os.environ["MODAL_SERVER_URL"]
        return await original(self, own if server_url == template_url else server_url)

    client._get_channel = get_channel


def can_repair(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether `repair` knows this kind of loop."""
    return isinstance(loop, asyncio.SelectorEventLoop)


def repair(loop: Any) -> None:
    """
    Give a forked child's event loop a selector and a wake-up pipe of its own.

    The kernel shares those of the parent between all its children, so one child's change would
    be every child's. These are asyncio's private names, the same from Python 3.11 to 3.14.
    """
    loop._remove_reader(loop._ssock.fileno())
    loop._ssock.close()
    loop._csock.close()
    loop._internal_fds -= 1
    shared, loop._selector = loop._selector, selectors.DefaultSelector()
    for key in list(shared.get_map().values()):
        loop._selector.register(key.fileobj, key.events, key.data)
    shared.close()
    loop._make_self_pipe()


def open_client(server_url: str, token_id: str, token_secret: str) -> Any:
    """Return a connected client: what `Client.from_env` does, for settings that are given."""
    import modal
    from modal_proto import api_pb2

    client: Any = modal.Client(server_url, api_pb2.CLIENT_TYPE_CLIENT, (token_id, token_secret))
    client._open()
    return client


def client_packages(builder: str) -> list[str]:
    """Return the distributions that Modal mounts into every container, for its own client."""
    spec = importlib.util.find_spec("modal")
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        with contextlib.suppress(OSError):
            lines = (Path(place) / "builder" / f"{builder}.txt").read_text().splitlines()
            return sorted({line.partition("==")[0].strip() for line in lines if "==" in line})
    return []
