"""How the update of a TTLoRALinear starts, and what its modes allow it to become."""

import itertools
import math

import pytest
import torch
from adapters import (
    FLOATS,
    ORDERS,
    SHAPES,
    adapted,
    base_layer,
    padded_width,
    scatter,
    tiny_bert,
    trains,
    update_of,
    vectors,
)
from hypothesis import given
from hypothesis import strategies as st
from strategies import agree, dense, gaussian, seeds
from torch import nn

from ttref import TTLoRALinear, add_tt_lora

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")
names = pytest.mark.parametrize("name", SHAPES)
from_zero = pytest.mark.parametrize("init", ["zero_last", "orthogonal"])


def started(name="aligned", seed=0, *, rank=3, alpha=1.5, **options):
    out, ins, shape = SHAPES[name]
    kind = {key: options.pop(key) for key in ("kind", "dtype", "bias") if key in options}
    base = base_layer(out, ins, **kind)
    torch.manual_seed(seed)
    return TTLoRALinear(base, rank=rank, alpha=alpha, shape=shape, **options)


# Rank of the update


def rank_of(matrix):
    """Matrix rank, seen through 64 random directions where the matrix is large."""
    matrix = matrix.detach().double()
    if matrix.shape[1] > 64:
        matrix = matrix @ gaussian((matrix.shape[1], 64), 0)
    values = torch.linalg.svdvals(matrix)
    return int((values > 1e-9 * values[0]).sum()) if values[0] else 0


@given(trains(), st.integers(1, 6), seeds)
def test_the_boundary_bond_bounds_the_matrix_rank(modes, rank, seed):
    out, ins, shape = modes
    layer = scatter(TTLoRALinear(base_layer(out, ins, dtype=torch.float64), rank=rank, alpha=1, shape=shape), seed)
    if layer.boundary_rank is not None:
        assert rank_of(layer.get_delta_weight()) <= layer.boundary_rank <= rank


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize(
    "shape, out, factor",
    [
        ((12, 8, 8, 2, 2, 2, 8, 12), 768, 1),
        ((12, 8, 8, 8, 8, 12), 768, 1),
        ((8, 6, 2, 2, 4, 4, 2, 2, 6, 8), 768, 1),
        ((64, 4, 3, 3, 4, 64), 768, 1),
        ((12, 8, 8, 3, 8, 8, 12), 2304, 1),
        ((64, 16, 9, 64), 768, 6),
    ],
)
def test_the_published_shapes(shape, out, factor, rank):
    """All of the search space parts at the boundary but one shape, whose updates have six times the TT-rank."""
    base = nn.Linear(768, out, bias=False, dtype=torch.float64)
    layer = scatter(TTLoRALinear(base, rank=rank, alpha=1, shape=shape))
    assert layer.boundary_rank == (rank if factor == 1 else None)
    assert rank_of(layer.get_delta_weight()) == factor * rank


@pytest.mark.parametrize("rank", [1, 4])
def test_the_two_shapes_of_a_384_matrix(rank):
    aligned, straddling = (
        scatter(TTLoRALinear(nn.Linear(384, 384, dtype=torch.float64), rank=rank, alpha=1, shape=shape))
        for shape in [(8, 6, 8, 8, 6, 8), (32, 18, 16, 16)]
    )
    assert aligned.boundary_rank == rank and straddling.boundary_rank is None
    assert rank_of(aligned.get_delta_weight()) == rank
    assert rank_of(straddling.get_delta_weight()) > rank


# Zero start


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dtype", FLOATS)
@from_zero
@names
def test_a_fresh_adapter_changes_nothing(name, init, dtype, kind):
    """Not one bit of an answer, in any order, at any alpha."""
    layer = started(name, init=init, dtype=dtype, kind=kind, alpha=-1e3)
    assert torch.count_nonzero(layer.get_delta_weight()) == 0
    assert torch.equal(layer.weight, layer.base_layer.weight)
    for batch in (1, 7):
        x = vectors(layer, batch)
        for order in ["auto", *ORDERS]:
            layer.order = order
            if kind == "conv1d" and min(layer.out_features, layer.in_features) == 1:
                # The same numbers, but BLAS adds them in another order where a single row has other strides.
                torch.testing.assert_close(layer(x), layer.base_layer(x))
            else:
                assert agree(layer(x), layer.base_layer(x))


@from_zero
@names
def test_the_first_step_moves_the_last_core_and_the_second_all(name, init):
    """A zero last core hides the others from the loss; one step makes them visible."""
    layer = started(name, init=init, dtype=torch.float64)
    x, wanted = vectors(layer, 20), gaussian((20, layer.out_features), 1)

    def backward():
        layer.zero_grad()
        (layer(x) - wanted).square().mean().backward()
        return [bool(core.grad.abs().max() > 0) for core in layer.cores]

    others = [False] * (len(layer.cores) - 1)
    assert backward() == [*others, True]
    assert all(torch.count_nonzero(core.grad) == 0 for core in layer.cores[:-1])
    torch.optim.SGD(layer.cores.parameters(), lr=0.1).step()
    assert backward() == [True] * len(layer.cores)
    assert torch.count_nonzero(layer.get_delta_weight()) > 0


def others_of(layer):
    """The product of all cores but the last, with the oracle's einsum: a column for each value of the last bond."""
    return dense([*layer.cores[:-1], torch.eye(layer.ranks[-2])[..., None]]).flatten(0, -2).detach().double()


