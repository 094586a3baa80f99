"""
Dicts, Queues and Secrets, in one SQLite file: a plane that is killed leaves nothing half done.

Others may have the file open too, as `modalkit local secret` does. No gRPC and no waiting here:
`services` answers the RPCs.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, Literal

import attrs

from modalkit.errors import LocalPlaneError
from modalkit.local.queue_items import QueueItems, together

Kind = Literal["di", "qu", "st"]
"""Dict, Queue or Secret: the prefix of Modal's ids."""

NAME: Final = re.compile(r"(?!ap-[a-zA-Z0-9]{22}\Z)[a-zA-Z0-9-_.]{1,64}\Z")
"""What Modal's client allows as the name of an object; an App's id is none."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS objects (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT, created_at REAL NOT NULL,
    UNIQUE (kind, name));
CREATE TABLE IF NOT EXISTS entries (
    object TEXT NOT NULL REFERENCES objects ON DELETE CASCADE,
    key BLOB NOT NULL, value BLOB NOT NULL, used_at REAL NOT NULL, PRIMARY KEY (object, key));
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (object, used_at);
CREATE TABLE IF NOT EXISTS partitions (
    object TEXT NOT NULL REFERENCES objects ON DELETE CASCADE,
    key BLOB NOT NULL, expires_at REAL NOT NULL, PRIMARY KEY (object, key));
CREATE INDEX IF NOT EXISTS partitions_by_expiry ON partitions (object, expires_at);
CREATE TABLE IF NOT EXISTS items (
    position INTEGER PRIMARY KEY AUTOINCREMENT, object TEXT NOT NULL, partition BLOB NOT NULL,
    value BLOB NOT NULL,
    FOREIGN KEY (object, partition) REFERENCES partitions (object, key) ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS items_by_partition ON items (object, partition);
"""


_REPLACE: Final = "UPDATE SET value = excluded.value, used_at = excluded.used_at"


def object_directory(state: Path | str) -> Path:
    """Return where the objects of the plane with this state directory are."""
    return Path(state) / "objects"


@attrs.frozen
class Stored:
    """The identity of one object; an anonymous one has no name."""

    id: str
    name: str
    created_at: float


