"""The rate-distortion bound against water-filling by bisection, its shape, and a method that cannot beat it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian

from ttref import gaussian_distortion, quantize_integer

variances = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e6)), min_size=1, max_size=12)


def bits_at(level, spectrum):
    return sum(0.5 * math.log2(v / level) for v in spectrum if v > level)


def by_bisection(spectrum, bits):
    """The water level by halving, on a logarithmic scale, until no number lies between."""
    low, high = math.log(1e-200), math.log(max(spectrum))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if bits_at(math.exp(middle), spectrum) > bits else (low, middle)
    return sum(min(v, math.exp(high)) for v in spectrum)


def distortion(spectrum, bits):
    return gaussian_distortion(torch.tensor(spectrum, dtype=torch.float64), bits)


@settings(max_examples=200)
@given(variances, st.floats(0, 60))
def test_the_water_level_is_that_of_bisection(spectrum, bits):
    if max(spectrum) == 0:
        assert distortion(spectrum, bits) == 0
        return
    assert distortion(spectrum, bits) == pytest.approx(by_bisection(spectrum, bits), rel=1e-9, abs=1e-150)


@given(variances, st.floats(0, 60), st.floats(0, 60))
def test_it_falls_with_the_bits_and_is_convex(spectrum, a, b):
    slack = 1e-9 * (sum(spectrum) + 1e-300)
    at_a, at_b, between = (distortion(spectrum, bits) for bits in (a, b, (a + b) / 2))
    assert (at_a - at_b) * (b - a) >= -slack * abs(b - a)
    assert between <= (at_a + at_b) / 2 + slack
    assert 0 <= between <= sum(spectrum) + slack


@given(variances, st.floats(0, 60), st.randoms())
def test_order_and_scale_do_not_matter(spectrum, bits, random):
    shuffled = random.sample(spectrum, len(spectrum))
    assert distortion(shuffled, bits) == pytest.approx(distortion(spectrum, bits), rel=1e-12)
    assert distortion([4 * v for v in spectrum], bits) == pytest.approx(4 * distortion(spectrum, bits), rel=1e-9)


@given(variances, st.floats(0, 60))
def test_of_equal_total_variance_white_noise_is_the_hardest(spectrum, bits):
    mean = sum(spectrum) / len(spectrum)
    white = [mean] * len(spectrum)
    assert distortion(spectrum, bits) <= distortion(white, bits) * (1 + 1e-9) + 1e-300
    assert distortion(white, bits) == pytest.approx(sum(white) * 2 ** (-2 * bits / len(white)), rel=1e-9)


def test_no_bits_leave_the_variance_and_zeros_cost_nothing():
    assert distortion([3.0, 1.0, 0.0], 0) == 4
    assert distortion([0.0, 0.0], 0) == distortion([0.0], 7) == 0
    assert distortion([1.0, 0.0], 3) == distortion([1.0], 3) == 2**-6
    assert distortion([1.0], 10**6) == 0  # below the smallest float


def test_a_component_joins_where_the_level_meets_it():
    """Variances 16 and 1: alone, the first is down to 1 after two bits; from there each bit is shared."""
    assert [distortion([16.0, 1.0], bits) for bits in (0, 1, 2, 3, 4)] == [17, 5, 2, 1, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype(dtype):
    found = gaussian_distortion(torch.tensor([16.0, 1.0], dtype=dtype), 3)
    assert type(found) is float and found == 1


def test_integers_of_real_noise_lie_above_the_bound():
    w = gaussian((400, 64), 0)
    for bits in range(2, 9):
        baseline = quantize_integer(w, bits)
        error = (baseline.approximation - w).square().sum(1).mean().item()
        bound = gaussian_distortion(torch.ones(64), 8 * baseline.nbytes / len(w))
        assert bound < error < 40 * bound
    covered = torch.linspace(0.1, 3, 64, dtype=torch.float64)
    uneven = w * covered.sqrt()
    baseline = quantize_integer(uneven, 4)
    error = (baseline.approximation - uneven).square().sum(1).mean().item()
    assert gaussian_distortion(covered, 8 * baseline.nbytes / len(w)) < error


@pytest.mark.parametrize(
    "spectrum, bits, error, message",
    [
        (torch.tensor([1.0, -1e-3]), 1, ValueError, r"a variance is negative \(-0.001\); clip rounding"),
        (torch.tensor([1.0, math.nan]), 1, ValueError, r"variances has 1 entries that are NaN or Inf"),
        (torch.tensor([math.inf]), 1, ValueError, "variances has 1 entries that are NaN or Inf"),
        (torch.zeros(0), 1, ValueError, r"variances has no entries"),
        (torch.ones(2, 2), 1, ValueError, r"variances must have shape \(n,\), got \(2, 2\)"),
        (torch.tensor(1.0), 1, ValueError, r"must have shape \(n,\), got \(\)"),
        (torch.ones(2, dtype=torch.int64), 1, TypeError, "variances is torch.int64"),
        ([1.0], 1, TypeError, "variances must be a torch.Tensor, got list"),
        (torch.ones(2), -0.5, ValueError, "bits must be a finite number of at least 0, got -0.5"),
        (torch.ones(2), math.inf, ValueError, "bits must be a finite number of at least 0, got inf"),
        (torch.ones(2), math.nan, ValueError, "bits must be a finite number of at least 0, got nan"),
        (torch.ones(2), "8", TypeError, "bits must be a number, got '8' of type str"),
        (torch.ones(2), True, TypeError, "bits must be a number, got True of type bool"),
        (torch.ones(2), None, TypeError, "bits must be a number, got None"),
    ],
)
def test_bad_input(spectrum, bits, error, message):
    with pytest.raises(error, match=message):
        gaussian_distortion(spectrum, bits)
