"""What a container or client is told about an app's objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modal_proto import api_pb2

from modalkit.errors import LocalPlaneError
from modalkit.local.volume_service import volume_metadata
from modalkit.local.volumes import Volume

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.state import App, Function


def app_layout(plane: Plane, app: App, function: Function | None = None) -> api_pb2.AppLayout:
    """
    Return every object of *app*, and each dependency of *function*.

    The entrypoint hydrates from nothing else.
    """
    published = function.published if function else app
    layout = api_pb2.AppLayout(function_ids=published.function_ids, class_ids=published.class_ids)
    for function_id in published.function_ids.values():
        layout.objects.add(
            object_id=function_id, function_handle_metadata=plane.functions[function_id].metadata
        )
    for class_id in published.class_ids.values():
        layout.objects.add(
            object_id=class_id, class_handle_metadata=class_metadata(plane, class_id)
        )
    known = {item.object_id for item in layout.objects}
    for dependency in function.definition.object_dependencies if function else ():
        if dependency.object_id not in known:
            known.add(dependency.object_id)
            layout.objects.add(
                object_id=dependency.object_id, **_handle(plane, dependency.object_id)
            )
    return layout


def _handle(plane: Plane, object_id: str) -> dict[str, Any]:
    if not object_id.startswith("vo-"):
        return {}
    return {"volume_metadata": volume_metadata(mounted_volume(plane, object_id))}


def mounted_volume(plane: Plane, volume_id: str, where: str = "") -> Volume:
    """
    Return a Volume that a deployed function names, mounted *where* if it is.

    Raises:
        LocalPlaneError: It was deleted.
    """
    try:
        return plane.volumes.by_id(volume_id)
    except KeyError:
        raise LocalPlaneError(
            f"the Volume {volume_id}, {f'mounted at {where}, ' if where else ''}was deleted; an "
            "app keeps the ids that it was deployed with: deploy it again"
        ) from None


def class_metadata(plane: Plane, class_id: str) -> api_pb2.ClassHandleMetadata:
    """Return what a client needs to instantiate a class."""
    function_id = plane.classes[class_id]
    metadata = api_pb2.ClassHandleMetadata(class_function_id=function_id)
    if function_id:
        metadata.class_function_metadata.CopyFrom(plane.functions[function_id].metadata)
    return metadata
