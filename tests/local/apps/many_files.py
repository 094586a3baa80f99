"""A Volume with so many files that containers do not get a copy of it."""

import os
import pathlib

import modal

app = modal.App("many-files")
volume = modal.Volume.from_name("many", create_if_missing=True)
HERE = pathlib.Path("/mnt/many")


@app.function(volumes={"/mnt/many": volume})
def fill(count: int) -> None:
    (HERE / "old").mkdir()
    for number in range(count):
        (HERE / "old" / str(number)).write_text(str(number))
    volume.commit()


@app.cls(volumes={"/mnt/many": volume}, enable_memory_snapshot=True, max_containers=1)
class Worker:
    name: str = modal.parameter()

    @modal.method()
    def kind(self) -> str:
        mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
        return next(line.split(" - ")[1].split()[0] for line in mounts if "/mnt/many " in line)

    @modal.method()
    def change(self) -> None:
        (HERE / "old" / "1").write_text("changed")
        with (HERE / "old" / "2").open("a") as file:
            file.write("+")
        (HERE / "old" / "3").unlink()
        (HERE / "new").mkdir()
        (HERE / "new" / "f").write_text(self.name)
        os.rename(HERE / "new", HERE / "renamed")

    @modal.method()
    def commit(self) -> None:
        volume.commit()

    @modal.method()
    def reload_with_open_file(self) -> str:
        with (HERE / "old" / "5").open():
            try:
                volume.reload()
            except RuntimeError as error:
                return str(error)
        return "done"

    @modal.method()
    def reload_and_read(self) -> dict[str, str | None]:
        volume.reload()
        return {
            path: (HERE / path).read_text() if (HERE / path).exists() else None
            for path in ("old/0", "old/1", "old/2", "old/3", "renamed/f")
        }
