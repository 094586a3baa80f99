"""
The transcript: which RPCs a plane answered, and how.

Recording keeps the messages as bytes in a ring; they are read, and what is secret in them is
hidden, only when somebody asks.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Self

import attrs
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from modalkit.local.clock import Clock
from modalkit.local.reports import Rpc

MAX_RPCS: Final = 20_000
MAX_BYTES: Final = 64 << 20
"""Bounds of the ring: the oldest go first."""
PAGE: Final = 500
"""RPCs in one answer."""
MAX_TEXT: Final = 500
MAX_ITEMS: Final = 20
SHORTEST_SECRET: Final = 5
"""A shorter secret, such as "1", is hidden in its own field only: it is part of everything."""

HIDDEN: Final = "(hidden)"
_HIDDEN_FIELDS: Final = re.compile(
    r"env|env_dict|environment_variables"
    r"|(.*_)?(tokens?|secret|jwts?|passwords?|credentials|ephemeral_secrets)"
    r"|((up|down)load|get|put)_urls?"
)
_HIDDEN_BY_FULL_NAME: Final = frozenset({"modal.client.SecretUpdateRequest.Update.value"})

Packed = tuple[type[Message], bytes]


@attrs.define(eq=False)
class Record:
    """One RPC while it is answered, and after; a context manager around the answer."""

    index: int
    time: float
    caller: str
    name: str
    request: Packed
    transcript: Transcript
    reply: Packed | None = None
    messages: int = 0
    """Messages of a reply that is a stream."""
    status: str = "PENDING"
    duration_s: float = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        self.transcript.end(self, error)

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return len(self.request[1]) + (len(self.reply[1]) if self.reply else 0)


class Transcript:
    """
    The last RPCs of a plane.

    Args:
        clock: The plane's.
        secrets: Returns the values that must not be shown, wherever they stand.
    """

    def __init__(self, clock: Clock, secrets: Callable[[], Iterable[str]]) -> None:
        self._clock = clock
        self._secrets = secrets
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._next = 0

    def record(self, caller: str, name: str, request: Message) -> Record:
        """Begin the record of one RPC."""
        packed = (type(request), request.SerializeToString())
        found = Record(self._next, self._clock.time(), caller, name, packed, self)
        self._next += 1
        self._records.append(found)
        self._bytes += found.size
        self._trim()
        return found

    def answer(self, record: Record, reply: Message) -> None:
        """Keep the reply of an RPC, if the RPC is still kept."""
        if self._records and record.index >= self._records[0].index:
            record.reply = (type(reply), reply.SerializeToString())
            self._bytes += len(record.reply[1])
            self._trim()

    def end(self, record: Record, error: BaseException | None) -> None:
        """Note how an RPC ended."""
        status = getattr(error, "status", None)  # a GRPCError's
        record.status = "OK" if error is None else getattr(status, "name", "CANCELLED")
        record.duration_s = self._clock.time() - record.time

    def page(self, since: int) -> list[Rpc]:
        """Return at most `PAGE` of the kept RPCs, from number *since* on."""
        oldest = self._records[0].index if self._records else 0
        first = max(0, since - oldest)
        secrets = sorted(
            (value for value in self._secrets() if len(value) >= SHORTEST_SECRET), key=len
        )[::-1]
        chosen = [self._records[i] for i in range(first, min(first + PAGE, len(self._records)))]
        return [_shown(record, secrets) for record in chosen]

    def _trim(self) -> None:
        while len(self._records) > MAX_RPCS or self._bytes > MAX_BYTES:
            self._bytes -= self._records.popleft().size


def _shown(record: Record, secrets: list[str]) -> Rpc:
    reply: dict[str, Any] | None = None
    if record.reply is not None:
        reply = _summary(_unpacked(record.reply), secrets)
    elif record.messages:
        reply = {"messages": record.messages}
    return Rpc(
        index=record.index,
        time=record.time,
        caller=record.caller,
        name=record.name,
        request=_summary(_unpacked(record.request), secrets),
        reply=reply,
        status=record.status,
        duration_s=record.duration_s,
    )


def _unpacked(packed: Packed) -> Message:
    kind, data = packed
    return kind.FromString(data)


def _summary(message: Message, secrets: list[str]) -> dict[str, Any]:
    """Return the set fields of *message* as JSON, without secrets, bytes and long texts."""
    return {
        field.name: HIDDEN
        if _HIDDEN_FIELDS.fullmatch(field.name) or field.full_name in _HIDDEN_BY_FULL_NAME
        else _field(field, value, secrets)
        for field, value in message.ListFields()
    }


def _field(field: FieldDescriptor, value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Message | str | bytes | int | float):
        return _value(field, value, secrets)
    if hasattr(value, "items"):  # a map: its entries are messages of two fields
        of_value = field.message_type.fields_by_name["value"]
        chosen = list(value.items())[:MAX_ITEMS]
        shown: Any = {_scrub(str(k), secrets): _value(of_value, v, secrets) for k, v in chosen}
        return {**shown, "...": f"{len(value)} in all"} if len(value) > MAX_ITEMS else shown
    shown = [_value(field, item, secrets) for item in value[:MAX_ITEMS]]
    return [*shown, f"... {len(value)} in all"] if len(value) > MAX_ITEMS else shown


def _value(field: FieldDescriptor, value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Message):
        return _summary(value, secrets)
    if isinstance(value, bytes):
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:12]}"
    if isinstance(value, str):
        return _scrub(value, secrets)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value


def _scrub(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... {len(text)} characters"
