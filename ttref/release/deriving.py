"""A compressed layer made again from the dense weight it came from, and compared: what makes a release verifiable.

TT-SVD computes in float64 and fixes all signs, so the same weight gives the same cores, bit for bit on the processor
that made them and nearly so on any other. What it needs is in the layer itself: its modes and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conv import TTConv2d
from ..convolving import patches
from ..embeddings import MPSEmbedding
from ..embeddings.tables import CompressedTable
from ..fitting.als import fit_cores
from ..integer_cores import quantize_cores
from ..kernel_modes import RIDGE, SWEEPS
from ..matrices import ttm_svd, ttm_to_matrix
from ..modules import cores_of
from ..rows.packed import RowLayout
from ..ttmatrix import TTMatrix

BITS, TOLERANCE, DIFFERS = "bits", "tolerance", "differs"
# Largest error of a row, relative to its norm or to that of rows on average, between processors. Cores are rounded to
# their dtype once, in the end; int8 cores may fall on the next integer where they lie between two.
ALLOWED = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 0.05}
ALLOWED_INT8 = 1e-2
AT_ONCE = 4096  # rows compared together
IN_GPT2 = ".attn.c_attn", ".attn.c_proj", ".attn.q_attn", ".mlp.c_fc", ".mlp.c_proj"  # where GPT-2 has Conv1D
GROUP = 64  # numbers that share a scale in TTConv2d.from_conv, unless another is asked for


class Derivation(NamedTuple):
    """How a layer was made from a weight, as far as that can be told.

    Attributes:
        method: The function and its arguments, None where none gives this layer.
        agrees: "bits", "tolerance" or "differs".
        error: The largest error of a row against the layer made again; of the nearest method.
        allowed: The error allowed.
        relative_error: Of the layer against the weight, in the Frobenius norm.
    """

    method: dict[str, Any] | None
    agrees: str
    error: float
    allowed: float
    relative_error: float


@torch.no_grad()
def derived(layer: nn.Module, weight: Tensor) -> Derivation:
    """Find the method that makes this layer of this weight ``(out, in)``, ``(rows, width)`` or a kernel.

    Cost:
        As :func:`ttm_svd` of the weight, or one TT-SVD for each row of a table; for integer cores their rounding.
    """
    held, matrix = _numbers(layer), _matrix(layer)
    allowed = _allowed(layer)
    best = Derivation(None, DIFFERS, math.inf, allowed, relative_error(layer, weight))
    for method in methods(layer):
        numbers, again = remade(layer, method, weight)
        if _same(held, numbers):
            return best._replace(method=method, agrees=BITS, error=0.0)
        error = row_error(matrix, again)
        if error < best.error:
            best = best._replace(error=error)
        if error <= allowed and best.method is None:
            best = best._replace(method=method, agrees=TOLERANCE)
    return best


def methods(layer: nn.Module) -> Iterator[dict[str, Any]]:
    """The functions and arguments that may have made a layer, from its modes and ranks."""
    if isinstance(layer, MPSEmbedding):
        store, frame = layer.store, layer.store.frame
        how = {"function": "MPSEmbedding.from_embedding", "shape": list(layer.shape), "core_bits": layer.core_bits}
        how |= {"center": frame.mean is not None, "rotate": frame.rotation is not None}
        if store.eps is not None:
            yield how | {"eps": store.eps}
        if len(store.buckets) == 1 and not store.by_row:
            yield how | {"rank": list(store.buckets[0].layout.ranks)}
        elif (caps := _caps(layer)) is not None:
            yield how | {"row_ranks": caps}
    else:
        how = {"row_shape": list(layer.row_shape), "col_shape": list(layer.col_shape)}
        if isinstance(layer, TTConv2d):
            how |= {"taps_first": layer.taps_first}
            if layer.core_bits < 32:
                how |= {"then": "quantize_cores", "bits": layer.core_bits, "group": GROUP}
        yield {"function": "ttm_svd", "rank": list(layer.ranks)} | how
        if isinstance(layer, TTConv2d):  # as where modes are searched, without a Gram matrix
            yield {"function": "fit_cores", "rank": max(layer.ranks), "sweeps": SWEEPS, "ridge": RIDGE} | how


def remade(layer: nn.Module, method: dict[str, Any], weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Numbers and dense matrix of a layer of this kind that the method makes of the weight."""
    if isinstance(layer, MPSEmbedding):
        dense = nn.Embedding.from_pretrained(weight, padding_idx=layer.padding_idx)
        made = MPSEmbedding.from_embedding(dense, **{k: value for k, value in method.items() if k != "function"})
        return _numbers(made), made.dense()
    matrix = patches(weight, layer.taps_first) if isinstance(layer, TTConv2d) else weight
    inputs, shapes = torch.eye(matrix.shape[1], dtype=torch.float64), (method["row_shape"], method["col_shape"])
    if method["function"] == "ttm_svd":
        rows, cols = map(math.prod, shapes)
        padded = F.pad(matrix, (0, cols - matrix.shape[1], 0, rows - matrix.shape[0]))
        cores = ttm_svd(padded, *shapes, rank=method["rank"])
    else:
        how = {name: method[name] for name in ("rank", "sweeps", "ridge")}
        cores = [core.to(weight.dtype) for core in fit_cores(matrix.double(), inputs, *shapes, **how)]
    if "then" not in method:
        numbers = {f"cores.{k}": core for k, core in enumerate(cores)}
    else:
        codes, scales, cores = quantize_cores(cores, matrix, inputs, method["bits"], group=method["group"])
        numbers = {f"cores.codes{k}": part for k, part in enumerate(codes)}
        numbers |= {f"cores.scales{k}": part.to(weight.dtype) for k, part in enumerate(scales)}
    return numbers, ttm_to_matrix(cores)[: matrix.shape[0], : matrix.shape[1]]


