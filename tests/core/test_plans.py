"""Contraction plans: every sum against what really runs, and the choice between the orders."""

import contextlib
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, pairs, random_matrix_train
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ttref.contraction import ttm_matvec
from ttref.costs import LEAST_SHARE, Plan, cost, price
from ttref.plans import ORDERS, WORKING_BYTES, _modest, plan_contraction

ONE_AT_A_TIME = ORDERS[:2]
SHAPES = [
    [(12, 8), (16, 8), (16, 12)],
    [(4, 3), (2, 5), (3, 2), (5, 4)],
    [(2, 7), (5, 3), (3, 1), (1, 4)],
    [(1, 1), (6, 5), (1, 1)],
    [(8, 8), (8, 8)],
    [(9, 10)],
]
some_ranks = st.tuples(*[st.integers(1, 20)] * 3)


class Products(TorchDispatchMode):
    """Entries that every matrix product reads and writes, and the entries of its result."""

    def __init__(self):
        super().__init__()
        self.moved, self.results = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::bmm"):
            # A core that is expanded over many slices has their number among its entries: it is read for each.
            self.moved.append(sum(operand.numel() for operand in (*args, result)))
            self.results.append(result.numel())
        return result

    def temporary(self, order, count):
        """Entries of the largest result that is no part of the answer, which ends every pass through the cores."""
        merges, cycle = (0, count) if order in ONE_AT_A_TIME else (max(count - 2, 0), min(count, 2))
        passes = self.results[merges:]
        return max(self.results[:merges] + [size for k, size in enumerate(passes, 1) if k % cycle], default=0)

    def entries(self, order, count):
        """Entries moved; those of a merged core three times: it is written, then read and written to sort its axes."""
        merging = [order not in ONE_AT_A_TIME and k < count - 2 for k in range(len(self.moved))]
        if order == "dense" and count > 1:  # each block of rows is rebuilt, then used
            merging[count - 2 :: 2] = [True] * len(merging[count - 2 :: 2])
        sizes = zip(merging, self.moved, self.results, strict=True)
        return sum(3 * result if merged else moved for merged, moved, result in sizes)


