"""A TT-matrix times vectors: every order against the dense product, however it is run and whatever memory it uses."""

import contextlib
import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dense_matrix, gaussian, norm, pairs, random_matrix_train, seeds
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from ttref import scratch
from ttref.contraction import ttm_matvec
from ttref.plans import ORDERS, WORKING_BYTES, plan_contraction

# torch uses it itself, in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PLANS = [*ORDERS, "auto"]
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]
SHAPE = [(3, 2), (2, 4), (4, 3)]


@contextlib.contextmanager
def memory(working=WORKING_BYTES, worth_keeping=0):
    """Small products behave as large ones do: chunks, blocks, and memory that is kept from call to call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ttref.plans.WORKING_BYTES", working)
        patch.setattr("ttref.scratch.WORTH_KEEPING", worth_keeping)
        yield


@pytest.fixture
def kept(monkeypatch):
    """Everything is worth keeping, and nothing has been kept yet. Lists the requests for scratch memory."""
    requests, taken = [], scratch.scratch

    def recorded(entries, x, **options):
        requests.append((entries, x.dtype))
        return taken(entries, x, **options)

    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    monkeypatch.setattr("ttref.walks.scratch", recorded)
    vars(scratch._KEPT).clear()
    return requests


def vectors(cores, batch, seed=1):
    return gaussian((batch, math.prod(core.shape[2] for core in cores)), seed, cores[0].dtype)


def assert_product(y, cores, x):
    """In double precision, whatever the dtype; every entry is a sum whose terms may cancel."""
    w = dense_matrix([core.double() for core in cores])
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], len(w))
    unit = torch.finfo(x.dtype).eps
    assert norm(y.double() - x.double() @ w.T) <= 100 * unit * norm(w) * norm(x)


# Equal to the dense product


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=150)
@given(
    pairs,
    st.sampled_from([(), (1,), (5,), (40,), (0,), (2, 3), (2, 0, 3), (2, 1, 2)]),
    seeds,
    st.sampled_from(MODES),
    st.sampled_from([1, 300, WORKING_BYTES]),
    st.sampled_from([0, scratch.WORTH_KEEPING]),
)
def test_every_order_equals_the_dense_product(plan, shape, batch, seed, mode, working, worth_keeping):
    cores = random_matrix_train(shape, seed)
    w = dense_matrix(cores)
    x = gaussian((*batch, w.shape[1]), seed + 1)
    with memory(working, worth_keeping), mode():
        y = ttm_matvec(cores, x, plan)
        assert y.shape == (*batch, w.shape[0])
        torch.testing.assert_close(y, x @ w.T, rtol=1e-9, atol=1e-10 * float(norm(w)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_kept_and_the_product_is_good_to_that_dtype(dtype, plan, mode, kept):
    cores = random_matrix_train(SHAPE, 0, dtype)
    x = vectors(cores, 6)
    with mode():
        y = ttm_matvec(cores, x, plan)
    expected = x.double() @ dense_matrix([core.double() for core in cores]).T
    assert y.dtype == dtype
    assert norm(y.double() - expected) <= 10 * torch.finfo(dtype).eps * norm(expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", PLANS)
def test_vectors_and_cores_that_do_not_lie_in_one_piece(plan, mode):
    cores = [core.transpose(1, 2).contiguous().transpose(1, 2) for core in random_matrix_train([(2, 3), (3, 2)], 0)]
    w = dense_matrix(cores)
    one, every_second = gaussian((1, 6), 2), gaussian((20, 12), 3)[:, ::2]
    for x in (gaussian((6, 20), 1).T, one.expand(20, 6), every_second, gaussian((5, 6, 4), 4).transpose(1, 2)):
        with memory(working=1), mode():
            torch.testing.assert_close(ttm_matvec(cores, x, plan), x @ w.T)


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_made_for_one_batch_serves_another(mode):
    cores = random_matrix_train([(2, 3), (3, 2), (2, 2)], 0)
    for order in ORDERS:
        plan = plan_contraction(cores, 1, order)
        x = vectors(cores, 70)
        with memory(working=1), mode():
            assert_product(ttm_matvec(cores, x, plan), cores, x)


def test_a_plan_forces_its_order():
    cores = random_matrix_train([(12, 8), (16, 8)], 0)
    for order in ORDERS:
        plan = plan_contraction(cores, 5, order)
        with FlopCounterMode(display=False) as flops:
            ttm_matvec(cores, vectors(cores, 5), plan)
        assert flops.get_total_flops() == 2 * plan.macs


# Gradients


@pytest.mark.parametrize("working", [1, WORKING_BYTES], ids=["in chunks and blocks", "at once"])
@pytest.mark.parametrize("plan", PLANS)
def test_gradients_reach_cores_and_vectors(plan, working):
    """The 18 vectors are two chunks, and a working memory of one byte rebuilds the matrix row mode by row mode."""
    cores = random_matrix_train([(2, 3), (3, 2), (2, 1)], 0, ranks=(2, 3))
    inputs = [tensor.requires_grad_() for tensor in (vectors(cores, 18), *cores)]
    with memory(working):
        assert gradcheck(
            lambda x, *cores: ttm_matvec(list(cores), x, plan), inputs, fast_mode=True, check_forward_ad=True
        )


@pytest.mark.parametrize("plan", PLANS)
def test_second_derivatives(plan):
    cores = random_matrix_train([(2, 2), (1, 2)], 0)
    inputs = [tensor.requires_grad_() for tensor in (vectors(cores, 2), *cores)]
    assert gradgradcheck(lambda x, *cores: ttm_matvec(list(cores), x, plan), inputs, fast_mode=True)


# Memory that is kept between calls


@pytest.mark.parametrize("plan", ORDERS[:3])
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_result_does_not_change_when_the_next_one_is_computed(mode, plan, kept):
    cores = random_matrix_train(SHAPE, 0)
    with mode():
        xs = [vectors(cores, 33, seed) for seed in range(3)]
        results = [ttm_matvec(cores, x, plan) for x in xs]
    assert len(kept) == 3
    homes = {buffer.untyped_storage().data_ptr() for buffer in scratch._KEPT.buffers}
    for x, y in zip(xs, results, strict=True):
        assert_product(y, cores, x)
        assert y.untyped_storage().data_ptr() not in homes


def test_the_vectors_and_cores_are_left_as_they_were(kept):
    cores = random_matrix_train(SHAPE, 0)
    x = vectors(cores, 33)
    before = copy.deepcopy([x, *cores])
    with torch.no_grad():
        for plan in PLANS:
            ttm_matvec(cores, x, plan)
    assert all(torch.equal(old, new) for old, new in zip(before, [x, *cores], strict=True))
    assert len(kept) >= 3


def test_memory_is_kept_from_call_to_call_and_grows_when_it_must(kept):
    homes = []
    with torch.no_grad():
        for batch, dtype in ((4, torch.float64), (2, torch.float64), (50, torch.float64), (4, torch.float64)):
            cores = random_matrix_train(SHAPE, batch, dtype)
            x = vectors(cores, batch)
            assert_product(ttm_matvec(cores, x, "left-to-right"), cores, x)
            homes.append(scratch._KEPT.buffers[0].data_ptr())
    assert homes[0] == homes[1] != homes[2] == homes[3]


def test_memory_kept_for_one_dtype_serves_another(kept):
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float16, torch.float64):
            for batch in (33, 5):
                cores = random_matrix_train(SHAPE, batch, dtype)
                x = vectors(cores, batch)
                assert_product(ttm_matvec(cores, x, "right-to-left"), cores, x)
    assert len(kept) == 12


def test_large_memory_is_given_back(kept, monkeypatch):
    cores = random_matrix_train(SHAPE, 0)
    x = vectors(cores, 33)
    with torch.no_grad():
        monkeypatch.setattr("ttref.scratch.KEPT_BYTES", 100)
        assert_product(ttm_matvec(cores, x, "left-to-right"), cores, x)
    assert kept and not hasattr(scratch._KEPT, "buffers")


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_memory_born_in_one_mode_serves_in_the_others(first, second, kept):
    """A tensor made under inference mode could not be written to outside of it."""
    cores = [core.requires_grad_() for core in random_matrix_train(SHAPE, 0)]
    for mode in (first, second, first):
        x = vectors(cores, 20)
        with mode():
            y = ttm_matvec(cores, x, "left-to-right")
        assert y.requires_grad == (mode is torch.enable_grad)
        if y.requires_grad:
            y.square().sum().backward()
        with torch.no_grad():
            assert_product(y, cores, x)


def test_a_result_without_grad_can_be_used_in_one_with_grad(kept):
    """What backward saved must not lie in memory that the next call writes to."""
    cores = random_matrix_train([(4, 3), (5, 4)], 0)
    x = vectors(cores, 20)
    with torch.no_grad():
        hidden = ttm_matvec(cores, x, "left-to-right")
    weight = torch.ones(20, requires_grad=True, dtype=torch.float64)
    loss = (hidden @ weight).sum()
    with torch.no_grad():
        ttm_matvec(cores, 2 * x, "left-to-right")
    loss.backward()
    torch.testing.assert_close(weight.grad, (x @ dense_matrix(cores).T).sum(0))


def test_threads_do_not_share_memory(kept):
    """Every thread multiplies its own vectors, many times, at the same time as the others."""
    cores = random_matrix_train([(8, 8), (8, 8)], 0, ranks=(4,))
    w = dense_matrix(cores)
    start = threading.Barrier(3)

    def work(seed):
        wrong, homes = 0, set()
        with torch.no_grad():
            start.wait()
            for k in range(60):
                x = vectors(cores, 20 + k % 3, seed + 100 * k)
                wrong += not torch.allclose(ttm_matvec(cores, x, ORDERS[k % 3]), x @ w.T)
                homes.add(scratch._KEPT.buffers[0].data_ptr())
        return wrong, homes

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(work, range(3)))
    assert [wrong for wrong, _ in results] == [0, 0, 0]
    assert not hasattr(scratch._KEPT, "buffers")  # the test's own thread has asked for nothing


def with_grad(cores, x):
    return ttm_matvec(cores, x, "left-to-right")


def for_small_results(cores, x):
    with torch.no_grad(), memory(worth_keeping=10**9):
        return ttm_matvec(cores, x, "left-to-right")


def for_a_rebuilt_matrix(cores, x):
    """Its blocks are as large as the cache; they come and go one after the other."""
    with torch.no_grad():
        return ttm_matvec(cores, x, "dense")


def under_vmap(cores, x):
    with torch.no_grad():
        return torch.func.vmap(lambda row: ttm_matvec(cores, row, "left-to-right"))(x)


def in_forward_mode(cores, x):
    with torch.no_grad(), forward_ad.dual_level():
        y = ttm_matvec(cores, forward_ad.make_dual(x, x), "left-to-right")
        value, tangent = forward_ad.unpack_dual(y)
        torch.testing.assert_close(tangent, value)
        return value


@pytest.mark.parametrize("way", [with_grad, for_small_results, for_a_rebuilt_matrix, under_vmap, in_forward_mode])
def test_no_memory_is_kept(way, kept):
    cores = random_matrix_train(SHAPE, 0)
    x = vectors(cores, 20)
    assert_product(way(cores, x), cores, x)
    assert not kept


def test_a_fake_tensor_leaves_nothing_behind(kept):
    """Tools that trace shapes run the code on tensors without memory; the next real call must not meet those."""
    cores = random_matrix_train(SHAPE, 0)
    x = vectors(cores, 20)
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert ttm_matvec(cores, mode.from_tensor(x), "left-to-right").shape == (20, 24)
        assert not kept
        assert_product(ttm_matvec(cores, x, "left-to-right"), cores, x)


@pytest.mark.parametrize("plan", PLANS)
def test_a_default_device_of_the_callers_does_not_matter(plan, kept):
    cores = random_matrix_train(SHAPE, 0)
    x = vectors(cores, 20)
    with torch.no_grad(), torch.device("meta"):
        y = ttm_matvec(cores, x, plan)
    assert_product(y, cores, x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", PLANS)
def test_autocast_changes_nothing(plan, mode, kept):
    """Half precision is contracted in float32, and autocast is no exception; products of both would not mix."""
    cores = random_matrix_train([(3, 2), (2, 4), (4, 3), (2, 2)], 0, torch.float32)
    x = vectors(cores, 20)
    with mode(), torch.autocast("cpu", torch.bfloat16):
        assert_product(ttm_matvec(cores, x, plan), cores, x)


# Transforms of functions


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("plan", PLANS)
def test_transforms_of_functions(plan, mode, kept):
    """Mapped over vectors, over matrices and over both; gradients for each vector; forward mode."""
    trains = [random_matrix_train(SHAPE, seed) for seed in range(3)]
    stacked = [torch.stack(cores) for cores in zip(*trains, strict=True)]
    ws = torch.stack([dense_matrix(cores) for cores in trains])
    x = vectors(trains[0], 3)

    def product(cores, x):
        return ttm_matvec(cores, x, plan)

    def loss(x, cores):
        return product(cores, x).square().sum()

    with memory(working=1), mode():
        vmap, cores = torch.func.vmap, trains[0]
        torch.testing.assert_close(vmap(product, (None, 0))(cores, x), x @ ws[0].T)
        torch.testing.assert_close(vmap(product, (0, None))(stacked, x), x @ ws.mT)
        torch.testing.assert_close(vmap(product)(stacked, x), torch.einsum("bmn,bn->bm", ws, x))
        torch.testing.assert_close(vmap(torch.func.grad(loss), (0, None))(x, cores), 2 * x @ ws[0].T @ ws[0])
        torch.testing.assert_close(torch.func.jacrev(product, 1)(cores, x[0]), ws[0])
        torch.testing.assert_close(torch.func.jacfwd(product, 1)(cores, x[0]), ws[0])
        y, tangent = torch.func.jvp(lambda x: product(cores, x), (x,), (x,))
        torch.testing.assert_close(tangent, y)


# Bad input

CORES = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ttm_matvec(CORES, torch.ones(3, 14)), ValueError, r"x has shape \(3, 14\).*15 = product of \(3, 5\)"),
        (lambda: ttm_matvec(CORES, torch.tensor(1.0)), ValueError, r"x has shape \(\); its last axis must hold 15"),
        (lambda: ttm_matvec(CORES, torch.ones(15).double()), TypeError, "x is torch.float64 but the cores are"),
        (lambda: ttm_matvec(CORES, torch.ones(15).long()), TypeError, "x is torch.int64"),
        (lambda: ttm_matvec(CORES, torch.ones(15).cfloat()), TypeError, "x is torch.complex64.*not supported"),
        (lambda: ttm_matvec(CORES, [1.0] * 15), TypeError, "x must be a torch.Tensor, got list"),
        (lambda: ttm_matvec(CORES, torch.ones(15), "fast"), ValueError, "plan must be 'auto', a Plan or one of .*fast"),
        (lambda: ttm_matvec(CORES, torch.ones(15), None), ValueError, "plan must be 'auto'.*got None"),
        (lambda: ttm_matvec([CORES[0]], torch.ones(3)), ValueError, "end ranks of cores must be 1"),
        (lambda: ttm_matvec([CORES[0], CORES[0]], torch.ones(9)), ValueError, r"cores\[0\] ends with rank 2 but"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
