"""
The wire: handler objects in, one gRPC servicer out.

A handler is a plain object whose coroutine methods are named after RPCs. What they do is unknown
here. An RPC that no handler offers answers UNIMPLEMENTED with its name: so an app learns what the
plane lacks.
"""

from __future__ import annotations

import base64
import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from grpclib import GRPCError, Status
from modal_proto import api_grpc

logger = logging.getLogger("modalkit.local")

_UNSUPPORTED = (
    "the local plane does not model the RPC {name} (modal {version}): "
    "the feature that needs it works on Modal only"
)


class _Stream(Protocol):
    async def recv_message(self) -> Any: ...
    async def send_message(self, message: Any) -> None: ...


Handler = Callable[[_Stream], Awaitable[None]]


def servicer(handlers: Sequence[object], *, modal_version: str) -> Any:
    """
    Return a gRPC servicer that answers each RPC by the handler that has a method of its name.

    Raises:
        TypeError: Two handlers offer the same RPC.
    """
    names = api_grpc.ModalClientBase.__abstractmethods__
    found: dict[str, Handler] = {}
    for handler in handlers:
        for name in names & set(dir(handler)):
            if name in found:
                raise TypeError(f"two handlers offer {name}")
            found[name] = _adapt(name, getattr(handler, name))
    methods = {
        name: staticmethod(found.get(name) or _missing(name, modal_version)) for name in names
    }
    return type("PlaneServicer", (api_grpc.ModalClientBase,), methods)()


def _adapt(name: str, method: Callable[[Any], Any]) -> Handler:
    return _streaming(name, method) if inspect.isasyncgenfunction(method) else _unary(name, method)


def _unary(name: str, method: Callable[[Any], Awaitable[Any]]) -> Handler:
    async def handle(stream: _Stream) -> None:
        request = await stream.recv_message()
        with _Translated(name):
            reply = await method(request)
        await stream.send_message(reply)

    return handle


def _streaming(name: str, method: Callable[[Any], AsyncIterator[Any]]) -> Handler:
    async def handle(stream: _Stream) -> None:
        request = await stream.recv_message()
        with _Translated(name):
            async for message in method(request):
                await stream.send_message(message)

    return handle


def _missing(name: str, modal_version: str) -> Handler:
    async def handle(stream: _Stream) -> None:
        await stream.recv_message()
        logger.warning("unsupported RPC %s", name)
        raise GRPCError(Status.UNIMPLEMENTED, _UNSUPPORTED.format(name=name, version=modal_version))

    return handle


class _Translated:
    """
    Turn a bug of ours into FAILED_PRECONDITION.

    grpclib's own answer is UNKNOWN, which the client retries in silence.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, GRPCError | ConnectionError):
            logger.error("bug in the local plane: %s", self._name, exc_info=error)
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"bug in the local plane, {self._name}: {error!r}"
            ) from error


def not_found(what: str) -> GRPCError:
    """Return the error that modal's client shows as NotFoundError."""
    return GRPCError(Status.NOT_FOUND, what)


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