@contextlib.contextmanager
def working_memory(size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ttref.plans.WORKING_BYTES", size)
        yield


def vectors(cores, batch):
    return gaussian((batch, math.prod(core.shape[2] for core in cores)), 1, torch.float32)


def assert_counts_what_runs(cores, batch):
    x = vectors(cores, batch)
    for order in ORDERS:
        plan = plan_contraction(cores, batch, order)
        with FlopCounterMode(display=False) as flops, Products() as seen:
            ttm_matvec(cores, x, order)
        assert plan.order == order
        assert plan.macs == flops.get_total_flops() / 2
        if torch.is_grad_enabled():  # there a core meets all slices at once, so that backward can
            continue
        assert plan.bytes == 4 * seen.entries(order, len(cores))
        assert plan.temporary == 4 * seen.temporary(order, len(cores))


@pytest.mark.parametrize("no_grad", [False, True], ids=["recorded", "in kept memory"])
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_plan_counts_what_runs(shape, batch, no_grad, monkeypatch):
    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    for ranks in ((2, 4, 3), (16, 1, 8), (1, 24, 2)):
        with torch.set_grad_enabled(not no_grad):
            assert_counts_what_runs(random_matrix_train(shape, 0, torch.float32, ranks), batch)


@pytest.mark.parametrize("no_grad", [False, True], ids=["recorded", "in kept memory"])
@pytest.mark.parametrize("batch", [17, 64, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_plan_counts_what_runs_in_chunks(shape, batch, no_grad, monkeypatch):
    """Chunks that do not divide the batch, and matrices rebuilt in blocks that do not divide the rows."""
    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    cores = random_matrix_train(shape, 0, torch.float32)
    rows, cols = (math.prod(core.shape[axis] for core in cores) for axis in (1, 2))
    for working in (1, 5000, 4 * rows * cols * 2 // 3):
        with working_memory(working), torch.set_grad_enabled(not no_grad):
            assert_counts_what_runs(cores, batch)


@given(pairs, st.integers(1, 300), some_ranks, st.sampled_from([1, 400, WORKING_BYTES]))
def test_auto_is_the_cheapest_order(shape, batch, ranks, working):
    cores = random_matrix_train(shape, 0, torch.float32, ranks)
    with working_memory(working):
        plans = {order: plan_contraction(cores, batch, order) for order in ORDERS}
        best = plan_contraction(cores, batch)
        least = min(map(price, plans.values()))
        near = [plan for plan in plans.values() if _modest(plan) and 10 * price(plan) <= 11 * least]  # memory of dense
        modest = near or plans.values()
        assert price(best) == min(price(plan) for plan in modest)
        assert best == plans[best.order]
        with FlopCounterMode(display=False) as flops:
            ttm_matvec(cores, vectors(cores, batch))
    assert flops.get_total_flops() == 2 * best.macs  # what "auto" runs is what was planned


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=5), st.integers(1, 99), some_ranks
)
def test_two_gemm_is_cut_where_that_is_cheapest(shape, batch, ranks):
    """Each cut by itself is the plan of two cores, merged beforehand, plus the merging."""
    shapes = [tuple(core.shape) for core in random_matrix_train(shape, 0, torch.float32, (*ranks, 2))]
    whole = cost("two-gemm", shapes, batch)
    prices = []
    for cut in range(1, len(shapes)):
        halves = [shapes[:cut], shapes[cut:]]
        merged = [
            (part[0][0], math.prod(s[1] for s in part), math.prod(s[2] for s in part), part[-1][3]) for part in halves
        ]
        walk = min((cost(way, merged, batch) for way in ONE_AT_A_TIME), key=lambda plan: plan.macs)
        for part in halves:
            sides = {False: (0, 0), True: (0, 0)}
            for right, k in itertools.product(sides, range(1, len(part))):
                joined, bond = (part[-k - 1 :], part[-k][0]) if right else (part[: k + 1], part[k][0])
                rows, cols = (math.prod(s[axis] for s in joined) for axis in (1, 2))
                entries = joined[0][0] * rows * cols * joined[-1][3]
                sides[right] = sides[right][0] + entries * bond, sides[right][1] + 12 * entries
            macs, moved = min(sides.values(), key=lambda side: side[0])
            walk = walk._replace(macs=walk.macs + macs, bytes=walk.bytes + moved)
        prices.append(price(walk._replace(cut=cut)))
    assert price(whole) == min(prices) == prices[whole.cut - 1]


@pytest.mark.parametrize("batch", [1, 16])
def test_each_half_is_merged_from_its_cheaper_side(batch):
    """An adapter of rank 4 on a 384 x 384 matrix: cores of rows alone, then of columns alone."""
    shape = [(8, 1), (8, 1), (6, 1), (1, 6), (1, 8), (1, 8)]
    cores = random_matrix_train(shape, 0, torch.float32, (4,) * 5)
    plan = plan_contraction(cores, batch, "two-gemm")
    assert plan.cut == 3
    assert plan.macs == 2 * 4 * 4 * (64 + 384) + batch * 2 * 4 * 384
    if batch == 1:
        assert plan.macs == 17_408
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), FlopCounterMode(display=False) as flops:
            ttm_matvec(cores, vectors(cores, batch), plan)
        assert flops.get_total_flops() == 2 * plan.macs


@given(pairs, st.integers(1, 5000), some_ranks, st.integers(1, 10**6))
def test_a_chunk_is_as_large_as_working_memory_allows(shape, batch, ranks, working):
    with working_memory(working):
        for order in ORDERS[:3]:
            plan = plan_contraction(random_matrix_train(shape, 0, torch.float32, ranks), batch, order)
            assert 1 <= plan.chunk <= batch
            if order == "two-gemm" or plan.temporary == 0:  # merging does not depend on the chunk
                continue
            each = plan.temporary // plan.chunk  # bytes of the larger of two results that are alive together
            assert plan.chunk == 1 or plan.chunk * each <= max(2 * working, working // LEAST_SHARE)
            if plan.chunk < batch:  # the chunks are of about equal size: no fewer would have done, not no larger ones
                fewer = -(-batch // plan.chunk) - 1
                assert 2 * -(-batch // fewer) * each > working // LEAST_SHARE


def test_multiply_adds_of_one_core_at_a_time_grow_with_the_batch_and_nothing_else():
    shapes = [tuple(core.shape) for core in random_matrix_train(SHAPES[0], 0)]
    for order in ONE_AT_A_TIME:
        for working in (1, WORKING_BYTES):
            assert cost(order, shapes, 1000, working).macs == 1000 * cost(order, shapes, 1, working).macs


def test_the_choice_follows_the_batch():
    cores = random_matrix_train([(16, 16), (16, 16)], 0, torch.float32, (4,))
    assert plan_contraction(cores, 1).order != "dense"
    assert plan_contraction(cores, 10_000).macs < 10_000 * 256 * 256
    full = random_matrix_train([(16, 16), (16, 16)], 0, torch.float32, (256,))
    assert plan_contraction(full, 10_000).order == "dense"  # a train larger than the matrix: rebuild it


def test_the_direction_follows_the_modes():
    growing = random_matrix_train([(2, 8), (4, 8), (16, 8)], 0, torch.float32, (4, 4))
    shrinking = random_matrix_train([(16, 8), (4, 8), (2, 8)], 0, torch.float32, (4, 4))
    assert [plan_contraction(cores, 1).order for cores in (growing, shrinking)] == ["left-to-right", "right-to-left"]
    mirrored = [core.transpose(0, 3) for core in reversed(growing)]
    there, back = plan_contraction(growing, 9, "left-to-right"), plan_contraction(mirrored, 9, "right-to-left")
    assert (there.macs, there.temporary, there.chunk) == (back.macs, back.temporary, back.chunk)


def test_a_rebuilt_matrix_costs_the_bond_it_is_joined_at():
    """The thinnest bond says nothing about the rebuilding: here it lies at the edge and the middle one is wide."""
    cores = random_matrix_train([(2, 2), (8, 8), (8, 8), (2, 2)], 0, torch.float32, (1, 64, 1))
    plan = plan_contraction(cores, 1)
    assert plan.order != "dense" and plan.macs < 256 * 256 * 64


def test_plan_fields_are_plain_numbers_that_make_sense():
    cores = random_matrix_train([(12, 8), (16, 8), (16, 12)], 0, torch.float32, (8, 8))
    plan = plan_contraction(cores, 32)
    assert isinstance(plan, Plan) and plan.order in ORDERS
    assert all(type(value) is int for value in plan[1:7])
    assert plan.batch == 32 and plan.widths == (3072, 768) and plan.shapes == tuple(core.shape for core in cores)
    assert plan.bytes > 4 * 32 * (768 + 3072) and plan.temporary > 0 and plan.cut == 0
    assert plan_contraction(cores, 32, "two-gemm").cut in (1, 2)
    assert price(plan) == plan.macs + plan.bytes // 4


def test_planning_contracts_nothing():
    cores = [core.to("meta") for core in random_matrix_train(SHAPES[0], 0)]
    with FlopCounterMode(display=False) as flops:
        plan_contraction(cores, 10**9)
    assert flops.get_total_flops() == 0


CORES = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plan_contraction(CORES, 0), ValueError, "batch must be at least 1, got 0"),
        (lambda: plan_contraction(CORES, -5), ValueError, "batch must be at least 1, got -5"),
        (lambda: plan_contraction(CORES, 2.0), TypeError, "batch must be an integer, got 2.0"),
        (lambda: plan_contraction(CORES, "2"), TypeError, "batch must be an integer, got '2'"),
        (lambda: plan_contraction(CORES, True), TypeError, "batch must be an integer, got True"),
        (lambda: plan_contraction(CORES, 1, "fastest"), ValueError, "order must be 'auto' or one of .*got 'fastest'"),
        (lambda: plan_contraction(CORES, 1, None), ValueError, "order must be 'auto' or one of .*got None"),
        (lambda: plan_contraction([torch.ones(1, 2, 1)], 1), ValueError, r"cores\[0\] has shape \(1, 2, 1\)"),
        (lambda: plan_contraction([CORES[0]], 1), ValueError, "end ranks of cores must be 1"),
        (lambda: plan_contraction([], 1), ValueError, "cores is empty"),
        (lambda: plan_contraction(CORES[0], 1), TypeError, "must be a list of cores, got Tensor"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
