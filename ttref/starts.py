"""Initialization of the cores of a layer or table: Gaussian, scaled to an exact norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .canonical import tt_norm


@torch.no_grad()
def draw(cores: Sequence[Tensor], norm: float) -> None:
    """Draw cores ``(r_{k-1}, m_k, n_k, r_k)`` in place, so that their TT-matrix has this Frobenius norm.

    Raises:
        RuntimeError: A core is computed from other numbers (pruned, parametrized), so there is none to draw.
    """
    cores = list(cores)
    for k, core in enumerate(cores):
        if not isinstance(core, nn.Parameter):
            raise RuntimeError(
                f"cores[{k}] is computed from other numbers (pruned or parametrized), so drawing it anew would be "
                "lost; make it a parameter again first: prune.remove or parametrize.remove_parametrizations"
            )
    if cores[0].is_meta:  # no numbers yet: to_empty and another call make them
        return
    for core in cores:
        core.normal_()
    found = tt_norm([core.double().flatten(1, 2) for core in cores]).item()
    # The factor to the wanted Frobenius norm, in equal shares to all cores.
    share = (norm / found) ** (1 / len(cores))
    for core in cores:
        core.mul_(share)
