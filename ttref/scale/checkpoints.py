"""Checkpoints that many processes read at once: as they were, listed once, a layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from torch import nn

from ..advice.weights import stored_in_by_out, weights_of
from ..audit.naming import matched
from ..audit.reading import Entry, open_checkpoint
from .stamps import Stamps, check_stamps


def entries_of(path: str, files: Stamps, *, state_dict: bool = False) -> tuple[dict[str, Entry], bool]:
    """The tensors of a checkpoint by name, and whether GPT-2's layers are stored in x out."""
    check_stamps(path, files)
    return _listed(path, repr(files), state_dict)


def forget_entries() -> None:
    """Let go of what this process keeps of a checkpoint."""
    _listed.cache_clear()


@lru_cache(maxsize=1)
def _listed(path: str, files: str, state_dict: bool) -> tuple[dict[str, Entry], bool]:
    entries = open_checkpoint(path, state_dict=state_dict).entries
    return {entry.name: entry for entry in entries}, stored_in_by_out({entry.known: entry.shape for entry in entries})


def weights_by_layer(checkpoint: Path, known: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The tensor of each layer's weight in a checkpoint; ValueError for one that is not there.

    Args:
        checkpoint: Its path.
        known: Layers of the model, which tell how its names begin.
        names: Those that are wanted.
    """
    entries = open_checkpoint(checkpoint).entries
    pairs = matched((entry.name for entry in entries), (f"{name}.weight" for name in known))
    found = {layer.removesuffix(".weight"): entry for entry, layer in pairs.items()}
    if missing := [name for name in names if name not in found]:
        there = f"it has {entries[0].name} and {len(entries) - 1} others" if entries else "it holds no tensors"
        raise ValueError(f"{checkpoint} has no weight of {missing[0]}; {there}. Is it the checkpoint of this model?")
    return found


def linear(path: str, files: Stamps, name: str) -> nn.Linear:
    """A layer with the weight ``(out, in)`` of this name, and with its bias if there is one."""
    entries, in_by_out = entries_of(path, files)
    tensor = entries[name].read()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, no weight of a linear layer; leave it out")
    turned = weights_of({entries[name].known: tensor}, in_by_out=in_by_out)[0].view == ".mT"
    bias = entries.get(f"{name.removesuffix('weight')}bias")
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(tensor.mT.contiguous() if turned else tensor)
    if bias is not None:
        layer.bias = nn.Parameter(bias.read())
    check_stamps(path, files)
    return layer
