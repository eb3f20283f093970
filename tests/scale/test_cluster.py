"""A cluster that is not there: said in seconds, whatever there is in its place."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import types

import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

import ray

from ttref.scale import cluster, run
from ttref.scale.ray_cluster import start_here

SAYS = "no Ray answers at RAY_ADDRESS={address} .*; start one there with `ray start --head`, or unset RAY_ADDRESS"


@contextlib.contextmanager
def listening(answer):
    """A port of this machine where something else listens: None hangs up, bytes are sent, "silent" never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = server.accept()
                    kept.append(caller)
                    if answer != "silent":
                        caller.sendall(answer or b"")
                        caller.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for caller in kept:
            caller.close()


@pytest.mark.parametrize("answer", [None, "silent", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_is_there(answer, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules[cluster.__module__], "SECONDS", 0.5)
    with listening(answer) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        before = dict(os.environ)
        with pytest.raises(ConnectionError, match=SAYS.format(address=address)):
            run(print, [{"id": "a"}], tmp_path, job={})
    assert dict(os.environ) == before
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "no-port", "host:many"]
)
def test_nothing_is_there(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match=SAYS.format(address=address)), cluster():
        pass


def test_a_ray_that_does_not_start_takes_no_process_of_another_thread_with_it(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "raylet.py").write_text("import time\ntime.sleep(600)\n")
    begun = {"ray": [], "user": []}

    def init(*given, **how):
        begun["ray"].append(subprocess.Popen([sys.executable, str(tmp_path / "ray" / "raylet.py")]))
        begun["user"].append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        raise RuntimeError("The current node timed out during startup.")

    fake = types.SimpleNamespace(__file__=str(tmp_path / "ray" / "__init__.py"), init=init)
    before = dict(os.environ)
    try:
        with pytest.raises(RuntimeError, match="timed out during startup"):
            start_here(fake, 1)
        assert [one.wait(60) != 0 for one in begun["ray"]] == [True] * 3
        assert all(one.poll() is None for one in begun["user"])
    finally:
        os.environ.clear()
        os.environ.update(before)
        for one in begun["ray"] + begun["user"]:
            one.kill()
            one.wait()


def test_workers_are_counted():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"), cluster(workers=0):
        pass


def test_without_ray_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "ray\[data,tune\]", or choose engine="pool"'):
        run(print, [{"id": "a"}], tmp_path, job={}, engine="ray")
    (record,) = run(dict, [{"id": "a"}], tmp_path, job={})
    assert record == {"id": "a", "error": None}
