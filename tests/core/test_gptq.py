"""Rounding against a Gram matrix: never worse than rounding to nearest, its bytes, an independent twin of its steps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian

from ttref import Baseline, quantize_integer
from ttref.codes import pack_bits
from ttref.files import write
from ttref.fitting import Gram
from ttref.gptq import gptq_quantize, whole_levels
from ttref.rounding import DAMPING, damped, fed_forward, spreading


def inputs(tokens, width, seed=0):
    """Correlated inputs, whose directions differ a hundredfold."""
    return gaussian((tokens, width), seed) @ (gaussian((width, width), seed + 1) * torch.logspace(0, -2, width))


def lost(w, made, gram):
    """Squared error of each row's outputs."""
    gap = made.double() - w.double()
    return ((gap @ gram) * gap).sum(1)


def seen(width, seed=0, tokens=None):
    x = inputs(4 * width if tokens is None else tokens, width, seed)
    return x.mT @ x


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(2, 8), st.integers(1, 40), st.integers(0, 99)
)
def test_no_row_is_worse_than_rounded_to_nearest(m, groups, size, bits, tokens, seed):
    n = groups * size
    w, gram = gaussian((m, n), seed), seen(n, seed, tokens)
    with_zero, odd, either = (
        lost(w, gptq_quantize(w, gram, bits, group=size, zero=zero).approximation, gram) for zero in (True, False, None)
    )
    scale = (w @ gram * w).sum(1)
    for best in (False, True):
        plain = lost(w, quantize_integer(w, bits, group=size, best=best).approximation, gram)
        assert (with_zero <= plain * (1 + 1e-9) + 1e-12 * scale).all()
    assert either.sum() <= min(with_zero.sum(), odd.sum()) * (1 + 1e-9) + 1e-12 * scale.sum()


@pytest.mark.parametrize("bits, most", [(4, 0.95), (3, 0.9), (2, 0.7)])
def test_gaussian_rows_gain_by_a_level_more(bits, most):
    """Two bits: three levels leave 0.19 of a Gaussian's variance at best, four 0.12 (Max 1960)."""
    w = gaussian((64, 64), 0)
    three, four = (gptq_quantize(w, torch.eye(64), bits, zero=zero).relative_error(w) ** 2 for zero in (True, False))
    assert four < most * three
    assert gptq_quantize(w, torch.eye(64), bits).relative_error(w) ** 2 == four
    assert bits > 2 or 0.09 < four < 0.13


