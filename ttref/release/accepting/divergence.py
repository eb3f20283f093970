"""How far the answers of two models lie apart: KL divergence of their distributions, and answers that changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Divergence(NamedTuple):
    """Of each example, ``(examples,)``: KL(dense || compressed) in nats and the share of answers that changed."""

    kl: Tensor
    changed: Tensor


def divergence(dense: Sequence[Tensor], compressed: Sequence[Tensor], where: str) -> Divergence:
    """Compare the logits of examples, means over the answers of each; ValueError for other shapes, or one infinite.

    Example:
        >>> found = divergence([torch.tensor([0.0, 0.0])], [torch.tensor([0.0, 1.0])], "metric 'loss'")
        >>> round(found.kl.item(), 4)
        0.1201
    """
    pairs = []
    for k, (before, after) in enumerate(zip(dense, compressed, strict=True)):
        if before.shape != after.shape:
            raise ValueError(
                f"{where} gives logits {tuple(before.shape)} of example {k} for the dense model and "
                f"{tuple(after.shape)} for the compressed one; the two must be equal"
            )
        one, two = (side.to("cpu", torch.float64).log_softmax(-1) for side in (before, after))
        chances = one.exp()
        kl = (chances * (one - two)).where(chances > 0, 0.0).sum(-1).mean()
        if not kl.isfinite():
            raise ValueError(
                f"{where}: the compressed model gives a class of example {k} no chance at all that the dense one "
                "does; mask the same classes in both"
            )
        pairs.append((kl.clamp_min(0), (one.argmax(-1) != two.argmax(-1)).double().mean()))
    return Divergence(*(torch.stack(side) for side in zip(*pairs, strict=True)))
