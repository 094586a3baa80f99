"""The least that a gRPC server can do: `python echo_server.py SOCKET` sends each message back."""

import asyncio
import sys

from grpclib.const import Cardinality, Handler
from grpclib.server import Server
from modal_proto import api_pb2

NAME = "/benchmarks.Echo/Echo"


class Echo:
    def __mapping__(self) -> dict:
        message = api_pb2.FunctionInput
        return {NAME: Handler(self.echo, Cardinality.UNARY_UNARY, message, message)}

    async def echo(self, stream) -> None:  # noqa: ANN001
        await stream.send_message(await stream.recv_message())


async def main(path: str) -> None:
    server = Server([Echo()])
    await server.start(path=path)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
