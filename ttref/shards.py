"""Safetensors files of others: opened with a message that names them, and the lists that say which file holds what."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .printed import printable

LISTS = "*.safetensors.index.json"
MOST_LIST = 64 << 20  # bytes of a list; that of a model of a trillion parameters has a tenth


def open_safetensors(path: Path, kinds: str = "safetensors") -> Any:
    """``safe_open``; the library refuses headers that are too large or do not fit the file. ``kinds``: for messages.

    Raises:
        ModuleNotFoundError: safetensors is not installed; the message holds the install line.
        ValueError: A truncated, damaged or foreign file; the message names it.
    """
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading safetensors needs safetensors; install it with: python -m pip install safetensors"
        ) from error
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OverflowError) as error:
        raise ValueError(f"{path} is no {kinds} file, or is truncated or damaged ({one_line(error)})") from None


def listed(path: Path) -> dict[str, Path]:
    """By the names of tensors, in the order of a list of shards, the files that it says they are in.

    Raises:
        FileNotFoundError: A file that is listed is not there.
        ValueError: No such list, an empty one, or one that leads out of its folder; the message names it.
    """
    if path.stat().st_size > MOST_LIST:
        raise ValueError(f"{path} is no list of shards: it has {path.stat().st_size} bytes")
    try:
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = list(dict.fromkeys(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no list of shards, or is damaged ({type(error).__name__}: {error})") from None
    if not shards:
        raise ValueError(f"{path} lists no shards")
    for shard in shards:
        # A name alone: neither a path, nor a drive, nor the folder above.
        if not isinstance(shard, str) or shard in ("", ".", "..") or re.search(r"[/\\:\0]", shard):
            raise ValueError(f"{path} names {shard!r:.80}, which is no file beside it; a list leads nowhere else")
        if not path.with_name(shard).is_file():
            raise FileNotFoundError(f"{path} lists {shard}, and there is no such file beside it")
    return {name: path.with_name(shard) for name, shard in where.items()}


def one_line(said: object, most: int = 300) -> str:
    """The beginning of what an error or anything else says, in one line that a terminal does not obey."""
    words = printable(" ".join(str(said).split()))
    return words if len(words) <= most else f"{words[: most - 4]} ..."
