"""One reply, one write."""

import asyncio

from google.protobuf.empty_pb2 import Empty
from grpclib.client import Channel
from modal_proto.api_grpc import ModalClientStub

from modalkit.local.clock import Clock
from modalkit.local.faults import FaultTable
from modalkit.local.serving import Gathering, Server
from modalkit.local.transcript import Transcript
from modalkit.local.wire import Line, servicer


class Hello:
    async def ContainerHello(self, _request: Empty) -> Empty:  # noqa: N802 - the RPC is called so
        return Empty()


def test_a_reply_is_written_in_one_piece(monkeypatch, tmp_path):
    flushed = []

    class Counting(Gathering):
        def _flush(self):
            flushed.append(len(self._pieces))
            super()._flush()

    monkeypatch.setattr("modalkit.local.serving.Gathering", Counting)

    async def main() -> None:
        clock = Clock()
        line = Line("client", clock, Transcript(clock, list), FaultTable(str))
        server = Server([servicer([Hello()], modal_version="1.6.4", line=line)])
        await server.start(path=str(tmp_path / "s"))
        async with Channel(path=str(tmp_path / "s")) as channel:
            stub = ModalClientStub(channel)
            await stub.ContainerHello(Empty())
            del flushed[:]
            for _ in range(5):
                await stub.ContainerHello(Empty())
        server.close()
        await server.wait_closed()

    asyncio.run(main())
    assert max(flushed) >= 3  # headers, message and trailers


def test_what_was_gathered_is_written_before_the_end():
    class Wire(list):
        write = list.append

        def close(self):
            self.append("closed")

    async def main() -> Wire:
        wire = Wire()
        transport = Gathering(wire)
        transport.write(b"a")
        transport.write(b"b")
        await asyncio.sleep(0)
        transport.write(b"c")
        transport.close()
        return wire

    assert asyncio.run(main()) == [b"ab", b"c", "closed"]
