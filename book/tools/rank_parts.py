"""The parts of which `rank_records` builds what the rank explorer knows: objects, forms, records, rivals, scores."""

from functools import cache
from typing import Any

from book.tools import results
from book.tools.notebooks import ROOT
from book.tools.used import title

Part = dict[str, Any]
recorded = cache(results.read)


def thing(key: str, name: str, shape: tuple[int, int], use: str, chapter: str, origin: str, **more: Any) -> Part:
    """An object of `shape` (rows, columns), recorded in `origin`; `use` is "layer", "table" or "adapter"."""
    source, path = recorded(origin), ROOT / "notebooks" / f"{chapter}.ipynb"
    made = {"id": key, "name": name, "rows": shape[0], "cols": shape[1], "use": use, "copies": 1, "errorOf": "weights"}
    made |= {"chapter": chapter, "title": title(path), "command": source["command"], "date": source["date"]}
    return made | {"scores": [], "forms": [], "rivals": [], "null": "noise of the same shape"} | more


def matrix(key: str, name: str, rows: tuple[int, ...], cols: tuple[int, ...], records: list[Part]) -> Part:
    """One TT-matrix for the object. A core with a mode of 1 on one side is that of a plain train."""
    return {"id": key, "name": name, "kind": "matrix", "rows": list(rows), "cols": list(cols), "records": records}


def each(key: str, name: str, modes: tuple[int, ...], sizes: tuple[int, int], records: list[Part], bits=32) -> Part:
    """`count` trains for rows of `width`, `sizes` being both; cores in float32, or in eight bits with a scale a row."""
    made = {"id": key, "name": name, "kind": "rows", "modes": list(modes), "count": sizes[0], "width": sizes[1]}
    return made | {"bits": bits, "records": records}


def record(ranks: int | list[int], **values: Any) -> Part:
    """What was measured at a cap, or at inner ranks; what was not measured (None) is left out."""
    return {"ranks": ranks} | {name: value for name, value in values.items() if value is not None}


def rival(name: str, nbytes: float, error: float | None = None, **more: Any) -> Part:
    """Another method: its bytes, its error if one was measured, its `scores` in the order of the object's."""
    return {"name": name, "bytes": round(nbytes)} | ({} if error is None else {"error": error}) | more


def score(name: str, unit: str, dense: float, better: str) -> Part:
    """A score beside the error: its unit, the dense object's, and whether "higher" or "lower" is better."""
    return {"name": name, "unit": unit, "dense": dense, "better": better}


def binary(width: int) -> tuple[int, ...]:
    """The fewest modes of two for a width."""
    return (2,) * (width - 1).bit_length()
