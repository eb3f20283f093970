"""What a model costs: time in turns with another one, bytes in memory, the peak beside them, and bytes of its files."""

from __future__ import annotations

import math
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_number
from .live import peak_of

COSTS = ("latency", "memory", "peak", "file")
Files = str | Path | Iterable[str | Path]
_TICK = 1e-9  # seconds; a clock may stand still


def check_limits(limits: Mapping[str, float] | None, turns: int, alpha: float) -> dict[str, float]:
    """Largest ratios by cost; errors name the cost."""
    if limits is None:
        return {}
    if not isinstance(limits, Mapping):
        raise TypeError(f"limits must map costs to ratios, as {{'file': 0.5}}, got {type(limits).__name__}")
    for name, value in limits.items():
        if name not in COSTS:
            raise ValueError(f"a limit must be of one of {', '.join(COSTS)}, got {name!r}")
        check_number(f"the limit of {name}", value, positive=True)
    if "latency" in limits and _above(turns, alpha) is None:
        least = next(count for count in range(1, 64) if _above(count, alpha) is not None)
        raise ValueError(f"a limit of latency needs {least} turns or more to be tested at {alpha}, got turns={turns}")
    if "peak" in limits and not turns:
        raise ValueError("a limit of the peak needs a run to measure it, got turns=0")
    return {name: float(limits[name]) for name in COSTS if name in limits}


def latency(dense: Callable[[], object], compressed: Callable[[], object], turns: int, alpha: float) -> dict[str, Any]:
    """Seconds of two computations in turn, and the median of the ratios within a turn with its exact bounds.

    Which of the two goes first alternates. The bounds are two of the ratios, by their order alone: the median lies
    above ``high``, and below ``low``, with a chance of at most alpha each; None with too few turns for any bound.
    """
    _seconds(dense), _seconds(compressed)  # to warm up
    taken: list[tuple[float, float]] = []
    for turn in range(turns):
        if turn % 2:
            after = _seconds(compressed)
            taken.append((_seconds(dense), after))
        else:
            taken.append((_seconds(dense), _seconds(compressed)))
    ratios, bound = sorted(two / max(one, _TICK) for one, two in taken), _above(turns, alpha)
    before, after = (median(side) for side in zip(*taken, strict=True))
    bounds = (None, None) if bound is None else (ratios[turns - bound], ratios[bound - 1])
    return {
        "dense": before,
        "compressed": after,
        "ratio": median(ratios),
        "low": bounds[0],
        "high": bounds[1],
        "turns": turns,
    }


def peaks(dense: Callable[[], object], compressed: Callable[[], object], known: Iterable[Tensor]) -> dict[str, Any]:
    """Peak bytes of the tensors that two computations make; known ones do not count."""
    known = list(known)
    return _compared(*(peak_of(work, known) for work in (dense, compressed)))


def memory(dense: nn.Module, compressed: nn.Module) -> dict[str, Any]:
    """Bytes of parameters and buffers of two models, tied ones counted once."""
    return _compared(*(nbytes_of(model) for model in (dense, compressed)))


def files(dense: nn.Module, compressed: nn.Module, paths: tuple[Files | None, Files | None]) -> dict[str, Any]:
    """Bytes of the files of two models; where none are given, of what their state dicts hold."""
    sizes = [
        _state_nbytes(model) if given is None else _file_nbytes(given)
        for model, given in zip((dense, compressed), paths, strict=True)
    ]
    kinds = ["state" if given is None else "files" for given in paths]
    return _compared(*sizes) | {"dense_of": kinds[0], "compressed_of": kinds[1]}


def decided(costs: dict[str, dict[str, Any]], limits: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """With the limit of each cost, and whether it is kept: None without a limit. For latency its upper bound counts."""
    for name, row in costs.items():
        limit = limits.get(name)
        reached = row.get("high", row["ratio"])
        row["limit"] = limit
        row["passed"] = None if limit is None else reached is not None and reached <= limit
    return costs


def tensors_of(*models: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    found = (one for model in models for one in (*model.parameters(), *model.buffers()))
    return list({id(one): one for one in found}.values())


def nbytes_of(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones counted once."""
    return sum(one.numel() * one.element_size() for one in tensors_of(model))


def _compared(dense: int, compressed: int) -> dict[str, Any]:
    return {"dense": dense, "compressed": compressed, "ratio": compressed / dense if dense else None}


def _state_nbytes(model: nn.Module) -> int:
    """Bytes of the tensors of a state dict, each storage and place counted once."""
    held = {
        (one.data_ptr() if not one.is_meta else id(one), one.numel(), one.dtype): one.numel() * one.element_size()
        for one in model.state_dict(keep_vars=True).values()
        if isinstance(one, Tensor)
    }
    return sum(held.values())


def _file_nbytes(paths: Files) -> int:
    """Bytes of files, and of all files within folders."""
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    total = 0
    for path in map(Path, given):
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path} to take the size of")
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        total += sum(one.stat().st_size for one in found if stat.S_ISREG(one.stat().st_mode))
    return total


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Until an accelerator has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _above(turns: int, alpha: float) -> int | None:
    """Which ratio, counted from the smallest, the median exceeds with a chance of at most alpha; None if none."""
    above = 0.0
    for place in range(turns, 0, -1):  # the median is larger if at least so many of the ratios lie below it
        above += math.comb(turns, place) / 2**turns
        if above > alpha:
            return place + 1 if place < turns else None
    return None
