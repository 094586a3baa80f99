"""Images, mounted code and large payloads: what a client uploads before it calls anything."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modalkit.local.blobs import BLOB_ID, whole
from modalkit.local.core import IMAGE_BUILDER, Image, Mount
from modalkit.local.image_commands import Layer, normal
from modalkit.local.state import new_id

if TYPE_CHECKING:
    from modalkit.local.core import Plane

SHA256 = re.compile(r"[0-9a-f]{64}")
STANDALONE_PYTHON = re.compile(r"python-build-standalone\.\d+\.(\d+\.\d+)")
"""The name of the mount from which Modal copies `add_python`'s Python."""


class UploadService:
    """Images (recorded, never built), mounted code and large payloads."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest
    ) -> api_pb2.ImageGetOrCreateResponse:
        image = request.image
        digest = hashlib.sha256(image.SerializeToString(deterministic=True)).hexdigest()
        image_id = f"im-{digest[:16]}"
        mount = self._plane.mounts.get(image.context_mount_id, Mount(()))
        series = STANDALONE_PYTHON.match(mount.name)
        built_by = self._plane.functions.get(request.build_function_id)
        layer = Layer(
            commands=tuple(image.dockerfile_commands),
            context={
                normal(file.filename): file
                for file in (*mount.files, *map(self._keep, image.context_files))
            },
            build_args=dict(image.build_args),
            python=series[1] if series else None,
            function=built_by.definition.function_name if built_by else "",
        )
        bases = {base.docker_tag: base.image_id for base in image.base_images}
        self._plane.images[image_id] = Image(image_id, layer, bases)
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id,
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=self._metadata(image_id),
        )

    async def ImageFromId(self, request: api_pb2.ImageFromIdRequest) -> api_pb2.ImageFromIdResponse:
        image_id = request.image_id
        if image_id not in self._plane.images:  # built on Modal: nothing is known of it here
            layer = Layer(commands=(f"FROM {image_id}",))
            self._plane.images[image_id] = Image(image_id, layer)
        return api_pb2.ImageFromIdResponse(image_id=image_id, metadata=self._metadata(image_id))

    async def ImageGetByTag(
        self, request: api_pb2.ImageGetByTagRequest
    ) -> api_pb2.ImageGetByTagResponse:
        image_id = f"im-{hashlib.sha256(request.tag.encode()).hexdigest()[:16]}"
        self._plane.images[image_id] = Image(image_id, Layer(commands=(f"FROM {request.tag}",)))
        return api_pb2.ImageGetByTagResponse(image_id=image_id)

    def _metadata(self, image_id: str) -> api_pb2.ImageMetadata:
        facts = self._plane.image_facts(image_id)
        series = facts.python or "{}.{}".format(*sys.version_info[:2])
        return api_pb2.ImageMetadata(
            image_builder_version=IMAGE_BUILDER,
            python_version_info=f"Python {series}.0",
            workdir=facts.workdir or "/root",
        )

    def _keep(self, file: api_pb2.ImageContextFile) -> api_pb2.MountFile:
        digest = hashlib.sha256(file.data).hexdigest()
        with whole(self._plane.file_store / digest) as kept:
            kept.write(file.data)
        return api_pb2.MountFile(filename=file.filename, sha256_hex=digest)

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
            self._take(request)
        return api_pb2.MountPutFileResponse(exists=self._has(request.sha256_hex))

    def _take(self, request: api_pb2.MountPutFileRequest) -> None:
        """Keep a file that was uploaded, if it is the one that it is called."""
        target = self._plane.file_store / request.sha256_hex
        data = request.data
        if request.WhichOneof("data_oneof") == "data_blob_id":
            data = (self._plane.blob_store / _blob_name(request.data_blob_id)).read_bytes()
        if hashlib.sha256(data).hexdigest() != request.sha256_hex:
            message = f"what was uploaded as {request.sha256_hex} is another file"
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        with whole(target) as kept:
            kept.write(data)

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest
    ) -> api_pb2.MountGetOrCreateResponse:
        for file in request.files:
            _check_file(file)
            if not self._has(file.sha256_hex):
                raise GRPCError(
                    Status.FAILED_PRECONDITION, f"mount file {file.filename!r} was never uploaded"
                )
        mount = Mount(tuple(request.files), request.deployment_name)
        digest = hashlib.sha256(mount.name.encode())
        for file in sorted(mount.files, key=lambda file: file.filename):
            digest.update(file.SerializeToString(deterministic=True))
        # Named by their content, so that an image that copies them is the same when they are.
        mount_id = f"mo-{digest.hexdigest()[:16]}"
        self._plane.mounts[mount_id] = mount
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=digest.hexdigest())
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
