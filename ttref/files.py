"""Safetensors files: written whole or not at all, read only if they are what was written.

The metadata of a file are ``format`` (what it is), ``version``, ``header`` (JSON) and ``sha256``: one hash over the
three others, and over name, dtype, shape and bytes of every tensor. Files of version 1 have no hash and are read too.
The same content gives the same bytes, in every process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import reprlib
import stat
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where nobody can remove or rename a file that is open
    fcntl = None

VERSION = "2"
MOST_HEADER = 32 << 20  # bytes; more would take seconds to parse, and no table or adapter needs a tenth of it
MOST_MODES = 1024  # of one train; a header may claim any number, and what is made of it takes time that grows
Table = TypeVar("Table")
Restore = Callable[[dict[str, Tensor], dict[str, Any]], Table]


def write(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any], restore: Restore) -> None:
    """Write tensors and a JSON header to ``path``; a run that dies leaves the old file, or none.

    What ``restore`` would refuse to read never takes the place of a good file: its errors come now.
    """
    _safetensors()
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} has no numbers yet (meta device), so there is nothing to save")
    text = json.dumps(header, default=_plain)
    restore(dict(tensors), _parsed(text))
    replace(path, sealed({"format": f"ttref.{kind}", "version": VERSION, "header": text}, tensors))


@torch.inference_mode(False)  # what is made in inference mode could never be trained
def read(path: str | Path, kind: str, restore: Restore) -> Table:
    """What ``restore`` makes of the tensors and the header, or a ValueError that names the file.

    The tensors are copies in memory of their own, aligned as fresh tensors are: nothing that happens to the file
    afterwards reaches them. Meanwhile they take their memory twice.
    """
    safetensors = _safetensors()
    path = Path(path)
    content = _content(path)
    try:
        loaded, header = _unsealed(content, kind)
        del content
        # Those that are read lie wherever the reader's buffers lie, and products round differently there.
        return restore({name: loaded.pop(name).clone() for name in sorted(loaded)}, header)
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        AssertionError,
    ) as error:
        raise ValueError(
            f"{path} is no {kind} saved by ttref, or is damaged ({type(error).__name__}: {error}); save it again"
        ) from error


def sealed(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """A safetensors file in parts, its hash among the metadata; the same bytes for the same content."""
    content = _safetensors().torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    held, body = _opened(content)
    # The library writes metadata in an order that it draws anew each time.
    metadata = dict(sorted({**about, "sha256": _hash(about, held, body)}.items()))
    text = json.dumps({"__metadata__": metadata} | dict(sorted(held.items())), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(f"the header would take {len(text)} bytes, and {MOST_HEADER} can be read")
    return [len(text).to_bytes(8, "little"), text, body]


def replace(path: str | Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all: beside its place, then renamed. It is on the disk when this returns.

    The rights of an existing file stay, and a link stays a link: what it leads to is replaced. What earlier saves of
    this name left in the folder when they were killed is removed.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: No such folder; a folder; a pipe or a device, a full disk,
            missing rights. They name the file, which is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir() or os.fspath(path).endswith(("/", os.sep)):
        raise IsADirectoryError(errno.EISDIR, "this is a folder; name a file in it", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into")
    fresh = target.with_name(f"{_stem(target.name)}.{uuid.uuid4().hex[:16]}.part")
    try:
        if target.is_symlink():
            raise OSError(errno.ELOOP, "this link leads in a circle")
        before = target.stat() if target.exists() else None
        if before is not None and not stat.S_ISREG(before.st_mode):  # a pipe or a device would be gone afterwards
            raise OSError(errno.EINVAL, "this is no ordinary file")
        _sweep(target)
        # Private until it is complete, if the old file may be private. A new one gets what the umask leaves.
        with _begun(fresh, 0o666 if before is None else 0o600) as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            if before is not None:
                _as_before(fresh, before)
            if fcntl is None:
                file.close()
            os.replace(fresh, target)
        _settle(target.parent)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; nothing was saved", str(path)) from error
    finally:
        with suppress(OSError):
            fresh.unlink()


def check_header(header: Any, wanted: Mapping[str, tuple[type, ...]], optional: Iterable[str] = ()) -> None:
    """Every setting is there, in one of the types it is written in, and no other."""
    if not isinstance(header, dict):
        raise TypeError(f"its header is {reprlib.repr(header)}")
    for name in [name for name in wanted if name not in header and name not in optional]:
        raise KeyError(f"its header lacks {name}")
    for name, value in header.items():
        if name not in wanted:
            raise ValueError(f"its header has {reprlib.repr(name)} too")
        if type(value) not in wanted[name]:
            raise TypeError(f"its header's {name} is {reprlib.repr(value)}")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """NaN and infinity among numbers that are multiplied are those of a training that failed."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has entries that are NaN or infinite, as after a training that went wrong")


