"""Classifiers that multiply views of one example: a weight for each product of features, kept as a small network.

Every layer here stands for one tensor ``W`` of shape ``(classes, n_1 + 1, ..., n_d + 1)``. A view ``x_k`` gets a 1 at
its end, ``z_k = (x_k, 1)``, so that products of fewer views, single features and a bias are among the products of all::

    y_c = sum over i, j, k of  W[c, i, j, k] z_1[i] z_2[j] z_3[k]

The layers differ in how they store ``W``; none but :class:`TensorFusion` builds it, and none builds the outer product
of the views.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ttref import tt_ranks, tt_to_tensor
from ttref.checks import check_modes, whole

__all__ = ["Fusion", "LowRankFusion", "TTFusion", "TensorFusion", "TuckerFusion", "concatenation"]


def concatenation(sizes: Sequence[int], classes: int, hidden: int) -> nn.Sequential:
    """Make the usual rival: one hidden layer of ReLUs on all views side by side.

    Args:
        sizes: Features of each view.
        classes: Scores for each example.
        hidden: Hidden units.

    Returns:
        A network from ``(batch, sum(sizes))`` to ``(batch, classes)``.

    Example:
        >>> sum(parameter.numel() for parameter in concatenation((10, 10, 10), 2, 8).parameters())
        266
    """
    return nn.Sequential(nn.Linear(sum(sizes), hidden), nn.ReLU(), nn.Linear(hidden, classes))


class Fusion(nn.Module):
    """What all layers share: views side by side in one input, counts, and what ``dense()`` must return.

    Args:
        sizes: Features of each view, two views or more.
        classes: Scores for each example.

    Raises:
        TypeError: A size or ``classes`` is not an integer.
        ValueError: Fewer than two views, or a size below 1.
    """

    def __init__(self, sizes: Sequence[int], classes: int) -> None:
        super().__init__()
        self.sizes, self.classes = check_modes("sizes", sizes), whole("classes", classes, least=1)
        if len(self.sizes) < 2:
            raise ValueError(f"sizes {self.sizes} describe one view; there is nothing to multiply, so give two or more")

    @property
    def shape(self) -> tuple[int, ...]:
        """``(classes, n_1 + 1, ..., n_d + 1)``, the shape of the dense tensor."""
        return (self.classes, *(n + 1 for n in self.sizes))

    @property
    def params(self) -> int:
        """Numbers that are stored."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def dense_params(self) -> int:
        """Numbers in the dense tensor."""
        return math.prod(self.shape)

    def dense(self) -> Tensor:
        """Build ``W``, of shape :attr:`shape`: for tests and small cases."""
        raise NotImplementedError

    def views(self, x: Tensor) -> list[Tensor]:
        """Split an input ``(batch, sum(sizes))`` into views ``(batch, n_k + 1)``, each with a 1 at its end.

        Raises:
            ValueError: The input is not a batch of all views side by side.
        """
        if x.ndim != 2 or x.shape[1] != sum(self.sizes):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but views of {self.sizes} features side by side are "
                f"(batch, {sum(self.sizes)}); join them with torch.cat(views, dim=1)"
            )
        return [nn.functional.pad(view, (0, 1), value=1.0) for view in x.split(self.sizes, dim=1)]

    def extra_repr(self) -> str:
        """Views, classes and sizes."""
        return f"sizes={self.sizes}, classes={self.classes}, params={self.params}, dense_params={self.dense_params}"


