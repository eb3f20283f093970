"""A table that no process may hold: five million rows, on the pool, on Ray, and on Ray with its driver killed."""

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
from .sections import ENGINES, ONCE, RANK
from .source import WIDTH, table

ROWS = 5_000_000
SHARD = 65_536
KILLED = "killed"
KILLED_AT = 0.4  # of the shards
CHECKED = 19  # every so many shards are made again, in this process
NEEDED = 1.2  # times the bytes of the table must be free


def large(before: dict[str, dict], rows: int = ROWS, shard: int = SHARD) -> Iterator[dict]:
    """Rows of the section ``large``: each engine undisturbed, and Ray with its driver killed and started again."""
    left = [key for key in (*ENGINES, KILLED) if key not in before]
    if not left:
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        nbytes = rows * WIDTH * 4
        if shutil.disk_usage(folder).free < NEEDED * nbytes:
            raise OSError(f"{folder} has no room for a table of {nbytes:,} bytes; set TMPDIR to a folder that has")
        source = table(Path(folder, "source"), rows)
        for key in left:
            out = Path(folder, key)
            given = {"do": "rows", "source": [str(path) for path in source], "destination": str(out), "rank": RANK}
            given |= {"engine": "ray" if key == KILLED else key, "workers": 2, "rows_per_shard": shard, "patience": 15}
            found = killed(given, out, -(-rows // shard)) if key == KILLED else {}
            seen = driven(ONCE, given)
            found |= told(seen) | seen.found | {"shards": len(written(out)), "sha256": digest_of(out)}
            found |= {"bytes_in": nbytes, "bytes_out": sum(path.stat().st_size for path in written(out))}
            if key == KILLED:
                found |= {"kept_and_same": sum(same_file(*one) for one in found.pop("kept").items())}
                found |= checked(source, out)
            yield {"key": key, "rows": rows, "width": WIDTH, "rows_per_shard": shard} | found
            shutil.rmtree(out)


def killed(given: dict, out: Path, shards: int) -> dict:
    """Kill the driver when a part of the shards is written, and say what there was then."""
    seen = driven(ONCE, given, kill_when=lambda: len(written(out)) >= KILLED_AT * shards)
    kept = {path: sha256(path) for path in written(out)}
    finished = (out / "table.json").is_file()
    first = {f"first_{name}": value for name, value in told(seen).items()}
    return first | {"kept": kept, "kept_when_killed": len(kept), "finished_when_killed": finished}


def told(seen: Seen) -> dict:
    """What was seen of a driver and its descendants."""
    return {"seconds_of_process": seen.seconds, "rss": seen.rss, "pss": seen.pss, "processes": seen.processes}


def written(out: Path) -> list[Path]:
    """The shards that are there, in order."""
    return sorted(out.glob("rows-*.safetensors"))


def sha256(path: Path) -> str:
    """The hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_file(path: Path, before: str) -> bool:
    """Whether a file is what it was."""
    return sha256(path) == before


def digest_of(out: Path) -> str:
    """One hash of all shards."""
    return hashlib.sha256(" ".join(map(sha256, written(out))).encode()).hexdigest()


def checked(source: list[Path], out: Path) -> dict:
    """Every so many shards made again from the source without any engine: how many, and how many are the same."""
    held, tried, same = Table(out), 0, 0
    starts = list(itertools.accumulate(map(rows_of, source), initial=0))[:-1]
    for k, about in list(enumerate(held.shards))[::CHECKED]:
        first, last = about.start, about.start + about.rows
        rows = torch.cat([piece(path, first - begin, last - begin) for path, begin in zip(source, starts, strict=True)])
        again = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(rows), rank=RANK).state_dict()
        found = held.shard(k).state_dict()
        tried, same = tried + 1, same + all(torch.equal(again[name], found[name]) for name in again | found)
    return {"checked": tried, "checked_and_same": same}


def rows_of(path: Path) -> int:
    """How many rows a file of the source has."""
    with safe_open(path, "pt") as file:
        return file.get_slice("rows").get_shape()[0]


def piece(path: Path, start: int, stop: int) -> Tensor:
    """The rows of a file that lie between two that are counted from its first one."""
    with safe_open(path, "pt") as file:
        count = rows_of(path)
        return file.get_slice("rows")[min(max(start, 0), count) : min(max(stop, 0), count)]
