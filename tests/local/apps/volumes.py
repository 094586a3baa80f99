"""Two parties at one Volume, and what one party may do."""

import pathlib
import time

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
    def write_large(self, path: str, size: int) -> None:
        (HERE / path).write_bytes(bytes(size))

    @modal.method()
    def read(self, path: str) -> str | None:
        return (HERE / path).read_text() if (HERE / path).exists() else None

    @modal.method()
    def commit(self) -> None:
        volume.commit()

    @modal.method()
    def reload(self) -> None:
        volume.reload()

    @modal.method()
    def try_with_open_files(self, operation: str, *paths: str) -> str:
        held = [(HERE / path).open("w") for path in paths]
        try:
            getattr(volume, operation)()
        except RuntimeError as error:
            return str(error)
        finally:
            for file in held:
                file.close()
        return "done"

    @modal.method()
    def write_half_and_wait(self, go_on: str) -> None:
        with (HERE / "half.txt").open("w") as file:
            file.write("half")
            file.flush()
            (HERE / "closed.txt").write_text("closed")
            while not pathlib.Path(go_on).exists():
                time.sleep(0.01)


inner = modal.Volume.from_name("inner", create_if_missing=True)


@app.function(volumes={"/mnt/shared": volume, "/mnt/shared/inner": inner})
def reload_around(which: str) -> str:
    with (HERE / "inner" / "held.txt").open("w"):
        try:
            (volume if which == "outer" else inner).reload()
        except RuntimeError as error:
            return str(error)
    return "done"


@app.function(volumes={"/mnt/shared": volume.with_mount_options(read_only=True)})
def write_read_only() -> None:
    (HERE / "no.txt").write_text("no")


@app.function(volumes={"/mnt/part": volume.with_mount_options(sub_path="/users/me")})
def write_part(name: str) -> list[str]:
    part = pathlib.Path("/mnt/part")
    (part / name).write_text(name)
    volume.commit()
    return sorted(path.name for path in part.iterdir())


@app.function(
    volumes={"/mnt/part": volume.with_mount_options(sub_path="not/there", read_only=True)}
)
def list_missing_part() -> list[str]:
    return [path.name for path in pathlib.Path("/mnt/part").iterdir()]


@app.function()
def use_unmounted(name: str) -> tuple[bytes, list[str]]:
    other = modal.Volume.from_name(name)
    content = b"".join(other.read_file("x"))
    refusals = []
    for operation in (other.commit, other.reload):
        try:
            operation()
        except RuntimeError as error:
            refusals.append(str(error))
    return content, refusals


@app.function()
def read_handle(handle: modal.Volume) -> bytes:
    return b"".join(handle.read_file("x"))