class TTFusion(Fusion):
    """``W`` as a tensor train: one core for each view, in the order of the views, and a last one for the classes.

    ::

        o--r_1--o--r_2--o--r_3--o
        |       |       |       |
       z_1     z_2     z_3      c

    The state of ``r_k`` numbers passes the views from left to right, so the products are never formed.

    Args:
        sizes: Features of each view.
        classes: Scores for each example.
        rank: Cap of the ranks, or all of them, ``(1, r_1, ..., r_d, 1)``; clipped as by
            :func:`~ttref.shapes.tt_ranks`.

    Attributes:
        cores: ``(r_{k-1}, n_k + 1, r_k)``, the last ``(r_d, classes, 1)``.
        ranks: The ranks after clipping.

    Raises:
        TypeError, ValueError: As :class:`Fusion` and :func:`~ttref.shapes.tt_ranks`.

    Cost:
        O(sum of ``r_{k-1} n_k r_k``) multiply-adds for each example, as many as there are numbers.

    Source:
        Novikov et al. (2016), Exponential Machines: a train of weights for all products of features; here a core holds
        the features of a view and not one feature.

    Example:
        >>> layer = TTFusion((10, 10, 10), 2, rank=3)
        >>> layer.ranks, layer.params, layer.dense_params
        ((1, 3, 3, 2, 1), 202, 2662)
    """

    def __init__(self, sizes: Sequence[int], classes: int, rank: int | Sequence[int]) -> None:
        super().__init__(sizes, classes)
        self.ranks = tt_ranks((*self.shape[1:], classes), rank)
        bonds = zip(self.ranks, self.ranks[1:], strict=False)
        cores = [
            _drawn(n, left, right).movedim(0, 1) / left**0.5
            for n, (left, right) in zip(self.sizes, bonds, strict=False)
        ]
        cores.append(torch.randn(self.ranks[-2], classes, 1) / self.ranks[-2] ** 0.5)
        self.cores = nn.ParameterList(nn.Parameter(core.contiguous()) for core in cores)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, sum(sizes))`` to ``(batch, classes)``."""
        state = x.new_ones(len(x), 1)
        for view, core in zip(self.views(x), self.cores, strict=False):
            state = (state[:, :, None] * view[:, None]).flatten(1) @ core.flatten(0, 1)
        return state @ self.cores[-1][..., 0]

    def dense(self) -> Tensor:
        """Build ``W``, ``(classes, n_1 + 1, ..., n_d + 1)``."""
        return tt_to_tensor(list(self.cores)).movedim(-1, 0)


class LowRankFusion(Fusion):
    """``W`` as a sum of ``rank`` products of vectors for each class: low-rank multimodal fusion (LMF), a CP form.

    Each factor maps its view to ``rank * classes`` numbers; those of all views are multiplied one by one, and the
    ``rank`` products of a class are added.

    Args:
        sizes: Features of each view.
        classes: Scores for each example.
        rank: Products for each class.

    Attributes:
        factors: ``(n_k + 1, rank, classes)``.

    Raises:
        TypeError, ValueError: As :class:`Fusion`; ValueError when ``rank`` is below 1.

    Cost:
        O(rank * classes * sum of ``n_k``) multiply-adds for each example, as many as there are numbers.

    Source:
        Liu et al. (2018), Efficient Low-rank Multimodal Fusion with Modality-Specific Factors, section 3.

    Example:
        >>> layer = LowRankFusion((10, 10, 10), 2, rank=3)
        >>> layer.params, layer.dense_params
        (198, 2662)
    """

    def __init__(self, sizes: Sequence[int], classes: int, rank: int) -> None:
        super().__init__(sizes, classes)
        self.rank = whole("rank", rank, least=1)
        share = self.rank ** (-0.5 / len(self.sizes))  # so that the sum of all products has variance 1
        self.factors = nn.ParameterList(nn.Parameter(_drawn(n, rank, classes) * share) for n in self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, sum(sizes))`` to ``(batch, classes)``."""
        product = 1.0
        for view, factor in zip(self.views(x), self.factors, strict=True):
            product = product * (view @ factor.flatten(1))
        return product.unflatten(1, (self.rank, self.classes)).sum(1)

    def dense(self) -> Tensor:
        """Build ``W``, ``(classes, n_1 + 1, ..., n_d + 1)``."""
        first, *others = self.factors
        products = first.permute(1, 2, 0)
        for factor in others:
            products = torch.einsum("rc...,nrc->rc...n", products, factor)
        return products.sum(0)


