"""Cores rounded to integers against a Gram matrix: exact where they can be, near the best codes, and never unfair."""

import itertools

import pytest
import torch
from strategies import dense_matrix, gaussian

from ttref import ttm_svd
from ttref.fitting import fit_cores, output_error
from ttref.gptq import gptq_quantize
from ttref.integer_cores import IntegerCore, IntegerCores, _matrix, quantize_cores
from ttref.rounding import round_rows


def inputs(width, count=400, seed=3):
    """Correlated inputs: their Gram matrix is far from a multiple of the identity."""
    mixing = gaussian((width, width), seed) * torch.logspace(0, -1.5, width, dtype=torch.float64)
    x = gaussian((count, width), seed + 1) @ mixing.mT
    return x.mT @ x


MODES = [((4, 3), (5, 4)), ((12, 1), (1, 20)), ((1, 12), (10, 2)), ((3, 2, 2), (2, 5, 2)), ((12,), (20,))]


@pytest.mark.parametrize("rows, cols", MODES)
def test_the_matrix_of_a_core_is_the_squared_error_of_its_rows(rows, cols):
    gram, cores = inputs(20), ttm_svd(gaussian((12, 20), 0), rows, cols, rank=3)
    for k, core in enumerate(cores):
        matrix = _matrix(gram, cores, k)
        row = gaussian((core.shape[0], core.shape[2], core.shape[3]), 7)
        alone = torch.zeros_like(core)
        alone[:, -1] = row
        dense = dense_matrix([*cores[:k], alone, *cores[k + 1 :]])
        expected = ((dense @ gram) * dense).sum()
        torch.testing.assert_close(row.flatten() @ matrix @ row.flatten(), expected)


