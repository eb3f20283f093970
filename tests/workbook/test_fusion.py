"""Fusion layers against one einsum with the dense tensor that they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, seeds
from torch import nn

from book.workbook.fusion import LowRankFusion, TensorFusion, TTFusion, TuckerFusion, concatenation
from book.workbook.training import accuracy, fit

SIZES, CLASSES = (3, 4, 2), 5
MAKERS = {
    "TT": lambda sizes, classes: TTFusion(sizes, classes, rank=3),
    "LMF": lambda sizes, classes: LowRankFusion(sizes, classes, rank=3),
    "Tucker": lambda sizes, classes: TuckerFusion(sizes, classes, ranks=[2 + k % 2 for k in range(len(sizes))]),
    "whole tensor": lambda sizes, classes: TensorFusion(sizes, classes),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def made(make, sizes=SIZES, classes=CLASSES, seed=0):
    torch.manual_seed(seed)
    return make(sizes, classes).double()


def expected(tensor, x, sizes):
    """One einsum of the dense tensor with the views, each with a 1 at its end."""
    letters = "ijklm"[: len(sizes)]
    views = [torch.cat([view, view.new_ones(len(x), 1)], dim=1) for view in x.split(sizes, dim=1)]
    return torch.einsum(f"c{letters},{','.join('b' + letter for letter in letters)}->bc", tensor, *views)


@every
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4), classes=st.integers(1, 4), seed=seeds)
def test_a_layer_is_the_einsum_with_its_dense_tensor(make, sizes, classes, seed):
    layer, x = made(make, sizes, classes, seed % 1000), gaussian((6, sum(sizes)), seed)
    tensor = layer.dense()
    assert tensor.shape == layer.shape == (classes, *(n + 1 for n in sizes))
    assert tensor.numel() == layer.dense_params
    assert torch.allclose(layer(x), expected(tensor, x, sizes), rtol=1e-9, atol=1e-9)


@every
def test_gradients_are_those_of_the_einsum(make):
    layer, x = made(make), gaussian((7, sum(SIZES)), 1)
    found = torch.autograd.grad(layer(x).square().sum(), layer.parameters())
    wanted = torch.autograd.grad(expected(layer.dense(), x, SIZES).square().sum(), layer.parameters())
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-8) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("TT", 4 * 3 + 3 * 5 * 3 + 3 * 3 * 3 + 3 * 5),
        ("LMF", 3 * CLASSES * (4 + 5 + 3)),
        ("Tucker", 4 * 2 + 5 * 3 + 3 * 2 + 2 * 3 * 2 * CLASSES),
        ("whole tensor", CLASSES * 4 * 5 * 3),
    ],
)
def test_numbers_are_counted(name, params):
    layer = made(MAKERS[name])
    assert layer.params == params and layer.dense_params == CLASSES * 4 * 5 * 3
    assert f"params={params}, dense_params=300" in repr(layer)


def test_concatenation_is_a_network_of_one_hidden_layer():
    network = concatenation(SIZES, CLASSES, hidden=7)
    assert network(torch.zeros(2, 9)).shape == (2, CLASSES)
    assert sum(parameter.numel() for parameter in network.parameters()) == 9 * 7 + 7 + 7 * CLASSES + CLASSES


@every
def test_a_new_layer_answers_in_numbers_of_order_one(make):
    """Whatever the sizes: the mean square over many first weights and standardized inputs."""
    for sizes, classes in (((10, 10, 10), 2), ((24, 16, 24), 10), ((50, 3), 4)):
        x = torch.randn(200, sum(sizes), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        squares = [made(make, sizes, classes, seed)(x).square().mean() for seed in range(30)]
        assert 0.4 < torch.stack(squares).mean() < 2.5


@every
def test_most_of_the_first_weight_is_not_in_products_of_all_views(make):
    """Of what a new layer answers, measured by squares, a thousandth is expected from these."""
    shares = []
    for seed in range(30):
        tensor = made(make, (10, 10, 10), 2, seed).dense()
        shares.append(tensor[:, :-1, :-1, :-1].square().sum() / tensor.square().sum())
    assert torch.stack(shares).mean() < 0.02


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest number of entries that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.largest = max(self.largest, found.numel())
        return found


@pytest.mark.parametrize("name", ["TT", "LMF", "Tucker"])
def test_the_outer_product_is_never_formed(name):
    layer, x = made(MAKERS[name], (30, 30, 30), 2), gaussian((4, 90), 0)
    with torch.no_grad(), Recorded() as seen:
        layer(x)
    assert 0 < seen.largest < 4 * 31 * 31  # not even of two views


@every
def test_a_layer_learns_a_product_that_no_single_view_tells(make):
    """The class is the sign of a product of one feature of each of two views: a linear classifier must guess."""
    x = gaussian((400, 4), 0)
    y = (x[:, 0] * x[:, 2] > 0).long()
    layer = made(make, (2, 2), 2)
    fit(layer, x, y, epochs=40, lr=0.05)
    linear = nn.Linear(4, 2).double()
    fit(linear, x, y, epochs=40, lr=0.05)
    assert accuracy(layer, x, y) > 0.9 > 0.65 > accuracy(linear, x, y)


def test_ranks_that_are_of_no_use_are_cut():
    assert TTFusion((2, 2), 2, rank=9).ranks == (1, 3, 2, 1)
    assert TTFusion((2, 2), 2, rank=(1, 2, 1, 1)).ranks == (1, 2, 1, 1)
    assert TuckerFusion((2, 3), 2, ranks=(9, 2)).ranks == (3, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TTFusion((3,), 2, 2), ValueError, r"sizes \(3,\) describe one view; .* give two or more"),
        (lambda: LowRankFusion((3, 0), 2, 2), ValueError, r"sizes\[1\] must be at least 1, got 0"),
        (lambda: TensorFusion((3, 2), 0), ValueError, "classes must be at least 1, got 0"),
        (lambda: TensorFusion((3, 2.5), 2), TypeError, r"sizes\[1\] must be an integer, got 2.5"),
        (lambda: LowRankFusion((3, 2), 2, 0), ValueError, "rank must be at least 1, got 0"),
        (lambda: TTFusion((3, 2), 2, (1, 2, 1)), ValueError, "rank has 3 entries, but 3 modes have 4 ranks"),
        (lambda: TuckerFusion((3, 2), 2, (2, 2, 2)), ValueError, r"ranks \(2, 2, 2\) has 3 entries for 2 views"),
    ],
)
def test_a_layer_that_cannot_be_says_why(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every
@pytest.mark.parametrize("shape", [(2, 8), (9,), (2, 9, 1)])
def test_an_input_of_another_width_is_refused(make, shape):
    with pytest.raises(ValueError, match=r"x has shape .* side by side are \(batch, 9\); join them with torch.cat"):
        made(make)(torch.zeros(shape, dtype=torch.float64))