def test_many_zeros_keep_zero_among_the_levels():
    w = gaussian((8, 24), 0) * (gaussian((8, 24), 1) > 1)
    made, odd = gptq_quantize(w, torch.eye(24), 2), gptq_quantize(w, torch.eye(24), 2, zero=False)
    assert not made.odd and odd.odd and made.relative_error(w) < odd.relative_error(w)
    assert (made.approximation[w == 0] == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_odd_levels_are_what_the_codes_say(bits, path):
    w = gaussian((5, 12), 0)
    made = gptq_quantize(w, seen(12), bits, group=6, zero=False)
    codes, scales = made.stored["codes"], made.stored["scales"].double().unsqueeze(2)
    assert -(2 ** (bits - 1)) <= codes.min() and codes.max() <= 2 ** (bits - 1) - 1
    assert torch.equal(made.approximation, ((2 * codes.double() + 1) * scales).flatten(1))
    made.save(path)
    again = Baseline.load(path)
    assert again.odd and torch.equal(again.approximation, made.approximation)


@pytest.mark.parametrize("bits, most", [(4, 0.75), (3, 0.75), (2, 0.8)])
def test_correlated_inputs_gain(bits, most):
    w, gram = gaussian((32, 48), 0), seen(48, 1)
    plain = lost(w, quantize_integer(w, bits, group=16, best=True).approximation, gram).sum()
    assert lost(w, gptq_quantize(w, gram, bits, group=16).approximation, gram).sum() < most**2 * plain


def test_one_bit_is_a_sign_and_beats_the_signs_of_the_weights(path):
    w, gram = gaussian((12, 32), 0), seen(32, 1)
    made = gptq_quantize(w, gram, 1, group=8)
    scales = made.stored["scales"].double()
    assert set(made.stored["codes"].unique().tolist()) == {-1, 0}
    signs = made.approximation.reshape(12, 4, 8) / scales.unsqueeze(2)
    torch.testing.assert_close(signs.abs(), torch.ones(12, 4, 8, dtype=torch.float64))
    grouped = w.reshape(12, 4, 8)
    naive = (grouped.sign() * grouped.abs().mean(2, keepdim=True)).flatten(1)
    assert lost(w, made.approximation, gram).sum() < 0.9 * lost(w, naive, gram).sum()
    assert made.nbytes == 12 * 32 // 8 + 2 * 12 * 4
    made.save(path)
    assert torch.equal(Baseline.load(path).approximation, made.approximation)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("group", [None, 6])
def test_bytes_are_those_of_integers(bits, group, path):
    w = gaussian((7, 18), 0, torch.float32)
    made = gptq_quantize(w, Gram.from_inputs(inputs(50, 18)), bits, group=group)
    scales = 7 * (1 if group is None else 3)
    assert made.nbytes == math.ceil(7 * 18 * bits / 8) + 2 * scales and made.params == 7 * 18 + scales
    if bits > 1:
        plain = quantize_integer(w, bits, group=group)
        assert (made.nbytes, made.params) == (plain.nbytes, plain.params)
        codes = gptq_quantize(w, torch.eye(18), bits, group=group, zero=True).stored["codes"]
        assert codes.abs().max() <= 2 ** (bits - 1) - 1
    assert made.name == f"GPTQ int{bits} per {'row' if group is None else 'group of 6'}"
    made.save(path)
    assert torch.equal(Baseline.load(path).approximation, made.approximation)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_comes_back(dtype):
    w, gram = gaussian((8, 12), 0).to(dtype), seen(12)
    made = gptq_quantize(w, gram, 4)
    assert made.approximation.dtype == made.dtype == dtype
    assert made.relative_error(w) < 0.3
    twin = gptq_quantize(w.double(), gram, 4)
    assert torch.equal(made.stored["codes"], twin.stored["codes"])


def test_white_inputs_leave_nothing_to_make_good():
    """Without correlations each entry is rounded to the nearest code, up to the scales, which are fitted."""
    w = gaussian((6, 20), 0)
    made, plain = gptq_quantize(w, torch.eye(20), 4, zero=True), quantize_integer(w, 4, best=True)
    assert made.relative_error(w) <= plain.relative_error(w)
    scales = made.stored["scales"].double()
    assert (
        ((made.approximation - w).abs() <= scales / 2 + 1e-9)
        .logical_or(made.stored["codes"].squeeze(1).abs() == 7)
        .all()
    )


def test_the_columns_in_order_are_an_orthogonal_projection():
    """An oracle by dense least squares: what follows a rounded column is fitted anew, in the order of the inputs."""
    w, gram = gaussian((1, 6), 3).double(), seen(6, 4)
    matrix = gram + 0.01 * gram.diagonal().mean() * torch.eye(6)
    scale = quantize_integer(w, 3).stored["scales"].double().item()
    order, left, codes = gram.diagonal().argsort(descending=True).tolist(), w[0].clone(), torch.zeros(6).double()
    for k, column in enumerate(order):
        codes[column] = (left[column] / scale).round().clamp(-3, 3)
        rest = order[k + 1 :]
        done = order[: k + 1]
        # The rest minimizes the damped error, given what is rounded.
        gap = w[0, done] - scale * codes[done]
        if rest:
            left[rest] = w[0, rest] + torch.linalg.solve(matrix[rest][:, rest], matrix[rest][:, done] @ gap)
    places, spread = spreading(damped(gram / gram.diagonal().mean(), DAMPING))
    scales = torch.tensor([[scale]]).bfloat16()
    assert places.tolist() == order
    assert torch.equal(fed_forward(w, scales, places, spread, whole_levels(3))[0], codes)


@pytest.mark.parametrize("gram", [torch.zeros(6, 6), torch.diag(torch.tensor([1.0, 0, 0, 2, 0, 0])), torch.ones(6, 6)])
def test_inputs_that_span_nothing_or_little(gram):
    w = gaussian((3, 6), 0, torch.float32)
    for bits in (1, 2, 4):
        made = gptq_quantize(w, gram, bits, group=3)
        assert made.approximation.isfinite().all()
    if gram.sum() == 36:  # only the sum of a row counts
        gap = (gptq_quantize(w, gram, 4).approximation - w).sum(1)
        assert (gap.abs() < 0.5 * w.abs().max() / 7).all()


def test_zero_rows_stay_zero():
    w = gaussian((3, 8), 0, torch.float32)
    w[1] = 0
    made = gptq_quantize(w, seen(8), 4, group=4)
    assert made.approximation[1].abs().max() == 0 and made.relative_error(w) < 0.3


def test_bad_input_is_refused():
    w, gram = gaussian((4, 6), 0), seen(6)
    for bits in (0, 9):
        with pytest.raises(ValueError, match="bits must"):
            gptq_quantize(w, gram, bits)
    with pytest.raises(TypeError, match="bits must be an integer"):
        gptq_quantize(w, gram, 2.5)
    with pytest.raises(ValueError, match="one bit has two levels"):
        gptq_quantize(w, gram, 1, zero=True)
    with pytest.raises(ValueError, match="group 4 does not divide the 6 entries"):
        gptq_quantize(w, gram, 4, group=4)
    with pytest.raises(ValueError, match="width 6; is it the Gram matrix of another layer"):
        gptq_quantize(w, seen(5), 4)
    with pytest.raises(ValueError, match="negative eigenvalue"):
        gptq_quantize(w, -gram, 4)
    with pytest.raises(ValueError, match="NaN"):
        gptq_quantize(w * torch.nan, gram, 4)
    for bits in (1, 4):
        with pytest.raises(ValueError, match="too large for a bfloat16 scale"):
            gptq_quantize(w * 1e300, gram, bits)


def test_files_from_before_the_odd_levels_load(path):
    """Their headers do not say ``odd``; of one bit the codes meant signs, of more they were plain."""
    w = gaussian((4, 8), 0, torch.float32)
    for bits, zero in ((1, None), (3, True)):
        made = gptq_quantize(w, torch.eye(8), bits, zero=zero)
        codes = pack_bits(made.stored["codes"], bits)
        header = {"name": made.name, "dtype": "float32", "bits": bits, "shape": list(made.stored["codes"].shape)}
        write(path, "Baseline", {"codes": codes, "scales": made.stored["scales"]}, header, Baseline._restore)
        assert torch.equal(Baseline.load(path).approximation, made.approximation)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_groups_that_no_input_has_shown_stay_near_their_weights(bits):
    w, x = gaussian((16, 64), 0), gaussian((200, 64), 1)
    x[:, 32:] = 0
    made = gptq_quantize(w, x.mT @ x, bits, group=16).approximation[:, 32:]
    plain = (w[:, 32:] - gptq_quantize(w, torch.eye(64), bits, group=16).approximation[:, 32:]).norm()
    assert (made - w[:, 32:]).norm() <= 1.2 * plain


def test_one_bit_of_weights_near_the_end_of_the_range():
    w = torch.tensor([[3e38, -3e38], [1.0, -2.0]])
    made = gptq_quantize(w, torch.eye(2), 1).approximation
    torch.testing.assert_close(made[0], w[0], rtol=0.01, atol=0)


def test_zero_is_yes_no_or_left_out():
    with pytest.raises(TypeError, match="zero must be True, False or None"):
        gptq_quantize(gaussian((2, 4), 0), torch.eye(4), 2, zero="no")
