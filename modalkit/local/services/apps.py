"""Apps, images, uploaded code and payloads: what a client says before it calls anything."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import sys
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modalkit.local.blobs import BLOB_ID
from modalkit.local.core import ENVIRONMENT, Image
from modalkit.local.layout import app_layout
from modalkit.local.object_store import NAME
from modalkit.local.services.inspection import app_metadata
from modalkit.local.state import App, Deployment, new_id
from modalkit.local.wire import not_found

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler

IMAGE_BUILDER = "2025.06"
"""The image builder that the plane claims: it decides which commands the client sends."""
APP_ID_LENGTH = len("ap-") + 22
"""By their length modal's commands tell ids of apps from names."""
SHA256 = re.compile(r"[0-9a-f]{64}")


class AppService:
    """The life of apps: what their own clients say."""

    def __init__(self, plane: Plane, scheduler: Scheduler) -> None:
        self._plane = plane
        self._scheduler = scheduler

    async def ClientHello(self, _request: Empty) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER)

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        settings = api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER)
        metadata = api_pb2.EnvironmentMetadata(
            name=request.deployment_name or ENVIRONMENT, settings=settings
        )
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-main", metadata=metadata)

    def _app(self, app_id: str) -> App:
        if app_id not in self._plane.apps:
            raise not_found(f"no app {app_id}")
        app = self._plane.apps[app_id]
        app.last_seen = time.monotonic()
        return app

    def _create(self, name: str, app_state: int) -> App:
        app = App(
            new_id("ap").ljust(APP_ID_LENGTH, "0"),
            name,
            app_state,
            created_at=self._plane.clock.time(),
            last_seen=time.monotonic(),
        )
        self._plane.apps[app.id] = app
        return app

    async def AppCreate(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        app = self._create(request.description, request.app_state)
        app.tags = dict(request.tags)
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=f"local plane, app {app.id}")

    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest
    ) -> api_pb2.AppGetOrCreateResponse:
        """Find an app by its name or id, or make one without functions."""
        name = request.app_name
        app = self._plane.apps.get(self._plane.deployed.get(name, name))
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise not_found(f"App '{name}' not found")
            _check_name(name)
            app = self._create(name, api_pb2.APP_STATE_DEPLOYED)
            self._plane.deployed[name] = app.id
        return api_pb2.AppGetOrCreateResponse(app_id=app.id, handle_metadata=app_metadata(app))

    async def AppGetLayout(
        self, request: api_pb2.AppGetLayoutRequest
    ) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(
            app_layout=app_layout(self._plane, self._app(request.app_id))
        )

    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest) -> Empty:
        self._app(request.app_id)
        return Empty()

    async def AppSetTags(self, request: api_pb2.AppSetTagsRequest) -> Empty:
        self._app(request.app_id).tags = dict(request.tags)
        return Empty()

    async def AppPublish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        """Let an app run, or deploy a version of it; its functions may be called from now on."""
        app, now = self._app(request.app_id), self._plane.clock.time()
        if request.staged:
            raise GRPCError(
                Status.UNIMPLEMENTED, "the local plane does not model staged deployments"
            )
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        app.app_state = request.app_state or app.app_state
        app.tags.update(request.tags)
        for tag, class_id in app.class_ids.items():
            self._plane.classes[class_id] = app.function_ids.get(f"{tag}.*", "")
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            _check_name(request.name)
            app.name = request.name
            self._plane.deployed[app.name] = app.id
            app.deployments.append(self._version(app, request, now))
            self._plane.keep.published(self._plane, app)
        for function in list(self._plane.functions.values()):
            if function.app is app:  # variants too
                self._scheduler.fleet.scale(function)
        warnings = [line for i in app.function_ids.values() for line in app.warnings.get(i, ())]
        return api_pb2.AppPublishResponse(
            url=f"local plane, app {app.name or app.id}",
            deployed_at=now,
            server_warnings=[
                api_pb2.Warning(
                    type=api_pb2.Warning.WARNING_TYPE_FUNCTION_CONFIGURATION, message=line
                )
                for line in warnings
            ],
        )

    def _version(self, app: App, request: api_pb2.AppPublishRequest, at: float) -> Deployment:
        kept = {}
        for tag, function_id in app.function_ids.items():
            function = self._plane.functions[function_id]
            kept[tag] = copy.deepcopy(function.definition), copy.deepcopy(function.metadata)
        return Deployment(len(app.deployments) + 1, at, request, kept)

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest) -> Empty:
        """End an ephemeral app, and a detached one when its calls are done."""
        self._plane.spawn(self._scheduler.leave_app(self._app(request.app_id)))
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest) -> Empty:
        app = self._app(request.app_id)
        self._plane.deployed = {name: i for name, i in self._plane.deployed.items() if i != app.id}
        await self._scheduler.stop_app(app)
        return Empty()


