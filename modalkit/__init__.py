"""
modalkit: training on Modal that survives preemption, crashes and cold starts.

The public names, and nothing else.
Those that need attrs or modal are imported at their first use: `import modalkit` stays cheap
enough for any script or command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from modalkit.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    ForkRefusedError,
    LifecycleError,
    LocalPlaneError,
    MissingDependencyError,
    ModalkitError,
    PlaneStartError,
    PolicyError,
    PrivateMountsError,
    RecipeError,
    RunConfigMismatchError,
    RunError,
    SnapshotGoneError,
    UnknownContainerError,
    UsageError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from modalkit import images
    from modalkit.deployment import Deployment
    from modalkit.images import ImageRecipe, add_to
    from modalkit.policies import CheckpointPolicy, CommitPolicy, RetryPolicy
    from modalkit.runs.run import Run, run
    from modalkit.trainer import SnapshotTrainer

__version__ = "0.1.0"

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointPolicy",
    "CommitPolicy",
    "Deployment",
    "ForkRefusedError",
    "ImageRecipe",
    "LifecycleError",
    "LocalPlaneError",
    "MissingDependencyError",
    "ModalkitError",
    "PlaneStartError",
    "PolicyError",
    "PrivateMountsError",
    "RecipeError",
    "RetryPolicy",
    "Run",
    "RunConfigMismatchError",
    "RunError",
    "SnapshotGoneError",
    "SnapshotTrainer",
    "UnknownContainerError",
    "UsageError",
    "VersionMismatchError",
    "add_to",
    "images",
    "run",
]

_HOMES = {
    "CheckpointPolicy": "modalkit.policies",
    "CommitPolicy": "modalkit.policies",
    "Deployment": "modalkit.deployment",
    "ImageRecipe": "modalkit.images",
    "RetryPolicy": "modalkit.policies",
    "Run": "modalkit.runs.run",
    "SnapshotTrainer": "modalkit.trainer",
    "add_to": "modalkit.images",
    "run": "modalkit.runs.run",
}


def __getattr__(name: str) -> object:
    if name == "images":
        return importlib.import_module("modalkit.images")
    if name not in _HOMES:
        raise AttributeError(f"module 'modalkit' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
