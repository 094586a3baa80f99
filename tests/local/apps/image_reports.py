"""Images of all kinds; FILES is a directory with a requirements file and a project."""

import os

import modal

FILES = os.environ.get("FILES", "/does-not-matter-in-a-container")
app = modal.App("image-reports")
pinned = (
    modal.Image.debian_slim(python_version="3.13")
    .apt_install("git")
    .uv_pip_install("numpy==1.0", "no-such-thing==2.0", "torch")
    .env({"A": "1"})
)
from_file = modal.Image.debian_slim().pip_install_from_requirements(f"{FILES}/requirements.txt")
synced = modal.Image.debian_slim().uv_sync(FILES)
foreign = modal.Image.from_registry("nvcr.io/nvidia/pytorch:25.01-py3")
plotting = modal.Image.debian_slim().uv_pip_install("matplotlib")
by_id = modal.Image.from_id("im-somewhere-else")

with plotting.imports():
    import matplotlib as mpl

with from_file.imports():
    import skimage.io


@app.function(image=pinned)
def with_pins() -> None:
    pass


@app.function(image=pinned)
def with_pins_too() -> None:
    pass


@app.function(image=from_file)
def with_file() -> list[str]:
    import numpy as np
    import skimage

    return [np.__name__, skimage.__name__]


@app.function(image=synced)
def with_sync() -> list[str]:
    import numpy as np
    import skimage

    return [np.__name__, skimage.__name__]


@app.function(image=foreign)
def on_foreign() -> list[str]:
    import numpy as np
    import skimage

    return [np.__name__, skimage.__name__]


@app.function(image=by_id)
def on_id() -> str:
    import numpy as np

    return np.__name__


@app.function(image=plotting)
def plot() -> str:
    return mpl.__name__


@app.function(image=from_file)
def read() -> str:
    return skimage.io.__name__
