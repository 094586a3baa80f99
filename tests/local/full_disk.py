"""Run by a test in a mount namespace: a plane whose state lies on a small disk of its own."""

import json
import sys
from pathlib import Path

import modal

from modalkit.local import LocalPlane

APP = Path(__file__).with_name("apps") / "fills.py"


def main() -> None:
    with LocalPlane(sys.argv[1], background_commit_s=0) as plane:
        plane.deploy(str(APP))
        client = plane.client()
        said = modal.Function.from_name("fills", "fill", client=client).remote(30)
        committed = plane.volume("fills").committed()
        sizes = [path.stat().st_size for path in committed.glob("*.bin")]
        for container in plane.containers():  # its view holds what did not fit
            plane.kill(container.id)
        plane.wait_for(lambda found: not any(c.is_alive for c in found))
        modal.Function.from_name("fills", "make_room", client=client).remote()
        left = {path.name: path.read_text() for path in committed.iterdir()}
        print(json.dumps({"said": said, "sizes": sizes, "left": left}))


if __name__ == "__main__":
    main()
