"""Formats beside the fitted train, each against a rival of the same bytes or of the same number of numbers.

Residuals of a train (sparse entries, integers of one or two bits), Tucker over the heads, and a block tensor train.
Units in another order are not measured here: ``order_units`` records what that freedom brings, which is little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from statistics import fmean

import torch
from torch import Tensor

from book.tools import results
from ttref import truncated_svd, ttm_to_matrix
from ttref.fitting.als import fit_cores
from ttref.fitting.choosing import within
from ttref.fitting.errors import output_error
from ttref.gptq import gptq_quantize

from .data import Layer
from .methods import GROUP, errors, fitted, shared
from .whole import read_modes

VIT = tuple(f"{block}.{kind}" for block in (1, 4) for kind in ("query", "value", "linear1", "linear2"))
MINILM = ("0.attention.self.query", "3.attention.self.key", "3.attention.self.value")
HEADS = {"ViT": 8, "MiniLM": 12}
RIDGE, ROUNDS, SWEEPS = 1e-3, 3, 10
OUT_BLOCKS, IN_BLOCKS = (1, 2), (2, 4, 8)
FINISHED, FULL_SWEEPS = 2, 120  # blocks converge slowly where inputs are correlated
NAMES = ("what", "rival", "model", "layer")


def keys() -> list[tuple[str, str, str, str]]:
    """What is measured: ``what`` and its rival, the model and the layer."""
    layers = [("ViT", name) for name in VIT] + [("MiniLM", name) for name in MINILM]
    heads = [each for each in layers if "linear" not in each[1]]
    asked = [("train + sparse", "train", layers)]
    asked += [(f"train + GPTQ {bits}", f"GPTQ {bits + 1}", layers) for bits in (1, 2)]
    for rival in ("whitened", "searched"):
        asked += [("Tucker over heads", rival, heads), ("block tensor train", rival, layers)]
    return [(what, rival, *each) for what, rival, among in asked for each in among]


def row(key: tuple[str, str, str, str], layer: Layer) -> dict:
    """One comparison: held-out errors of both, and the bytes or numbers of both."""
    what, rival, model, _ = key
    budget = layer.weight.numel() // 4
    if rival == "train":
        size, made, other = sparse_residual(layer)
    elif rival.startswith("GPTQ"):
        size, made, other = low_bits(layer, int(rival[-1]) - 1)
    else:
        size = {"numbers": budget}
        made = tucker(layer, HEADS[model], budget) if what.startswith("Tucker") else block_train(layer, budget)
        other = opponent(rival, model, layer, budget)
    return dict(zip(NAMES, key, strict=True)) | size | errors(layer, {"error": made, "rival_error": other})


def opponent(rival: str, model: str, layer: Layer, budget: int) -> Tensor:
    """Whitened SVD, or the train whose modes the search chose at 4x, as recorded, with as many sweeps as any here."""
    if rival == "whitened":
        return truncated_svd(layer.weight, params=budget, gram=layer.gram).approximation
    section = {"ViT": "vit", "MiniLM": "minilm_searched"}[model]
    modes = read_modes(results.read("fitting")[section], layer.name, 4)
    rank = within(*modes, budget)
    return ttm_to_matrix(fit_cores(layer.weight, layer.gram, *modes, rank=rank, sweeps=FULL_SWEEPS))


def bfloat16(cores: list[Tensor]) -> Tensor:
    """The matrix of cores stored in two bytes a number."""
    return ttm_to_matrix([core.bfloat16().float() for core in cores])


def in_turn(layer: Layer, ratio: int, residual: Callable[[Tensor], Tensor]) -> Tensor:
    """A train with a shared projection and a residual, each fitted to what the other leaves; the best round."""
    modes, rest, start, tried = shared(*layer.weight.shape), 0, "svd", []
    for _ in range(ROUNDS):
        rank = within(*modes, layer.weight.numel() // ratio)
        start = fit_cores(layer.weight - rest, layer.gram, *modes, rank=rank, start=start)
        rest = residual(layer.weight - bfloat16(start))
        made = bfloat16(start) + rest
        tried.append((output_error(layer.weight, made, layer.gram), made))
    return min(tried, key=lambda each: each[0])[1]


def train_numbers(layer: Layer, ratio: float) -> int:
    """Numbers of the train with a shared projection, two cores."""
    (m, _), (k, width) = modes = shared(*layer.weight.shape)
    return (m * k + width) * within(*modes, int(layer.weight.numel() / ratio))[1]


def sparse_residual(layer: Layer) -> tuple[dict, Tensor, Tensor]:
    """A train of an eighth of the numbers with sparse entries, against a train of a quarter more numbers.

    An entry takes two bytes and its packed column, a row one byte for the number of its entries.
    """
    m, n = layer.weight.shape
    modes, nbytes = shared(m, n), 2 * train_numbers(layer, 6.4)
    count = 8 * (nbytes - 2 * train_numbers(layer, 8) - m) // (16 + math.ceil(math.log2(n)))
    made = in_turn(layer, 8, partial(sparse, gram=layer.gram.matrix, count=count))
    return {"bytes": nbytes, "entries": count}, made, bfloat16(fitted(layer, modes, int(m * n / 6.4)))


def sparse(lost: Tensor, gram: Tensor, count: int) -> Tensor:
    """The entries that matter most by the diagonal of the Gram matrix, their values by least squares in its norm."""
    kept = (lost.double().square() * gram.diagonal()).flatten().topk(count).indices
    there = torch.zeros(lost.numel(), dtype=torch.bool).index_fill_(0, kept, True).reshape(lost.shape)
    found, right = torch.zeros_like(lost), lost.double() @ gram
    damped = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    right += (damped - gram)[0, 0] * lost  # the ridge draws to the entry itself
    for k in there.any(1).nonzero().flatten().tolist():
        at = there[k].nonzero().flatten()
        found[k, at] = torch.linalg.solve(damped[at][:, at], right[k, at]).bfloat16().to(found.dtype)
    return found


def low_bits(layer: Layer, bits: int) -> tuple[dict, Tensor, Tensor]:
    """A train of a sixteenth of the numbers, one bit a weight, with a rounded residual; against one bit more."""
    alone = gptq_quantize(layer.weight, layer.gram, bits + 1, group=GROUP)
    rounded = lambda lost: gptq_quantize(lost, layer.gram, bits, group=GROUP).approximation  # noqa: E731
    return {"bytes": alone.nbytes}, in_turn(layer, 16, rounded), alone.approximation


def whitening(layer: Layer) -> Tensor:
    """Lower Cholesky factor of the Gram matrix with its ridge."""
    gram = layer.gram.matrix
    return torch.linalg.cholesky(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype))


def tucker(layer: Layer, heads: int, budget: int) -> Tensor:
    """``(heads, head width, in)`` as a core and three factors, inputs whitened: the best ranks of HOSVD, then HOOI."""
    m, n = layer.weight.shape
    white = whitening(layer)
    cube = (layer.weight.double() @ white).reshape(heads, m // heads, n)
    bases = [leading(cube, axis) for axis in range(3)]
    energy = torch.einsum("hdn,hi,dj,nk->ijk", cube, *bases).square().cumsum(0).cumsum(1).cumsum(2)
    a, b, c = torch.meshgrid(*(torch.arange(1, size + 1) for size in energy.shape), indexing="ij")
    numbers = a * b * c + a * heads + b * (m // heads) + c * n
    best = int(torch.where(numbers <= budget, energy, -torch.inf).argmax())
    ranks = [int(each.flatten()[best]) for each in (a, b, c)]
    bases = [basis[:, :rank] for basis, rank in zip(bases, ranks, strict=True)]
    for _ in range(SWEEPS):
        for axis in range(3):
            seen = cube
            for other in (k for k in range(3) if k != axis):
                seen = projected(seen, bases[other].mT, other)
            bases[axis] = leading(seen, axis)[:, : ranks[axis]]
    for axis in range(3):
        cube = projected(cube, bases[axis] @ bases[axis].mT, axis)
    return torch.linalg.solve_triangular(white, cube.reshape(m, n), upper=False, left=False)


def leading(cube: Tensor, axis: int) -> Tensor:
    """Orthonormal vectors of one axis, those of most energy first."""
    flat = cube.movedim(axis, 0).flatten(1)
    return torch.linalg.eigh(flat @ flat.mT).eigenvectors.flip(1)


def projected(cube: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """A matrix applied along one axis."""
    return torch.tensordot(matrix, cube, dims=([1], [axis])).movedim(0, axis)


@cache
def block_train(layer: Layer, budget: int) -> Tensor:
    """``W[(p i), (q j)] = sum_s L[i, p, q, s] R[p, q, s, j]``: each of the p x q blocks has factors of its own.

    A train of two cores is the same with R shared over p and L over j; one block is an SVD. A few sweeps rank the
    numbers of blocks by calibration error, two are finished, and the better one is taken.
    """
    m, n = layer.weight.shape
    sizes = [(p, q, budget // (m * q + n * p)) for p in OUT_BLOCKS for q in IN_BLOCKS]
    sizes = [each for each in sizes if each[2]]

    def best(sweeps: int, among: list) -> list:
        made = [(blocks_fitted(layer, *size, sweeps), size) for size in among]
        return sorted(made, key=lambda each: output_error(layer.weight, each[0], layer.gram))

    first = [size for _, size in best(SWEEPS, sizes)[:FINISHED]]
    return best(FULL_SWEEPS, first)[0][0]


def blocks_fitted(layer: Layer, p: int, q: int, rank: int, sweeps: int) -> Tensor:
    """Least error in the Gram norm: one range of inputs after another by whitened SVDs, then all left factors at once.

    Stops where a sweep takes less than 0.02 % off the error.
    """
    m, n = layer.weight.shape
    weight, white, width = layer.weight.double(), whitening(layer), n // q
    gram = white @ white.mT
    made, before = torch.zeros_like(weight), math.inf
    right = torch.zeros(p, q, rank, n, dtype=weight.dtype)
    roots = [torch.linalg.cholesky(gram[k : k + width, k : k + width]) for k in range(0, n, width)]
    for _ in range(sweeps):
        for k, root in enumerate(roots):
            at = slice(k * width, (k + 1) * width)
            made[:, at] = 0
            wanted = torch.linalg.solve_triangular(
                root.mT, (weight - made) @ gram[:, at], upper=True, left=False
            ).reshape(p, m // p, width)
            basis = torch.linalg.eigh(wanted.mT @ wanted).eigenvectors[..., -rank:]
            right[:, k, :, at] = torch.linalg.solve_triangular(root, basis.mT, upper=False, left=False)
            made[:, at] = ((wanted @ basis) @ right[:, k, :, at]).reshape(m, width)
        flat = right.flatten(1, 2)
        seen = flat @ gram
        found = torch.linalg.solve(seen @ flat.mT, seen @ weight.reshape(p, m // p, n).mT)
        made = (found.mT @ flat).reshape(m, n)
        error = torch.linalg.norm((weight - made) @ white).item()
        if error > (1 - 2e-4) * before:
            break
        before = error
    return made


def wins(rows: list[dict]) -> list[dict]:
    """For each comparison and model: mean errors of both, and in how many matrices the first is lower."""
    found = []
    for what, rival, model in dict.fromkeys(key[:3] for key in keys()):
        among = [each for each in rows if [each[name] for name in NAMES[:3]] == [what, rival, model]]
        if not among:
            continue
        at = {"what": what, "rival": rival, "model": model, "matrices": len(among)}
        for end in ("", "_same") if "error_same" in among[0] else ("",):
            pairs = [(each["error" + end], each["rival_error" + end]) for each in among]
            at |= {"error" + end: fmean(a for a, _ in pairs), "rival_error" + end: fmean(b for _, b in pairs)}
            at["wins" + end] = sum(a < b for a, b in pairs)
        found.append(at)
    return found
