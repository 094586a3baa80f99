"""
Every error that modalkit raises of its own, in one tree.

    ModalkitError
    |- UsageError (also ValueError)      you called us wrongly; nothing was done
    |  |- PolicyError                    a policy or deployment value is outside Modal's limits
    |  |- RecipeError                    an image recipe that cannot be built as written
    |  |- LifecycleError                 a class that Modal would run differently than written
    |  `- RunError                       a run id, configuration or argument that a run refuses
    |     `- RunConfigMismatchError      a known run id, called with another configuration
    |- MissingDependencyError (also ImportError)   a package that the image or venv lacks
    |- VersionMismatchError              the container's modalkit is not the laptop's
    |- CheckpointError
    |  |- CheckpointCorruptError         a file is torn, altered or not ours; the one before is used
    |  `- CheckpointMismatchError        the checkpoint does not fit the objects it is restored into
    `- LocalPlaneError                   the local plane could not do what was asked
       |- PlaneStartError                it did not start, or is gone
       |- PrivateMountsError             this machine forbids user namespaces
       |- ForkRefusedError               a process that must not be forked; it goes on by itself
       |- SnapshotGoneError              the process that held a memory snapshot has ended
       `- UnknownContainerError          no such container, or it has ended

Errors of modal and of user code pass through unchanged.
This module imports nothing of modalkit; everything may import it.
"""

from __future__ import annotations


class ModalkitError(Exception):
    """Base of all errors raised by modalkit itself."""


class UsageError(ModalkitError, ValueError):
    """Expected: the caller passed something that cannot work; nothing was done."""


class PolicyError(UsageError):
    """Expected: a policy or deployment value is outside the limits of Modal's service."""


class RecipeError(UsageError):
    """Expected: an image recipe that cannot be built as it is written."""


class LifecycleError(UsageError):
    """Expected: Modal would accept this class in silence and run something else than it says."""


class RunError(UsageError):
    """Expected: a run id, configuration or argument that a run refuses."""


class RunConfigMismatchError(RunError):
    """Expected: a known run id was called with another configuration than at first."""


class MissingDependencyError(ModalkitError, ImportError):
    """Expected: a package is missing; the message has the line that adds it."""


class VersionMismatchError(ModalkitError):
    """Expected: the modalkit in the container is not the version that the app was defined with."""


class CheckpointError(ModalkitError):
    """A checkpoint could not be written, found or restored."""


class CheckpointCorruptError(CheckpointError):
    """Unexpected: a checkpoint's files are torn, altered or not ours."""


class CheckpointMismatchError(CheckpointError):
    """Expected: the checkpoint does not fit the objects that it should be restored into."""


class LocalPlaneError(ModalkitError):
    """The local plane could not do what was asked."""


class PlaneStartError(LocalPlaneError):
    """The plane did not start, or its process is gone."""


class PrivateMountsError(LocalPlaneError):
    """Expected: this machine forbids the user namespaces that private Volume views need."""


class ForkRefusedError(LocalPlaneError):
    """Expected: what a process holds at its snapshot would not survive a fork."""


class SnapshotGoneError(LocalPlaneError):
    """The process that held a memory snapshot has ended; a new snapshot is needed."""


class UnknownContainerError(LocalPlaneError):
    """Expected: no such container, or it has already ended."""
