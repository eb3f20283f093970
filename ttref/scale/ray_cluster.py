"""Ray for as long as it is needed: the cluster at ``RAY_ADDRESS``, or one on this machine that nobody else sees."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checks import whole

QUIET = {  # where nothing else is set
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new reporter prints its table even when silenced
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C would end the search as if it were complete
    "TUNE_GLOBAL_CHECKPOINT_S": "0",  # the default of ten seconds would lose the trials that ended in the last ten
}
LOOPBACK = "127.0.0.1"
SECONDS = 5  # that a cluster may take to answer
STARTS = 3  # Ray gives up on itself after half a minute, which is short where all CPUs are busy
SETTINGS = b"\x04"  # the type of the first frame of either side in HTTP/2 (RFC 9113, section 3.4)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0" * 5
SILENT = {"logging_level": logging.CRITICAL, "log_to_driver": False}


@contextlib.contextmanager
def cluster(workers: int | None = None, *, packages: Sequence[str | Path] = ()) -> Iterator[int]:
    """Connect to ``RAY_ADDRESS``, or start Ray on this machine; afterwards nothing of it runs, or is set, here.

    Ray on this machine listens to ``127.0.0.1`` alone and has no dashboard. A cluster gets ``ttref`` from here; the
    packages that it needs must be installed there, and folders that a job reads or writes must be shared by all its
    machines. If it requires a token, ``RAY_AUTH_MODE=token`` must be set here too. Inside another ``cluster()`` this is
    that one.

    Args:
        workers: CPUs that Ray on this machine uses; by default all. A cluster has those that it has.
        packages: folders of Python packages that the work needs beside ``ttref``; a cluster gets them from here.

    Yields:
        The number of CPUs, over all machines.

    Raises:
        ConnectionError: No Ray answers at ``RAY_ADDRESS``.
        ModuleNotFoundError: Ray is not installed; the message holds the install line.

    Example:
        A job inside shares one Ray with others, which are spared the seconds that it takes to start::

            with ttref.scale.cluster(workers=2):
                report = ttref.scale.compress_rows(source, destination, rank=16, engine="ray")
    """
    if workers is not None:
        workers = whole("workers", workers, least=1)
    before = dict(os.environ)  # Ray adds variables, from its import on
    ray = imported()
    if ray.is_initialized():
        yield int(ray.cluster_resources()["CPU"])
        return
    os.environ.update(QUIET | before)
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        if address == "local":  # never a cluster that happens to run here
            start_here(ray, workers)
        else:
            connect(ray, address, packages)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        yield int(ray.cluster_resources()["CPU"])
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def imported() -> Any:
    """Ray, or a message that holds the install line."""
    try:
        import pyarrow  # noqa: F401 (Ray Data and Ray Tune need it)
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'this needs Ray; install it with: python -m pip install "ray[data,tune]", or choose engine="pool"'
        ) from error
    return ray


def start_here(ray: Any, workers: int | None) -> None:
    """Start Ray on this machine, bound to the loopback address; its workers find the modules that we find."""
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    for left in range(STARTS)[::-1]:
        before = started(ray)
        try:
            with loopback_alone():
                ray.init("local", num_cpus=workers, include_dashboard=False, **SILENT)
            break
        except BaseException as error:
            for child in started(ray) - before:  # Ray forgets them until this process ends
                with contextlib.suppress(Exception):  # it has ended already
                    child.kill()
            if not left or "timed out during startup" not in str(error):
                raise
    if (found := ray.util.get_node_ip_address()) != LOOPBACK:
        raise RuntimeError(f"this version of Ray ({ray.__version__}) listens at {found}, not at {LOOPBACK} alone")


def started(ray: Any) -> set[Any]:
    """The processes that Ray has started from this one, and theirs; never those of other threads.

    What Ray starts is a program or a script in its package.
    """
    import psutil  # Ray brings it

    home, found = str(Path(ray.__file__).parent) + os.sep, set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended already
            if any(part.startswith(home) for part in child.cmdline()):
                found |= {child, *child.children(recursive=True)}
    return found


def connect(ray: Any, address: str, packages: Sequence[str | Path]) -> None:
    """Connect to a cluster, or say within seconds that none answers."""
    try:
        host, _, port = address.rpartition("/")[2].rpartition(":")
        if address != "auto" and not answers(host.strip("[]"), int(port)):
            raise ConnectionError("something else is there")
        # Ray replaces this machine's loopback address by its outside one, where a Ray of `cluster` does not listen.
        hidden = host in ("localhost", LOOPBACK) and not reached(ray.util.get_node_ip_address(), int(port))
        modules = [str(Path(__file__).resolve().parents[1]), *map(str, packages)]
        with loopback_alone() if hidden else contextlib.nullcontext():
            ray.init(address, runtime_env={"py_modules": modules}, **SILENT)
    except (OSError, ValueError, RuntimeError, SystemExit) as error:  # Ray ends the process where it gives up
        raise ConnectionError(
            f"no Ray answers at RAY_ADDRESS={address} ({type(error).__name__}: {error}); start one there with "
            "`ray start --head`, or unset RAY_ADDRESS to work on this machine"
        ) from error


@contextlib.contextmanager
def loopback_alone() -> Iterator[None]:
    """Let Ray take the loopback address for this machine's, as it does where it knows of no clusters, on a Mac.

    Otherwise it takes the machine's outside address, and listens on all.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that it starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def answers(host: str, port: int) -> bool:
    """True if a server there begins to talk as Ray's do, in HTTP/2; Ray itself would wait two minutes for it."""
    with socket.create_connection((host, port), timeout=SECONDS) as server:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return True
        server.sendall(PREFACE)
        return server.recv(9)[3:4] == SETTINGS


def reached(host: str, port: int) -> bool:
    """True if a server there takes connections."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=SECONDS):
        return True
    return False
