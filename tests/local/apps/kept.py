"""A deployed app, whose plane is killed and started again."""

import os
import time

import helper_of_kept
import modal

image = modal.Image.debian_slim().env({"COLOUR": "green"})
image = image.add_local_python_source("helper_of_kept")
app = modal.App("kept", image=image)
secret = modal.Secret.from_dict({"PASSPHRASE": "open sesame"})
volume = modal.Volume.from_name("kept-data", create_if_missing=True)


@app.function(secrets=[secret], retries=0)
def look(size: int = 0):
    return os.environ["COLOUR"], os.environ["PASSPHRASE"], helper_of_kept.TEXT, b"x" * size


@app.function(volumes={"/data": volume}, max_containers=1, timeout=300)
def wait(name: str, payload: bytes = b""):
    with open(f"/data/begun-{name}-{os.environ['MODAL_TASK_ID']}", "w") as file:
        file.write(str(len(payload)))
    volume.commit()
    while not os.path.exists("/data/go"):
        time.sleep(0.1)
        volume.reload()
    return name, len(payload)


@app.function()
def fail():
    raise ValueError("as it was")


@app.cls()
class Greeter:
    word: str = modal.parameter(default="hello")

    @modal.method()
    def greet(self, name: str):
        return f"{self.word} {name}"
