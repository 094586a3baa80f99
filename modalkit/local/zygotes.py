"""Quick starts, plane side: the one process of a plane that forks its cold containers."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from modalkit.errors import LocalPlaneError
from modalkit.local.boot import ZYGOTE
from modalkit.local.container_files import inherited
from modalkit.local.fork_template import ForkTemplate

if TYPE_CHECKING:
    from modalkit.local.core import Plane

logger = logging.getLogger("modalkit.local")

BOOT = Path(__file__).with_name("boot.py")


class Zygotes:
    """Keeps one alive from the first container on."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._current: ForkTemplate | None = None
        self._starting = asyncio.Lock()

    async def ready(self) -> ForkTemplate | None:
        """Return one that forks, or None where there can be none: its reason is in the log."""
        async with self._starting:
            if self._current is None or not self._current.is_ready:
                self._current = await self._start()
            return self._current

    async def _start(self) -> ForkTemplate | None:
        path = self._plane.runtime / "zygote.sock"
        path.unlink(missing_ok=True)
        zygote = await ForkTemplate.listen(path)
        process = await asyncio.create_subprocess_exec(
            self._plane.config.python,
            str(BOOT),
            ZYGOTE,
            str(path),
            str(os.getpid()),
            env={**inherited(), "MODAL_IS_REMOTE": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        ended = self._plane.spawn(process.wait())
        ended.add_done_callback(lambda _: zygote.close())
        try:
            await zygote.wait_ready()
        except LocalPlaneError:
            logger.warning("no quick starts: their process ended with code %s", await ended)
            return None
        return zygote