def _check_name(name: str) -> None:
    if not NAME.match(name):
        raise GRPCError(
            Status.INVALID_ARGUMENT,
            f"{name!r} is no app's name: Modal allows 1 to 64 of a-z A-Z 0-9 - _ .",
        )


class UploadService:
    """Images (recorded, never built), mounted code and large payloads."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest
    ) -> api_pb2.ImageGetOrCreateResponse:
        image = request.image
        digest = hashlib.sha256(image.SerializeToString(deterministic=True)).hexdigest()
        bases = tuple(base.image_id for base in image.base_images)
        image_id = f"im-{digest[:16]}"
        self._plane.images[image_id] = Image(image_id, tuple(image.dockerfile_commands), bases)
        version = "Python {}.{}.{}".format(*sys.version_info[:3])
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id,
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=api_pb2.ImageMetadata(
                image_builder_version=IMAGE_BUILDER, python_version_info=version, workdir="/root"
            ),
        )

    def _has(self, sha256_hex: str) -> bool:
        if not SHA256.fullmatch(sha256_hex):
            raise GRPCError(Status.INVALID_ARGUMENT, f"{sha256_hex!r} is no sha256")
        return (self._plane.file_store / sha256_hex).exists()

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [digest for digest in request.sha256_hex_hashes if not self._has(digest)]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(
        self, request: api_pb2.MountPutFileRequest
    ) -> api_pb2.MountPutFileResponse:
        kind = request.WhichOneof("data_oneof")
        if not self._has(request.sha256_hex) and kind is not None:
            target = self._plane.file_store / request.sha256_hex
            if kind == "data_blob_id":
                os.link(self._plane.blob_store / _blob_name(request.data_blob_id), target)
            else:
                target.write_bytes(request.data)
        return api_pb2.MountPutFileResponse(exists=self._has(request.sha256_hex))

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest
    ) -> api_pb2.MountGetOrCreateResponse:
        for file in request.files:
            _check_file(file)
            if not self._has(file.sha256_hex):
                raise GRPCError(
                    Status.FAILED_PRECONDITION, f"mount file {file.filename!r} was never uploaded"
                )
        mount_id = new_id("mo")
        self._plane.mounts[mount_id] = list(request.files)
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0")
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)

    async def BlobCreate(self, _request: api_pb2.BlobCreateRequest) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        url = self._plane.blob_url(f"blob/{blob_id}")
        return api_pb2.BlobCreateResponse(
            blob_id=blob_id,
            upload_url=url,
            blob_ids=[blob_id],
            upload_urls=api_pb2.UploadUrlList(items=[url]),
        )

    async def BlobGet(self, request: api_pb2.BlobGetRequest) -> api_pb2.BlobGetResponse:
        return api_pb2.BlobGetResponse(
            download_url=self._plane.blob_url(f"blob/{_blob_name(request.blob_id)}")
        )


def _blob_name(blob_id: str) -> str:
    if not BLOB_ID.fullmatch(blob_id):
        raise GRPCError(Status.INVALID_ARGUMENT, f"{blob_id!r} is no blob's id")
    return blob_id


def _check_file(file: api_pb2.MountFile) -> None:
    """Refuse a name that leads out of the container's files, or to none of them."""
    parts = PurePosixPath(os.path.normpath(file.filename.lstrip("/"))).parts
    if not parts or ".." in parts or "\0" in file.filename:
        raise GRPCError(
            Status.INVALID_ARGUMENT, f"mount file {file.filename!r} points outside of the image"
        )
