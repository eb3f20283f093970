"""Truncated SVD, integer and product quantization, and the Gaussian null."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from book.workbook import sources
from ttref import Baseline, gaussian_null, product_quantize, quantize_integer, truncated_svd

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
sizes = st.integers(1, 24)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def decaying(m, n, seed=0, dtype=torch.float64):
    """A matrix whose singular values fall by half from one to the next."""
    k = min(m, n)
    u, v = torch.linalg.qr(noise(m, k, seed=seed)).Q, torch.linalg.qr(noise(n, k, seed=seed + 1)).Q
    return (u * 0.5 ** torch.arange(k)) @ v.mT.to(dtype)


# --- truncated SVD ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.integers(1, 30), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_svd_is_the_eckart_young_optimum(m, n, rank, dtype, seed):
    w = noise(m, n, seed=seed, dtype=dtype)
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    r = min(rank, m, n)
    baseline = truncated_svd(w, rank=rank)
    tolerance = 40 * torch.finfo(dtype).eps
    best = (s[r:].square().sum().sqrt() / s.norm()).item()
    assert baseline.relative_error(w) == pytest.approx(best, abs=tolerance)
    # The optimum is unique where the spectrum has a gap at r; the subspace turns by noise over gap.
    gap = (s[r - 1] - s[r]).item() if r < len(s) else s[0].item()
    dense = (u[:, :r] * s[:r]) @ vh[:r]
    distance = (baseline.approximation.double() - dense).norm() / dense.norm()
    assert distance <= tolerance * (1 + s[0].item() / max(gap, 1e-300))


@pytest.mark.parametrize("shape", [(400, 30), (30, 400), (64, 64)])
def test_svd_keeps_small_singular_values_to_the_dtypes_precision(shape):
    w = decaying(*shape)
    for dtype, rank in ((torch.float32, 18), (torch.float64, 28)):
        s = torch.linalg.svdvals(w.to(dtype).double())
        best = (s[rank:].norm() / s.norm()).item()
        found = truncated_svd(w.to(dtype), rank=rank).relative_error(w.to(dtype))
        assert best <= found * (1 + 1e-6) and found <= 1.01 * best + torch.finfo(dtype).eps


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.integers(0, 2_000), st.sampled_from(FLOATS))
def test_svd_takes_the_largest_rank_within_the_budget(m, n, extra, dtype):
    w = noise(m, n, dtype=dtype)
    size = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 4, torch.float64: 8}[dtype]
    for baseline, budget, unit in (
        (truncated_svd(w, params=m + n + extra), m + n + extra, m + n),
        (truncated_svd(w, nbytes=size * (m + n) + extra), size * (m + n) + extra, size * (m + n)),
    ):
        rank = baseline.params // (m + n)
        assert baseline.params == rank * (m + n) and baseline.nbytes == size * baseline.params
        assert rank * unit <= budget
        assert (rank + 1) * unit > budget or rank == min(m, n)
        assert baseline.name == f"SVD rank {rank}"


def test_svd_error_falls_with_the_rank():
    w = noise(20, 12)
    errors = [truncated_svd(w, rank=r).relative_error(w) for r in range(1, 13)]
    assert all(a > b for a, b in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_svd_counts_and_uses_half_precision_factors(dtype):
    w = noise(40, 24, dtype=dtype)
    baseline = truncated_svd(w, rank=24)
    assert baseline.approximation.dtype == dtype
    # All ranks are kept, so what is left is the rounding of two factors and of the product.
    assert 0 < baseline.relative_error(w) < 2 * torch.finfo(dtype).eps


def test_svd_of_zeros_and_of_low_rank():
    assert truncated_svd(torch.zeros(5, 3), rank=2).relative_error(torch.zeros(5, 3)) == 0
    w = torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 6))
    assert truncated_svd(w, rank=1).relative_error(w) < 1e-6


def test_svd_of_a_tall_real_table_is_torchs():
    w = sources.load_encoder().model.get_input_embeddings().weight.detach()[:6_000]
    s = torch.linalg.svdvals(w)
    baseline = truncated_svd(w, params=w.numel() // 4)
    rank = baseline.params // sum(w.shape)
    assert baseline.relative_error(w) == pytest.approx((s[rank:].norm() / s.norm()).item(), rel=1e-4)


# --- integers --------------------------------------------------------------------------------------------------------


def grid_oracle(w, bits, size):
    """Round to nearest, one group at a time, with numpy in float64; NaN where float32 may break a tie otherwise."""
    rows = w.double().numpy().reshape(-1, size)
    top = 2 ** (bits - 1) - 1
    out = np.zeros_like(rows)
    for i, row in enumerate(rows):
        scale = np.float32(np.abs(row).max() / top)
        # The least number with 8 significant bits that is not smaller: clear 16 bits of the float32, step up if needed.
        low = np.array([scale.view(np.uint32) & np.uint32(0xFFFF0000)], np.uint32)
        if low.view(np.float32)[0] < scale:
            low += np.uint32(0x10000)
        step = float(low.view(np.float32)[0])
        if step:
            out[i] = np.where(np.abs(row / step % 1 - 0.5) < 1e-4, np.nan, np.rint(row / step) * step)
    return torch.from_numpy(out.reshape(w.shape))


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 8), st.integers(1, 6), st.integers(1, 6), st.integers(2, 8), st.integers(-12, 12), st.integers(0, 99)
)
def test_integers_are_the_nearest_grid_points(m, groups, size, bits, exponent, seed):
    w = noise(m, groups * size, seed=seed, dtype=torch.float32) * 10.0**exponent
    for group, width in ((None, groups * size), (size, size)):
        baseline = quantize_integer(w, bits, group=group)
        oracle = grid_oracle(w, bits, width)
        sure = ~oracle.isnan()
        torch.testing.assert_close(baseline.approximation.double()[sure], oracle[sure], rtol=1e-6, atol=0)
        top = 2 ** (bits - 1) - 1
        largest = w.reshape(m, -1, width).abs().amax(-1, keepdim=True).double()
        error = (baseline.approximation.double() - w.double()).reshape(m, -1, width).abs()
        assert torch.all(error <= largest / top * (1 + 2**-7) / 2 * (1 + 1e-6))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [None, 7, 1])
def test_integer_bytes_are_those_of_packed_codes_and_scales(bits, group):
    m, n = 5, 21
    baseline = quantize_integer(noise(m, n, dtype=torch.float32), bits, group=group)
    packed = np.packbits(np.zeros(m * n * bits, dtype=np.uint8))
    scales = m * (n // (group or n))
    assert baseline.nbytes == packed.nbytes + 2 * scales
    assert baseline.params == m * n + scales
    assert baseline.name == (f"int{bits} per row" if group is None else f"int{bits} per group of {group}")


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(0, 99), st.sampled_from(FLOATS))
def test_codes_take_no_more_values_than_their_bits_allow(bits, seed, dtype):
    w = noise(3, 500, seed=seed, dtype=dtype)
    baseline = quantize_integer(w, bits)
    assert baseline.approximation.dtype == dtype
    assert max(len(row.unique()) for row in baseline.approximation) <= 2**bits - 1


def test_integer_error_falls_with_bits_and_with_smaller_groups():
    w = noise(50, 96, dtype=torch.float32)
    errors = [quantize_integer(w, bits).relative_error(w) for bits in range(2, 9)]
    assert all(a > 1.5 * b for a, b in zip(errors, errors[1:], strict=False))
    errors = [quantize_integer(w, 4, group=group).relative_error(w) for group in (96, 32, 8, 2)]
    assert all(a > b for a, b in zip(errors, errors[1:], strict=False))


def test_integer_grid_matrices_and_zero_rows_are_kept():
    w = torch.randint(-7, 8, (20, 16), generator=torch.Generator().manual_seed(0)).float()
    w[:, 0] = 7
    w[3] = 0
    assert torch.equal(quantize_integer(w, 4).approximation, w)


def test_integer_extremes_stay_finite():
    for dtype in FLOATS[:3]:
        w = torch.full((1, 3), torch.finfo(dtype).max, dtype=dtype)
        assert quantize_integer(w, 8).approximation.isfinite().all()
        assert quantize_integer(w, 8).relative_error(w) < 2**-7
    with pytest.raises(ValueError, match="magnitude 1e[+]300, too large for a bfloat16 scale"):
        quantize_integer(torch.full((1, 3), 1e300, dtype=torch.float64), 8)


# --- product quantization --------------------------------------------------------------------------------------------


def test_pq_is_k_means_in_each_subspace():
    w = noise(300, 12, dtype=torch.float32)
    baseline = product_quantize(w, subvectors=3, bits=4, seed=5)
    for k in range(3):
        ours, piece = baseline.approximation[:, 4 * k : 4 * k + 4], w[:, 4 * k : 4 * k + 4]
        centers = ours.unique(dim=0)
        assert len(centers) <= 16
        # Every piece is replaced by the center that is nearest to it.
        distance = torch.cdist(piece.double(), centers.double())
        chosen = (piece.double() - ours.double()).norm(dim=1)
        torch.testing.assert_close(chosen, distance.min(dim=1).values, rtol=1e-5, atol=1e-6)
        # And the centers are as good as scikit-learn's from its careful start.
        best = KMeans(16, n_init=4, random_state=0).fit(piece.numpy()).inertia_
        assert chosen.square().sum().item() <= 1.15 * best


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.sampled_from(FLOATS))
def test_pq_bytes_are_those_of_packed_codes_and_codebooks(subvectors, width, bits, dtype):
    m, n = 37, subvectors * width
    w = noise(m, n, dtype=dtype)
    baseline = product_quantize(w, subvectors=subvectors, bits=bits)
    assert baseline.approximation.shape == w.shape and baseline.approximation.dtype == dtype
    codes = math.ceil(m * subvectors * bits / 8)
    codebooks = subvectors * 2**bits * width
    assert baseline.nbytes == codes + codebooks * w.element_size()
    assert baseline.params == m * subvectors + codebooks
    for piece in baseline.approximation.chunk(subvectors, dim=1):
        assert len(piece.unique(dim=0)) <= 2**bits


def test_pq_error_falls_with_bits_and_pieces_and_is_repeatable():
    w = noise(200, 8, dtype=torch.float32)
    errors = [product_quantize(w, subvectors=2, bits=bits).relative_error(w) for bits in (1, 3, 5, 7)]
    assert all(a > b for a, b in zip(errors, errors[1:], strict=False))
    errors = [product_quantize(w, subvectors=pieces, bits=4).relative_error(w) for pieces in (1, 2, 4, 8)]
    assert all(a > b for a, b in zip(errors, errors[1:], strict=False))
    again = product_quantize(w, subvectors=2, bits=5)
    assert torch.equal(again.approximation, product_quantize(w, subvectors=2, bits=5).approximation)
    assert not torch.equal(again.approximation, product_quantize(w, subvectors=2, bits=5, seed=1).approximation)


def test_pq_of_few_distinct_rows_is_exact_and_silent(recwarn):
    w = noise(3, 6, dtype=torch.float32)[torch.arange(30) % 3]
    baseline = product_quantize(w, subvectors=2, bits=2)
    assert torch.equal(baseline.approximation, w)
    assert not recwarn.list


def test_pq_without_scikit_learn_gives_the_install_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ModuleNotFoundError, match="python -m pip install scikit-learn"):
        product_quantize(noise(8, 4), subvectors=2, bits=2)


# --- the null --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.sampled_from(FLOATS), st.integers(0, 99), st.integers(-4, 3))
def test_null_has_the_row_norms(m, n, dtype, seed, exponent):
    w = noise(m, n, seed=seed, dtype=dtype) * 10.0**exponent
    w[0] = 0
    null = gaussian_null(w, seed=seed)
    assert null.shape == w.shape and null.dtype == dtype
    # In float16 small entries are rounded to multiples of 2^-24.
    slack = 2**-24 * math.sqrt(n) if dtype == torch.float16 else 0
    torch.testing.assert_close(
        null.double().norm(dim=1), w.double().norm(dim=1), rtol=4 * torch.finfo(dtype).eps, atol=slack
    )
    assert torch.equal(null, gaussian_null(w, seed=seed))


def test_null_is_gaussian_and_knows_nothing_of_the_matrix():
    from scipy.stats import kstest

    w = decaying(400, 300, dtype=torch.float64)
    null = gaussian_null(w)
    directions = null / null.norm(dim=1, keepdim=True) * math.sqrt(300)
    assert kstest(directions.flatten().numpy(), "norm").pvalue > 0.01
    assert abs((null * w).sum() / (null.norm() * w.norm())) < 0.02
    assert not torch.equal(null, gaussian_null(w, seed=1))


def test_null_has_no_low_rank_structure_where_the_matrix_has():
    w = decaying(200, 100, dtype=torch.float64)
    null = gaussian_null(w)
    assert truncated_svd(w, rank=10).relative_error(w) < 0.002
    assert truncated_svd(null, rank=10).relative_error(null) > 0.5


def test_null_of_large_entries_does_not_overflow():
    w = torch.full((2, 50), 1e30)
    torch.testing.assert_close(gaussian_null(w).double().norm(dim=1), w.double().norm(dim=1))


# --- what is refused -------------------------------------------------------------------------------------------------

EVERY = [
    lambda w: truncated_svd(w, rank=1),
    lambda w: quantize_integer(w, 4),
    lambda w: product_quantize(w, subvectors=1, bits=1),
    gaussian_null,
]


@pytest.mark.parametrize("method", EVERY, ids=["svd", "integer", "pq", "null"])
@pytest.mark.parametrize(
    "w, error, message",
    [
        (torch.tensor([[1.0, float("nan")], [1, 2]]), ValueError, r"w has 1 entries that are NaN or Inf.*\(0, 1\)"),
        (torch.tensor([[1.0, 2], [float("inf"), 2]]), ValueError, r"w has 1 entries that are NaN or Inf.*\(1, 0\)"),
        (torch.zeros(0, 3), ValueError, r"w has no entries: its shape is \(0, 3\)"),
        (torch.zeros(3), ValueError, r"must be a matrix \(m, n\), got shape \(3,\); reshape it"),
        (torch.zeros(2, 3, 4), ValueError, r"got shape \(2, 3, 4\)"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "w is torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "complex tensors are not supported"),
        (np.ones((2, 3)), TypeError, "must be a torch.Tensor, got ndarray"),
    ],
)
def test_bad_matrices_are_refused(method, w, error, message):
    with pytest.raises(error, match=message):
        method(w)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda w: truncated_svd(w), ValueError, "exactly one of rank, params and nbytes, got none"),
        (lambda w: truncated_svd(w, rank=1, nbytes=99), ValueError, "got rank and nbytes"),
        (lambda w: truncated_svd(w, rank=0), ValueError, "rank must be at least 1, got 0"),
        (lambda w: truncated_svd(w, rank=1.5), TypeError, "rank must be an integer, got 1.5"),
        (lambda w: truncated_svd(w, params=9), ValueError, "params=9 is too small: rank 1 of a 4 x 6 .* takes 10"),
        (lambda w: truncated_svd(w, nbytes=39), ValueError, "nbytes=39 is too small: .*float32 already takes 40"),
        (lambda w: quantize_integer(w, 1), ValueError, "bits must be at least 2, got 1"),
        (lambda w: quantize_integer(w, 9), ValueError, "bits must lie between 2 and 8, got 9"),
        (lambda w: quantize_integer(w, 4.0), TypeError, "bits must be an integer, got 4.0"),
        (lambda w: quantize_integer(w, 4, group=4), ValueError, "group 4 does not divide the 6 entries of a row"),
        (lambda w: quantize_integer(w, 4, group=0), ValueError, "group must be at least 1, got 0"),
        (lambda w: product_quantize(w, subvectors=4), ValueError, "4 subvectors do not divide the 6 entries of a row"),
        (lambda w: product_quantize(w, subvectors=0), ValueError, "subvectors must be at least 1, got 0"),
        (lambda w: product_quantize(w, subvectors=2, bits=9), ValueError, "bits must lie between 1 and 8, got 9"),
        (lambda w: product_quantize(w, subvectors=2, bits=3), ValueError, r"8 centers \(3 bits\) .* rows, got 4"),
        (lambda w: product_quantize(w, subvectors=2, bits=1, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda w: gaussian_null(w, seed="a"), TypeError, "seed must be an integer, got 'a'"),
    ],
)
def test_bad_settings_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(noise(4, 6, dtype=torch.float32))


def test_relative_error_is_checked_and_exact():
    baseline = Baseline("half", {"left": torch.full((2, 1), 0.5), "right": torch.ones(1, 2)}, torch.float32)
    assert baseline.relative_error(torch.ones(2, 2)) == 0.5
    assert baseline.relative_error(torch.zeros(2, 2)) == float("inf")
    with pytest.raises(ValueError, match=r"w has shape \(4,\), .* of shape \(2, 2\)"):
        baseline.relative_error(torch.ones(4))


def test_nothing_touches_the_input_or_the_graph():
    w = noise(8, 6, dtype=torch.float32).requires_grad_()
    before = w.detach().clone()
    for method in EVERY:
        result = method(w)
        dense = result if isinstance(result, torch.Tensor) else result.approximation
        assert not dense.requires_grad
    assert torch.equal(w, before)


def test_float16_that_would_overflow_is_said():
    with pytest.raises(ValueError, match="leaves the range of torch.float16"):
        truncated_svd(torch.full((100, 100), 6e4, dtype=torch.float16), rank=1)
    with pytest.raises(ValueError, match="leaves the range of torch.float16"):
        gaussian_null(torch.full((10, 1000), 6e4, dtype=torch.float16))


def test_relative_error_of_float64_extremes():
    w = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small, large = (truncated_svd(x, rank=2).relative_error(x) for x in (w, w * 1e300))
    assert large == pytest.approx(small)


def test_a_callers_autocast_takes_no_digits():
    w = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert truncated_svd(w, rank=20).relative_error(w) < 1e-6
