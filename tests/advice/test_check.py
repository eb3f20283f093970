"""One matrix: the ratios against independent counts, the verdict, and which rows are looked at."""

import math

import numpy as np
import pytest
import torch
from small_checkpoints import falling, noise, waves

from ttref import does_a_train_pay, gaussian_null, quantize_integer, tt_svd, ttm_svd
from ttref.advice.check import FORMS, judged, modes_of


@pytest.mark.parametrize("weight", [waves(), noise(256, 96), falling()], ids=["waves", "noise", "spectrum"])
@pytest.mark.parametrize("eps", [0.3, 0.1])
def test_ratios_are_those_counted_apart(weight, eps):
    found = does_a_train_pay(weight, eps)
    m, n = weight.shape
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1]) / np.linalg.norm(values)
    assert found.svd == m * n / (max((tails > eps).sum(), 1) * (m + n))
    blocks = sum(core.numel() for core in tt_svd(weight.reshape(m // 8, 8, n), eps=eps))
    rows, cols = modes_of(found.form, m, n)
    sizes = {form: sum(c.numel() for c in ttm_svd(weight, *modes_of(form, m, n), eps=eps)) for form in FORMS[1:]}
    assert sizes["rows in blocks"] == blocks
    assert found.train == m * n / min(sizes.values()) == m * n / sizes[found.form]
    assert found.noise == m * n / sum(c.numel() for c in ttm_svd(gaussian_null(weight), rows, cols, eps=eps))
    made = quantize_integer(weight, found.bits)
    assert made.relative_error(weight) <= eps and found.integers == 4 * m * n / made.nbytes
    fewer = [bits for bits in (2, 3, 4, 5, 6) if bits < found.bits]
    assert all(quantize_integer(weight, bits).relative_error(weight) > eps for bits in fewer)


def test_the_verdict_depends_on_the_order_only_for_trains():
    smooth = waves()
    shuffled = smooth[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    ordered, not_ordered = does_a_train_pay(smooth), does_a_train_pay(shuffled)
    assert ordered.verdict == "train" and not_ordered.verdict == "SVD"
    assert not_ordered.train < ordered.train / 1.5 and not_ordered.svd == pytest.approx(ordered.svd)


def test_noise_is_integers_and_trains_find_nothing_in_it():
    found = does_a_train_pay(noise(256, 96))
    assert found.verdict == "integers" and max(found.train, found.svd) < 1.05
    assert found.noise == pytest.approx(found.train, rel=0.03)


def test_a_kronecker_product_is_found_by_the_interleaved_matrix():
    weight = torch.kron(noise(16, 8, 1), noise(16, 12, 2))
    found = does_a_train_pay(weight)
    assert found.form == "TT-matrix, 2 modes" and found.verdict == "train"
    assert found.train > 50 > 2 * found.svd


def test_a_matrix_and_its_transpose_are_judged_alike():
    """An order of the columns is found as one of the rows is."""
    upright, lying = does_a_train_pay(waves()), does_a_train_pay(waves().T)
    assert upright.verdict == lying.verdict == "train" and lying.train == pytest.approx(upright.train, rel=0.05)
    assert modes_of("columns in blocks", 96, 512) == ((96, 1, 1), (1, 64, 8))


@pytest.mark.parametrize(
    ("train", "svd", "integers", "verdict"),
    [
        (3.0, 2.0, 8.0, "train"),
        (2.9, 2.0, 8.0, "integers"),
        (3.2, 3.0, 8.0, "SVD"),
        (3.4, 3.0, 8.0, "train"),
        (1.0, 3.0, 8.0, "SVD"),
        (0.9, 0.8, 1.0, "none"),
        (1.0, 0.8, 1.0, "none"),
        (1.2, 0.8, 1.0, "train"),
        (0.9, 0.8, 3.0, "integers"),
    ],
)
def test_the_rule(train, svd, integers, verdict):
    assert judged(train, svd, integers) == verdict


def test_what_is_smaller_follows_the_verdict():
    for weight in (waves(), noise(64, 64), falling()):
        found = does_a_train_pay(weight)
        assert (
            found.smaller == {"train": 4 * found.train, "SVD": 4 * found.svd, "integers": found.integers}[found.verdict]
        )
    assert does_a_train_pay(noise(64, 64), 1e-4)._replace(verdict="none").smaller == 1


def test_nothing_pays_where_even_eight_bits_err_more():
    found = does_a_train_pay(noise(64, 64), 1e-4)
    assert (found.verdict, found.bits, found.integers) == ("none", 0, 1.0)


def test_consecutive_rows_from_the_middle():
    weight = torch.cat([noise(100, 96), waves(128), noise(100, 96, 1)])
    found = does_a_train_pay(weight, rows=128)
    assert found.rows == (100, 228)
    assert found == does_a_train_pay(weight[100:228])._replace(rows=(100, 228))
    assert does_a_train_pay(noise(700, 16)).rows == (94, 606)
    assert does_a_train_pay(noise(70, 16)).rows == (3, 67)  # a multiple of the block
    assert does_a_train_pay(noise(30, 16)).rows == (0, 30)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (8, 8), (11, 13), (64, 1), (9, 512), (64, 65)])
def test_any_matrix_has_an_answer(shape):
    found = does_a_train_pay(noise(*shape))
    assert found.verdict in ("train", "SVD", "integers", "none") and found.train > 0
    assert found.form in FORMS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(512, 384), (64, 65), (30522, 384), (7, 11)])
def test_modes_multiply_to_the_matrix(form, shape):
    if modes := modes_of(form, *shape):
        assert tuple(map(math.prod, modes)) == shape and len(modes[0]) == len(modes[1])


def test_half_precision_and_double_are_compared_in_float32():
    weight = noise(64, 48).half()
    assert does_a_train_pay(weight) == does_a_train_pay(weight.float()) == does_a_train_pay(weight.double())


def test_a_parameter_is_only_read():
    weight = torch.nn.Parameter(waves(64, 16))
    before = weight.detach().clone()
    does_a_train_pay(weight)
    assert torch.equal(weight.detach(), before) and weight.grad is None and weight.requires_grad


def test_zeros_are_as_small_as_can_be():
    assert does_a_train_pay(torch.zeros(64, 48)).svd == 64 * 48 / (64 + 48)


@pytest.mark.parametrize(
    ("weight", "how", "error", "words"),
    [
        (torch.ones(4), {}, ValueError, "must be a matrix"),
        (torch.ones(4, 4, dtype=torch.int8), {}, TypeError, "int8"),
        (torch.full((9, 9), torch.nan), {}, ValueError, "NaN"),
        (torch.ones(0, 4), {}, ValueError, "no entries"),
        (torch.ones(9, 9), {"eps": 0.0}, ValueError, "between 0 and 1"),
        (torch.ones(9, 9), {"eps": 1.0}, ValueError, "between 0 and 1"),
        (torch.ones(9, 9), {"eps": "small"}, TypeError, "eps"),
        (torch.ones(9, 9), {"rows": 0}, ValueError, "rows"),
        ([[1.0]], {}, TypeError, "Tensor"),
    ],
)
def test_what_is_refused(weight, how, error, words):
    with pytest.raises(error, match=words):
        does_a_train_pay(weight, **how)
