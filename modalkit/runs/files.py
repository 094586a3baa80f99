"""
Small JSON files in a run's directory, replaced as a whole or not at all.

Temporary names lie beside the folders, never in them: a folder holds its own files and no others.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modalkit.checkpoint import disk
from modalkit.errors import RunError

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def run_directory(mount: Path | str, run_id: object) -> Path:
    """
    Return where a run lives: `<mount>/runs/<run_id>`.

    Raises:
        RunError: *run_id* is no name for a directory that is safe everywhere.
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise RunError(
            f"run_id={run_id!r}: a run id is 1 to 64 letters, digits, '.', '_' or '-', and begins "
            f"with a letter or digit. Make it once, on the caller's side, and pass it to the "
            f"function: every attempt must get the same one."
        )
    return Path(mount) / "runs" / run_id


def container_id() -> str:
    """
    Return a name for this container that no other has.

    Source: Modal sets `MODAL_TASK_ID`; elsewhere host, process and a random number do.
    """
    name = os.environ.get("MODAL_TASK_ID")
    if not name:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[-100:]


def write_json(path: Path, content: Mapping[str, Any], *, temporary: Path) -> None:
    """
    Write *content* to *path* by way of *temporary*, which is on the same disk and nobody else's.

    Whoever reads, whenever a container dies, finds the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
            disk.sync_file(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of *path*, or None if it is missing or torn."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
