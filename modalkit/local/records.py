"""What a plane keeps of mounts, images and GPUs, as bytes; see `keep`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
from modal_proto import api_pb2

from modalkit.local.image_commands import Layer

if TYPE_CHECKING:
    from modalkit.local.core import Mount, Plane
    from modalkit.local.state import Function


def uploads(plane: Plane, functions: Iterable[Function]) -> Iterator[str]:
    """Return the ids of the mounts and images that containers of *functions* need."""
    for function in functions:
        definition = function.definition
        yield from definition.mount_ids
        waiting = [definition.image_id]
        while waiting:
            if (image := plane.images.get(waiting.pop())) is not None:
                yield image.id
                waiting += image.bases.values()


def files(plane: Plane, identifier: str) -> Iterable[api_pb2.MountFile]:
    """Return the files of a mount, or those that an image was built with."""
    if (mount := plane.mounts.get(identifier)) is not None:
        return mount.files
    image = plane.images.get(identifier)
    return image.layer.context.values() if image is not None else ()


def pack(plane: Plane, identifier: str) -> bytes:
    """Return what `unpack` needs of a mount or an image."""
    if identifier.startswith("mo-"):
        return bytes(_request(plane.mounts.get(identifier)).SerializeToString())
    image = plane.images[identifier]
    context = [(path, file.SerializeToString().hex()) for path, file in image.layer.context.items()]
    layer = {**attrs.asdict(image.layer, recurse=False), "context": context, "bases": {}}
    return json.dumps({"id": image.id, "bases": dict(image.bases), "layer": layer}).encode()


def _request(mount: Mount | None) -> api_pb2.MountGetOrCreateRequest:
    if mount is None:
        return api_pb2.MountGetOrCreateRequest()
    return api_pb2.MountGetOrCreateRequest(files=mount.files, deployment_name=mount.name)


def unpack(plane: Plane, identifier: str, record: bytes) -> None:
    """Give *plane* the mount or image that was packed."""
    from modalkit.local.core import Image, Mount  # which imports this

    if identifier.startswith("mo-"):
        request = api_pb2.MountGetOrCreateRequest.FromString(record)
        plane.mounts[identifier] = Mount(tuple(request.files), request.deployment_name)
        return
    fields = json.loads(record)
    layer = fields["layer"]
    layer["commands"] = tuple(layer["commands"])
    layer["context"] = {
        path: api_pb2.MountFile.FromString(bytes.fromhex(file)) for path, file in layer["context"]
    }
    plane.images[identifier] = Image(fields["id"], Layer(**layer), fields["bases"])


def pack_gpus(choices: Iterable[api_pb2.GPUConfig]) -> bytes:
    """Return what `unpack_gpus` needs."""
    functions = [
        api_pb2.Function(resources=api_pb2.Resources(gpu_config=choice)) for choice in choices
    ]
    ranked = [api_pb2.FunctionData.RankedFunction(function=function) for function in functions]
    return bytes(api_pb2.FunctionData(ranked_functions=ranked).SerializeToString())


def unpack_gpus(record: bytes) -> list[Any]:
    """Return the api_pb2.GPUConfig of each choice that was packed."""
    ranked = api_pb2.FunctionData.FromString(record).ranked_functions
    return [r.function.resources.gpu_config for r in ranked]
