"""Ranks shared out by three rules, draws by Born's rule, and the picture of overlaps."""

import itertools
import math

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense, gaussian, random_train, seeds

from book.workbook import quantum
from ttref import entanglement_entropy, suggest_ranks, tt_orthogonalize, tt_params, tt_svd, tt_to_tensor

RULES = ("uniform", "entropy", "eps")
SHAPE = (6, 7, 8)


def falling(seed=0, shape=SHAPE):
    """A tensor whose Schmidt values fall at different rates at its two bonds."""
    first, last = (0.5 ** torch.arange(n, dtype=torch.float64) for n in (shape[0], shape[2]))
    return gaussian(shape, seed) * first[:, None, None] * last.sqrt()


def error(x, ranks):
    return (torch.linalg.vector_norm(x - tt_to_tensor(tt_svd(x, rank=ranks))) / torch.linalg.vector_norm(x)).item()


# --- orthogonal cores are an isometry --------------------------------------------------------------------------------


@given(seed=seeds, shape=st.lists(st.integers(2, 4), min_size=2, max_size=5))
def test_left_orthogonal_cores_keep_norms_and_angles_and_the_gauge_changes_nothing(seed, shape):
    cores = random_train(shape, 3, seed)
    moved = tt_orthogonalize(cores, len(shape) - 1)
    whole = dense(cores)
    assert torch.allclose(dense(moved), whole, rtol=0, atol=1e-12 * whole.norm().item())
    assert sum(core.numel() for core in moved) <= sum(core.numel() for core in cores)
    rank = moved[-1].shape[0]
    frame = tt_to_tensor([*moved[:-1], torch.eye(rank, dtype=torch.float64)[..., None]]).reshape(-1, rank)
    small = gaussian((rank, 4), seed)
    assert torch.allclose((frame @ small).T @ (frame @ small), small.T @ small, atol=1e-12 * rank * 100)


# --- ranks within a budget -------------------------------------------------------------------------------------------


@given(
    seed=seeds,
    shape=st.lists(st.integers(2, 6), min_size=2, max_size=4),
    by=st.sampled_from(RULES),
    more=st.floats(0, 1),
)
def test_a_rule_keeps_the_budget_and_spends_it(seed, shape, by, more):
    x = gaussian(tuple(shape), seed)
    least, most = tt_params(shape, 1), tt_params(shape, max(x.numel(), 1))
    params = least + int(more * (most - least))
    ranks = quantum.ranks_for(x, params=params, by=by)
    assert ranks[0] == ranks[-1] == 1 and tt_params(shape, ranks) <= params
    larger = quantum.ranks_for(x, params=params + 1, by=by)
    assert all(a <= b for a, b in zip(ranks, larger, strict=True))
    if more == 1:
        assert tt_params(shape, ranks) == most


@pytest.mark.parametrize("params", [21, 60, 100, 150, 250])
def test_uniform_ranks_are_the_largest_that_fit(params):
    ranks = quantum.ranks_for(falling(), params=params, by="uniform")
    rank = max(ranks)
    assert tt_params(SHAPE, ranks) == tt_params(SHAPE, rank) <= params
    assert rank == 8 or tt_params(SHAPE, rank + 1) > params


@pytest.mark.parametrize("params", [30, 60, 100, 150, 250])
def test_eps_ranks_are_those_that_are_suggested_for_the_smallest_affordable_eps(params):
    x = falling()
    ranks = quantum.ranks_for(x, params=params, by="eps")
    affordable = [
        eps
        for eps in torch.linspace(0.999, 0.001, 1500).tolist()
        if tt_params(SHAPE, suggest_ranks(x, eps=eps)) <= params
    ]
    assert ranks == suggest_ranks(x, eps=affordable[-1])
    assert error(x, ranks) <= affordable[-1]


def test_entropy_ranks_are_in_proportion_to_the_effective_ranks():
    x = falling()
    effective = [math.exp(entanglement_entropy(x, bond, base=math.e)) for bond in (1, 2)]
    for params in (40, 80, 120):
        _, first, second, _ = quantum.ranks_for(x, params=params, by="entropy")
        dials = [
            (first / effective[0], (first + 1) / effective[0]),
            (second / effective[1], (second + 1) / effective[1]),
        ]
        if min(first, second) > 1 and (first, second) != (6, 8):  # one dial explains both ranks
            assert max(low for low, _ in dials) < min(high for _, high in dials)


def test_equal_entropies_may_have_unequal_errors():
    """Four equal values, and one large value with a long tail: as much entropy, and at rank 4 all or little is kept."""
    flat = torch.cat([torch.ones(4), torch.zeros(60)]).double() / 2

    def tailed(weight):
        return torch.tensor([weight] + 63 * [(1 - weight) / 63], dtype=torch.float64).sqrt()

    low, high = 0.5, 0.99
    for _ in range(60):
        middle = (low + high) / 2
        enough = entanglement_entropy(torch.diag(tailed(middle)), 1) > 2
        low, high = (middle, high) if enough else (low, middle)
    tail = tailed(low)
    entropies = [entanglement_entropy(torch.diag(values), 1).item() for values in (flat, tail)]
    assert entropies == pytest.approx([2, 2], abs=1e-9)
    lost = [error(torch.diag(values), (1, 4, 1)) for values in (flat, tail)]
    assert lost[0] < 1e-7 and lost[1] > 0.4


