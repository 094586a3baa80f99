"""What the tests of the examples share."""

from __future__ import annotations

import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

# The example's own package is found from its app's directory, as `modal run` finds it.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "tiny_cats"))


@pytest.fixture(scope="session")
def pets_tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small set like the Oxford-IIIT Pet set: seven cats, nine others, two odd files."""
    names = [f"Abyssinian_{i}.jpg" for i in range(7)] + [f"beagle_{i}.jpg" for i in range(9)]
    path = tmp_path_factory.mktemp("pets") / "images.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            picture = io.BytesIO()
            colour = (200, 120, 60) if name[0].isupper() else (20, 60, 200)
            Image.new("RGB", (400, 300), colour).save(picture, "JPEG")
            _add(archive, f"images/{name}", picture.getvalue())
        _add(archive, "images/Abyssinian_100.jpg", b"not a picture")
        _add(archive, "images/Abyssinian_100.mat", b"not a picture either")
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def pets_url(pets_tarball: Path) -> Iterator[str]:
    """Serve the small set on the loopback interface."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(pets_tarball.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{pets_tarball.name}"
        server.shutdown()
