"""What a save replaces: rights and links stay, every name is possible, and what cannot be written is said."""

import errno
import os
import signal
import stat
from pathlib import Path

import pytest
import saved
from saved import MAKERS, load, mps, save, state, ttm
from saved_beside import (
    in_child,
    names,
)

from ttref import MPSEmbedding, TTMEmbedding

resource = pytest.importorskip("resource", reason="rights, links and pipes as POSIX has them")
kinds = pytest.mark.parametrize("kind", MAKERS)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


# Rights and links


@kinds
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o755, 0o400])
def test_the_rights_of_a_file_stay(kind, mode, path):
    before = os.umask(0o022)
    try:
        made = MAKERS[kind]()
        save(made, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        path.chmod(mode)
        save(made, path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640), (0, 0o666)])
def test_a_new_file_gets_what_the_umask_leaves(mask, mode, path):
    before = os.umask(mask)
    try:
        mps().save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_private_file_is_private_while_it_is_written(path, monkeypatch):
    mps().save(path)
    path.chmod(0o600)
    seen, real = [], os.fsync

    def look(number):
        seen.append(stat.S_IMODE(os.fstat(number).st_mode))
        real(number)

    monkeypatch.setattr(os, "fsync", look)
    mps().save(path)
    assert seen[0] == 0o600


@needs_root
def test_the_owner_of_a_file_stays(path):
    mps().save(path)
    os.chown(path, 12345, 54321)
    mps(rank=1).save(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


@kinds
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_a_link(kind, relative, path):
    made = MAKERS[kind]()
    target = path.parent / "below" / "v1.safetensors"
    target.parent.mkdir()
    mps(rank=1).save(target)
    path.symlink_to(target.relative_to(path.parent) if relative else target)
    second = path.with_name("second")
    second.symlink_to(path.name)
    save(made, second)
    assert path.is_symlink() and second.is_symlink() and not target.is_symlink()
    assert names(target.parent) == [target.name] and names(path.parent) == ["below", path.name, "second"]
    assert saved.same(state(load(kind, target)), state(made))


def test_links_that_lead_nowhere(path):
    target = path.with_name("target.safetensors")
    path.symlink_to(target)
    mps().save(path)
    assert path.is_symlink() and MPSEmbedding.load(target).num_embeddings == 24
    target.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        MPSEmbedding.load(path)
    path.unlink()
    path.symlink_to(path.parent / "nowhere" / "file")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        mps().save(path)
    path.unlink()
    circle = path.with_name("circle")
    path.symlink_to(circle)
    circle.symlink_to(path)
    with pytest.raises(OSError, match="leads in a circle"):
        mps().save(path)
    assert path.is_symlink() and names(path.parent) == ["circle", path.name]


# Names and messages


@pytest.mark.parametrize("name", ["z" * 255, "é" * 127, "張" * 85, "z" * 222, ".", "a b\n%s{}[x].*", "-", "x.part"])
def test_every_name_that_a_file_may_have(name, path):
    if name == ".":
        with pytest.raises(IsADirectoryError, match="this is a folder; name a file in it"):
            mps().save(path.parent / name)
        return
    place = path.with_name(name)
    for table in (mps(rank=1), mps(rank=2)):
        table.save(place)
    assert names(path.parent) == [name] and saved.same(state(MPSEmbedding.load(place)), state(table))


def test_names_longer_than_that(path):
    with pytest.raises(OSError) as error:
        mps().save(path.with_name("z" * 256))
    assert error.value.errno == errno.ENAMETOOLONG and "z" * 256 in str(error.value)
    assert names(path.parent) == []


def test_a_relative_name(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    mps().save(path.name)
    mps().save(Path(path.name))
    assert MPSEmbedding.load(path.name).num_embeddings == 24 and names(path.parent) == [path.name]


def fills_the_disk(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    try:
        mps().save(path)
    except OSError as error:
        os._exit(0 if str(path) in str(error) and ".part" not in str(error) and error.errno == errno.EFBIG else 1)
    os._exit(2)


def test_a_full_disk_is_said_of_the_file(path):
    assert in_child(fills_the_disk, path) == 0 and names(path.parent) == []
    ttm().save(path)
    before = path.read_bytes()
    assert in_child(fills_the_disk, path) == 0
    assert path.read_bytes() == before and names(path.parent) == [path.name]


def without_rights(path):
    os.setuid(65534)
    for work, error, text in (
        (lambda: MPSEmbedding.load(path), PermissionError, str(path)),
        (lambda: mps().save(path), PermissionError, str(path)),
    ):
        try:
            work()
        except error as refusal:
            if text in str(refusal) and ".part" not in str(refusal):
                continue
        os._exit(1)
    os._exit(0)


@needs_root
def test_missing_rights_are_said(path):
    mps().save(path)
    path.chmod(0)
    for folder in (path.parent, *path.parent.parents[:3]):
        if folder != Path(folder.root) and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    assert in_child(without_rights, path) == 0


@pytest.mark.parametrize("kind", [MPSEmbedding, TTMEmbedding])
def test_what_is_no_file(kind, path):
    with pytest.raises(IsADirectoryError, match="this is a folder.*" + path.parent.name):
        kind.load(path.parent)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        kind.load(path / "below")
    os.mkfifo(path)
    with pytest.raises(OSError, match="this is no ordinary file"):
        kind.load(path)


@kinds
@pytest.mark.parametrize("name", ["file", "folder/", "link"])
def test_what_is_no_file_is_never_replaced(kind, name, path):
    """A pipe, a folder that is not there yet, a link to a pipe."""
    made, place = MAKERS[kind](), path.with_name("file")
    os.mkfifo(place)
    path.with_name("link").symlink_to("file")
    text = "this is a folder" if name == "folder/" else "this is no ordinary file"
    with pytest.raises(OSError, match=f"{text}.*{name}"):
        save(made, f"{path.parent}/{name}")
    assert stat.S_ISFIFO(place.stat().st_mode) and names(path.parent) == ["file", "link"]
