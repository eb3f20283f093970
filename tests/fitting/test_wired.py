"""Layers and tables made by a fit: never worse than TT-SVD in the norm asked for, and otherwise as without."""

import pytest
import torch
from language_models import gpt2
from strategies import gaussian
from torch import nn

from ttref import TTLinear, TTMEmbedding, load
from ttref.fitting import Gram, output_error


def layer(inputs=36, outputs=24, dtype=torch.float32):
    made = nn.Linear(inputs, outputs).to(dtype)
    with torch.no_grad():
        made.weight.copy_(gaussian((outputs, inputs), 0))
        made.bias.copy_(gaussian((outputs,), 1))
    return made


def seen(width, seed=2, tokens=40_000):
    """Correlated inputs, whose directions differ a hundredfold, and so many that the ridge is the least."""
    x = gaussian((tokens, width), seed) @ (gaussian((width, width), seed + 1) * torch.logspace(0, -2, width))
    return Gram.from_inputs(x)


def table(rows=60, width=12, dtype=torch.float32):
    return nn.Embedding.from_pretrained(gaussian((rows, width), 5).to(dtype), freeze=False)


def weighted(made, dense, weight):
    """The relative error of a table with weighted rows."""
    gap = (made.dense() - dense.weight).detach().double().square().sum(1) * weight
    return (gap.sum() / (dense.weight.detach().double().square().sum(1) * weight).sum()).sqrt().item()


@pytest.mark.parametrize("shapes", [((4, 9), (4, 6)), ((36, 1), (4, 6)), ((3, 3, 4), (2, 3, 4))])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_layer_fitted_to_its_inputs_errs_less(shapes, rank):
    dense, gram = layer(), seen(36)
    how = {"rank": rank, "in_shape": shapes[0], "out_shape": shapes[1]}
    plain, fitted = TTLinear.from_linear(dense, **how), TTLinear.from_linear(dense, gram=gram, **how)
    assert (fitted.modes, fitted.ranks, fitted.params) == (plain.modes, plain.ranks, plain.params)
    weight = dense.weight.detach()
    before, after = (output_error(weight, made.dense().detach(), gram) for made in (plain, fitted))
    assert after <= before * (1 + 1e-6) + 1e-6
    if rank == 3:  # at 1 there is little to gain, at 6 a train with 6 as an end mode is exact
        assert after < 0.9 * before
    assert torch.equal(fitted.bias, dense.bias)
    again = TTLinear.from_linear(dense, gram=gram.matrix, **how)  # a bare matrix counts as of many inputs
    torch.testing.assert_close(again.dense(), fitted.dense())


def test_padded_widths_are_fitted_too():
    dense, gram = layer(37, 23), seen(37)
    plain, fitted = TTLinear.from_linear(dense, rank=4), TTLinear.from_linear(dense, rank=4, gram=gram)
    assert "padded" in repr(fitted) and fitted.weight.shape == (23, 37) and fitted.modes == plain.modes
    weight = dense.weight.detach()
    before, after = (output_error(weight, made.dense().detach(), gram) for made in (plain, fitted))
    assert after < 0.8 * before
    again = TTLinear.from_linear(dense, rank=4, gram=gram.matrix)
    torch.testing.assert_close(again.dense(), fitted.dense(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eps", [0.0, 0.2, 0.5])
def test_eps_is_the_error_of_the_outputs(eps):
    dense, gram = layer(), seen(36)
    fitted = TTLinear.from_linear(dense, eps=eps, gram=gram, in_shape=(4, 9), out_shape=(4, 6))
    assert output_error(dense.weight.detach(), fitted.dense().detach(), gram) <= eps + 1e-5
    plain = TTLinear.from_linear(dense, eps=eps, in_shape=(4, 9), out_shape=(4, 6))
    assert fitted.params <= plain.params and (eps == 0 or fitted.params < plain.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_mode_and_gradients_are_those_of_the_layer(dtype):
    dense = layer(dtype=dtype).eval().requires_grad_(False)
    fitted = TTLinear.from_linear(dense, rank=4, gram=seen(36))
    assert fitted.dtype == dtype and not fitted.training and not any(p.requires_grad for p in fitted.parameters())
    twin = TTLinear.from_linear(layer(dtype=torch.float64), rank=4, gram=seen(36))
    gap = (fitted.dense().double() - twin.dense()).norm() / twin.dense().norm()
    assert gap < 20 * torch.finfo(dtype).eps + 1e-9


def test_a_conv1d_is_read_in_its_own_order(tmp_path):
    dense = gpt2().transformer.h[0].mlp.c_fc
    gram = seen(16)
    plain, fitted = (TTLinear.from_linear(dense, rank=4, **how) for how in ({}, {"gram": gram}))
    weight = dense.weight.detach().mT
    assert output_error(weight, fitted.dense().detach(), gram) < output_error(weight, plain.dense().detach(), gram)
    fitted.save(tmp_path / "layer.safetensors")
    torch.testing.assert_close(load(tmp_path / "layer.safetensors").dense(), fitted.dense())


@pytest.mark.parametrize("rows", [60, 59])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.int64])
def test_a_table_fitted_to_frequencies_keeps_frequent_rows(rows, kind):
    dense = table(rows)
    counts = (1000 / torch.arange(1, rows + 1)).to(kind).clamp(min=1)
    how = {"rank": 4, "row_shape": (3, 4, 5), "col_shape": (2, 2, 3)}
    plain = TTMEmbedding.from_embedding(dense, **how)
    fitted = TTMEmbedding.from_embedding(dense, weight=counts, **how)
    assert (fitted.modes, fitted.ranks, len(fitted.weight)) == (plain.modes, plain.ranks, rows)
    assert weighted(fitted, dense, counts) < 0.95 * weighted(plain, dense, counts)
    ones = TTMEmbedding.from_embedding(dense, weight=torch.ones(rows), **how)
    assert weighted(ones, dense, torch.ones(rows)) <= weighted(plain, dense, torch.ones(rows)) * (1 + 1e-6)
    torch.testing.assert_close(fitted(torch.arange(rows)), fitted.dense())


def test_what_does_not_fit_is_refused():
    dense = layer()
    for padded in ({}, {"in_shape": (4, 9), "out_shape": (4, 6)}):
        with pytest.raises(ValueError, match="inputs have width 36; is it the Gram matrix of another layer"):
            TTLinear.from_linear(dense, rank=2, gram=seen(24), **padded)
    with pytest.raises(ValueError, match="inputs have width 37; is it the Gram matrix of another layer"):
        TTLinear.from_linear(layer(37), rank=2, gram=torch.eye(40))
    with pytest.raises(TypeError, match="gram must be a Gram or a tensor"):
        TTLinear.from_linear(dense, rank=2, gram=[1.0])
    words = table()
    for wrong, says in [
        (torch.ones(12), "the table has 60 rows"),
        (-torch.ones(60), "at least 0"),
        (torch.zeros(60), "above 0 somewhere"),
        (torch.full((60,), torch.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=says):
            TTMEmbedding.from_embedding(words, rank=2, weight=wrong)
    for wrong in (torch.ones(60, dtype=torch.bool), [1.0] * 60):
        with pytest.raises(TypeError, match="weight must be a tensor of numbers"):
            TTMEmbedding.from_embedding(words, rank=2, weight=wrong)
