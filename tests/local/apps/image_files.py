"""Files at the paths that they have on Modal; DATA is a directory with a file and a directory."""

import os
from pathlib import Path

import modal

DATA = os.environ.get("DATA", ".")  # of the client; containers find what was added
image = (
    modal.Image.debian_slim()
    .add_local_dir(DATA, "/opt/copied", copy=True)
    .dockerfile_commands("COPY sub/deep.txt top.txt /by-line/", context_dir=DATA)
    .env({"FROM_IMAGE": "yes"})
    .workdir("/workdir/deep")
    .add_local_dir(DATA, "/root/data")
    .add_local_dir(DATA, "/data/all")
    .add_local_file(f"{DATA}/top.txt", "/data/one")
    .add_local_dir(DATA, "/tmp/beside")
    .add_local_dir(DATA, "/usr/share/of-the-app")
)
app = modal.App("image-files")
volume = modal.Volume.from_name("image-files-volume", create_if_missing=True)


def seen() -> dict:
    return {
        "file": __file__,
        "cwd": os.getcwd(),
        "env": os.environ.get("FROM_IMAGE"),
        "texts": {
            path: Path(path).read_text()
            for path in (
                "/opt/copied/top.txt",
                "/by-line/deep.txt",
                "/by-line/top.txt",
                "/root/data/sub/deep.txt",
                "data/top.txt" if os.getcwd() == "/root" else "/root/data/top.txt",
                "/data/all/sub/deep.txt",
                "/data/one",
                "/tmp/beside/top.txt",
                "/usr/share/of-the-app/top.txt",
            )
        },
        "listed": sorted(name for name in os.listdir("/root") if name[0] not in "._"),
        "data": sorted(os.listdir("/data")),
        "tools": Path("/usr/bin/env").exists(),
    }


@app.function(image=image)
def look() -> dict:
    return seen()


@app.function(image=image)
def scribble() -> list[str]:
    before = [path for path in ("/root/mine", "/data/mine", "mine") if Path(path).exists()]
    for path in ("/root/mine", "/data/mine", "mine", "/root/data/top.txt"):
        Path(path).write_text("mine")
    return before


@app.function(image=image, volumes={"/root/volume": volume})
def with_volume() -> str:
    Path("/root/volume/kept").write_text("kept")
    volume.commit()
    return Path("/root/data/top.txt").read_text()


@app.function()
def plain() -> tuple[str, str, str]:
    Path("relative").write_text("found")
    found = Path("/root/relative").read_text() if Path("/root/relative").exists() else "elsewhere"
    return __file__, os.getcwd(), found


@app.function(image=modal.Image.debian_slim().add_local_dir(DATA, "/srv/x"))
def elsewhere() -> str:
    return Path("/srv/x/top.txt").read_text()


@app.cls(image=image, enable_memory_snapshot=True)
class Snapped:
    @modal.enter(snap=True)
    def load(self) -> None:
        Path("of-the-template").write_text("x")

    @modal.method()
    def look(self) -> dict:
        Path("mine").write_text("x")
        Path("/root/data/top.txt").write_text("changed")
        return {**seen(), "here": sorted(os.listdir()), "inode": os.stat("/root").st_ino}

    @modal.method()
    def untouched(self) -> dict:
        return seen()


@app.function(image=image)
def unmounted() -> str:
    import image_files_helper

    return image_files_helper.__file__


def make_weights(size: int) -> None:
    raise AssertionError("nothing of an image is run here")


built = modal.Image.debian_slim().run_function(make_weights, args=(3,)).entrypoint(["/serve"])


@app.function(image=built)
def on_built() -> bool:
    return True
