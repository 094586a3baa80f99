"""What an attempt at an input ends with."""

from __future__ import annotations

import attrs
from modal_proto import api_pb2


@attrs.frozen
class Outcome:
    """What an attempt ended with; times are Unix seconds."""

    result: api_pb2.GenericResult
    data_format: int = api_pb2.DATA_FORMAT_UNSPECIFIED
    started_at: float = 0.0
    created_at: float = 0.0


def start_failure(text: str) -> api_pb2.GenericResult:
    """Return what the callers of a container that did not start are told."""
    return api_pb2.GenericResult(
        status=api_pb2.GenericResult.GENERIC_STATUS_INIT_FAILURE, exception=text
    )


def cancelled() -> api_pb2.GenericResult:
    """Return what the callers of a cancelled call are told."""
    return api_pb2.GenericResult(
        status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED,
        exception="Function call was cancelled",
    )


def stopped() -> api_pb2.GenericResult:
    """Return what the callers of a stopped app are told."""
    return api_pb2.GenericResult(
        status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED, exception="the app was stopped"
    )
