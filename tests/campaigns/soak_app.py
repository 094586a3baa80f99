"""The app that the soak campaign kills: every attempt leaves evidence outside of the plane."""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import subprocess
import time

import modal

app = modal.App(os.environ.get("SOAK_APP", "soak"))
data = modal.Volume.from_name("soak-data", create_if_missing=True)
facts = modal.Dict.from_name("soak-facts", create_if_missing=True)
line = modal.Queue.from_name("soak-line", create_if_missing=True)
WARM_S = 4
AT_ONCE = modal.Retries(max_retries=1, initial_delay=0.0, backoff_coefficient=1.0)


def born(pid):
    """Return when a process was started; its number alone may be another's later."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def tell(directory, event, key, **facts):
    facts |= {"event": event, "key": key, "container": os.environ["MODAL_TASK_ID"]}
    with open(f"{directory}/evidence", "a") as file:
        file.write(json.dumps(facts) + "\n")  # one write, at the end of the file


@contextlib.contextmanager
def attempt(directory, key):
    """Hold a lock that the kernel lets go when this process ends, however it ends."""
    with open(f"{directory}/locks/{key}", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(directory, "twice", key)
        tell(directory, "begun", key)
        yield


def is_first(directory, key):
    try:
        open(f"{directory}/locks/{key}.begun", "x").close()
    except FileExistsError:
        return False
    return True


def done(directory, key):
    token = secrets.token_hex(4)
    tell(directory, "done", key, token=token)
    return token


@app.function(scaledown_window=WARM_S)
def work(directory, key, seconds=0.2):
    with attempt(directory, key):
        time.sleep(seconds)
        return done(directory, key)


@app.function(scaledown_window=WARM_S, retries=AT_ONCE)
def flaky(directory, key):
    with attempt(directory, key):
        if is_first(directory, key):
            tell(directory, "failed", key)
            raise ValueError("the first attempt fails")
        return done(directory, key)


@app.function(scaledown_window=WARM_S, retries=AT_ONCE, timeout=2, startup_timeout=60)
def overrun(directory, key):
    """Answer too late: nobody may hear it."""
    with attempt(directory, key):
        try:
            if is_first(directory, key):
                time.sleep(60)
        except KeyboardInterrupt:
            tell(directory, "late", key)
            return "late"
        return done(directory, key)


@app.function(single_use_containers=True)
def family(directory, key, seconds=0.5):
    """Leave two processes behind, one of them in a session of its own."""
    with attempt(directory, key):
        for own_session in (False, True):
            child = subprocess.Popen(["sleep", "600"], start_new_session=own_session)
            tell(directory, "child", key, pid=child.pid, born=born(child.pid))
        time.sleep(seconds)
        return done(directory, key)


@app.function(scaledown_window=WARM_S, volumes={"/data": data})
def write(directory, key):
    with attempt(directory, key):
        body = os.urandom(1 << 14)
        with open(f"/data/.{key}", "wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
        os.replace(f"/data/.{key}", f"/data/{key}")
        data.commit()
        tell(directory, "committed", key)
        return done(directory, key)


@app.function(scaledown_window=WARM_S)
def remember(directory, key):
    """Tell a Dict and a Queue, and then that they were told."""
    with attempt(directory, key):
        facts.put(key, key)
        line.put(key)
        tell(directory, "remembered", key)
        return done(directory, key)


@app.function(scaledown_window=WARM_S)
def numbers(directory, key, count):
    with attempt(directory, key):
        for number in range(count):
            time.sleep(0.05)
            yield number
        done(directory, key)


@app.function(scaledown_window=WARM_S)
def nested(directory, key):
    with attempt(directory, key):
        work.remote(directory, f"{key}-{secrets.token_hex(4)}")
        return done(directory, key)


@app.cls(scaledown_window=WARM_S, enable_memory_snapshot=True)
class Snapped:
    @modal.enter(snap=True)
    def load(self):
        self.words = ["loaded", "once"]

    @modal.method()
    def work(self, directory, key):
        with attempt(directory, key):
            time.sleep(0.2)
            return done(directory, key)


@app.local_entrypoint()
def main(directory: str, key: str):
    family.spawn(directory, f"{key}-family", seconds=60)
    names = [f"{key}-{number}" for number in range(4)]
    print(list(work.map([directory] * 4, names, [1.0] * 4)))
    print(list(numbers.remote_gen(directory, f"{key}-numbers", 40)))
