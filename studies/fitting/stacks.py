"""Matrices of one kind stacked over the layers of a network: numbers at equal errors, by a train and without one.

The layers of ``nn.TransformerEncoder`` begin as copies of one, and trained ones still share a mean. A train whose first
mode is the layer finds it; so does whoever rotates the layers into their mean and differences before an SVD of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttref import gaussian_null, tt_svd

EPS = (0.5, 0.7)


def row(model: str, kind: str, matrices: list[Tensor]) -> dict:
    """Compression of one kind by every method at every eps, of noise by the train, and the mean's share."""
    stack = torch.stack(matrices).double()
    noise = torch.stack([gaussian_null(w, seed=k) for k, w in enumerate(matrices)]).double()
    mean = stack.mean(0)
    share = len(stack) * mean.square().sum() / stack.square().sum()
    found = {"model": model, "kind": kind, "layers": len(stack), "shape": "x".join(map(str, mean.shape))}
    found["share_of_mean"] = share.item()
    for eps in EPS:
        end = f"_{eps}"
        found |= {
            f"svd_each{end}": by_svd(stack, eps),
            f"mean_and_differences{end}": by_svd(rotated(stack), eps),
            f"train_layer_first{end}": by_train(stack, eps),
            f"train_layer_between{end}": by_train(stack.transpose(0, 1), eps),
            f"noise_train_layer_first{end}": by_train(noise, eps),
        }
    return found


def rotated(stack: Tensor) -> Tensor:
    """The layers' mean, times the root of their number, and orthogonal differences: errors stay what they are."""
    count = len(stack)
    start = torch.eye(count, dtype=stack.dtype)
    start[:, 0] = 1
    basis = torch.linalg.qr(start)[0]
    return torch.einsum("lk,lmn->kmn", basis, stack)


def by_svd(stack: Tensor, eps: float) -> float:
    """Numbers of the stack for each number stored: one SVD for each matrix, singular values kept over all of them."""
    values = torch.linalg.svdvals(stack).flatten().sort(descending=True).values.square()
    left = values.sum() - values.cumsum(0)
    kept = int((left > eps**2 * values.sum()).sum()) + 1
    return stack.numel() / (kept * sum(stack.shape[1:]))


def by_train(stack: Tensor, eps: float) -> float:
    """The same of one train of three modes."""
    return stack.numel() / sum(core.numel() for core in tt_svd(stack.contiguous(), eps=eps))
