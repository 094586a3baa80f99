"""The RPC families, one file each; those of containers know who is calling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modalkit.local.services.apps import AppService
from modalkit.local.services.calls import CallService
from modalkit.local.services.containers import ContainerService
from modalkit.local.services.dicts import DictService
from modalkit.local.services.functions import FunctionService
from modalkit.local.services.inspection import InspectionService
from modalkit.local.services.logs import LogService
from modalkit.local.services.queues import QueueService
from modalkit.local.services.scaling import ScalingService
from modalkit.local.services.secrets import SecretService
from modalkit.local.services.uploads import UploadService
from modalkit.local.volume_files import VolumeFileService
from modalkit.local.volume_service import VolumeService

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.scheduler import Scheduler
    from modalkit.local.state import Container

HANDLERS: Final[tuple[type, ...]] = (
    AppService,
    LogService,
    InspectionService,
    UploadService,
    FunctionService,
    ScalingService,
    CallService,
    DictService,
    QueueService,
    SecretService,
    VolumeService,
    VolumeFileService,
    ContainerService,
)
"""Whatever the plane answers is a method of one of these."""


def for_client(plane: Plane, scheduler: Scheduler, caller: Container | None = None) -> list[object]:
    """Return the handlers of what anybody may ask."""
    return [
        AppService(plane, scheduler),
        LogService(plane, scheduler),
        InspectionService(plane, scheduler),
        UploadService(plane),
        FunctionService(plane, scheduler),
        ScalingService(plane, scheduler),
        CallService(plane, scheduler),
        DictService(plane),
        QueueService(plane),
        SecretService(plane),
        VolumeService(plane, caller),
        VolumeFileService(plane),
    ]


def for_container(plane: Plane, scheduler: Scheduler, caller: Container) -> list[object]:
    """Return the handlers of what *caller* may ask."""
    return [*for_client(plane, scheduler, caller), ContainerService(plane, scheduler, caller)]
