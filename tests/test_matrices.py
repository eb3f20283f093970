"""Matrices as tensor trains: guarantees, every contraction order against the dense product, and the planner's sums."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, seeds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ttref.contraction import MACS_PER_BYTE, ORDERS, Plan, plan_contraction, ttm_matvec
from ttref.matrices import ttm_svd, ttm_to_matrix
from ttref.shapes import tt_ranks

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PLANS = [*ORDERS, "auto"]
# Pairs (m_k, n_k); rectangular, single and trivial modes included.
pairs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


def rows_and_columns(shape):
    return tuple(m for m, _ in shape), tuple(n for _, n in shape)


def random_matrix_train(shape, seed, dtype=torch.float64, ranks=(2, 4, 3)):
    """Gaussian cores with unequal ranks, so that a plan which mixes two bonds up is found out."""
    bonds = (1, *ranks[: len(shape) - 1], 1)
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(bonds[k], m, n, bonds[k + 1], generator=generator, dtype=torch.float64).to(dtype)
        for k, (m, n) in enumerate(shape)
    ]


def dense_matrix(cores):
    """The oracle: one einsum per core, rows and columns gathered apart."""
    total = cores[0][0]
    for core in cores[1:]:
        total = torch.einsum("ijr,rmns->imjns", total, core)
        total = total.flatten(0, 1).flatten(1, 2)
    return total[..., 0]


def norm(x):
    return torch.linalg.vector_norm(x.double())


# Decomposition


@given(pairs, seeds, st.sampled_from([torch.float64, torch.float32]))
def test_full_rank_is_exact(shape, seed, dtype):
    rows, cols = rows_and_columns(shape)
    w = gaussian((math.prod(rows), math.prod(cols)), seed, dtype)
    cores = ttm_svd(w, rows, cols, rank=10**6)
    ranks = tt_ranks([m * n for m, n in shape], 10**6)
    assert [core.shape for core in cores] == [
        (r, m, n, s) for r, (m, n), s in zip(ranks[:-1], shape, ranks[1:], strict=True)
    ]
    error = norm(dense_matrix([core.double() for core in cores]) - w.double())
    assert error <= 10 * len(shape) * torch.finfo(dtype).eps * norm(w)


@given(pairs, st.floats(0, 0.95), seeds, st.sampled_from(FLOATS))
def test_eps_bounds_the_error_of_the_whole_matrix(shape, eps, seed, dtype):
    rows, cols = rows_and_columns(shape)
    w = gaussian((math.prod(rows), math.prod(cols)), seed, dtype)
    cores = ttm_svd(w, rows, cols, eps=eps)
    assert {core.dtype for core in cores} == {dtype}
    error = norm(dense_matrix([core.double() for core in cores]) - w.double())
    assert error <= (eps + 10 * len(shape) * torch.finfo(dtype).eps) * norm(w)


@given(pairs, seeds)
def test_a_kronecker_product_has_rank_one(shape, seed):
    factors = [gaussian(size, seed + k) for k, size in enumerate(shape)]
    w = torch.ones(1, 1, dtype=torch.float64)
    for factor in factors:
        w = torch.kron(w, factor)
    cores = ttm_svd(w, *rows_and_columns(shape), eps=1e-10)
    assert all(core.shape == (1, m, n, 1) for core, (m, n) in zip(cores, shape, strict=True))
    torch.testing.assert_close(dense_matrix(cores), w)


def test_the_rank_of_a_sum_of_kronecker_products_is_the_number_of_terms():
    w = sum(torch.kron(gaussian((4, 3), k), gaussian((5, 6), 10 + k)) for k in range(3))
    assert [core.shape[-1] for core in ttm_svd(w, (4, 5), (3, 6), eps=1e-10)] == [3, 1]


@given(pairs, seeds, st.sampled_from(FLOATS))
def test_to_matrix_agrees_with_an_independent_contraction(shape, seed, dtype):
    cores = random_matrix_train(shape, seed, dtype)
    matrix, expected = ttm_to_matrix(cores), dense_matrix([core.double() for core in cores])
    assert matrix.dtype == dtype and matrix.shape == expected.shape
    assert norm(matrix.double() - expected) <= 10 * torch.finfo(dtype).eps * norm(expected)


# Multiplication


@pytest.mark.parametrize("plan", PLANS)
@given(pairs, st.sampled_from([(), (1,), (5,), (0,), (2, 3), (2, 0, 3), (2, 1, 2)]), seeds)
def test_every_order_equals_the_dense_product(plan, shape, batch, seed):
    cores = random_matrix_train(shape, seed)
    w = dense_matrix(cores)
    x = gaussian((*batch, w.shape[1]), seed + 1)
    y = ttm_matvec(cores, x, plan)
    assert y.shape == (*batch, w.shape[0])
    torch.testing.assert_close(y, x @ w.T, rtol=1e-9, atol=1e-10 * float(norm(w)))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_kept_and_the_product_is_good_to_that_dtype(plan, dtype):
    cores = random_matrix_train([(3, 2), (2, 4), (4, 3)], 0, dtype)
    x = gaussian((6, 24), 1, dtype)
    y = ttm_matvec(cores, x, plan)
    expected = x.double() @ dense_matrix([core.double() for core in cores]).T
    assert y.dtype == dtype
    assert norm(y.double() - expected) <= 10 * torch.finfo(dtype).eps * norm(expected)


@pytest.mark.parametrize("plan", PLANS)
def test_gradients_reach_cores_and_vectors(plan):
    cores = random_matrix_train([(2, 3), (3, 2), (2, 1)], 0, ranks=(2, 3))
    x = gaussian((2, 6), 1)
    inputs = [tensor.requires_grad_() for tensor in (x, *cores)]
    assert torch.autograd.gradcheck(lambda x, *cores: ttm_matvec(list(cores), x, plan), inputs)


def test_gradients_reach_the_cores_of_a_rebuilt_matrix():
    cores = [core.requires_grad_() for core in random_matrix_train([(2, 3), (3, 1), (1, 2)], 0)]
    assert torch.autograd.gradcheck(lambda *cores: ttm_to_matrix(list(cores)), cores)


def test_a_vector_that_does_not_lie_in_one_piece():
    cores = random_matrix_train([(2, 3), (3, 2)], 0)
    x = gaussian((6, 4), 1).T
    for plan in PLANS:
        torch.testing.assert_close(ttm_matvec(cores, x, plan), x @ dense_matrix(cores).T)


def test_a_plan_made_for_one_batch_serves_another():
    cores = random_matrix_train([(2, 3), (3, 2)], 0)
    x = gaussian((7, 6), 1)
    plan = plan_contraction(cores, 1)
    torch.testing.assert_close(ttm_matvec(cores, x, plan), x @ dense_matrix(cores).T)


# The planner


class Products(TorchDispatchMode):
    """Sizes of every matrix product that runs: entries read and written, and of the result."""

    def __init__(self):
        super().__init__()
        self.moved, self.results = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::bmm"):
            # A matrix that is broadcast over a batch is read once.
            sizes = [math.prod(n for n, s in zip(t.shape, t.stride(), strict=True) if s) for t in args]
            self.moved.append(sum(sizes) + result.numel())
            self.results.append(result.numel())
        return result


def plans_of(cores, batch, monkeypatch):
    """What the planner thinks of every order: it is shown one at a time."""
    plans = {}
    for order in ORDERS:
        with monkeypatch.context() as patch:
            patch.setattr("ttref.contraction.ORDERS", (order,))
            plans[order] = plan_contraction(cores, batch)
    return plans


SHAPES = [
    [(12, 8), (16, 8), (16, 12)],
    [(4, 3), (2, 5), (3, 2), (5, 4)],
    [(2, 7), (5, 3), (3, 1), (1, 4)],
    [(1, 1), (6, 5), (1, 1)],
    [(8, 8), (8, 8)],
    [(9, 10)],
]


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_plan_counts_what_runs(shape, batch, monkeypatch):
    for ranks in ((2, 4, 3), (16, 1, 8), (1, 24, 2)):
        cores = random_matrix_train(shape, 0, torch.float32, ranks)
        x = gaussian((batch, math.prod(n for _, n in shape)), 1, torch.float32)
        for order, plan in plans_of(cores, batch, monkeypatch).items():
            with FlopCounterMode(display=False) as flops, Products() as seen:
                ttm_matvec(cores, x, order)
            assert plan.order == order
            assert plan.macs == flops.get_total_flops() / 2
            if order in ("left-to-right", "right-to-left"):
                assert plan.bytes == 4 * sum(seen.moved)
            else:  # merging and rebuilding are counted per piece, so only roughly; the answer itself always
                assert plan.bytes >= 4 * (x.numel() + batch * math.prod(m for m, _ in shape))
            assert plan.temporary == 4 * max(seen.results[:-1], default=0)


@given(pairs, st.integers(1, 300), st.tuples(*[st.integers(1, 20)] * 3))
def test_auto_is_the_cheapest_order(shape, batch, ranks):
    cores = random_matrix_train(shape, 0, torch.float32, ranks)
    with pytest.MonkeyPatch.context() as monkeypatch:
        plans = plans_of(cores, batch, monkeypatch)
    best = plan_contraction(cores, batch)

    def price(plan):
        return plan.macs + MACS_PER_BYTE * plan.bytes

    assert price(best) == min(price(plan) for plan in plans.values())
    assert best == plans[best.order]
    x = gaussian((batch, math.prod(n for _, n in shape)), 1, torch.float32)
    with FlopCounterMode(display=False) as flops:
        ttm_matvec(cores, x)
    assert flops.get_total_flops() == 2 * best.macs  # what "auto" runs is what was planned


def test_the_choice_follows_the_batch():
    cores = random_matrix_train([(16, 16), (16, 16)], 0, torch.float32, (4,))
    assert plan_contraction(cores, 1).order != "dense"
    assert plan_contraction(cores, 10_000).macs < 10_000 * 256 * 256
    full = random_matrix_train([(16, 16), (16, 16)], 0, torch.float32, (256,))
    assert plan_contraction(full, 10_000).order == "dense"  # a train larger than the matrix: rebuild it


def test_a_rebuilt_matrix_costs_the_bond_it_is_joined_at():
    """The thinnest bond says nothing about the rebuilding: here it lies at the edge and the middle one is wide."""
    cores = random_matrix_train([(2, 2), (8, 8), (8, 8), (2, 2)], 0, torch.float32, (1, 64, 1))
    plan = plan_contraction(cores, 1)
    assert plan.order != "dense" and plan.macs < 256 * 256 * 64


def test_plan_fields_are_plain_numbers_that_make_sense():
    plan = plan_contraction(random_matrix_train([(12, 8), (16, 8), (16, 12)], 0, torch.float32, (8, 8)), 32)
    assert isinstance(plan, Plan) and plan.order in ORDERS
    assert all(type(value) is int for value in plan[1:])
    assert plan.bytes > 4 * 32 * (768 + 3072) and plan.temporary > 0


# Bad input

CORES = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]
HOLED = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ttm_svd(HOLED, (2,), (2,), rank=1), ValueError, r"w has 1 entries that are NaN .* index \(1, 1\)"),
        (lambda: ttm_svd(torch.ones(4, 6), (2, 2), (2, 2), rank=1), ValueError, r"w has shape \(4, 6\).*4 x 4 matrix"),
        (lambda: ttm_svd(torch.ones(16), (2, 2), (2, 2), rank=1), ValueError, r"w has shape \(16,\).*4 x 4 matrix"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (4,), rank=1), ValueError, "2 modes and col_shape .* has 1"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 0), (2, 2), rank=1), ValueError, r"row_shape\[1\] must be at least 1"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2.0), rank=1), TypeError, r"col_shape\[1\] must be an integer"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2)), ValueError, "exactly one of rank and eps, got neither"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2), rank=1, eps=0.1), ValueError, "got both"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2), rank=-1), ValueError, "rank must be at least 1, got -1"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2), eps=2), ValueError, r"must lie in \[0, 1\), got 2"),
        (lambda: ttm_svd(torch.ones(4, 4).long(), (4,), (4,), rank=1), TypeError, r"w is torch.int64.*w.float\(\)"),
        (lambda: ttm_svd(torch.ones(4, 4).cfloat(), (4,), (4,), rank=1), TypeError, "w is .*complex.*not supported"),
        (lambda: ttm_svd(torch.ones(0, 4), (2,), (4,), rank=1), ValueError, "w has no entries"),
        (lambda: ttm_to_matrix([]), ValueError, "cores is empty"),
        (lambda: ttm_to_matrix(torch.ones(1, 2, 3, 1)), TypeError, "must be a list of cores, got Tensor"),
        (lambda: ttm_to_matrix([torch.ones(1, 2, 1)]), ValueError, r"cores\[0\] has shape \(1, 2, 1\).*four axes"),
        (lambda: ttm_to_matrix([CORES[0], CORES[0]]), ValueError, r"cores\[0\] ends with rank 2 but cores\[1\] begins"),
        (lambda: ttm_to_matrix([CORES[0]]), ValueError, "end ranks of cores must be 1, got 1 on the left and 2"),
        (lambda: ttm_to_matrix([CORES[0], CORES[1].double()]), TypeError, r"cores\[1\] is torch.float64, cores\[0\]"),
        (lambda: ttm_to_matrix([CORES[0].long()]), TypeError, r"cores\[0\] is torch.int64"),
        (lambda: ttm_to_matrix([CORES[0], [1.0]]), TypeError, r"cores\[1\] must be a torch.Tensor, got list"),
        (lambda: ttm_matvec(CORES, torch.ones(3, 14)), ValueError, r"x has shape \(3, 14\).*15 = product of \(3, 5\)"),
        (lambda: ttm_matvec(CORES, torch.tensor(1.0)), ValueError, r"x has shape \(\); its last axis must hold 15"),
        (lambda: ttm_matvec(CORES, torch.ones(15).double()), TypeError, "x is torch.float64 but the cores are"),
        (lambda: ttm_matvec(CORES, torch.ones(15).long()), TypeError, "x is torch.int64"),
        (lambda: ttm_matvec(CORES, [1.0] * 15), TypeError, "x must be a torch.Tensor, got list"),
        (
            lambda: ttm_matvec(CORES, torch.ones(15), "fastest"),
            ValueError,
            "plan must be 'auto', a Plan or one of .*fa",
        ),
        (lambda: ttm_matvec(CORES, torch.ones(15), None), ValueError, "plan must be 'auto'.*got None"),
        (lambda: ttm_matvec([CORES[0]], torch.ones(3)), ValueError, "end ranks of cores must be 1"),
        (lambda: plan_contraction(CORES, 0), ValueError, "batch must be at least 1, got 0"),
        (lambda: plan_contraction(CORES, 2.0), TypeError, "batch must be an integer, got 2.0"),
        (lambda: plan_contraction(CORES, True), TypeError, "batch must be an integer, got True"),
        (lambda: plan_contraction([torch.ones(1, 2, 1)], 1), ValueError, r"cores\[0\] has shape \(1, 2, 1\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
