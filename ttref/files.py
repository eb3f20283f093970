"""Safetensors files: written whole or not at all, read only if they are what was written.

The metadata of a file are ``format`` (its kind), ``version``, ``header`` (JSON), ``each`` (the first digits of the
:func:`digest` of every tensor, in the order of their names, to name a damaged one) and ``sha256``, over these and the
names and full digests of all tensors. Files of version 2, with one hash over everything, and of version 1, without any,
are read too. The same content gives the same bytes, in every process.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import operator
import reprlib
import stat
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import replace

__all__ = ["load"]

VERSION = "3"
# Metadata of each version beside format, version and header.
SEALS: dict[str, set[str]] = {"1": set(), "2": {"sha256"}, VERSION: {"each", "sha256"}}
DIGITS = 8  # of each tensor's hash: an adapter has hundreds of tensors, and its file should stay small
# Module and function that make an object of each kind from tensors and header; imported when needed. A kind is part of
# the format: it stays when a class is renamed.
KINDS = {
    "Baseline": ("approximation", "Baseline._restore"),
    "Gram": ("fitting.gram", "Gram._restore"),
    "Grams": ("fitting.gram", "Grams._restore"),
    "MPSEmbedding": ("embeddings.mps", "MPSEmbedding._restore"),
    "QuantizedTT": ("fixedpoint.contract", "QuantizedTT._restore"),
    "TTDelta": ("lora.delta", "TTDelta._restore"),
    "TT-LoRA": ("lora.saving", "restored_deltas"),
    "TTConv2d": ("conv", "TTConv2d._restore"),
    "TTIndex": ("retrieval.index", "TTIndex._restore"),
    "TTLinear": ("layers", "TTLinear._restore"),
    "TTMEmbedding": ("embeddings.ttm", "TTMEmbedding._restore"),
}
TABLE = "table.json"  # in a folder, the list of the files of one table
MOST_HEADER = 32 << 20  # bytes; more would take seconds to parse, and no table or adapter needs a tenth of it
MOST_MODES = 1024  # of one train; a damaged header may claim any number, and its checks take time that grows with it
Restore = Callable[[dict[str, Tensor], dict[str, Any]], Any]


def write(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any], restore: Restore) -> None:
    """Write tensors and a JSON header to ``path``; a run that dies leaves the old file, or none.

    Content that ``restore`` would refuse to read never replaces a good file: its errors are raised now.
    """
    _safetensors()
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} has no numbers yet (meta device), so there is nothing to save")
    text = json.dumps(header, default=_plain)
    restore(dict(tensors), _parsed(text))
    replace(path, sealed({"format": f"ttref.{kind}", "version": VERSION, "header": text}, tensors))


def load(path: str | Path) -> Any:
    """Read any file written by ttref, of whatever class, or open a folder of :func:`~ttref.scale.rows.compress_rows`.

    Returns:
        An object of the class that the file belongs to: an :class:`MPSEmbedding`, a :class:`TTMEmbedding`, a
        :class:`TTLinear`, a :class:`TTConv2d`, the update of a :class:`TTLoRALinear`, a :class:`Baseline`, a
        :class:`~ttref.fixedpoint.contract.QuantizedTT`, a :class:`~ttref.fitting.gram.Gram`,
        :class:`~ttref.fitting.gram.Grams` or a :class:`~ttref.retrieval.index.TTIndex`. For a file of
        :func:`save_tt_lora` a dict from the names of the adapted layers to their updates; :func:`load_tt_lora` puts
        these, and modules saved along, into a model. For a folder with a table of many files a
        :class:`~ttref.scale.table.Table`, which reads them when they are asked for.

    Raises:
        FileNotFoundError, OSError: No such file; another folder, missing rights.
        ModuleNotFoundError: safetensors is not installed; the message holds the install line.
        ValueError: A damaged file, or one that ttref did not write; the message names it.

    Cost:
        O(size of the file), its hash included; twice its size in memory meanwhile.

    Example:
        >>> import tempfile, ttref
        >>> table = ttref.MPSEmbedding(100, 48, rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table.save(f"{folder}/table.safetensors")
        ...     again = ttref.load(f"{folder}/table.safetensors")
        >>> type(again).__name__, torch.equal(again.weight, table.weight)
        ('MPSEmbedding', True)
    """
    if (Path(path) / TABLE).is_file():
        return importlib.import_module(".scale.table", __package__).Table(path)
    return read(path, None, None)


@torch.inference_mode(False)  # parameters made in inference mode could never be trained
def read(path: str | Path, kind: str | None, restore: Restore | None) -> Any:
    """The object that ``restore`` makes of tensors and header, or a ValueError that names the file.

    Without a kind, the kind in the file decides. The tensors are copies, aligned as fresh tensors are and independent
    of the file; meanwhile they take their memory twice.
    """
    safetensors = _safetensors()
    path = Path(path)
    content = _content(path)
    try:
        found, loaded, header = _unsealed(content, kind)
        del content
        restore = restore or restorer(found)
        # Fresh tensors: those of the reader are aligned differently, and products of them round differently.
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
            f"{path} is no {kind or 'file'} saved by ttref, or is damaged ({type(error).__name__}: {error}); "
            "save it again"
        ) from error


def restorer(kind: str) -> Restore:
    """The function that makes an object of this kind from tensors and header."""
    if kind not in KINDS:
        raise ValueError(f"it holds ttref.{kind}, which is not read by its kind alone")
    module, name = KINDS[kind]
    return operator.attrgetter(name)(importlib.import_module(f".{module}", __package__))


def sealed(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """A safetensors file in parts, with its hash in the metadata; the same bytes for the same content."""
    content = _safetensors().torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    held, body = _opened(content)
    # The library writes metadata in random order, so the header is written here.
    hashes = {name: _digest(tensors[name], body, held[name]) for name in sorted(held)}
    about = {**about, "each": "".join(found[:DIGITS] for found in hashes.values())}
    metadata = dict(sorted({**about, "sha256": _seal(about, hashes)}.items()))
    text = json.dumps({"__metadata__": metadata} | dict(sorted(held.items())), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(f"the header would take {len(text)} bytes, and {MOST_HEADER} can be read")
    return [len(text).to_bytes(8, "little"), text, body]


def check_header(header: Any, wanted: Mapping[str, tuple[type, ...]], optional: Iterable[str] = ()) -> None:
    """Refuse a header that lacks a setting, has another one, or a value of another type than is written."""
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
    """Refuse NaN and infinity, which a failed training leaves in cores and factors."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has entries that are NaN or infinite, as after a training that went wrong")


