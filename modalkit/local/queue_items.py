"""The items of Queues, in the database of `object_store`."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Final

MAX_PARTITIONS: Final = 100_000
MAX_PARTITION_ITEMS: Final = 5000
MAX_PARTITION_BYTES: Final = 64 << 20


class FullError(Exception):
    """Expected: the items do not fit into the partition now."""


@contextlib.contextmanager
def together(db: sqlite3.Connection) -> Iterator[None]:
    """Do all of the block or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


class QueueItems:
    """
    What is in the partitions of every Queue.

    Times are Unix seconds of the caller's clock: what has expired at that time is not there.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def push(
        self, object_id: str, partition: bytes, values: list[bytes], at: float, ttl_s: float
    ) -> None:
        """
        Append *values*, all or none; the partition then lives for *ttl_s* seconds more.

        Raises:
            FullError: They do not fit.
        """
        with together(self._db):
            self._expire(object_id, at)
            self._room_for_partition(object_id, partition)
            held = self.length(object_id, at, partition)
            if held + len(values) > MAX_PARTITION_ITEMS:
                raise FullError(f"the partition has {held} items of Modal's {MAX_PARTITION_ITEMS}")
            size = self._number(
                "SELECT total(length(value)) FROM items WHERE object = ? AND partition = ?",
                object_id,
                partition,
            )
            if size + sum(map(len, values)) > MAX_PARTITION_BYTES:
                raise FullError("the partition would exceed Modal's limit of 64 MiB")
            self._db.execute(
                "INSERT INTO partitions VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET expires_at = excluded.expires_at",
                (object_id, partition, at + ttl_s),
            )
            self._db.executemany(
                "INSERT INTO items (object, partition, value) VALUES (?, ?, ?)",
                [(object_id, partition, value) for value in values],
            )

    def _room_for_partition(self, object_id: str, partition: bytes) -> None:
        known = "SELECT count(*) FROM partitions WHERE object = ?"
        if self._number(f"{known} AND key = ?", object_id, partition):
            return  # counting all of them is slow
        if self._number(known, object_id) >= MAX_PARTITIONS:
            raise FullError(f"the Queue has {MAX_PARTITIONS} partitions, Modal's limit")

    def take(self, object_id: str, partition: bytes, most: int, at: float) -> list[bytes]:
        """Remove and return up to *most* items, the oldest first."""
        with together(self._db):
            found = self.look(object_id, partition, 0, most, at)
            if found:
                self._db.execute(
                    "DELETE FROM items WHERE object = ? AND partition = ? AND position <= ?",
                    (object_id, partition, found[-1][0]),
                )
        return [value for _, value in found]

    def look(
        self,
        object_id: str,
        partition: bytes,
        after: int,
        most: int,
        at: float,
    ) -> list[tuple[int, bytes]]:
        """Return up to *most* items behind position *after*, each with its position."""
        self._expire(object_id, at)
        return self._db.execute(
            "SELECT position, value FROM items WHERE object = ? AND partition = ? AND position > ?"
            " ORDER BY position LIMIT ?",
            (object_id, partition, after, most),
        ).fetchall()

    def length(self, object_id: str, at: float, partition: bytes | None = None) -> int:
        """Return how many items there are in *partition*, or in all."""
        self._expire(object_id, at)
        if partition is None:
            return int(self._number("SELECT count(*) FROM items WHERE object = ?", object_id))
        return int(
            self._number(
                "SELECT count(*) FROM items WHERE object = ? AND partition = ?",
                object_id,
                partition,
            )
        )

    def partitions(self, object_id: str, at: float) -> int:
        """Return how many partitions hold items."""
        self._expire(object_id, at)
        return int(
            self._number("SELECT count(DISTINCT partition) FROM items WHERE object = ?", object_id)
        )

    def clear(self, object_id: str, partition: bytes | None = None) -> None:
        """Remove the items of *partition*, or of all."""
        if partition is None:
            self._db.execute("DELETE FROM partitions WHERE object = ?", (object_id,))
        else:
            self._db.execute(
                "DELETE FROM partitions WHERE object = ? AND key = ?", (object_id, partition)
            )

    def _expire(self, object_id: str, at: float) -> None:
        self._db.execute(
            "DELETE FROM partitions WHERE object = ? AND expires_at <= ?", (object_id, at)
        )

    def _number(self, query: str, *arguments: object) -> float:
        return float(self._db.execute(query, arguments).fetchone()[0] or 0)
