"""
The wire: handler objects in, one gRPC servicer out.

A handler is a plain object whose coroutine methods are named after RPCs. What they do is unknown
here. An RPC that no handler offers answers UNIMPLEMENTED with its name: so an app learns what the
plane lacks. Each RPC is recorded here, and here an owner's faults strike.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import inspect
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import attrs
from google.protobuf.message import DecodeError
from grpclib import GRPCError, Status
from modal_proto import api_grpc

from modalkit.errors import ModalkitError
from modalkit.local.clock import Clock
from modalkit.local.faults import DISK_FULL, Fault, FaultTable
from modalkit.local.features import feature
from modalkit.local.transcript import Transcript

logger = logging.getLogger("modalkit.local")

T = TypeVar("T")

RECEIVE_TIMEOUT_S: Final = 60.0
"""How long a request may take to arrive whole, once it has begun to."""
RPCS: Final[frozenset[str]] = frozenset(api_grpc.ModalClientBase.__abstractmethods__)

_UNSUPPORTED = (
    "the local plane does not model this part of {feature}: it works on Modal only "
    "(RPC {name}, modal {version})"
)


@attrs.frozen
class Line:
    """What every RPC of one caller passes: "client", or the id of a container."""

    caller: str
    clock: Clock
    transcript: Transcript
    faults: FaultTable

    async def before(self, name: str, request: Any) -> list[Fault]:
        """Let the faults strike that come before the handler; return those that come after."""
        struck = self.faults.strike(name, self.caller, request)
        for fault in struck:
            if fault.delay_s:
                await self.clock.sleep(fault.delay_s)
            if not fault.applied:
                self.after([fault])
        return struck

    def after(self, struck: Sequence[Fault]) -> None:
        """Answer with the error of a fault, if one has struck."""
        for fault in struck:
            if fault.status is not None:
                raise GRPCError(Status[fault.status], fault.message)


class _Stream(Protocol):
    async def recv_message(self) -> Any: ...
    async def send_message(self, message: Any) -> None: ...


Handler = Callable[[_Stream], Awaitable[None]]


def servicer(handlers: Sequence[object], *, modal_version: str, line: Line) -> Any:
    """
    Return a gRPC servicer that answers each RPC by the handler that has a method of its name.

    Raises:
        TypeError: Two handlers offer the same RPC.
    """
    found: dict[str, Handler] = {}
    for handler in handlers:
        for name in RPCS & set(dir(handler)):
            if name in found:
                raise TypeError(f"two handlers offer {name}")
            found[name] = _adapt(name, getattr(handler, name), line)
    methods = {
        name: staticmethod(found.get(name) or _missing(name, modal_version, line)) for name in RPCS
    }
    return type("PlaneServicer", (api_grpc.ModalClientBase,), methods)()


def _adapt(name: str, method: Callable[[Any], Any], line: Line) -> Handler:
    if inspect.isasyncgenfunction(method):
        return _streaming(name, method, line)
    return _unary(name, method, line)


def _unary(name: str, method: Callable[[Any], Awaitable[Any]], line: Line) -> Handler:
    async def handle(stream: _Stream) -> None:
        request = await _receive(stream, name)
        with line.transcript.record(line.caller, name, request) as record:
            struck = await line.before(name, request)
            with _Translated(name):
                reply = await method(request)
            line.after(struck)
            line.transcript.answer(record, reply)
            await stream.send_message(reply)

    return handle


def _streaming(name: str, method: Callable[[Any], AsyncIterator[Any]], line: Line) -> Handler:
    async def handle(stream: _Stream) -> None:
        request = await _receive(stream, name)
        with line.transcript.record(line.caller, name, request) as record:
            struck = await line.before(name, request)
            with _Translated(name):
                async for message in method(request):
                    record.messages += 1
                    await stream.send_message(message)
            line.after(struck)

    return handle


def _missing(name: str, modal_version: str, line: Line) -> Handler:
    async def handle(stream: _Stream) -> None:
        request = await _receive(stream, name)
        with line.transcript.record(line.caller, name, request):
            logger.warning("unsupported RPC %s", name)
            message = _UNSUPPORTED.format(feature=feature(name), name=name, version=modal_version)
            raise GRPCError(Status.UNIMPLEMENTED, message)

    return handle


async def _receive(stream: _Stream, name: str) -> Any:
    """Return the request, or refuse what is none: grpclib would answer UNKNOWN, and be retried."""
    try:
        async with asyncio.timeout(RECEIVE_TIMEOUT_S):
            request = await stream.recv_message()
    except (DecodeError, AssertionError, NotImplementedError, TimeoutError) as error:
        # Not a message, cut short, compressed, or never whole.
        raise GRPCError(Status.INVALID_ARGUMENT, f"{name}: malformed request: {error}") from None
    if request is None:
        raise GRPCError(Status.INVALID_ARGUMENT, f"{name}: there is no request")
    return request


class _Translated:
    """
    Turn a bug of ours into FAILED_PRECONDITION, and say of a full disk that it is one.

    grpclib's own answer is UNKNOWN, which the client retries in silence.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, GRPCError | ConnectionError):
            return
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{DISK_FULL} for the local plane: {error}"
            raise GRPCError(Status.FAILED_PRECONDITION, message) from error
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            message = f"{DISK_FULL} for the local plane's objects"
            raise GRPCError(Status.FAILED_PRECONDITION, message) from error
        if isinstance(error, ModalkitError):
            raise GRPCError(Status.FAILED_PRECONDITION, str(error)) from error
        logger.error("bug in the local plane: %s", self._name, exc_info=error)
        raise GRPCError(
            Status.FAILED_PRECONDITION, f"bug in the local plane, {self._name}: {error!r}"
        ) from error


def not_found(what: str) -> GRPCError:
    """Return the error that modal's client shows as NotFoundError."""
    return GRPCError(Status.NOT_FOUND, what)


def known(table: Mapping[str, T], identifier: str, what: str) -> T:
    """Return what *table* has under an id, or raise modal's NotFoundError with *what* it is."""
    if identifier not in table:
        raise not_found(f"no {what} {identifier}")
    return table[identifier]


def encode_token(**claims: Any) -> str:
    """Return *claims* as an unsigned JWT: the client decodes it and checks no signature."""
    return ".".join([_b64({"alg": "none"}), _b64(claims), "x"])


def decode_token(token: str) -> dict[str, Any]:
    """Return the claims of a token that `encode_token` made; none for any other text."""
    try:
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _b64(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
