"""How good a ranking is for each query, and what its mean over queries is worth."""

from __future__ import annotations

import torch
from torch import Tensor


def average_precision(ranking: Tensor, gains: Tensor) -> Tensor:
    """Mean precision at the places of the relevant documents, one number a query.

    Args:
        ranking: All documents, best first, ``(queries, documents)``.
        gains: What each document is worth, ``(queries, documents)``; relevant is what is above 0.
    """
    hits = (gains > 0).gather(1, ranking).double()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / hits.sum(1)


def ndcg(ranking: Tensor, gains: Tensor, k: int = 10) -> Tensor:
    """Discounted gain of the first k documents over the best possible one."""
    weights = 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()
    best = gains.double().sort(1, descending=True).values[:, :k]
    found = gains.double().gather(1, ranking[:, :k])
    return (found @ weights[: found.shape[1]]) / (best @ weights[: best.shape[1]])


def recall(ranking: Tensor, gains: Tensor, k: int = 100) -> Tensor:
    """Share of the relevant documents that are among the first k."""
    relevant = gains > 0
    return relevant.gather(1, ranking[:, :k]).double().sum(1) / relevant.sum(1)


def overlap(ranking: Tensor, dense: Tensor, k: int = 10) -> Tensor:
    """Share of the first k documents of the dense ranking that are among the first k."""
    return (ranking[:, :k, None] == dense[:, None, :k]).any(2).double().mean(1)


def judged(ranking: Tensor, dense: Tensor, gains: Tensor) -> dict[str, float]:
    """All four as means over queries, and their differences to the dense ranking with paired standard errors."""
    found = {"recall_10_of_dense": overlap(ranking, dense)}
    row = {"recall_10_of_dense_se": error_of(found["recall_10_of_dense"])}
    for name, measure in (("map", average_precision), ("ndcg_10", ndcg), ("recall_100", recall)):
        found[name] = measure(ranking, gains)
        apart = found[name] - measure(dense, gains)
        row |= {f"{name}_minus_dense": apart.mean().item(), f"{name}_se": error_of(apart)}
    return {name: values.mean().item() for name, values in found.items()} | row


def error_of(values: Tensor) -> float:
    """Standard error of the mean."""
    return (values.std() / len(values) ** 0.5).item()
