"""
A gRPC server that writes a reply in one piece.

grpclib writes headers, message and trailers apart, and each piece wakes the peer, which reads,
parses and sleeps three times for one reply. Gathered, `.map()` does about a seventh more inputs a
second (six interleaved rounds of 1,000 inputs on two planes: 190 against 166).
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpclib import server
from grpclib.protocol import H2Protocol


class Server(server.Server):
    """Gathers what one turn of the event loop writes to a connection."""

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        made: Any = protocol.connection_made
        # An attribute of this one protocol; the class is grpclib's.
        vars(protocol)["connection_made"] = lambda transport: made(Gathering(transport))
        return protocol


class Gathering:
    """A transport whose writes wait for the end of the turn; all else is the real one's."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep *data* until the event loop's next turn."""
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        """Write what is left, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._transport.write(b"".join(pieces))
