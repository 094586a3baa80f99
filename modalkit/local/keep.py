"""
What a plane keeps beyond its own end: deployed apps, the calls of their functions, and results.

One SQLite file beside the Volumes. Each change is in it before a client hears of it, so a plane
that is killed has lost no input that it accepted; a machine without power may lose the last
seconds. An app that was not deployed ends with its client, and nothing of it is kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from modal_proto import api_pb2

from modalkit.errors import LocalPlaneError
from modalkit.local import kept, records
from modalkit.local.lifesigns import RESULTS_KEPT_S
from modalkit.local.state import App, Call, Deployment, Function, Input, Status

if TYPE_CHECKING:
    from modalkit.local.core import Plane

logger = logging.getLogger("modalkit.local")

APPLICATION_ID: Final = int.from_bytes(b"mkit", "big")
SCHEMA_VERSION: Final = 3
SCHEMA: Final = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE apps (id TEXT PRIMARY KEY, record TEXT, stopped_at REAL);
CREATE TABLE deployments (
  id TEXT PRIMARY KEY, app TEXT REFERENCES apps ON DELETE CASCADE, deployed_at REAL, request BLOB);
CREATE TABLE versions (
  id TEXT PRIMARY KEY, deployment TEXT REFERENCES deployments ON DELETE CASCADE, tag TEXT,
  definition BLOB, metadata BLOB, gpus BLOB);
CREATE TABLE functions (
  id TEXT PRIMARY KEY, app TEXT REFERENCES apps ON DELETE CASCADE, base TEXT, version INTEGER,
  parameters BLOB, options BLOB, definition BLOB, metadata BLOB, gpus BLOB, pinned TEXT);
CREATE TABLE uploads (id TEXT PRIMARY KEY, record BLOB);
CREATE TABLE calls (
  id TEXT PRIMARY KEY, function TEXT REFERENCES functions ON DELETE CASCADE, kind INTEGER,
  parent TEXT, is_map INTEGER, made_at REAL);
CREATE TABLE inputs (
  id TEXT PRIMARY KEY, call TEXT REFERENCES calls ON DELETE CASCADE, idx INTEGER,
  payload BLOB, retries INTEGER, output BLOB, finished_at REAL);
CREATE INDEX inputs_of_call ON inputs (call);
CREATE TABLE chunks (
  id INTEGER PRIMARY KEY, call TEXT REFERENCES calls ON DELETE CASCADE, chunk BLOB);
CREATE INDEX chunks_of_call ON chunks (call);
COMMIT;
"""
APP_FIELDS: Final = (
    "name",
    "function_ids",
    "class_ids",
    "created_at",
    "stopped_at",
    "tags",
    "warnings",
)


