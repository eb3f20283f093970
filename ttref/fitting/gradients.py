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


def conjugate_gradients(around: Surrounding, missing: Tensor, tol: float) -> Tensor:
    """The change of a core that solves ``A change = missing``, every row i of the core by steps of its own.

    The loss falls with every step; the last is the one that brings less than ``tol`` of the whole fall.
    """
    precondition = _preconditioner(around)
    change, residual = torch.zeros_like(missing), missing
    upward = direction = precondition(residual)
    slope = (residual * upward).sum((0, 2, 3), keepdim=True)
    total = 0.0
    for _ in range(MOST_STEPS):
        image = around(direction)
        curvature = (direction * image).sum((0, 2, 3), keepdim=True)
        length = torch.where(curvature > 0, slope / curvature, 0.0)
        change = change + length * direction
        residual = residual - length * image
        gain = (length * slope).sum().item()
        total += gain
        if not gain > tol * total:
            break
        upward = precondition(residual)
        following = (residual * upward).sum((0, 2, 3), keepdim=True)
        direction = upward + torch.where(slope > 0, following / slope, 0.0) * direction
        slope = following
    return change


class _preconditioner:
    """Divides by the diagonal of A in the eigenbases of its three partial traces."""

    def __init__(self, around: Surrounding) -> None:
        left, right = around.left, around.right
        _, _, _, s, n, r, _, _ = around.sizes
        seen_left, seen_right = _gram_of_columns(left), _gram_of_columns(right)
        if around.gram.ndim == 1:
            weights = around.gram.reshape(s, n, r)
            on_left = ((weights @ seen_right.diagonal()).sum(1)).diag()
            on_right = ((seen_left.diagonal() @ weights.reshape(s, -1)).reshape(n, r).sum(0)).diag()
            self.middle = None
        else:
            six = around.gram.reshape(s, n, r, s, n, r)
            traced = six.diagonal(dim1=1, dim2=4).sum(-1)  # (s, r, s', r')
            on_left = torch.einsum("lrks,rs->lk", traced, seen_right)
            on_right = torch.einsum("lrks,lk->rs", traced, seen_left)
            between = torch.einsum("lnrkjs,rs->lnkj", six, seen_right)
            self.middle = torch.linalg.eigh(torch.einsum("lnkj,lk->nj", between, seen_left)).eigenvectors
        self.left = _basis(left, on_left)
        self.right = _basis(right, on_right)
        turned_left, turned_right = left @ self.left, right @ self.right
        if self.middle is None:
            energies = turned_left.square().sum(0), weights, turned_right.square().sum(0)
            diagonal = torch.einsum("la,lnr,rb->anb", *energies)
        else:
            diagonal = _diagonal(six, self.middle, turned_left, turned_right)
        self.scale = diagonal.clamp(min=1e-12 * diagonal.max()).unsqueeze(1)

    def __call__(self, core: Tensor) -> Tensor:
        a, m, n, b = core.shape
        made = (self.left.mT @ core.reshape(a, -1)).reshape(a, m, n, b) @ self.right
        if self.middle is None:
            made = made / self.scale
        else:
            made = self.middle @ ((self.middle.mT @ made) / self.scale)
        return (self.left @ (made @ self.right.mT).reshape(a, -1)).reshape(a, m, n, b)


def _gram_of_columns(part: Tensor) -> Tensor:
    """``(columns, columns')``, summed over rows and bond."""
    flat = part.transpose(0, 1).flatten(1)
    return flat @ flat.mT


def _basis(part: Tensor, on_columns: Tensor) -> Tensor:
    """Eigenbasis of a partial trace on a bond: the part on both sides of what stands on its columns."""
    rows, cols, bond = part.shape
    weighted = (on_columns @ part).reshape(rows * cols, bond)
    return torch.linalg.eigh(part.reshape(rows * cols, bond).mT @ weighted).eigenvectors


def _diagonal(six: Tensor, middle: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The diagonal of A in turned bases ``(a, n, b)``, from the Gram matrix ``(s, n, r, s, n, r)``."""
    s, n, r = six.shape[:3]
    a, b = left.shape[2], right.shape[2]
    found = six.new_empty(a, n, b)
    columns = left.permute(2, 1, 0)
    on_left = (columns @ columns.mT).reshape(a, s * s)
    at_once = max(1, ENTRIES // (r * r))
    for i in range(n):
        vector = middle[:, i]
        turned = torch.einsum("lnrkjs,n,j->lkrs", six, vector, vector).reshape(s * s, r * r)
        seen = on_left @ turned
        for first in range(0, b, at_once):
            columns = right[:, :, first : first + at_once].permute(2, 1, 0)
            found[:, i, first : first + at_once] = seen @ (columns @ columns.mT).flatten(1).mT
    return found
