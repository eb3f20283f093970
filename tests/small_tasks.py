"""Tasks for the engine's tests: they write files, fail, die and wait, each as its task says, and never by chance."""

import errno
import hashlib
import os
import signal
import time
from pathlib import Path

from ttref.atomic import replace


def once(folder, name):
    """True for the first that asks: what happens once must not happen when the task is done again."""
    try:
        (Path(folder) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def until(happened):
    """Wait for what others do."""
    while not happened():
        time.sleep(0.02)


def work(task, out, marks=None):
    """Writes a file of its own and returns a number; ``task["do"]`` says what happens before or after."""
    do, name = task.get("do", ""), task["id"]
    if do == "die before" and once(marks, name):
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "end first":  # once another worker has begun
        until(lambda: any(Path(marks).iterdir()))
    if do == "die last" and once(marks, name):  # once another task's record is written
        until(lambda: any(path.stat().st_size for path in (Path(out) / ".job" / "records").iterdir()))
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "die always":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "raise":
        raise ValueError(f"no {name}")
    if do == "full" and once(marks, name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    if do == "die within" and once(marks, name):
        os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
    replace(Path(out) / f"{name}.txt", [f"{task['x'] ** 2}\n".encode()])
    if do == "die after" and once(marks, name):
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "wait" and once(marks, name):
        while True:
            time.sleep(60)
    return {"square": task["x"] ** 2, "third": task["x"] / 3}


def timed(task):
    """Takes a moment, and says when it began and ended."""
    begun = time.time()
    time.sleep(0.2)
    return {"begun": begun, "ended": time.time()}


class Fatal:
    """Work whose first readers are killed by reading it, as a worker may be while it starts."""

    def __init__(self, marks, out, times):
        self.held = {"marks": str(marks), "out": str(out), "times": times}

    def __call__(self, task):
        return work(task, self.held["out"])

    def __setstate__(self, state):
        held = state["held"]
        if any(once(Path(held["marks"]), f"read {k}") for k in range(held["times"])):
            os.kill(os.getpid(), signal.SIGKILL)
        self.held = held


class Counted:
    """Work that notes in which process it is read, each time."""

    def __init__(self, marks):
        self.marks = str(marks)

    def __call__(self, task):
        return {}

    def __setstate__(self, state):
        self.marks = state["marks"]
        next(k for k in range(99) if once(self.marks, f"{os.getpid()} {k}"))


def not_json(task):
    return {"found": {1, 2}}


def hashes(folder):
    """sha256 of all files of a job but those of its state."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and ".job" not in path.parts)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def cut(path):
    """The end of a file, lost."""
    path.write_bytes(path.read_bytes()[:-4])


def flip(path, place=-1):
    """One bit of a file."""
    held = bytearray(path.read_bytes())
    held[place] ^= 1
    path.write_bytes(held)


DAMAGES = [Path.unlink, cut, flip]
