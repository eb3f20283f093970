"""Where the compressed layers of a description go in a model, and whether they fit there."""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..conv import TTConv2d
from ..embeddings.head import ScaledTable
from ..embeddings.tables import CompressedTable
from ..linears import conv1d_of
from .makers import Spec, kind_in
from .manifest import USING

SHARED, HEAD = "Shared", "TiedHead"
# Attributes that a layer and the one in its place have in common, with the names that GPT-2's layers give them.
_ALIKE = {"in_features": "nx", "out_features": "nf", "num_embeddings": "", "embedding_dim": "", "in_channels": ""}
_ALIKE |= {"out_channels": "", "kernel_size": "", "stride": "", "padding": "", "dilation": ""}
_FACTOR = 2**-7  # by which bfloat16 may round a factor, relative to it


def names_in(model: nn.Module, described: Mapping[str, Spec], same: bool) -> dict[str, str]:
    """The name that each described module has in the model."""
    prefix, found = f"{getattr(model, 'base_model_prefix', '')}.", {}
    for name, spec in described.items():
        tried = [name] if same else [name, name.removeprefix(prefix), prefix + name]
        here = next((one for one in tried if _has(model, one)), None)
        if here is not None:
            found[name] = here
        elif same or name.startswith(prefix):
            raise ValueError(
                f"a {kind_in(spec)} is described as {name!r}, and a {type(model).__name__} has no such module"
            )
    if len(set(found.values())) < len(found):
        raise ValueError("two descriptions are of the same module")
    for name in found:
        if kind_in(described[name]) in USING:
            other = described[name].get(USING[kind_in(described[name])])
            if not isinstance(other, str) or other not in found or kind_in(described[other]) in USING:
                raise ValueError(
                    f"{name} is described with the table of {reprlib.repr(other)}, which is no look-up here"
                )
    return found


def _has(model: nn.Module, name: str) -> bool:
    try:
        return bool(name) and model.get_submodule(name) is not model
    except AttributeError:
        return False


def check_fits(model: nn.Module, name: str, dense: nn.Module, made: nn.Module) -> None:
    """Refuse a layer of another kind, or of other widths, than the one in its place."""
    kind: type[nn.Module] = nn.Embedding if isinstance(made, (CompressedTable, ScaledTable)) else nn.Linear
    kind = nn.Conv2d if isinstance(made, TTConv2d) else kind
    if not isinstance(dense, kind) and not (kind is nn.Linear and conv1d_of(dense)):
        raise ValueError(f"{name} is a {type(dense).__name__} in this model, and described as a {type(made).__name__}")
    if isinstance(made, ScaledTable):
        _check_factor(model, name, dense, float(made.embed_scale))
    for width, in_gpt2 in _ALIKE.items():
        before, after = (getattr(one, width, getattr(one, in_gpt2, None)) for one in (dense, made))
        if None not in (before, after) and before not in (after, "same", "valid"):
            raise ValueError(f"{name} has {width} = {before} in this model, and is described with {after}")


def _check_factor(model: nn.Module, name: str, dense: nn.Module, described: float) -> None:
    """Refuse a factor of rows that the look-up has not."""
    scale = getattr(dense, "embed_scale", None)
    if not isinstance(scale, (int, float, Tensor)):
        raise ValueError(f"{name} does not scale its rows in this model, and is described with a factor of {described}")
    scale = _set(model, dense) if isinstance(scale, Tensor) and scale.is_meta else float(scale)
    if math.isnan(scale):
        raise ValueError(f"the factor of {name} is on the meta device, and nothing tells it: make the model on the CPU")
    if not math.isclose(scale, described, rel_tol=_FACTOR):
        raise ValueError(f"{name} scales its rows by {scale} in this model, and is described with {described}")


def _set(model: nn.Module, dense: nn.Module) -> float:
    """The factor that a model of transformers sets when it comes off the meta device; NaN if it sets none."""
    twin = copy.deepcopy(dense)
    twin.embed_scale = torch.full_like(twin.embed_scale, math.nan, device="cpu")
    getattr(model, "_init_weights", lambda module: None)(twin)
    return float(twin.embed_scale)