class Keep:
    """
    Writes down what happens, for the plane that comes after this one.

    Args:
        path: The file; it is made where it is missing, readable for this user only.

    Raises:
        LocalPlaneError: The file is damaged, of another version or not ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._apps: set[str] = set()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with self._readable():
            self._db = sqlite3.connect(path, isolation_level=None)
            self._check()
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}")

    def _check(self) -> None:
        """Make the tables of a new file; refuse one that was written by somebody else."""
        if not self._number("SELECT count(*) FROM sqlite_master"):
            self._db.executescript(SCHEMA)
        if self._number("PRAGMA application_id") != APPLICATION_ID:
            raise LocalPlaneError(f"{self.path} was not written by modalkit; move it away")
        version = self._number("PRAGMA user_version")
        if version != SCHEMA_VERSION:
            raise LocalPlaneError(
                f"{self.path} was written by another version of modalkit (its format is {version}, "
                f"this one's {SCHEMA_VERSION}); use that version, or delete the file: it has "
                "deployed apps and results, but no Volumes"
            )

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    def close(self) -> None:
        """Write no more."""
        self._db.close()

    # ------------------------------------------------------------------ what happens

    def published(self, plane: Plane, app: App) -> None:
        """Keep *app* as it is deployed now, with all that its containers need."""
        functions = [function for function in plane.functions.values() if function.app is app]
        with self.together():
            self._keep_app(app)
            self._keep_deployment(app, app.deployments[-1])
            for function in functions:
                self._keep_function(function)
            for identifier in records.uploads(plane, functions):
                self._put("uploads", id=identifier, record=records.pack(plane, identifier))
        self._apps.add(app.id)

    def created(self, app: App) -> None:
        """Keep an *app* that was made by its name alone; it has nothing yet."""
        self._keep_app(app)
        self._apps.add(app.id)

    def changed(self, app: App) -> None:
        """Keep that *app* has other tags, or was stopped; its results stay like any others."""
        if app.id in self._apps:
            self._keep_app(app)

    def _keep_app(self, app: App) -> None:
        record = json.dumps({field: getattr(app, field) for field in APP_FIELDS})
        self._put("apps", id=app.id, record=record, stopped_at=app.stopped_at)

    def _keep_deployment(self, app: App, deployment: Deployment) -> None:
        identifier = f"{app.id}/{deployment.version}"
        request = deployment.request.SerializeToString()
        at = deployment.deployed_at
        self._put("deployments", id=identifier, app=app.id, deployed_at=at, request=request)
        for tag, then in deployment.definitions.items():
            self._put(
                "versions",
                id=f"{identifier}/{tag}",
                deployment=identifier,
                tag=tag,
                definition=then.definition.SerializeToString(),
                metadata=then.metadata.SerializeToString(),
                gpus=records.pack_gpus(then.gpu_choices),
            )

    def bound(self, function: Function) -> None:
        """Keep a function, a variant of one, or one pinned to a version, as it is now."""
        if function.app.id in self._apps:
            self._keep_function(function)

    def _keep_function(self, function: Function) -> None:
        options, pin = function.options, function.pinned_to
        tags = [tag for tag, i in pin.pinned.items() if i == function.id] if pin else []
        self._put(
            "functions",
            id=function.id,
            app=function.app.id,
            base=function.base.id if function.base else None,
            version=function.version,
            parameters=function.parameters,
            options=options.SerializeToString(deterministic=True) if options else b"",
            definition=function.definition.SerializeToString(),
            metadata=function.metadata.SerializeToString(),
            gpus=records.pack_gpus(function.gpu_choices),
            pinned=json.dumps([pin.version, *tags]) if pin else None,
        )

    def called(self, call: Call, at: float) -> None:
        """Keep a call, which has no input yet."""
        if call.function.app.id in self._apps:
            self._put(
                "calls",
                id=call.id,
                function=call.function.id,
                kind=call.invocation_type,
                parent=call.parent_input_id,
                is_map=call.is_map,
                made_at=at,
            )

    def streamed(self, call: Call, chunks: Iterable[api_pb2.DataChunk]) -> None:
        """Keep what a generator has yielded."""
        if call.function.app.id in self._apps:
            with self.together():
                for chunk in chunks:
                    query = "INSERT INTO chunks (call, chunk) VALUES (?, ?)"
                    self._write(query, call.id, chunk.SerializeToString())

    def accepted(self, item: Input) -> None:
        """Keep an input, before the client is told that it was accepted."""
        if item.call.function.app.id in self._apps:
            payload = item.payload.SerializeToString()
            self._put(
                "inputs",
                id=item.id,
                call=item.call.id,
                idx=item.index,
                payload=payload,
                retries=item.retries,
                output=None,
                finished_at=None,
            )

    def retried(self, item: Input) -> None:
        """Keep how many retries an input has used."""
        if item.call.function.app.id in self._apps:
            self._write("UPDATE inputs SET retries = ? WHERE id = ?", item.retries, item.id)

    def finished(self, item: Input, output: api_pb2.FunctionGetOutputsItem, at: float) -> None:
        """Keep a result in the place of its input; its caller gets it even if that fails."""
        if item.call.function.app.id not in self._apps:
            return
        query = "UPDATE inputs SET payload = NULL, output = ?, finished_at = ? WHERE id = ?"
        try:
            self._write(query, output.SerializeToString(), at, item.id)
        except LocalPlaneError as error:
            logger.error("the result of %s is lost with this plane: %s", item.id, error)  # noqa: TRY400

    def forgotten(self, call: Call) -> None:
        """Keep a call and its results no longer."""
        if call.function.app.id in self._apps:
            self._write("DELETE FROM calls WHERE id = ?", call.id)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write all that is written in this block, or nothing of it."""
        self._write("BEGIN")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._write("COMMIT")

    def _put(self, table: str, **values: Any) -> None:
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        changes = ", ".join(f"{column} = excluded.{column}" for column in values)
        self._write(
            f"INSERT INTO {table} ({columns}) VALUES ({marks}) "  # noqa: S608 - our own names
            f"ON CONFLICT (id) DO UPDATE SET {changes}",
            *values.values(),
        )

    def _write(self, query: str, *values: Any) -> None:
        try:
            self._db.execute(query, values)
        except sqlite3.Error as error:
            raise LocalPlaneError(
                f"cannot write {self.path}: {error}; is there room on its disk?"
            ) from error

    # ------------------------------------------------------------------ what was kept

    def restore(self, plane: Plane) -> list[Input]:
        """
        Fill a new *plane* with what was kept, and drop what is not needed any more.

        Returns:
            The inputs that were accepted and have no result, oldest first.

        Raises:
            LocalPlaneError: The file is damaged.
        """
        with self._readable():
            self._drop_old(plane.clock.time())
            blobs = kept.fill(plane, self._db)
        self._apps = set(plane.apps)
        self._sweep(plane, blobs)
        return [item for item in plane.inputs.values() if item.status is not Status.DONE]

    def needed(self, plane: Plane) -> set[str]:
        """Return the ids of the Secrets and other objects that deployed apps need."""
        definitions = [function.definition for function in plane.functions.values()]
        secrets = {identifier for d in definitions for identifier in d.secret_ids}
        return secrets | {item.object_id for d in definitions for item in d.object_dependencies}

    def _drop_old(self, now: float) -> None:
        """Drop results after seven days, and stopped apps that have none."""
        self._db.execute(
            "DELETE FROM calls WHERE made_at < ? AND id NOT IN (SELECT call FROM inputs "
            "WHERE finished_at IS NULL OR finished_at > ?)",
            (now - RESULTS_KEPT_S, now - RESULTS_KEPT_S),
        )
        self._db.execute(
            "DELETE FROM apps WHERE stopped_at > 0 AND id NOT IN "
            "(SELECT app FROM functions JOIN calls ON calls.function = functions.id)"
        )

    def _sweep(self, plane: Plane, blobs: set[str]) -> None:
        """Remove uploads, payloads and files that nothing needs; nobody is uploading yet."""
        needed = set(records.uploads(plane, plane.functions.values()))
        for (identifier,) in self._db.execute("SELECT id FROM uploads").fetchall():
            if identifier not in needed:
                self._write("DELETE FROM uploads WHERE id = ?", identifier)
        files = {file.sha256_hex for upload in needed for file in records.files(plane, upload)}
        for directory, wanted in ((plane.blob_store, blobs), (plane.file_store, files)):
            for path in directory.iterdir():
                if path.name not in wanted:
                    path.unlink()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, DecodeError, KeyError, TypeError, ValueError) as error:
            raise LocalPlaneError(
                f"{self.path} cannot be read ({error}); restore it, or delete it: it has "
                "deployed apps and results, but no Volumes"
            ) from error
