"""
An embedded emulation of Modal's control plane: the real client and entrypoint, this machine.

It knows nothing of the rest of modalkit, and of Modal only what its client shows.
"""

from modalkit.local.plane import LocalPlane, RunningPlane
from modalkit.local.reports import ContainerInfo, ImageInfo, LogLine, PackageInfo, Rpc

__all__ = [
    "ContainerInfo",
    "ImageInfo",
    "LocalPlane",
    "LogLine",
    "PackageInfo",
    "Rpc",
    "RunningPlane",
]