@pytest.mark.parametrize("rows, cols", MODES)
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_codes_and_scales_stand_for_the_cores(rows, cols, bits):
    weight, gram = gaussian((12, 20), 0), inputs(20)
    cores = ttm_svd(weight, rows, cols, rank=4)
    codes, scales, found = quantize_cores(cores, weight, gram, bits, group=8)
    for code, scale, core, old in zip(codes, scales, found, cores, strict=True):
        assert code.dtype == torch.int8 and code.shape == core.shape == old.shape and scale.dtype == torch.bfloat16
        assert -(2 ** (bits - 1)) <= code.min() and code.max() <= 2 ** (bits - 1) - 1
        flat, (m, groups) = code.transpose(0, 1).flatten(1), scale.shape
        for row, at in itertools.product(range(m), range(0, flat.shape[1], 3)):
            step = scale[row, at * groups // flat.shape[1]].double()
            assert core.transpose(0, 1).flatten(1)[row, at] == step * (flat[row, at] + 0.5)


@pytest.mark.parametrize("rows, cols", MODES)
def test_more_bits_lose_less_and_eight_lose_next_to_nothing(rows, cols):
    weight, gram = gaussian((12, 20), 0), inputs(20)
    cores = fit_cores(weight, gram, rows, cols, rank=6)
    fitted = output_error(weight, dense_matrix(cores), gram)
    errors = [output_error(weight, dense_matrix(quantize_cores(cores, weight, gram, b)[2]), gram) for b in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= fitted + 0.02


@pytest.mark.parametrize("rows, cols", [((4, 3), (5, 4)), ((3, 2, 2), (2, 5, 2))])
def test_feeding_errors_forward_beats_rounding_each_core_alone(rows, cols):
    weight, gram = gaussian((12, 20), 0), inputs(20)
    cores = fit_cores(weight, gram, rows, cols, rank=4)
    alone = []
    for core in cores:
        flat = core.transpose(0, 1).reshape(core.shape[1], -1)
        codes, scales = round_rows(flat, torch.eye(flat.shape[1], dtype=torch.float64), 3, flat.shape[1])
        code = codes.reshape(core.transpose(0, 1).shape).transpose(0, 1)
        alone.append(IntegerCore(code, scales).core())
    together = quantize_cores(cores, weight, gram, 3, group=1000)[2]
    assert output_error(weight, dense_matrix(together), gram) < 0.9 * output_error(weight, dense_matrix(alone), gram)


def test_a_round_more_is_never_worse():
    weight, gram = gaussian((12, 20), 0), inputs(20)
    cores = fit_cores(weight, gram, (4, 3), (5, 4), rank=5)
    errors = [
        output_error(weight, dense_matrix(quantize_cores(cores, weight, gram, 2, rounds=rounds)[2]), gram)
        for rounds in (0, 1, 3)
    ]
    assert errors[0] >= errors[1] >= errors[2]


def test_a_single_core_is_the_dense_matrix_rounded_by_gptq():
    weight, gram = gaussian((12, 40), 0), inputs(40)
    for bits in (1, 2, 3):
        found = quantize_cores([weight[None, :, :, None]], weight, gram, bits, group=20)[2][0][0, :, :, 0]
        other = gptq_quantize(weight, gram, bits, group=20, zero=False).approximation
        errors = [output_error(weight, made, gram) for made in (found, other)]
        torch.testing.assert_close(*errors, rtol=0.02, atol=0)


def test_rows_of_codes_are_near_the_best_of_all():
    """Seven columns of two bits: every one of the 4^7 codes is tried, with the scale that suits it."""
    matrix, x = inputs(7, seed=11), gaussian((40, 7), 2)
    codes, scales = round_rows(x, matrix.clone(), 2, 7)
    found = scales.double() * (codes + 0.5) - x
    levels = torch.cartesian_prod(*[torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)] * 7)
    squares = ((levels @ matrix) * levels).sum(1, keepdim=True)
    fit = (levels @ matrix @ x.mT).clamp(min=0)  # with its best scale, a code removes fit^2 / squares
    least = ((x @ matrix) * x).sum(1) - (fit.square() / squares).amax(0)
    largest = x.abs().amax(1, keepdim=True)
    plain = ((x / largest * 1.5 - 0.5).round().clamp(-2, 1) + 0.5) * largest / 1.5 - x
    ours, nearest = (((e @ matrix) * e).sum().sqrt() for e in (found, plain))
    assert least.sum().sqrt() <= ours <= 0.45 * nearest and ours <= 2.2 * least.sum().sqrt()


def test_channels_without_inputs_stay_near_their_weights():
    weight, gram = gaussian((6, 20), 0), inputs(20)
    gram[:5], gram[:, :5] = 0, 0
    found = quantize_cores([weight[None, :, :, None]], weight, gram, 8, group=20)[2][0][0, :, :, 0]
    assert (found - weight)[:, :5].abs().max() < 0.05 * weight.abs().max()


def test_integer_cores_pack_to_what_they_count():
    weight, gram = gaussian((12, 20), 0), inputs(20)
    codes, scales, _ = quantize_cores(ttm_svd(weight, (4, 3), (5, 4), rank=3), weight, gram, 3)
    held = IntegerCores(list(map(IntegerCore, codes, scales)), torch.float32)
    packed = held.packed(3)
    assert sum(tensor.numel() * tensor.element_size() for tensor in packed.values()) == held.nbytes(3)
    shapes = [list(code.shape) for code in codes]
    again = IntegerCores.unpacked(dict(packed), shapes, 3, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(held, again, strict=True))
    with pytest.raises(ValueError, match="extra"):
        IntegerCores.unpacked(dict(packed) | {"extra": torch.ones(1)}, shapes, 3, torch.float32)


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"bits": 9}, ValueError, "between 1 and 8"),
        ({"bits": 2.5}, TypeError, "integer"),
        ({"weight": torch.zeros(11, 20)}, ValueError, "11, 20"),
        ({"gram": torch.eye(19)}, ValueError, "19"),
        ({"cores": [torch.full((1, 12, 20, 1), torch.nan)]}, ValueError, "NaN"),
        ({"group": 0}, ValueError, "at least 1"),
    ],
)
def test_what_is_refused(change, error, says):
    given = {"cores": [torch.ones(1, 12, 20, 1)], "weight": torch.ones(12, 20), "gram": torch.eye(20), "bits": 4}
    with pytest.raises(error, match=says):
        quantize_cores(**given | change)


def test_cores_with_too_many_columns_are_refused(monkeypatch):
    monkeypatch.setattr("ttref.integer_cores.MOST_COLUMNS", 10)
    weight = gaussian((12, 20), 0)
    with pytest.raises(ValueError, match="other modes or smaller ranks"):
        quantize_cores(ttm_svd(weight, (4, 3), (5, 4), rank=3), weight, inputs(20), 4)
