"""
The plane's HTTP server: payloads and files that are too large for a message.

On the loopback, behind a random path: the client follows URLs and sends nothing that proves who
it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from aiohttp import web

if TYPE_CHECKING:
    from modalkit.local.core import Plane

CHUNK_BYTES = 1 << 20
BLOB_ID = re.compile(r"(bl|block)-[0-9a-z]+")
"""Of a payload, or of a block of a file; each is a file of this name."""
MAX_BODY_BYTES = 1 << 40


async def start_http(plane: Plane) -> web.AppRunner:
    """Serve blobs and Volume files; sets `plane.http_url`."""
    prefix = f"/{secrets.token_urlsafe(16)}"
    files = _Files(plane)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_put(prefix + "/blob/{id}", files.put_blob)
    app.router.add_get(prefix + "/blob/{id}", files.get_blob)
    app.router.add_get(prefix + "/volume/{id}/{held}", files.get_volume_file)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    plane.http_url = f"http://{host}:{port}{prefix}"
    return runner


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Write a file that has its name only when all of it is written; others may write it too."""
    temporary = path.with_name(f"~{uuid.uuid4().hex}")  # a name that nothing uploaded has
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Files:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def _blob(self, request: web.Request) -> Path:
        if not BLOB_ID.fullmatch(request.match_info["id"]):
            raise web.HTTPNotFound
        return self._plane.blob_store / request.match_info["id"]

    async def put_blob(self, request: web.Request) -> web.Response:
        """Store one payload; the client compares the ETag with the MD5 that it computed."""
        digest = hashlib.md5(usedforsecurity=False)
        with whole(self._blob(request)) as file:
            async for chunk in request.content.iter_chunked(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
        return web.Response(headers={"ETag": f'"{digest.hexdigest()}"'})

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        """Return one payload."""
        path = self._blob(request)
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path)

    async def get_volume_file(self, request: web.Request) -> web.StreamResponse:
        """Return one block of a committed file."""
        try:
            volume = self._plane.volumes.by_id(request.match_info["id"])
            path = volume.held(request.match_info["held"])
        except KeyError as error:
            raise web.HTTPNotFound from error
        with path.open("rb") as file:  # at most 8 MiB, as the client asks for it
            file.seek(int(request.query["offset"]))
            return web.Response(body=file.read(int(request.query["length"])))