class TuckerFusion(Fusion):
    """``W`` in Tucker form: each view is projected to a few numbers, and a small full core multiplies these.

    Args:
        sizes: Features of each view.
        classes: Scores for each example.
        ranks: Numbers that each view is projected to; more than its ``n_k + 1`` are of no use and are cut.

    Attributes:
        factors: ``(n_k + 1, r_k)``.
        core: ``(r_1, ..., r_d, classes)``.
        ranks: The ranks after cutting.

    Raises:
        TypeError, ValueError: As :class:`Fusion`; ValueError when there is not one rank for each view.

    Cost:
        O(classes * product of ``r_k`` + sum of ``n_k r_k``) multiply-adds for each example, as many as there are
        numbers. The core grows exponentially with the number of views.

    Source:
        Ben-younes et al. (2017), MUTAN: Multimodal Tucker Fusion, section 3, without a factor for the classes.

    Example:
        >>> layer = TuckerFusion((10, 10, 10), 2, ranks=(3, 4, 3))
        >>> layer.params, layer.dense_params
        (182, 2662)
    """

    def __init__(self, sizes: Sequence[int], classes: int, ranks: Sequence[int]) -> None:
        super().__init__(sizes, classes)
        ranks = check_modes("ranks", ranks)
        if len(ranks) != len(self.sizes):
            raise ValueError(f"ranks {ranks} has {len(ranks)} entries for {len(self.sizes)} views; give one for each")
        self.ranks = tuple(min(r, n + 1) for r, n in zip(ranks, self.sizes, strict=True))
        self.factors = nn.ParameterList(nn.Parameter(_drawn(n, r)) for n, r in zip(self.sizes, self.ranks, strict=True))
        self.core = nn.Parameter(torch.randn(*self.ranks, classes) / math.prod(self.ranks) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, sum(sizes))`` to ``(batch, classes)``."""
        return _multiplied(self.core, (view @ factor for view, factor in zip(self.views(x), self.factors, strict=True)))

    def dense(self) -> Tensor:
        """Build ``W``, ``(classes, n_1 + 1, ..., n_d + 1)``."""
        tensor = self.core
        for factor in self.factors:  # the axis in front is replaced by one at the end; the classes end in front
            tensor = torch.tensordot(tensor, factor, dims=([0], [1]))
        return tensor


class TensorFusion(Fusion):
    """``W`` itself, every entry a parameter: what the compressed layers approximate.

    Args:
        sizes: Features of each view.
        classes: Scores for each example.

    Attributes:
        weight: ``(n_1 + 1, ..., n_d + 1, classes)``.

    Raises:
        TypeError, ValueError: As :class:`Fusion`.

    Cost:
        O(classes * product of ``n_k``) numbers, and as many multiply-adds for each example.

    Source:
        Zadeh et al. (2017), Tensor Fusion Network, section 4.2, with a linear classifier on the products.

    Example:
        >>> TensorFusion((10, 10, 10), 2).params
        2662
    """

    def __init__(self, sizes: Sequence[int], classes: int) -> None:
        super().__init__(sizes, classes)
        spread = torch.ones(1)
        for n in self.sizes:
            spread = spread[..., None] * _deviations(n)
        self.weight = nn.Parameter(torch.randn(*self.shape[1:], classes) * spread[0][..., None])

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, sum(sizes))`` to ``(batch, classes)``."""
        return _multiplied(self.weight, self.views(x))

    def dense(self) -> Tensor:
        """``W``, ``(classes, n_1 + 1, ..., n_d + 1)``."""
        return self.weight.movedim(-1, 0)


def _deviations(n: int) -> Tensor:
    """Standard deviations of a view's first weights: nine tenths of the variance belong to its 1, the last entry.

    With equal deviations nearly all of ``W`` would belong to products of all views: noise that training does not remove
    in the many directions which no example shows.
    """
    return torch.tensor([(0.1 / n) ** 0.5] * n + [0.9**0.5])


def _drawn(n: int, *axes: int) -> Tensor:
    """Gaussian ``(n + 1, *axes)``: times standardized features with their 1 it gives numbers of variance 1."""
    return torch.randn(n + 1, *axes) * _deviations(n).reshape(-1, *[1] * len(axes))


def _multiplied(tensor: Tensor, vectors: Iterable[Tensor]) -> Tensor:
    """Contract ``(m_1, ..., m_d, classes)`` with a batch of vectors ``(batch, m_k)``, one after the other."""
    first, *others = vectors
    state = first @ tensor.flatten(1)
    for vector in others:
        state = (vector[:, None] @ state.unflatten(1, (vector.shape[1], -1)))[:, 0]
    return state
