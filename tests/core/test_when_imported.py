"""A module that waits for another package: imported after it, whichever comes first, and without breaking it."""

import importlib
import inspect
import sys
import uuid
import warnings

import pytest

from ttref.when_imported import when_imported


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a module to wait for, and with one that keeps how it found that."""
    name = f"package_{uuid.uuid4().hex}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "awaited.py").write_text("ready = True\n")
    (folder / "other.py").touch()
    (folder / "ours.py").write_text("from .awaited import ready as found\n")
    (folder / "wrong.py").write_text("from .awaited import nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    return name


def found(package):
    ours = sys.modules.get(f"{package}.ours")
    return None if ours is None else ours.found


def wait(package, module="ours"):
    when_imported(f"{package}.awaited", f"{package}.{module}")


def test_it_is_imported_when_the_module_is_complete(package):
    wait(package)
    importlib.import_module(f"{package}.other")
    assert found(package) is None  # nothing is imported for it
    module = importlib.import_module(f"{package}.awaited")
    assert found(package) is True
    assert inspect.getsource(module) == "ready = True\n" and module.__spec__.loader is module.__loader__


def test_it_is_imported_at_once_where_the_module_was_imported_before(package):
    importlib.import_module(f"{package}.awaited")
    before = list(sys.meta_path)
    wait(package)
    assert found(package) is True and sys.meta_path == before


def test_an_import_that_failed_may_be_tried_again(package, tmp_path):
    path = tmp_path / package / "awaited.py"
    path.write_text("raise ImportError('not today')\n")
    wait(package)
    with pytest.raises(ImportError, match="not today"):
        importlib.import_module(f"{package}.awaited")
    assert found(package) is None
    path.write_text("ready = 'at last'\n")
    importlib.invalidate_caches()
    importlib.import_module(f"{package}.awaited")
    assert found(package) == "at last"


def test_two_may_wait_for_the_same(package):
    wait(package)
    wait(package)
    importlib.import_module(f"{package}.awaited")
    assert found(package) is True


def test_the_one_that_waits_may_come_first(package):
    """It imports what it waits for, and is in the middle of its own import when that is there."""
    wait(package)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module(f"{package}.ours")
    assert found(package) is True


@pytest.mark.parametrize("before", [False, True])
def test_one_that_does_not_go_with_the_package_gives_a_warning_and_breaks_nothing(package, before):
    if before:
        importlib.import_module(f"{package}.awaited")
    with pytest.warns(UserWarning, match=f"wrong does not go with this version of {package}: cannot import name"):
        wait(package, "wrong")
        assert importlib.import_module(f"{package}.awaited").ready


def test_a_package_that_is_not_there_is_not_there(package):
    when_imported("no_such_package.auto", f"{package}.ours")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        importlib.import_module("no_such_package.auto")
