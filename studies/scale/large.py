"""A table that no process may hold: five million rows on Ray, its driver killed on the way and started again."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ttref import MPSEmbedding
from ttref.scale import Table

from .processes import Seen, driven
from .sections import ONCE, RANK, SHARD
from .source import WIDTH, table

ROWS = 5_000_000
KILLED_AT = 0.4  # of the shards
CHECKED = 37  # every so many shards are made again, in this process
NEEDED = 1.2  # times the bytes of the table must be free


def large(before: dict[str, dict], rows: int = ROWS, shard: int = SHARD) -> Iterator[dict]:
    """The one row of the section ``large``."""
    if "ray" in before:
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        nbytes = rows * WIDTH * 4
        if shutil.disk_usage(folder).free < NEEDED * nbytes:
            raise OSError(f"{folder} has no room for a table of {nbytes:,} bytes; set TMPDIR to a folder that has")
        source, out = table(Path(folder, "source"), rows), Path(folder, "out")
        given = {"do": "rows", "source": [str(path) for path in source], "destination": str(out), "rank": RANK}
        given |= {"engine": "ray", "workers": 2, "rows_per_shard": shard}
        wanted = -(-rows // shard)
        killed = driven(ONCE, given, kill_when=lambda: len(written(out)) >= KILLED_AT * wanted)
        kept, finished = {path: digest_of(path) for path in written(out)}, (out / "table.json").is_file()
        resumed = driven(ONCE, given)
        same = sum(digest_of(path) == before for path, before in kept.items())
        yield {
            "key": "ray",
            "rows": rows,
            "width": WIDTH,
            "shards": len(written(out)),
            "rows_per_shard": shard,
            "bytes_in": nbytes,
            "bytes_out": sum(path.stat().st_size for path in written(out)),
            "finished_when_killed": finished,
            "kept_when_killed": len(kept),
            "kept_and_same": same,
            "killed": told(killed),
            "resumed": told(resumed) | resumed.found,
            "checked": checked(source, out),
        }


def told(seen: Seen) -> dict:
    """What was seen of a driver and its descendants."""
    return {"seconds_of_process": seen.seconds, "rss": seen.rss, "pss": seen.pss, "processes": seen.processes}


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def written(out: Path) -> list[Path]:
    """The shards that are there, in order."""
    return sorted(out.glob("rows-*.safetensors"))


def checked(source: list[Path], out: Path) -> dict:
    """Every so many shards made again from the source without any engine: how many, and how many are the same."""
    table, tried, same = Table(out), 0, 0
    starts = list(itertools.accumulate(map(rows_of, source), initial=0))[:-1]
    for k, about in list(enumerate(table.shards))[::CHECKED]:
        rows = torch.cat(
            [
                piece(path, about.start - start, about.start + about.rows - start)
                for path, start in zip(source, starts, strict=True)
            ]
        )
        again = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(rows), rank=RANK).state_dict()
        held = table.shard(k).state_dict()
        tried, same = tried + 1, same + all(torch.equal(again[name], held[name]) for name in again | held)
    return {"shards": tried, "same": same}


def rows_of(path: Path) -> int:
    """How many rows a file of the source has."""
    with safe_open(path, "pt") as file:
        return file.get_slice("rows").get_shape()[0]


def piece(path: Path, start: int, stop: int) -> Tensor:
    """The rows of a file that lie between two that are counted from its first one."""
    with safe_open(path, "pt") as file:
        count = rows_of(path)
        return file.get_slice("rows")[min(max(start, 0), count) : min(max(stop, 0), count)]