def oriented(name: str, layer: nn.Module, weight: Tensor, in_by_out: bool | None) -> tuple[Tensor, bool]:
    """The dense weight as the layer has it, and whether that is the transpose of it, as in GPT-2's ``Conv1D``.

    Args:
        name: Of the layer.
        layer: The compressed layer.
        weight: The dense weight.
        in_by_out: True if the source has a ``Conv1D`` there, None if it does not say. A square weight is then turned
            only if the layer comes nearer to it that way, and either a method derives it so, or GPT-2 has such a name.
    """
    layer = getattr(layer, "table", layer)
    if isinstance(layer, TTConv2d):
        shapes = [(layer.out_channels, layer.in_channels, *layer.kernel_size)]
    elif isinstance(layer, CompressedTable):
        shapes = [(layer.num_embeddings, layer.embedding_dim)]
    else:
        shapes = [(layer.out_features, layer.in_features), (layer.in_features, layer.out_features)]
    if tuple(weight.shape) not in shapes:
        raise ValueError(
            f"the source has {tuple(weight.shape)} for {name}.weight, but the compressed layer stands for {shapes[0]}"
        )
    if len(shapes) == 1 or tuple(weight.shape) != shapes[1]:
        return weight, False
    turned = weight.mT.contiguous()
    if shapes[0] == shapes[1] and in_by_out is None:
        nearer = relative_error(layer, turned) < relative_error(layer, weight)
        in_by_out = nearer and (name.endswith(IN_GPT2) or derived(layer, turned).agrees != DIFFERS)
    return (turned, True) if shapes[0] != shapes[1] or in_by_out else (weight, False)


@torch.no_grad()
def relative_error(layer: nn.Module, weight: Tensor) -> float:
    """Relative Frobenius error of a layer against the dense weight."""
    matrix = patches(weight, layer.taps_first) if isinstance(layer, TTConv2d) else weight
    lost = total = 0.0
    for one, other in zip(_matrix(layer).split(AT_ONCE), matrix.split(AT_ONCE), strict=True):
        lost += (one.double() - other.double()).square().sum().item()
        total += other.double().square().sum().item()
    return math.sqrt(lost / total) if total else math.sqrt(lost)


def row_error(one: Tensor, other: Tensor) -> float:
    """The largest error of a row, relative to its norm, or to that of rows on average where it is smaller."""
    average = torch.linalg.vector_norm(other, dtype=torch.float64) / len(other) ** 0.5
    worst = 0.0
    for a, b in zip(one.split(AT_ONCE), other.split(AT_ONCE), strict=True):
        norms = torch.linalg.vector_norm(b.double(), dim=1).clamp(min=max(average.item(), 1e-300))
        errors = torch.linalg.vector_norm(a.double() - b.double(), dim=1) / norms
        worst = max(worst, errors.nan_to_num(nan=math.inf).max().item())
    return worst


def _numbers(layer: nn.Module) -> dict[str, Tensor]:
    """The numbers that stand for the matrix, without a bias; of rows that came in several pieces, in one."""
    if isinstance(layer, MPSEmbedding):
        return layer.store.named()
    return {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}


def _matrix(layer: nn.Module) -> Tensor:
    return TTMatrix.dense(layer) if isinstance(layer, TTConv2d) else layer.dense()


def _allowed(layer: nn.Module) -> float:
    """Zero for integer cores that were rounded one after the other: there one other integer changes all that follow."""
    if isinstance(layer, TTConv2d) and layer.core_bits < 32:
        return 0.0
    if isinstance(layer, MPSEmbedding) and layer.core_bits == 8:
        return max(ALLOWED_INT8, ALLOWED[layer.dtype])
    return ALLOWED[cores_of(layer.cores)[0].dtype if isinstance(layer, TTMatrix) else layer.dtype]


def _caps(table: MPSEmbedding) -> list[int] | None:
    """A cap for each row that gives it the ranks it has; None where other caps were asked for."""
    caps = []
    for bucket in table.store.buckets:
        layout = bucket.layout
        caps.append(max(layout.ranks))
        if RowLayout(layout.shape, caps[-1], layout.width).ranks != layout.ranks:
            return None
    index = table.store.named().get("bucket")
    return [caps[0]] * len(table.store) if index is None else [caps[k] for k in index.tolist()]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """True for equal names, dtypes and numbers, bit for bit: a zero of another sign is another number."""
    return one.keys() == other.keys() and all(_bits(one[name]) == _bits(other[name]) for name in one)


def _bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.detach().cpu().contiguous()
    return flat.dtype, flat.shape, flat.reshape(-1).view(torch.uint8).numpy().tobytes()
