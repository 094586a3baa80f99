"""Fill a new plane with what another one has kept; see `keep`."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modalkit.local import records
from modalkit.local.state import (
    App,
    Call,
    Definition,
    Deployment,
    Function,
    Input,
    Status,
    is_waited_for,
)

if TYPE_CHECKING:
    from modalkit.local.core import Plane


def fill(plane: Plane, db: sqlite3.Connection) -> set[str]:
    """Return the ids of the blobs that are needed."""
    _restore_apps(plane, db)
    _restore_deployments(plane, db)
    _restore_functions(plane, db)
    for identifier, record in db.execute("SELECT id, record FROM uploads"):
        records.unpack(plane, identifier, record)
    _restore_calls(plane, db)
    return _restore_inputs(plane, db) | _restore_chunks(plane, db)


def _restore_apps(plane: Plane, db: sqlite3.Connection) -> None:
    for identifier, record in db.execute("SELECT id, record FROM apps ORDER BY rowid"):
        app = App(id=identifier, app_state=api_pb2.APP_STATE_DEPLOYED, **json.loads(record))
        plane.apps[app.id] = app
        if app.stopped_at:
            app.app_state, app.is_stopping, app.is_done = api_pb2.APP_STATE_STOPPED, True, True
        else:
            plane.deployed[app.name] = app.id
        for tag, class_id in app.class_ids.items():
            plane.classes[class_id] = app.function_ids.get(f"{tag}.*", "")


def _restore_deployments(plane: Plane, db: sqlite3.Connection) -> None:
    query = "SELECT id, app, deployed_at, request FROM deployments ORDER BY rowid"
    for identifier, app_id, deployed_at, request in db.execute(query):
        versions = db.execute(
            "SELECT tag, definition, metadata, gpus FROM versions WHERE deployment = ?",
            (identifier,),
        )
        definitions = {
            tag: Definition(
                api_pb2.Function.FromString(definition),
                api_pb2.FunctionHandleMetadata.FromString(metadata),
                records.unpack_gpus(gpus),
            )
            for tag, definition, metadata, gpus in versions
        }
        published = api_pb2.AppPublishRequest.FromString(request)
        deployments = plane.apps[app_id].deployments
        version = len(deployments) + 1
        deployments.append(Deployment(version, deployed_at, published, definitions))


def _restore_functions(plane: Plane, db: sqlite3.Connection) -> None:
    query = (
        "SELECT id, app, definition, metadata, gpus, base, parameters, options, version, "
        "pinned FROM functions ORDER BY rowid"
    )
    for row in db.execute(query):
        identifier, app, definition, metadata, gpus, *more = row
        base, parameters, options, version, pinned = more
        function = Function(
            identifier,
            plane.apps[app],
            api_pb2.Function.FromString(definition),
            api_pb2.FunctionHandleMetadata.FromString(metadata),
            gpu_choices=records.unpack_gpus(gpus),
            base=plane.functions[base] if base else None,
            parameters=parameters,
            options=api_pb2.FunctionOptions.FromString(options) if base else None,
            version=version,
        )
        plane.functions[function.id] = function
        if base:
            plane.variants[base, parameters, options] = function.id
        if pinned:
            number, tag = json.loads(pinned)
            function.pinned_to = function.app.deployments[number - 1]
            function.pinned_to.pinned[tag] = function.id


def _restore_calls(plane: Plane, db: sqlite3.Connection) -> None:
    query = "SELECT id, function, kind, parent, is_map FROM calls"
    for identifier, function, kind, parent, is_map in db.execute(query):
        call = Call(identifier, plane.functions[function], kind, parent, bool(is_map))
        call.made_at, call.last_listened = plane.clock.monotonic(), time.monotonic()
        call.retried_by_client = is_waited_for(call) and (
            plane.config.switches.retry_delay == "client"
        )
        plane.calls[call.id] = call


def _restore_inputs(plane: Plane, db: sqlite3.Connection) -> set[str]:
    """Return the ids of the blobs that they need."""
    blobs = set()
    query = "SELECT id, call, idx, payload, retries FROM inputs ORDER BY rowid"
    for identifier, call_id, index, payload, retries in db.execute(query):
        call = plane.calls[call_id]
        given = api_pb2.FunctionInput.FromString(payload or b"")
        item = Input(identifier, call, index, given, retries=retries)
        plane.inputs[item.id] = item
        call.inputs.append(item)
        call.unfinished += 1
        blobs.add(item.payload.args_blob_id)
    return blobs | _restore_outputs(plane, db)


def _restore_outputs(plane: Plane, db: sqlite3.Connection) -> set[str]:
    """Return the ids of the blobs that they need."""
    blobs, epoch_s = set(), plane.clock.time() - plane.clock.monotonic()
    query = (
        "SELECT id, output, finished_at FROM inputs WHERE output IS NOT NULL ORDER BY finished_at"
    )
    for identifier, record, finished_at in db.execute(query):
        item = plane.inputs[identifier]
        call, output = item.call, api_pb2.FunctionGetOutputsItem.FromString(record)
        item.status = Status.DONE
        call.unfinished -= 1
        call.closed_at = None if call.unfinished else finished_at - epoch_s
        call.outputs.append(output)
        call.latest[item.index] = output
        blobs.add(output.result.data_blob_id)
    return blobs


def _restore_chunks(plane: Plane, db: sqlite3.Connection) -> set[str]:
    """Return the ids of the blobs that they need."""
    blobs = set()
    for call_id, record in db.execute("SELECT call, chunk FROM chunks ORDER BY id"):
        chunk = api_pb2.DataChunk.FromString(record)
        plane.calls[call_id].data_out.append(chunk)
        blobs.add(chunk.data_blob_id)
    return blobs