def digest(tensor: Tensor) -> str:
    """sha256 over dtype, shape and bytes of one tensor: 64 digits, equal for equal tensors on any device."""
    _, body = _opened(_safetensors().torch.save({"": tensor.detach().contiguous()}))
    found = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    found.update(body)
    return found.hexdigest()


def digest_of_version_1(tensor: Tensor) -> str:
    """What files of version 1 hold instead: the hash of a safetensors file of the tensor, header included."""
    return hashlib.sha256(_safetensors().torch.save({"": tensor.detach().contiguous()})).hexdigest()


def _unsealed(content: bytes, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file, once all of it is known to be what was written."""
    if (size := int.from_bytes(content[:8], "little")) > MOST_HEADER:
        raise ValueError(f"its header would take {size} bytes")
    loaded = _safetensors().torch.load(content)  # refuses tensors that overlap, leave gaps or end elsewhere
    held, body = _opened(content)
    about = held.pop("__metadata__", {})
    if about.get("format") != f"ttref.{kind}":
        raise ValueError(f"it holds {about.get('format', 'nothing of ttref')}")
    if about.get("version") not in ("1", VERSION):
        raise ValueError(f"it has version {about.get('version')} of the format, and this ttref reads 1 and {VERSION}")
    entries = {"format", "version", "header"} | ({"sha256"} if about["version"] == VERSION else set())
    if about.keys() != entries:
        raise ValueError(f"its metadata are {', '.join(sorted(about))}, not {', '.join(sorted(entries))}")
    if about["version"] == VERSION and about.pop("sha256") != _hash(about, held, body):
        raise ValueError("its sha256 differs: it is not what was written")
    return loaded, _parsed(about["header"])


def _opened(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """What a safetensors file says of its tensors, and their bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    return _parsed(content[8:end].decode()), memoryview(content)[end:]


def _hash(about: Mapping[str, str], held: Mapping[str, Any], body: memoryview) -> str:
    found = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name in sorted(held):
        start, end = held[name]["data_offsets"]
        found.update(json.dumps([name, held[name]["dtype"], held[name]["shape"]]).encode())
        found.update(body[start:end])
    return found.hexdigest()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys, readers take one or the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names something twice")
    return found


def _plain(value: Any) -> Any:
    """Numbers of NumPy, and tensors of one entry, are numbers in JSON."""
    if not hasattr(value, "item"):
        raise TypeError(f"{reprlib.repr(value)} of type {type(value).__name__} cannot be written as JSON")
    return value.item()


def _content(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "this is a folder; name a file in it", str(path))
        if not stat.S_ISREG(mode):  # to read a pipe might never end
            raise OSError(errno.EINVAL, "this is no ordinary file", str(path))
        return path.read_bytes()  # not mapped: a file that shrinks while it is read must not kill the process
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {path}") from None


def _stem(name: str) -> str:
    """How the temporary files of a name begin, short enough that the whole is a name wherever the name itself is."""
    return os.fsencode(name)[:100].decode("utf-8", "ignore")


def _begun(fresh: Path, mode: int) -> BinaryIO:
    """A new file, locked as long as it is open: the system frees the lock when this process dies."""
    while True:
        file = open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        if fcntl is None:
            return file
        with suppress(OSError):  # a folder on a server may know no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another save swept it away before it was locked


def _sweep(target: Path) -> None:
    """Remove what killed saves of this name left; those that go on hold a lock. To tidy up is no reason to fail."""
    left = re.compile(re.escape(_stem(target.name)) + r"\.[0-9a-f]{16}\.part")
    with suppress(OSError):
        for path in [target.with_name(name) for name in os.listdir(target.parent) if left.fullmatch(name)]:
            with suppress(OSError):
                if fcntl is None:
                    path.unlink()
                    continue
                with open(path, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def _as_before(fresh: Path, before: os.stat_result) -> None:
    """Owner, as far as that is allowed, and rights of the file that is replaced."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(fresh, before.st_uid, before.st_gid)
    os.chmod(fresh, stat.S_IMODE(before.st_mode))


def _settle(folder: Path) -> None:
    """The new name is on the disk too, where a folder can be asked for that."""
    if fcntl is not None:
        with suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "saving and loading need safetensors; install it with: python -m pip install safetensors"
        ) from error
    return safetensors
