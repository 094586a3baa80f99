"""Background commits: what containers wrote becomes durable every few seconds, as on Modal."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from modalkit.local.open_files import held_below

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.state import Container
    from modalkit.local.views import View

logger = logging.getLogger("modalkit.local")


async def commit_for_ever(plane: Plane) -> None:
    """Commit the Volumes of all containers every so many seconds; the containers see no reload."""
    period_s = plane.config.background_commit_s
    said: set[tuple[str, str]] = set()
    while period_s > 0:
        await plane.clock.sleep(period_s)
        work = [
            _commit(plane, container, view, said)
            for container in list(plane.containers.values())
            if container.pid and container.is_alive
            for view in list(container.views.values())
            if view.in_background and not view.volume.is_deleted
        ]
        await asyncio.gather(*work)


async def _commit(
    plane: Plane, container: Container, view: View, said: set[tuple[str, str]]
) -> None:
    busy = None
    if plane.config.switches.background_commit == "closed":

        def busy() -> set[str]:
            held = held_below(container.pids(), view.mounted_at)
            return {view.name_of(item.path) for item in held if item.is_written}

    try:
        await asyncio.to_thread(view.commit, busy)
    except Exception as error:  # noqa: BLE001 - trouble with one Volume is none of the others'
        key = (view.volume.id, str(error))
        if key not in said:
            said.add(key)
            name = view.volume.name or view.volume.id
            logger.error("background commit of Volume %r failed: %s", name, error)  # noqa: TRY400
