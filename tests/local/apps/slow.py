"""An app that can be left alone."""

import os
import sys
import time

import modal

app = modal.App("slow")


@app.function(timeout=120)
def until_told(path: str) -> str:
    print("WAITING", flush=True)
    while not os.path.exists(path):
        time.sleep(0.05)
    print("TOLD", flush=True)
    time.sleep(0.5)  # two streams have no order of their own
    print("aside", file=sys.stderr, flush=True)
    time.sleep(0.5)
    return os.environ["MODAL_TASK_ID"]
