"""Rate-distortion bounds for Gaussian rows: the least error that any method can reach with a given number of bits."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_input, check_number
from .precision import full_precision

__all__ = ["gaussian_distortion"]


@full_precision
@torch.no_grad()
def gaussian_distortion(variances: Tensor, bits: float) -> float:
    """Least expected squared error of Gaussian vectors stored in ``bits`` bits each, by any method at all.

    Components are independent: the entries of white noise, or a vector along the principal axes of its covariance.
    The best code gives bits only to components whose variance exceeds a level θ, just enough to leave each with an
    error of θ ("reverse water-filling")::

        variance  |#                      each # above the level costs bits,
                  |# #                    half a bit for every factor of 2
               θ  |~~~~~~~~~~~~
                  |# # # # # #            the part below the level is the error

    Many vectors must be coded together to come close, so for a table it is a bound, not a method. Among all sources
    with these variances the Gaussian is the hardest: rows that are not Gaussian may have a smaller error.

    Args:
        variances: ``(n,)``, one for each component: equal for white noise, eigenvalues of a covariance otherwise.
        bits: Bits for one vector, at least 0.

    Returns:
        The expected squared error of a vector, summed over its entries, in the units of ``variances``. Divided by the
        sum of the variances it is the square of a relative error.

    Raises:
        TypeError: ``variances`` is not a floating-point tensor, or ``bits`` not a number.
        ValueError: A negative variance, NaN or Inf, another shape than ``(n,)``, or negative bits.

    Cost:
        O(n log n).

    Source:
        Cover and Thomas (2006), Elements of Information Theory, theorems 10.3.2 and 10.3.3 (reverse water-filling);
        problem 10.8 for the Gaussian being the hardest.

    Example:
        >>> white = torch.ones(100)
        >>> gaussian_distortion(white, 200) / 100  # two bits an entry: a sixteenth
        0.0625
        >>> uneven = torch.tensor([16.0, 1.0])
        >>> gaussian_distortion(uneven, 2), gaussian_distortion(uneven, 3)
        (2.0, 1.0)
    """
    check_input("variances", variances)
    if variances.ndim != 1:
        raise ValueError(f"variances must have shape (n,), got {tuple(variances.shape)}")
    if variances.min() < 0:
        raise ValueError(f"a variance is negative ({variances.min().item():.3g}); clip rounding with .clamp(min=0)")
    check_number("bits", bits)
    ordered = variances.double().sort(descending=True).values
    positive = ordered[ordered > 0]
    if not len(positive):
        return 0.0
    # With the k largest variances above it, the level is their geometric mean times 2^(-2 bits / k).
    count = torch.arange(1, len(positive) + 1, dtype=torch.float64, device=positive.device)
    levels = (positive.log2().cumsum(0) - 2 * bits) / count
    active = int((levels < positive.log2()).sum())  # true for the first k, false for all others
    if not active:  # bits = 0
        return ordered.sum().item()
    return (active * 2 ** levels[active - 1] + positive[active:].sum()).item()
