"""Apps, images, uploaded code and payloads: what a client says before it calls anything."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from modalkit.local.core import ENVIRONMENT, Image
from modalkit.local.layout import app_layout
from modalkit.local.state import App, new_id
from modalkit.local.wire import not_found

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler

IMAGE_BUILDER = "2025.06"
"""The image builder that the plane claims: it decides which commands the client sends."""
SHA256 = re.compile(r"[0-9a-f]{64}")
LOST_CLIENT_S = 3.0
"""How long an ephemeral app lives on when its client's log stream breaks without a goodbye."""


class AppService:
    """Apps and their logs."""

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
        app = App(new_id("ap"), name, app_state, last_seen=time.monotonic())
        self._plane.apps[app.id] = app
        return app

    async def AppCreate(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        app = self._create(request.description, request.app_state)
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=f"local plane, app {app.id}")

    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest
    ) -> api_pb2.AppGetOrCreateResponse:
        app_id = self._plane.deployed.get(request.app_name)
        if app_id is None:
            app_id = self._create(request.app_name, api_pb2.APP_STATE_DEPLOYED).id
            self._plane.deployed[request.app_name] = app_id
        return api_pb2.AppGetOrCreateResponse(app_id=app_id)

    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        app_id = self._plane.deployed.get(request.name, "")
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app_id, environment_name=ENVIRONMENT)

    async def AppGetLayout(
        self, request: api_pb2.AppGetLayoutRequest
    ) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(
            app_layout=app_layout(self._plane, self._app(request.app_id))
        )

    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest) -> Empty:
        self._app(request.app_id)
        return Empty()

    async def AppSetTags(self, _request: api_pb2.AppSetTagsRequest) -> Empty:
        return Empty()

    async def AppPublish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        app = self._app(request.app_id)
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        app.app_state = request.app_state or app.app_state
        for tag, class_id in app.class_ids.items():
            self._plane.classes[class_id] = app.function_ids.get(f"{tag}.*", "")
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            app.name = request.name
            self._plane.deployed[app.name] = app.id
        for function in list(self._plane.functions.values()):
            if function.app is app:  # variants too
                self._scheduler.fleet.scale(function)
        return api_pb2.AppPublishResponse(
            url=f"local plane, app {app.name or app.id}", deployed_at=self._plane.clock.time()
        )

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest) -> Empty:
        app = self._app(request.app_id)
        if app.app_state == api_pb2.APP_STATE_EPHEMERAL:
            self._plane.spawn(self._scheduler.stop_app(app))
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest) -> Empty:
        app = self._app(request.app_id)
        self._plane.deployed = {name: i for name, i in self._plane.deployed.items() if i != app.id}
        await self._scheduler.stop_app(app)
        return Empty()

    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        app = self._app(request.app_id)
        position = int(request.last_entry_id.partition("-")[0] or 0)
        clock = self._plane.clock
        deadline = clock.monotonic() + request.timeout
        is_broken = True
        app.open_streams += 1
        try:
            while True:
                while position < len(app.logs):
                    position += 1
                    yield app.logs[position - 1]
                if app.is_done or clock.monotonic() >= deadline:
                    is_broken = False
                    return
                await clock.wait(app.pulse, deadline - clock.monotonic())
        finally:
            app.open_streams -= 1
            app.last_seen = time.monotonic()
            if is_broken and not app.is_stopping:
                self._plane.spawn(self._reap_if_silent(app, LOST_CLIENT_S))

    async def _reap_if_silent(self, app: App, patience_s: float) -> None:
        """Stop an ephemeral app whose client broke off and gives no other sign of life."""
        broke_at = time.monotonic()
        await asyncio.sleep(patience_s)
        is_silent = app.last_seen <= broke_at and not app.open_streams
        if is_silent and app.app_state == api_pb2.APP_STATE_EPHEMERAL:
            await self._scheduler.stop_app(app)

    async def ContainerStop(
        self, request: api_pb2.ContainerStopRequest
    ) -> api_pb2.ContainerStopResponse:
        container = self._plane.containers.get(request.task_id)
        if container is None:
            raise not_found(f"no container {request.task_id}")
        self._scheduler.fleet.drain(container)
        if not request.graceful:
            self._scheduler.launcher.send(container, signal.SIGINT)
        return api_pb2.ContainerStopResponse()

    async def TaskList(self, _request: api_pb2.TaskListRequest) -> api_pb2.TaskListResponse:
        live = [c for c in self._plane.containers.values() if c.is_alive]
        return api_pb2.TaskListResponse(
            tasks=[
                api_pb2.TaskStats(
                    task_id=c.id,
                    app_id=c.function.app.id,
                    started_at=c.launched_at,
                    enqueued_at=c.launched_at,
                )
                for c in live
            ]
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
            raise ValueError(f"{sha256_hex!r} is no sha256")
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
                os.link(self._plane.blob_store / Path(request.data_blob_id).name, target)
            else:
                target.write_bytes(request.data)
        return api_pb2.MountPutFileResponse(exists=self._has(request.sha256_hex))

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest
    ) -> api_pb2.MountGetOrCreateResponse:
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
            download_url=self._plane.blob_url(f"blob/{Path(request.blob_id).name}")
        )