SEVERAL = [name for name in SHAPES if name != "one core"]


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("rank", [1, 3])
def test_orthogonal_cores(name, rank):
    """Orthogonal up to one number each, and the mean square of their product is that of LoRA's start exactly."""
    layer = started(name, init="orthogonal", rank=rank)
    scales = []
    for core in layer.cores[:-1]:
        unfolded = core.detach().double().flatten(0, 1)
        gram = unfolded.T @ unfolded
        scales.append(float(gram[0, 0]))
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=1e-5)
    assert max(scales) == pytest.approx(min(scales), rel=1e-5)
    assert float(others_of(layer).square().mean()) == pytest.approx(1 / (3 * layer.in_features), rel=1e-5)


@pytest.mark.parametrize("name", ["aligned", "straddling", "padded"])
@pytest.mark.parametrize("rank", [1, 4])
def test_gaussian_cores_have_the_same_mean_square_on_average(name, rank):
    layer = started(name, rank=rank)
    squares = []
    for seed in range(200):
        torch.manual_seed(seed)
        layer.delta.reset_parameters()
        squares.append(float(others_of(layer).square().mean()) * 3 * layer.in_features)
    mean, error = torch.tensor(squares).mean(), torch.tensor(squares).std() / len(squares) ** 0.5
    assert error < 0.15 and abs(mean - 1) < 4 * error


def test_each_gaussian_core_is_gaussian():
    """Standard deviations spread evenly: those of two cores differ by the rank on their left alone."""
    layer = TTLoRALinear(nn.Linear(1000, 1000), rank=10, alpha=1, shape=(10, 10, 10, 10, 10, 10))
    torch.manual_seed(0)
    layer.delta.reset_parameters()
    spread = (1 / 3000) ** (1 / 10)
    for core in layer.cores[1:-1]:
        assert float(core.detach().std()) == pytest.approx(spread / 10**0.5, rel=0.1)
        kurtosis = (core.detach() / core.detach().std()).pow(4).mean()
        assert float(kurtosis) == pytest.approx(3, abs=0.6)
        assert abs(float(core.detach().mean())) < 4 * float(core.detach().std()) / core.numel() ** 0.5


# The published start


def kaiming_bound(layer):
    """torch's own rule with a = sqrt 8: gain sqrt(2 / 9), and a uniform of that standard deviation."""
    return nn.init.calculate_gain("leaky_relu", 8**0.5) * 3**0.5 / layer.in_features**0.5


@pytest.mark.parametrize("name, rank", [("aligned", 24), ("straddling", 12), ("a core a side", 4), ("one core", 1)])
def test_the_paper_start_is_a_kaiming_uniform_matrix(name, rank):
    """At full rank the train is the matrix itself."""
    layer = started(name, init="paper", rank=rank, alpha=2.0)
    matrix = layer.get_delta_weight() / 2
    bound = kaiming_bound(layer)
    assert 0.8 * bound < float(matrix.abs().max()) <= bound * (1 + 1e-5)
    assert float(matrix.square().mean()) == pytest.approx(bound**2 / 3, rel=0.25)
    assert abs(float(matrix.mean())) < 4 * bound / (3 * matrix.numel()) ** 0.5
    x = vectors(layer, 3)
    assert not agree(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("name", ["aligned", "straddling", "straddling by two", "padded"])
def test_the_paper_start_is_truncated_by_tt_svd(name):
    """Within the bound of the TT-SVD: the squares of what the unfoldings lose add up."""
    layer = started(name, init="paper", rank=3, alpha=1)
    whole = started(name, init="paper", rank=10**3, alpha=1)
    exact, kept = (dense(list(one.cores)).detach().double() for one in (whole, layer))
    modes, lost = exact.shape, 0.0
    tails = []
    for k in range(1, len(modes)):
        unfolding = exact.reshape(math.prod(modes[:k]), -1)
        tails.append(float(torch.linalg.svdvals(unfolding)[3:].square().sum()))
    lost = float((exact - kept).square().sum())
    assert max(tails) * (1 - 1e-5) <= lost <= sum(tails) * (1 + 1e-5)
    assert 0 < float(kept.square().sum()) < float(exact.square().sum())
    # As many columns, rows and numbers as the padded matrix has.
    rows, columns = padded_width(layer.out_features), padded_width(layer.in_features)
    if name == "padded":
        assert exact.numel() == rows * columns > layer.out_features * layer.in_features


# Seeds


@pytest.mark.parametrize("init", ["zero_last", "orthogonal", "paper"])
@names
def test_seeds(name, init):
    one, again, other = (started(name, seed, init=init) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.cores, again.cores, strict=True))
    drawn = one.cores if init == "paper" else one.cores[:-1]
    if len(drawn) and not (init == "orthogonal" and max(core[..., 0].numel() for core in drawn) == 1):
        assert not all(torch.equal(a, b) for a, b in zip(drawn, other.cores, strict=False))
    torch.manual_seed(1)
    one.delta.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(one.cores, other.cores, strict=True))


def test_layers_of_one_model_start_differently():
    model = add_tt_lora(tiny_bert(), ["query", "value"], rank=2, alpha=1, init="paper")
    layers = [module for module in model.modules() if isinstance(module, TTLoRALinear)]
    assert len(layers) == 4
    for one, other in itertools.combinations(layers, 2):
        assert not torch.equal(one.cores[0], other.cores[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_start_is_drawn_in_single_precision(dtype):
    """The same adapter beside the same model in any dtype."""
    for init in ("zero_last", "orthogonal", "paper"):
        cores = started("aligned", init=init, dtype=dtype).cores
        reference = started("aligned", init=init).cores
        assert all(torch.equal(a.float(), b) for a, b in zip(cores, reference, strict=True))


def test_the_oracle_sees_a_wrong_alpha():
    layer = adapted("aligned", alpha=2.0)
    twice = adapted("aligned", alpha=4.0)
    torch.testing.assert_close(twice.get_delta_weight(), 2 * update_of(layer).detach())
