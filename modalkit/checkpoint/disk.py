"""
Forcing bytes to a disk that may be a network file system.

On a Volume the commit is what makes files durable, and its mount may know no fsync at all. That
is tolerated; a disk that fails to write is not.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import IO, Any, Final

_NOT_SUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})


def sync_file(file: IO[Any]) -> None:
    """
    Force what was written to *file* to the disk.

    Raises:
        OSError: The disk failed. The file must be given up: a second fsync may succeed without
            the bytes being there.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def sync_directory(directory: Path) -> None:
    """Force the names in *directory* to a local disk; a Volume refuses and does not need it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