def digest(tensor: Tensor) -> str:
    """sha256 of dtype, shape and bytes of one tensor: 64 digits, equal for equal tensors on any device."""
    held, body = _opened(_safetensors().torch.save({"": tensor.detach().contiguous()}))
    return _digest(tensor, body, held[""])


def digest_of_version_1(tensor: Tensor) -> str:
    """The digest in files of version 1: the hash of a safetensors file of the tensor, header included."""
    return hashlib.sha256(_safetensors().torch.save({"": tensor.detach().contiguous()})).hexdigest()


def _unsealed(content: bytes, wanted: str | None) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Kind, tensors and header of a file, after its hash is checked."""
    if (size := int.from_bytes(content[:8], "little")) > MOST_HEADER:
        raise ValueError(f"its header would take {size} bytes")
    loaded = _safetensors().torch.load(content)  # refuses tensors that overlap, leave gaps or end elsewhere
    held, body = _opened(content)
    about = held.pop("__metadata__", {})
    kind = about.get("format", "nothing of ttref")
    if not kind.startswith("ttref.") or kind != f"ttref.{wanted or kind[6:]}":
        raise ValueError(f"it holds {kind}")
    if (version := about.get("version")) not in SEALS:
        raise ValueError(f"it has version {version} of the format, and this ttref reads {', '.join(SEALS)}")
    entries = {"format", "version", "header"} | SEALS[version]
    if about.keys() != entries:
        raise ValueError(f"its metadata are {', '.join(sorted(about))}, not {', '.join(sorted(entries))}")
    seal = about.pop("sha256", None)
    if version == "2" and seal != _seal_of_version_2(about, held, body):
        raise ValueError("its sha256 differs: it is not what was written")
    if version == VERSION:
        hashes = {name: _digest(loaded[name], body, held[name]) for name in sorted(held)}
        if seal != _seal(about, hashes):
            each = zip(hashes, textwrap.wrap(about["each"], DIGITS), strict=False)
            damaged = next((name for name, digits in each if not hashes[name].startswith(digits)), "its header")
            raise ValueError(f"{damaged} is not what was written: its sha256 differs")
    return kind[6:], loaded, _parsed(about["header"])


def _opened(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header of a safetensors file, and the bytes of its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return _parsed(content[8:end].decode()), memoryview(content)[end:]


def _digest(tensor: Tensor, body: memoryview, held: Mapping[str, Any]) -> str:
    """:func:`digest` of a tensor whose bytes are at ``data_offsets`` of ``body``."""
    start, end = held["data_offsets"]
    found = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    found.update(body[start:end])
    return found.hexdigest()


def _seal(about: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    """sha256 of the metadata and of the names and hashes of all tensors."""
    return hashlib.sha256(json.dumps([sorted(about.items()), sorted(hashes.items())]).encode()).hexdigest()


def _seal_of_version_2(about: Mapping[str, str], held: Mapping[str, Any], body: memoryview) -> str:
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
    """Refuse duplicate keys: readers differ in which of two they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names something twice")
    return found


def _plain(value: Any) -> Any:
    """Plain numbers in place of NumPy's and of tensors with one entry, for JSON."""
    if not hasattr(value, "item"):
        raise TypeError(f"{reprlib.repr(value)} of type {type(value).__name__} cannot be written as JSON")
    return value.item()


def _content(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "this is a folder; name a file in it", str(path))
        if not stat.S_ISREG(mode):  # reading a pipe might never end
            raise OSError(errno.EINVAL, "this is no ordinary file", str(path))
        return path.read_bytes()  # not mapped: a file that shrinks while it is read must not kill the process
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {path}") from None


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "saving and loading need safetensors; install it with: python -m pip install safetensors"
        ) from error
    return safetensors