# --- all errors of three modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, (8, 3, 4), (2, 3, 20), (20, 3, 2), (5, 1, 5)])
def test_errors_are_those_of_tt_svd(shape):
    x = falling(3, shape)
    errors = quantum.train_errors(x)
    assert errors.shape == (shape[0], shape[2])
    for first, second in itertools.product(range(1, shape[0] + 1), range(1, shape[2] + 1)):
        if second <= first * shape[1] and first <= second * shape[1]:  # TT-SVD clips other pairs
            assert errors[first - 1, second - 1] == pytest.approx(error(x, (1, first, second, 1)), abs=1e-6)


@pytest.mark.parametrize("params", [21, 60, 100, 150, 250])
def test_the_best_ranks_of_all_lie_on_the_line(params):
    x = falling()
    line = quantum.budget_line(quantum.train_errors(x), SHAPE, params=params)
    for ranks, lost in line.items():
        assert lost == pytest.approx(error(x, ranks), abs=1e-6) and tt_params(SHAPE, ranks) <= params
    ranks = min(line, key=line.get)
    everything = [(1, a, b, 1) for a in range(1, 7) for b in range(1, 9) if tt_params(SHAPE, (1, a, b, 1)) <= params]
    assert error(x, ranks) == pytest.approx(min(error(x, each) for each in everything), abs=1e-6)
    for by in RULES:
        assert error(x, ranks) <= error(x, quantum.ranks_for(x, params=params, by=by)) + 1e-6


# --- Born's rule -----------------------------------------------------------------------------------------------------


def test_draws_follow_the_squared_entries():
    cores = random_train([3, 2, 4], 3, 5)
    probabilities = dense(cores).square()
    probabilities = probabilities / probabilities.sum()
    count = 20_000
    drawn = quantum.measured(cores, count, generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64 and drawn.shape == (count, 3)
    places = drawn @ torch.tensor([8, 4, 1])
    shares = torch.bincount(places, minlength=24).double() / count
    spread = (probabilities.flatten() * (1 - probabilities.flatten()) / count).sqrt()
    assert ((shares - probabilities.flatten()).abs() <= 4.5 * spread + 1e-3).all()


def test_what_has_no_amplitude_is_never_drawn():
    x = torch.zeros(2, 2, 2)
    x[0, 0, 0], x[1, 1, 1] = -3.0, 4.0  # the sign is lost in a probability
    drawn = quantum.measured(tt_svd(x, rank=2), 4000, generator=torch.Generator().manual_seed(1))
    assert {tuple(row) for row in drawn.tolist()} == {(0, 0, 0), (1, 1, 1)}
    assert drawn[:, 0].double().mean().item() == pytest.approx(16 / 25, abs=0.03)


# --- the picture, and what is refused ---------------------------------------------------------------------------------


def test_the_picture_shows_every_document_on_both_curves():
    figure, axes = plt.subplots(1, 2)
    angles = {"a": 30.0, "b": 90.0, "c": 180.0}
    quantum.draw_overlaps(axes, angles)
    assert [text.get_text() for text in axes[0].texts] == ["query", *angles]
    shadows = [line.get_xdata()[0] for line in axes[0].lines if len(line.get_xdata()) == 1]
    assert shadows == pytest.approx([math.cos(math.radians(angle)) for angle in angles.values()])
    pairs = [line for line in axes[1].lines if len(line.get_xdata()) == 2 and line.get_marker() in quantum.MARKERS]
    drawn = {line.get_xdata()[0]: list(line.get_ydata()) for line in pairs}
    for angle in angles.values():
        cosine = math.cos(math.radians(angle))
        assert drawn[angle] == pytest.approx([cosine, cosine**2])
    plt.close(figure)


def test_what_cannot_be_done_is_named():
    x = falling()
    with pytest.raises(ValueError, match="by must be one of 'uniform', 'entropy', 'eps', got 'luck'"):
        quantum.ranks_for(x, params=100, by="luck")
    with pytest.raises(ValueError, match=r"params=20 holds no train of modes \(6, 7, 8\); ranks of 1 take 21"):
        quantum.ranks_for(x, params=20, by="eps")
    with pytest.raises(ValueError, match="params=20 holds no train"):
        quantum.budget_line(quantum.train_errors(x), SHAPE, params=20)
    with pytest.raises(ValueError, match="three modes"):
        quantum.train_errors(x.flatten(1))
    with pytest.raises(ValueError, match="zero everywhere"):
        quantum.train_errors(torch.zeros(2, 2, 2))
    figure, axes = plt.subplots(1, 2)
    with pytest.raises(ValueError, match="document 'far' is at 200 degrees"):
        quantum.draw_overlaps(axes, {"far": 200})
    with pytest.raises(ValueError, match="7 documents cannot be told apart; draw at most 6"):
        quantum.draw_overlaps(axes, {str(angle): angle for angle in range(7)})
    assert not axes[0].lines
    plt.close(figure)
