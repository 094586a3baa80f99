"""Two parties at one Volume."""

import pathlib

import modal

app = modal.App("volumes")
volume = modal.Volume.from_name("shared", create_if_missing=True)
HERE = pathlib.Path("/mnt/shared")


@app.cls(volumes={"/mnt/shared": volume}, max_containers=1)
class Peer:
    name: str = modal.parameter()

    @modal.method()
    def write(self, path: str, text: str) -> None:
        (HERE / path).write_text(text)

    @modal.method()
    def read(self, path: str) -> str | None:
        return (HERE / path).read_text() if (HERE / path).exists() else None

    @modal.method()
    def commit(self) -> None:
        volume.commit()

    @modal.method()
    def reload(self) -> None:
        volume.reload()


@app.function(volumes={"/mnt/shared": volume})
def reload_with_open_file() -> str:
    with (HERE / "held.txt").open("w"):
        try:
            volume.reload()
        except RuntimeError as error:
            return str(error)
    return "it was not refused"


@app.function(volumes={"/mnt/shared": volume.with_mount_options(read_only=True)})
def write_read_only() -> None:
    (HERE / "no.txt").write_text("no")
