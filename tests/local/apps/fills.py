"""Writes until nothing fits any more, and then makes room."""

import os
import pathlib

import modal

app = modal.App("fills")
volume = modal.Volume.from_name("fills", create_if_missing=True)
HERE = pathlib.Path("/fills")
MIB = 1 << 20


@app.function(volumes={"/fills": volume}, max_containers=1)
def fill(most: int) -> str:
    for number in range(most):
        try:
            (HERE / f"{number}.bin").write_bytes(os.urandom(2 * MIB))
            volume.commit()
        except (OSError, RuntimeError, modal.exception.Error) as error:
            return f"{type(error).__name__}: {error}"
    return "everything fits"


@app.function(volumes={"/fills": volume}, max_containers=1)
def make_room() -> None:
    for path in HERE.iterdir():
        path.unlink()
    (HERE / "last.txt").write_text("there is room")
    volume.commit()
