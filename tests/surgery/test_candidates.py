"""Candidates replace one layer; the layers of a model that can be replaced are found, the others with a reason."""

import copy

import pytest
import torch
from strategies import gaussian
from surgery_models import Tied
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttref import Compressed, TTLinear, TTMEmbedding, quantize_integer, truncated_svd, ttm_params
from ttref.fitting import Gram, output_error
from ttref.gptq import gptq_quantize
from ttref.surgery import candidates, edit, find_layers
from ttref.surgery.finding import cost_of, matrix_of


def linear(m=24, n=36, **options):
    layer = nn.Linear(n, m, **options)
    with torch.no_grad():
        layer.weight.copy_(gaussian((m, n), 0, torch.float32))
    return layer


def conv1d(m=24, n=36):
    layer = Conv1D(m, n)
    with torch.no_grad():
        layer.weight.copy_(gaussian((m, n), 0, torch.float32).mT)
        layer.bias.copy_(gaussian((m,), 1, torch.float32))
    return layer


def table(rows=40, width=24):
    return nn.Embedding.from_pretrained(gaussian((rows, width), 0, torch.float32), freeze=False)


def conv():
    layer = nn.Conv2d(8, 12, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(gaussian((12, 8, 3, 3), 0, torch.float32))
    return layer


def gram_of(width):
    """Of inputs whose axes have variances far apart."""
    return Gram.from_inputs(gaussian((200, width), 7, torch.float32) * torch.logspace(0, -1.5, width))


LAYERS = {"linear": linear, "conv1d": conv1d, "table": table, "conv": conv}
INPUTS = {
    "linear": gaussian((5, 36), 2, torch.float32),
    "conv1d": gaussian((5, 36), 2, torch.float32),
    "table": torch.tensor([[3, 39], [0, 3]]),
    "conv": gaussian((2, 8, 5, 5), 2, torch.float32),
}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", ["linear", "conv1d", "table"])
@pytest.mark.parametrize(
    "candidate",
    [
        candidates.tensor_train(ratio=2),
        candidates.tensor_train(ratio=3, order=2),
        candidates.tensor_train(rank=5),
        candidates.tensor_train(eps=0.5),
        candidates.svd(ratio=2),
        candidates.svd(rank=7),
        candidates.svd(eps=0.5),
        candidates.integer(4),
        candidates.integer(8, group=12),
    ],
    ids=lambda one: one.name,
)
def test_the_replacement_computes_with_the_matrix_it_says(kind, candidate):
    layer, x = LAYERS[kind](), INPUTS[kind]
    before = copy.deepcopy(layer.state_dict())
    made = candidate.make(layer)
    assert candidate.why_not(layer) is None
    dense = matrix_of(made)
    assert dense.shape == matrix_of(layer).shape and 0 < relative(dense, matrix_of(layer)) < 0.95
    wanted = dense[x] if kind == "table" else x @ dense.mT + layer.bias
    torch.testing.assert_close(made(x), wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert not {x.data_ptr() for x in made.parameters()} & {x.data_ptr() for x in layer.parameters()}


CONVOLUTIONS = [
    candidates.tensor_train(ratio=2),
    candidates.tensor_train(eps=0.5),
    candidates.tensor_train(ratio=2, core_bits=4),
    candidates.tensor_train(rank=4, modes=((12, 1), (8, 9))),
    candidates.svd(ratio=3),
    candidates.fitted(ratio=2),
    candidates.fitted(eps=0.4),
    candidates.fitted(ratio=2, core_bits=4),
    candidates.whitened_svd(ratio=3),
    candidates.gptq(3),
]


@pytest.mark.parametrize("candidate", CONVOLUTIONS, ids=lambda one: one.name)
def test_a_convolution_computes_with_the_matrix_it_says(candidate):
    layer, x, gram = conv(), INPUTS["conv"], gram_of(72)
    made = candidate.make(layer, gram)
    dense = matrix_of(made)
    seen = gram if candidate.needs_gram else torch.ones(72)
    assert dense.shape == (12, 72) and 0 < output_error(matrix_of(layer), dense, seen) < 0.95
    wanted = nn.functional.conv2d(x, dense.view(12, 8, 3, 3), layer.bias, padding=1)
    torch.testing.assert_close(made(x), wanted, rtol=1e-4, atol=1e-4)
    params, nbytes, macs = cost_of(made)
    assert (params, nbytes) == (made.params, made.nbytes) and nbytes < 864 * 4 and 0 < macs <= 2 * 864
    if "2x" in candidate.name:
        assert params <= (864 / 2 if "cores" not in candidate.name else 864)


@pytest.mark.parametrize("ratio", [1.5, 2, 4, 8])
@pytest.mark.parametrize("m, n", [(24, 36), (64, 48), (41, 60)])
def test_a_ratio_is_kept_by_the_largest_rank_that_keeps_it(ratio, m, n):
    layer = linear(m, n)
    made = candidates.tensor_train(ratio=ratio).make(layer)
    assert made.params <= m * n / ratio
    rank = max(made.ranks)
    wider = TTLinear.from_linear(layer, rank=rank + 1)
    assert ttm_params(wider.out_shape, wider.in_shape, rank + 1) > m * n / ratio
    factors = candidates.svd(ratio=ratio).make(layer)
    assert factors.ranks[1] == int(m * n / ratio) // (m + n)


def test_svd_is_truncated_svd():
    layer = linear()
    wanted = truncated_svd(layer.weight.detach(), rank=6).approximation
    torch.testing.assert_close(candidates.svd(rank=6).make(layer).dense(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [3, 8])
def test_integers_are_those_of_the_baseline(kind, bits):
    layer = LAYERS[kind]()
    made = candidates.integer(bits).make(layer)
    wanted = quantize_integer(matrix_of(layer), bits, best=bits <= 4)
    assert torch.equal(matrix_of(made), wanted.approximation)
    assert (made.params, made.nbytes) == (wanted.params, wanted.nbytes) and type(made) is type(layer)
    assert made.weight.shape == layer.weight.shape and made.weight.requires_grad
    assert made(INPUTS[kind]).shape == layer(INPUTS[kind]).shape


def test_state_of_the_layer_is_kept():
    layer = linear(dtype=torch.float64, bias=False).eval().requires_grad_(False)
    for candidate in (candidates.tensor_train(ratio=2), candidates.svd(ratio=2), candidates.integer(4)):
        made = candidate.make(layer)
        assert not made.training and not any(x.requires_grad for x in made.parameters())
        assert all(x.dtype == torch.float64 for x in made.parameters()) and made.bias is None


@pytest.mark.parametrize(
    "candidate, layer, reason",
    [
        (candidates.tensor_train(ratio=2), nn.ReLU(), "ReLU is no linear layer, convolution or table"),
        (candidates.tensor_train(ratio=40), linear(), "rank 1 already takes .* numbers"),
        (candidates.svd(ratio=20), linear(), "rank 1 already takes 60 of its 864 numbers, 14.4x"),
        (candidates.tensor_train(ratio=2, order=2), linear(41), "41 is not a product of 2 modes"),
        (candidates.tensor_train(rank=2, modes=((4, 5), (6, 6))), linear(), "multiply to 20 x 36, not 24 x 36"),
        (candidates.tensor_train(ratio=2), nn.Conv2d(8, 12, 3, groups=2), "2 groups"),
        (candidates.tensor_train(ratio=2), nn.Conv2d(8, 12, 3, padding_mode="circular"), "circular"),
        (candidates.tensor_train(ratio=4), nn.Conv2d(3, 16, 3), r"params=108 is too small for a \(16, 3, 3, 3\)"),
        (candidates.tensor_train(ratio=2, core_bits=4), linear(), "integer cores are made for convolutions only"),
        (candidates.integer(4, group=7), linear(), "groups of 7 do not divide its 36 columns"),
        (candidates.integer(4), nn.utils.parametrizations.weight_norm(linear()), "its weight is computed"),
        (candidates.Candidate("own", lambda layer, gram: layer, needs_gram=True), linear(), "needs the Gram matrix"),
    ],
)
def test_what_cannot_be_replaced_has_a_reason(candidate, layer, reason):
    import re

    assert re.search(reason, candidate.why_not(layer)) and candidate.make(layer) is None


@pytest.mark.parametrize(
    "make, error, says",
    [
        (lambda: candidates.tensor_train(), ValueError, "exactly one of eps, ratio and rank, got none"),
        (lambda: candidates.svd(eps=0.1, rank=2), ValueError, "got eps=0.1 and rank=2"),
        (lambda: candidates.svd(ratio=0), ValueError, "ratio must be a finite number above 0"),
        (lambda: candidates.svd(ratio="4"), TypeError, "ratio must be a number"),
        (lambda: candidates.tensor_train(eps=1.5), ValueError, r"\[0, 1\)"),
        (lambda: candidates.tensor_train(rank=0), ValueError, "rank must be at least 1"),
        (lambda: candidates.tensor_train(rank=1.5), TypeError, "rank must be an integer"),
        (lambda: candidates.tensor_train(ratio=2, core_bits=9), ValueError, "core_bits must be 32"),
        (lambda: candidates.tensor_train(ratio=2, modes="search"), TypeError, "modes must be .*, got 'search'"),
        (lambda: candidates.tensor_train(rank=2, modes=((4, 6),)), TypeError, "modes must be row modes and column"),
        (lambda: candidates.tensor_train(rank=2, modes=(4, 6)), TypeError, "row_shape must be a sequence of modes"),
        (lambda: candidates.fitted(rank=2, modes=((4, 6), (36,))), ValueError, "they need equally many"),
        (lambda: candidates.integer(9), ValueError, "between 2 and 8, got 9"),
        (lambda: candidates.integer(4, group=0), ValueError, "group must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_when_a_candidate_is_made(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_not_a_number_is_refused():
    layer = linear()
    with torch.no_grad():
        layer.weight[2, 3] = float("nan")
    for candidate in (candidates.tensor_train(ratio=2), candidates.svd(ratio=2), candidates.integer(4)):
        with pytest.raises(ValueError, match="NaN or Inf"):
            candidate.make(layer)


def test_costs():
    assert cost_of(linear(24, 36)) == (864, 3456, 864)
    assert cost_of(conv1d(24, 36)) == (864, 3456, 864)
    assert cost_of(conv()) == (864, 3456, 864) and cost_of(table()) == (960, 3840, 0)
    made = candidates.svd(rank=2).make(linear(24, 36))
    assert cost_of(made)[:2] == (120, 480) and cost_of(made).macs <= 128
    assert cost_of(candidates.integer(8).make(linear(24, 36))) == (888, 912, 864)
    # a row of the table: the slice (1, 4, 2) meets (2, 6, 1)
    rows = candidates.tensor_train(rank=2, modes=((5, 8), (4, 6))).make(table())
    assert isinstance(rows, TTMEmbedding) and cost_of(rows) == (5 * 4 * 2 + 2 * 8 * 6, 544, 4 * 2 * 6)
    assert isinstance(rows, Compressed)


class Net(nn.Module):
    """Layers of all kinds, the table last, and some that cannot be replaced."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(linear(24, 36), nn.GELU(), conv1d(36, 24))
        self.conv, self.small, self.norm = conv(), nn.Linear(36, 3), nn.LayerNorm(36)
        self.tok_emb = table()


def test_tables_come_first_and_the_others_by_depth():
    found = find_layers(Net())
    assert [layer.name for layer in found] == ["tok_emb", "mlp.0", "mlp.2", "conv"]
    assert [layer.kind for layer in found] == ["token table", "feed-forward", "feed-forward", "convolution"]
    assert [layer.shape for layer in found] == [(40, 24), (24, 36), (36, 24), (12, 72)]
    assert found.skipped == {"small": "too small: 3 x 36"}
    assert find_layers(Net(), "small")[0].shape == (3, 36)
    assert [layer.name for layer in find_layers(nn.DataParallel(Net()), ["2", "mlp.0"])] == ["mlp.2", "mlp.0"]


def test_every_layer_found_can_be_put_and_undone():
    model = Net()
    parts = dict(model.named_modules())
    for layer in find_layers(model):
        with edit(model) as change:
            change.put({layer.name: candidates.integer(4).make(layer.module)})
        change.undo()
    assert all(dict(model.named_modules())[name] is part for name, part in parts.items())


def test_tied_and_shared_layers_are_left_out():
    found = find_layers(Tied())
    assert [layer.name for layer in found] == ["body"] and "embed" in found.skipped and "head" in found.skipped
    assert "shares a parameter" in found.skipped["embed"]
    with pytest.raises(ValueError, match="embed cannot be replaced: .*tie"):
        find_layers(Tied(), ["embed"])
    twice = nn.Sequential(linear(36, 36), nn.ReLU(), linear(36, 36))
    twice.append(twice[0])
    assert [layer.name for layer in find_layers(twice)] == ["2"]
    with pytest.raises(ValueError, match="0 cannot be replaced"):
        find_layers(twice, ["0"])


def test_what_is_quantized_or_compressed_is_left_out():
    class Linear4bit(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    model = nn.Sequential(Linear4bit(36, 36), candidates.integer(4).make(linear()), linear(36, 36))
    found = find_layers(model)
    assert [layer.name for layer in found] == ["2"]
    assert "forward of its own" in found.skipped["0"] and found.skipped["1"] == "it is compressed already"
    with pytest.raises(TypeError, match="0 cannot be replaced: this Linear4bit has a forward of its own"):
        find_layers(model, ["0"])
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear()), {nn.Linear})
    with pytest.raises(ValueError, match="no layer to replace"):
        find_layers(quantized)


def test_wrong_names_are_refused():
    model = Net()
    for names, error, says in (
        (["mlp.0", "0"], ValueError, "mlp.0 is asked for twice"),
        (["nothing"], ValueError, "no module is named 'nothing'"),
        ([], ValueError, "layers is empty"),
        (3, TypeError, "layers must be names"),
        (["norm"], TypeError, "LayerNorm is no nn.Linear"),
    ):
        with pytest.raises(error, match=says):
            find_layers(model, names)
    with pytest.raises(ValueError, match=r"no layer to replace.*\(0: too small: 3 x 4\)"):
        find_layers(nn.Sequential(nn.Linear(4, 3)))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(36, 24))
    assert "meta device" in str(pytest.raises(ValueError, find_layers, empty).value)


FITTED = [
    candidates.fitted(ratio=2),
    candidates.fitted(ratio=3, order=2),
    candidates.fitted(eps=0.3),
    candidates.fitted(ratio=3, modes="search"),
    candidates.fitted(rank=3, modes=((24, 1), (4, 9))),
    candidates.whitened_svd(ratio=2),
    candidates.whitened_svd(rank=4),
    candidates.gptq(3),
    candidates.gptq(2, group=12),
]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("candidate", FITTED, ids=lambda one: one.name)
def test_what_is_fitted_errs_less_on_what_the_layer_sees(kind, candidate):
    layer, gram, x = LAYERS[kind](), gram_of(36), INPUTS[kind]
    made = candidate.make(layer, gram)
    torch.testing.assert_close(made(x), x @ matrix_of(made).mT + layer.bias, rtol=1e-4, atol=1e-4)
    if candidate.name.startswith("fitted"):
        rows, cols = (tuple(side) for side in zip(*made.modes, strict=True))
        plain = candidates.tensor_train(rank=max(made.ranks), modes=(rows, cols)).make(layer)
    elif candidate.name.startswith("whitened"):
        plain = candidates.svd(rank=made.ranks[1]).make(layer)
    else:
        bits, group = int(candidate.name[8]), 12 if "/" in candidate.name else None
        plain = candidates.integer(bits, group=group).make(layer)
        assert plain.nbytes == made.nbytes
    weight = matrix_of(layer)
    assert output_error(weight, matrix_of(made), gram) < 0.98 * output_error(weight, matrix_of(plain), gram)


def test_whitened_svd_is_that_of_the_baseline_and_ratios_are_kept():
    layer, gram = linear(), gram_of(36)
    made = candidates.whitened_svd(ratio=3).make(layer, gram)
    wanted = truncated_svd(layer.weight.detach(), params=288, gram=gram)
    torch.testing.assert_close(made.dense(), wanted.approximation, rtol=1e-4, atol=1e-5)
    assert made.params == wanted.params
    for candidate in (candidates.fitted(ratio=3), candidates.fitted(ratio=3, modes="search")):
        assert 144 < candidate.make(layer, gram).params <= 288


def test_a_convolution_is_rounded_against_its_patches():
    layer = conv()
    made = candidates.gptq(3).make(layer, gram_of(72))
    wanted = gptq_quantize(layer.weight.detach().flatten(1), gram_of(72), 3)
    assert torch.equal(made.weight.flatten(1), wanted.approximation) and made.nbytes == wanted.nbytes
    grouped = nn.Conv2d(8, 12, 3, groups=2)
    assert "2 groups" in candidates.gptq(3).why_not(grouped, gram_of(36))


def test_a_padded_layer_and_a_table_are_fitted_too():
    layer, gram = linear(41), gram_of(36)
    made, plain = (one(ratio=2).make(layer, gram) for one in (candidates.fitted, candidates.tensor_train))
    assert made.modes == plain.modes and made.out_features == 41 and made.params <= 41 * 36 / 2
    errors = [output_error(layer.weight.detach(), matrix_of(one), gram) for one in (made, plain)]
    assert errors[0] < 0.95 * errors[1]
    rows, often = table(), torch.logspace(0, -4, 40)
    made, plain = (one(ratio=2).make(rows, often) for one in (candidates.fitted, candidates.tensor_train))
    errors = [output_error(rows.weight.detach().mT, matrix_of(one).mT, often) for one in (made, plain)]
    assert isinstance(made, TTMEmbedding) and errors[0] < 0.95 * errors[1]


def test_a_gram_matrix_of_another_layer_is_refused():
    for candidate in (candidates.fitted(ratio=2), candidates.whitened_svd(ratio=2), candidates.gptq(4)):
        assert "needs the Gram matrix" in candidate.why_not(linear()) and candidate.make(linear()) is None
        with pytest.raises(ValueError, match="Gram matrix of another layer"):
            candidate.make(linear(), gram_of(24))
    assert "a table cannot be replaced" in candidates.whitened_svd(ratio=2).why_not(table(), gram_of(24))
    with pytest.raises(ValueError, match="modes='search' needs a ratio"):
        candidates.fitted(eps=0.1, modes="search")
