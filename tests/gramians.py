"""Gram matrices and oracles that the tests of fits share."""

import torch
from strategies import gaussian

from ttref.matrices import ttm_to_matrix


def inputs(width, tokens=200, seed=0):
    """The Gram matrix of correlated inputs with a spectrum over two decades, as a layer's have."""
    mixing = gaussian((width, width), seed) * torch.logspace(0, -2, width, dtype=torch.float64)
    x = gaussian((tokens, width), seed + 1) @ mixing
    return x.T @ x


def lost(weight, cores, gram):
    """Squared error of the outputs, written out."""
    gap = weight.double() - ttm_to_matrix([core.double() for core in cores])
    gram = gram.diag() if gram.ndim == 1 else gram
    return torch.trace(gap @ gram @ gap.T).item()


def dense_update(weight, gram, cores, k):
    """The oracle for core k: the whole design matrix, one unit core a column, and least squares over all of vec W."""
    root = torch.linalg.cholesky(gram)
    columns = []
    for unit in torch.eye(cores[k].numel(), dtype=torch.float64):
        columns.append((ttm_to_matrix([*cores[:k], unit.reshape(cores[k].shape), *cores[k + 1 :]]) @ root).flatten())
    found = torch.linalg.lstsq(torch.stack(columns, 1), (weight @ root).flatten(), driver="gelsd").solution
    return found.reshape(cores[k].shape)
