"""Conjugate gradients for one core, preconditioned in a product of bases in which its matrix is nearly diagonal.

The matrix A over (bond, column index, bond) is close to a Kronecker product of three small matrices, its partial
traces. In the product of their eigenbases the diagonal of A is known exactly, cheaply, and is the preconditioner: the
condition number falls by orders of magnitude, and about ten steps reach what a factorization does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .parts import Surrounding

MOST_STEPS = 200
ENTRIES = 1 << 22  # float64 numbers of a temporary at most: 32 MB
LEAST = 1e-12  # of the preconditioner, as a share of its largest entry
# A slope below this share of that of the whole right side is rounding: where A is singular, eps**2 / LEAST of it. A
# step along it would be long, change nothing of the loss, and leave a core of huge numbers that cancel.
ROUNDED = 1e-17


def conjugate_gradients(around: Surrounding, wanted: Tensor, missing: Tensor, tol: float, floor: float) -> Tensor:
    """The change of a core that solves ``A change = missing``, of ``wanted`` for the core, each row i by its own steps.

    The loss falls with every step; the last is the one that brings less than ``tol`` of the whole fall, or less than
    ``floor``.
    """
    precondition = _Preconditioner(around)
    change, residual = torch.zeros_like(missing), missing
    rounded = ROUNDED * _sums(wanted * precondition(wanted))
    upward = precondition(residual)
    slope = _sums(residual * upward)
    direction = torch.where(slope > rounded, upward, 0.0)
    total = 0.0
    for _ in range(MOST_STEPS):
        image = around(direction)
        curvature = _sums(direction * image)
        length = torch.where(curvature > 0, slope / curvature, 0.0)
        change = change + length * direction
        residual = residual - length * image
        gain = (length * slope).sum().item()
        total += gain
        if not gain > max(tol * total, floor):
            break
        upward = precondition(residual)
        following = _sums(residual * upward)
        direction = torch.where(following > rounded, upward + following / slope * direction, 0.0)
        slope = following
    return change


def _sums(products: Tensor) -> Tensor:
    """Over all but the row i of a core, which stays an axis."""
    return products.sum((0, 2, 3), keepdim=True)


class _Preconditioner:
    """Divides by the diagonal of A in the eigenbases of its three partial traces."""

    def __init__(self, around: Surrounding) -> None:
        gram = around.gram
        _, _, _, s, n, r, _, _ = around.sizes
        on_left, on_middle, on_right = traces(around)
        self.left, self.right = (torch.linalg.eigh(part).eigenvectors for part in (on_left, on_right))
        turned_left, turned_right = around.left @ self.left, around.right @ self.right
        if gram.ndim == 1:  # A is diagonal in j already
            self.middle = None
            energies = turned_left.square().sum(0), gram.reshape(s, n, r), turned_right.square().sum(0)
            diagonal = torch.einsum("sa,snr,rb->anb", *energies)
        else:
            self.middle = torch.linalg.eigh(on_middle).eigenvectors
            diagonal = _diagonal(gram.reshape(s, n, r, s, n, r), self.middle, turned_left, turned_right)
        self.scale = diagonal.clamp(min=LEAST * diagonal.max()).unsqueeze(1)

    def __call__(self, core: Tensor) -> Tensor:
        a, m, n, b = core.shape
        made = (self.left.mT @ core.reshape(a, -1)).reshape(a, m, n, b) @ self.right
        if self.middle is None:
            made = made / self.scale
        else:
            made = self.middle @ ((self.middle.mT @ made) / self.scale)
        return (self.left @ (made @ self.right.mT).reshape(a, -1)).reshape(a, m, n, b)


def traces(around: Surrounding) -> tuple[Tensor, Tensor, Tensor]:
    """Partial traces of A: on the left bond, on the column index of the core (weights: its diagonal), on the right."""
    _, _, _, s, n, r, _, _ = around.sizes
    left, right = around.left, around.right
    if around.gram.ndim == 1:
        weights = around.gram.reshape(s, n, r)
        seen_left, seen_right = left.square().sum((0, 2)), right.square().sum((0, 2))
        on_left = torch.einsum("snr,r->s", weights, seen_right)
        on_right = torch.einsum("snr,s->r", weights, seen_left)
        on_middle = torch.einsum("snr,s,r->n", weights, seen_left, seen_right)
    else:
        six = around.gram.reshape(s, n, r, s, n, r)
        seen_left, seen_right = (torch.einsum("pca,pda->cd", part, part) for part in (left, right))
        traced = six.diagonal(dim1=1, dim2=4).sum(-1)  # (s, r, s', r')
        on_left = torch.einsum("lrks,rs->lk", traced, seen_right)
        on_right = torch.einsum("lrks,lk->rs", traced, seen_left)
        on_middle = torch.einsum("lnrkjs,rs,lk->nj", six, seen_right, seen_left)
    return _on_bond(left, on_left), on_middle, _on_bond(right, on_right)


def _on_bond(part: Tensor, on_columns: Tensor) -> Tensor:
    """``(bond, bond')``: the part on both sides of a matrix, or a diagonal, on its columns."""
    rows, cols, bond = part.shape
    weighted = on_columns.unsqueeze(1) * part if on_columns.ndim == 1 else on_columns @ part
    return part.reshape(rows * cols, bond).mT @ weighted.reshape(rows * cols, bond)


def _diagonal(six: Tensor, middle: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The diagonal of A in turned bases ``(a, n, b)``, from the Gram matrix ``(s, n, r, s, n, r)``."""
    s, n, r = six.shape[:3]
    a, b = left.shape[2], right.shape[2]
    turned = six.permute(0, 3, 2, 5, 1, 4).reshape(-1, n) @ middle  # (s s' r r' n, i)
    turned = torch.einsum("xni,ni->ix", turned.reshape(-1, n, n), middle).reshape(n * s * s, r * r)
    columns = right.permute(2, 1, 0)
    pieces = [piece @ piece.mT for piece in columns.split(max(1, ENTRIES // (r * r)))]
    seen = torch.cat([turned @ piece.flatten(1).mT for piece in pieces], 1).reshape(n, s * s, b)
    columns = left.permute(2, 1, 0)
    on_left = (columns @ columns.mT).reshape(a, s * s)
    return torch.einsum("ax,ixb->aib", on_left, seen)