class ObjectStore:
    """
    What Dicts, Queues and Secrets hold.

    Args:
        directory: Where the file is; made when it is missing, for this user alone.

    Raises:
        LocalPlaneError: The file is no database, or cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._seen_values: set[str] = set()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "objects.sqlite"
        try:
            # SQLite gives the files beside this one the same mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
            self.items = QueueItems(self._db)
        except (OSError, sqlite3.Error) as error:
            raise LocalPlaneError(
                f"the Dicts, Queues and Secrets in {path} cannot be opened ({error}); "
                "move this file away to begin with none"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # ------------------------------------------------------------------ identity

    def create(self, kind: Kind, name: str = "") -> Stored:
        """
        Make an object; one without a name is anonymous.

        Raises:
            ValueError: Modal's client would refuse the name.
        """
        if name and not NAME.match(name):
            raise ValueError(f"{name!r} is no name: Modal allows 1 to 64 of a-z A-Z 0-9 - _ .")
        made = Stored(f"{kind}-{uuid.uuid4().hex[:22]}", name, time.time())
        self._db.execute(
            "INSERT INTO objects VALUES (?, ?, ?, ?)",
            (made.id, kind, name or None, made.created_at),
        )
        return made

    def find(self, kind: Kind, *, name: str = "", object_id: str = "") -> Stored | None:
        """Return the object of this name or id, if there is one."""
        column, value = ("id", object_id) if object_id else ("name", name)
        for row in self._db.execute(
            f"SELECT id, name, created_at FROM objects WHERE kind = ? AND {column} = ?",  # noqa: S608
            (kind, value),
        ):
            return Stored(row[0], row[1] or "", row[2])
        return None

    def named(self, kind: Kind, *, before: float = 0, most: int = 0) -> list[Stored]:
        """List named objects made *before* this Unix time, the newest first."""
        rows = self._db.execute(
            "SELECT id, name, created_at FROM objects WHERE kind = ? AND name IS NOT NULL"
            " AND created_at < ? ORDER BY created_at DESC LIMIT ?",
            (kind, before or float("inf"), most or -1),
        )
        return [Stored(*row) for row in rows]

    def delete(self, object_id: str) -> None:
        """Remove an object with all that it holds."""
        self._db.execute("DELETE FROM objects WHERE id = ?", (object_id,))

    def delete_anonymous(self, spare: Collection[str] = ()) -> None:
        """Remove what a plane that has ended made without a name, but the ids to *spare*."""
        nameless = self._db.execute("SELECT id FROM objects WHERE name IS NULL").fetchall()
        self._db.executemany(
            "DELETE FROM objects WHERE id = ?", [row for row in nameless if row[0] not in spare]
        )

    # ------------------------------------------------------------------ Dicts and Secrets

    def put(
        self,
        object_id: str,
        entries: Iterable[tuple[bytes, bytes]],
        at: float,
        *,
        keep: bool = False,
    ) -> int:
        """Set *entries*, all or none, or with *keep* those that are missing; return how many."""
        with together(self._db):
            return self._put(object_id, entries, at, "NOTHING" if keep else _REPLACE)

    def _put(
        self,
        object_id: str,
        entries: Iterable[tuple[bytes, bytes]],
        at: float,
        clash: str = _REPLACE,
    ) -> int:
        done = self._db.executemany(
            f"INSERT INTO entries VALUES (?, ?, ?, ?) ON CONFLICT DO {clash}",  # noqa: S608
            [(object_id, key, value, at) for key, value in entries],
        )
        return max(0, done.rowcount)

    def get(self, object_id: str, key: bytes, at: float) -> bytes | None:
        """Return the value of *key*, which counts as a use of it."""
        found: list[tuple[bytes]] = self._db.execute(
            "UPDATE entries SET used_at = ? WHERE object = ? AND key = ? RETURNING value",
            (at, object_id, key),
        ).fetchall()
        return found[0][0] if found else None

    def pop(self, object_id: str, key: bytes) -> bytes | None:
        """Remove *key* and return its value."""
        found: list[tuple[bytes]] = self._db.execute(
            "DELETE FROM entries WHERE object = ? AND key = ? RETURNING value", (object_id, key)
        ).fetchall()
        return found[0][0] if found else None

    def entries(self, object_id: str, at: float) -> list[tuple[bytes, bytes]]:
        """Return all keys and values, which counts as a use of them."""
        with together(self._db):
            self._db.execute("UPDATE entries SET used_at = ? WHERE object = ?", (at, object_id))
            return self._db.execute(
                "SELECT key, value FROM entries WHERE object = ?", (object_id,)
            ).fetchall()

    def count(self, object_id: str) -> int:
        """Return how many entries there are."""
        query = "SELECT count(*) FROM entries WHERE object = ?"
        return int(self._db.execute(query, (object_id,)).fetchone()[0])

    def clear(self, object_id: str, *, unused_since: float = float("inf")) -> None:
        """Remove the entries that were not used since that Unix time; all without one."""
        self._db.execute(
            "DELETE FROM entries WHERE object = ? AND used_at < ?", (object_id, unused_since)
        )

    # ------------------------------------------------------------------ Secrets

    def secret(self, object_id: str) -> dict[str, str]:
        """
        Return the variables of a Secret.

        Raises:
            LocalPlaneError: It was deleted.
        """
        if self.find("st", object_id=object_id) is None:
            raise LocalPlaneError(f"the Secret {object_id} was deleted; deploy the app again")
        entries = self.entries(object_id, time.time())
        self._seen_values.update(value.decode() for _, value in entries)
        return {key.decode(): value.decode() for key, value in entries}

    def secret_values(self) -> set[str]:
        """Return the values that Secrets have and have had, for whoever has to hide them."""
        found = self._db.execute(
            "SELECT value FROM entries WHERE object IN (SELECT id FROM objects WHERE kind = 'st')"
        ).fetchall()
        self._seen_values.update(value.decode() for (value,) in found)
        return self._seen_values

    def set_secret(self, object_id: str, variables: dict[str, str], *, replace: bool) -> None:
        """Set variables of a Secret; with *replace* it has no others."""
        entries = [(key.encode(), value.encode()) for key, value in variables.items()]
        self._seen_values.update(variables.values())
        with together(self._db):
            if replace:
                self.clear(object_id)
            self._put(object_id, entries, time.time())
