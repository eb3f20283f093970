"""TT-SVD and reading trains: guarantees as properties, the dense tensor as oracle, messages for bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense, gaussian, modes, random_train, seeds

from ttref import threads
from ttref.shapes import tt_params, tt_ranks
from ttref.trains import tt_entry, tt_svd, tt_to_tensor

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def relative_error(cores, x, batch_dims=0):
    axes = tuple(range(batch_dims, x.ndim))
    gap = torch.linalg.vector_norm(dense([core.double() for core in cores]) - x.double(), dim=axes)
    return gap / torch.linalg.vector_norm(x.double(), dim=axes).clamp(min=1e-300)


@given(modes, st.sampled_from(FLOATS), st.floats(0, 0.95), seeds)
def test_eps_bounds_the_error_of_every_tensor_in_a_batch(shape, dtype, eps, seed):
    x = gaussian((3, *shape), seed, dtype)
    x[1] = 0
    x[2] *= torch.linspace(1, 1e-3, math.prod(shape)).reshape(shape).to(dtype)
    cores = tt_svd(x, eps=eps, batch_dims=1)
    assert all(core.dtype == dtype for core in cores)
    bound = eps + 10 * len(shape) * torch.finfo(dtype).eps
    assert (relative_error(cores, x, 1) <= bound).all()
    assert torch.equal(tt_to_tensor(cores)[1], torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [0, 0.1])
def test_half_precision_does_not_drown_eps(dtype, eps):
    """Ten machine epsilons of bfloat16 for each of ten modes would be 78 %; only the cast of the cores may cost."""
    x = gaussian((20, *(2,) * 10), 0).cumsum(-1).cumsum(-2).to(dtype)
    assert (relative_error(tt_svd(x, eps=eps, batch_dims=1), x, 1) <= eps + 4 * torch.finfo(dtype).eps).all()


@given(modes, st.floats(0.05, 0.9), seeds)
def test_a_batch_gives_each_tensor_the_train_it_gets_alone(shape, eps, seed):
    x = gaussian((4, *shape), seed)
    together = tt_svd(x, eps=eps, batch_dims=1)
    alone = [tt_svd(row, eps=eps) for row in x]
    for k in range(len(shape)):
        assert together[k].shape[-1] == max(cores[k].shape[-1] for cores in alone)
    for row, cores in enumerate(alone):
        torch.testing.assert_close(tt_to_tensor(together)[row], tt_to_tensor(cores))


@given(modes, st.integers(1, 6), seeds, st.sampled_from([torch.float64, torch.float32]))
def test_rank_caps_are_clipped_and_the_error_is_quasi_optimal(shape, rank, seed, dtype):
    x = gaussian(tuple(shape), seed, dtype)
    cores = tt_svd(x, rank=rank)
    ranks = tt_ranks(shape, rank)
    assert (1, *(core.shape[-1] for core in cores)) == ranks
    assert sum(core.numel() for core in cores) == tt_params(shape, rank)
    lost = [
        torch.linalg.svdvals(x.double().reshape(math.prod(shape[:k]), -1))[ranks[k] :].square().sum()
        for k in range(1, len(shape))
    ]
    error = torch.linalg.vector_norm(dense([core.double() for core in cores]) - x.double())
    slack = 10 * len(shape) * torch.finfo(dtype).eps * torch.linalg.vector_norm(x.double())
    assert error <= torch.tensor(lost).sum().sqrt() + slack  # theorem 2.2 of Oseledets (2011)
    if lost:
        assert error >= max(lost).sqrt() - slack  # no train of these ranks can do better than any single cut


@given(modes, seeds)
def test_error_falls_as_the_rank_grows(shape, seed):
    x = gaussian(tuple(shape), seed)
    errors = [float(relative_error(tt_svd(x, rank=r), x)) for r in range(1, 9)]
    assert all(b <= a + 1e-12 for a, b in zip(errors, errors[1:], strict=False))


@given(st.lists(st.integers(2, 4), min_size=2, max_size=5), st.integers(1, 3), seeds)
def test_eps_zero_finds_the_exact_ranks_of_a_train(shape, rank, seed):
    x = dense(random_train(shape, rank, seed))
    for dtype in (torch.float64, torch.float32):
        cores = tt_svd(x.to(dtype), eps=0)
        assert (1, *(c.shape[-1] for c in cores)) <= tt_ranks(shape, rank)
        assert relative_error(cores, x.to(dtype)) < 10 * len(shape) * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decades", [1, 3, 6, 9])
def test_accuracy_rule_steep_spectra_stay_exact(dtype, decades):
    """A Gram matrix in the data's own precision would lose every singular value below sqrt(u) of the largest."""
    u, _ = torch.linalg.qr(gaussian((32, 32), 1))
    v, _ = torch.linalg.qr(gaussian((32, 32), 2))
    s = torch.logspace(0, -decades, 32, dtype=torch.float64)
    x = (u * s @ v.T).to(dtype)
    for rank in (4, 16, 28):
        error = torch.linalg.vector_norm(tt_to_tensor(tt_svd(x, rank=rank)).double() - x.double())
        best = torch.linalg.svdvals(x.double())[rank:].square().sum().sqrt()
        assert error <= best * (1 + 1e-6) + 4 * torch.finfo(dtype).eps * s[0]


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1.0, 1e30, 1e200])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    x = gaussian((4, 4, 4), 0) * scale
    for cores in (tt_svd(x, eps=0.1), tt_svd(x, rank=2)):
        best = tt_svd(x / scale, rank=2)
        assert torch.isfinite(tt_to_tensor(cores)).all() and tt_to_tensor(cores).abs().max() > 0
    torch.testing.assert_close(tt_to_tensor(tt_svd(x, rank=2)) / scale, tt_to_tensor(best))


def test_left_cores_are_orthonormal_and_identity_cores_stand_right_of_the_carrier():
    cores = tt_svd(gaussian((7, 2, 2, 2, 2, 2, 2), 3), rank=3, batch_dims=1)
    for core in cores[:3]:
        flat = core.flatten(1, 2)
        torch.testing.assert_close(flat.mT @ flat, torch.eye(core.shape[-1], dtype=torch.float64).expand(7, -1, -1))
    for core in cores[-1:]:
        flat = core.flatten(2, 3)
        torch.testing.assert_close(flat @ flat.mT, torch.eye(core.shape[1], dtype=torch.float64).expand(7, -1, -1))


def test_signs_do_not_depend_on_the_solver():
    x = gaussian((6, 30), 5)
    first = tt_svd(x, rank=3)[0][0]
    again = tt_svd(x.float(), rank=3)[0][0].double()
    torch.testing.assert_close(first, again, atol=1e-4, rtol=0)  # two routes, one sign
    for column in first.T:
        large = column[column.abs() > 0.6 * column.abs().max()]
        assert large[0] > 0


@pytest.fixture
def three_threads():
    """The pool is only there with more than one thread; three also cut unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_chunks_and_threads_change_nothing(three_threads, monkeypatch):
    x = gaussian((257, 4, 4, 4), 7, torch.float32)
    whole = [tt_svd(x, rank=2, batch_dims=1), tt_svd(x, eps=0.3, batch_dims=1)]
    monkeypatch.setattr(threads, "CHUNK_BYTES", 64 * 8 * 10)
    cut = [tt_svd(x, rank=2, batch_dims=1), tt_svd(x, eps=0.3, batch_dims=1)]
    assert torch.get_num_threads() == 3
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(tt_to_tensor(a), tt_to_tensor(b))
        assert [core.shape for core in a] == [core.shape for core in b]


def test_an_error_in_a_worker_is_raised_and_threads_are_restored(three_threads, monkeypatch):
    monkeypatch.setattr(threads, "CHUNK_BYTES", 8)

    def fail(chunk):
        raise RuntimeError(f"chunk {chunk.start}")

    with pytest.raises(RuntimeError, match="chunk 0"):
        threads.map_chunks(fail, 5, 8, torch.device("cpu"))
    assert torch.get_num_threads() == 3


def test_no_gradient_goes_through_a_decomposition_but_through_contraction():
    x = gaussian((64, 2, 2, 2), 1).requires_grad_()
    cores = tt_svd(x, rank=2, batch_dims=1)
    assert not any(core.requires_grad for core in cores)
    cores = [core.clone().requires_grad_() for core in tt_svd(x.detach()[0], rank=2)]
    assert torch.autograd.gradcheck(lambda *c: tt_to_tensor(c), cores)
    assert torch.autograd.gradcheck(lambda *c: tt_entry(c, (1, 0, 1)), cores)


@given(modes, st.integers(1, 4), seeds, st.sampled_from([(), (3,), (2, 2)]))
def test_to_tensor_and_entry_agree_with_the_dense_contraction(shape, rank, seed, batch):
    cores = random_train(shape, rank, seed, batch)
    full = dense(cores)
    torch.testing.assert_close(tt_to_tensor(cores), full)
    index = torch.stack([torch.randint(n, (5,), generator=torch.Generator().manual_seed(seed)) for n in shape], -1)
    picked = full[(..., *index.T)]
    torch.testing.assert_close(tt_entry(cores, index), picked)
    torch.testing.assert_close(tt_entry(cores, index - torch.tensor(shape)), picked)  # negative indices
    torch.testing.assert_close(tt_entry(cores, index[0].tolist()), picked[..., 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_kept(dtype):
    x = gaussian((4, 4, 4), 0, dtype)
    for cores in (tt_svd(x, rank=2), tt_svd(x, eps=0.2)):
        assert {core.dtype for core in cores} == {dtype}
        assert tt_to_tensor(cores).dtype == dtype and tt_entry(cores, (0, 0, 0)).dtype == dtype


def test_shape_argument_pads_nothing_and_reshapes_row_major():
    x = torch.arange(12, dtype=torch.float64)
    assert torch.allclose(tt_to_tensor(tt_svd(x, (3, 4), rank=2)), x.reshape(3, 4))
    table = gaussian((5, 12), 0)
    cores = tt_svd(table, (2, 3, 2), rank=4, batch_dims=1)
    torch.testing.assert_close(tt_to_tensor(cores), table.reshape(5, 2, 3, 2))


def test_one_mode_is_the_vector_itself():
    x = gaussian((6,), 0)
    (core,) = tt_svd(x, eps=0.5)
    assert core.shape == (1, 6, 1) and torch.allclose(core.flatten(), x)


NAN = torch.tensor([1.0, float("nan"), 2.0, 3.0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tt_svd(NAN, (2, 2), rank=1), ValueError, r"1 entries that are NaN or Inf, the first at index \(1,\)"),
        (lambda: tt_svd(torch.full((2, 2), float("inf")), rank=1), ValueError, "4 entries that are NaN or Inf"),
        (lambda: tt_svd(torch.ones(4), (2, 2)), ValueError, "exactly one of rank and eps, got neither"),
        (lambda: tt_svd(torch.ones(4), (2, 2), rank=1, eps=0.1), ValueError, "exactly one of rank and eps, got both"),
        (lambda: tt_svd(torch.ones(4), (2, 2), eps=1.0), ValueError, r"must lie in \[0, 1\), got 1.0"),
        (lambda: tt_svd(torch.ones(4), (2, 2), eps=-0.1), ValueError, r"must lie in \[0, 1\), got -0.1"),
        (lambda: tt_svd(torch.ones(4), (2, 2), eps=float("nan")), ValueError, "got nan"),
        (lambda: tt_svd(torch.ones(4), (2, 2), eps="0.1"), TypeError, "eps must be a number"),
        (lambda: tt_svd(torch.ones(4), (2, 2), rank=0), ValueError, "rank must be at least 1, got 0"),
        (lambda: tt_svd(torch.ones(4), (2, 2), rank=(1, 2)), ValueError, "2 modes have 3 ranks"),
        (lambda: tt_svd(torch.ones(4, dtype=torch.int64), (2, 2), rank=1), TypeError, "torch.int64.*floating-point"),
        (lambda: tt_svd(torch.ones(4, dtype=torch.complex64), (2, 2), rank=1), TypeError, "complex.*not supported"),
        (lambda: tt_svd([1.0, 2.0], (2,), rank=1), TypeError, "must be a torch.Tensor, got list"),
        (lambda: tt_svd(torch.ones(0, 4), (2, 2), rank=1, batch_dims=1), ValueError, "no entries"),
        (lambda: tt_svd(torch.ones(5), (2, 2), rank=1), ValueError, "product 4, but each tensor has 5 entries"),
        (lambda: tt_svd(torch.ones(5), batch_dims=1, rank=1), ValueError, "batch_dims is 1, but x has 1 axes"),
        (lambda: tt_svd(torch.tensor(5.0), rank=1), ValueError, "single number"),
        (lambda: tt_to_tensor([]), ValueError, "empty"),
        (lambda: tt_to_tensor(torch.ones(1, 2, 1)), TypeError, "list of cores"),
        (lambda: tt_to_tensor([torch.ones(1, 2)]), ValueError, r"cores\[0\] has shape \(1, 2\)"),
        (
            lambda: tt_to_tensor([torch.ones(1, 2, 3), torch.ones(2, 2, 1)]),
            ValueError,
            r"cores\[0\] ends with rank 3 but cores\[1\] begins with rank 2",
        ),
        (lambda: tt_to_tensor([torch.ones(1, 2, 3)]), ValueError, "end ranks of cores must be 1, got 1 .* 3"),
        (lambda: tt_to_tensor([torch.ones(1, 2, 1), torch.ones(4, 1, 2, 1)]), ValueError, "batch axes"),
        (lambda: tt_to_tensor([torch.ones(1, 2, 1), torch.ones(1, 2, 1).double()]), TypeError, "one dtype"),
        (lambda: tt_entry([torch.ones(1, 2, 1)], (2,)), IndexError, r"outside the modes \(2,\)"),
        (lambda: tt_to_tensor([torch.ones(1, 0, 1)]), ValueError, r"cores\[0\] has no entries: .* \(1, 0, 1\)"),
        (lambda: tt_svd(torch.ones(16), 16, rank=1), TypeError, "shape must be a sequence of modes"),
        (lambda: tt_svd(torch.ones(16), (2.0, 8), rank=1), TypeError, r"shape\[0\] must be an integer"),
        (lambda: tt_svd(torch.ones(16), (-2, -8), rank=1), ValueError, r"shape\[0\] must be at least 1, got -2"),
        (lambda: tt_svd(torch.ones(1), (), rank=1), ValueError, "shape is empty"),
        (lambda: tt_entry([torch.ones(1, 2, 1)], (0, 0)), IndexError, "must hold 1 mode indices"),
        (lambda: tt_entry([torch.ones(1, 2, 1)], (0.5,)), TypeError, "integers"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_finite_entries_whose_sum_overflows_are_accepted():
    x = torch.tensor([2e38, 2e38])
    assert x.sum().isinf()
    torch.testing.assert_close(tt_to_tensor(tt_svd(x, (2, 1), rank=1)).flatten(), x)


def test_a_norm_beyond_the_dtype_is_an_error_not_an_inf():
    with pytest.raises(ValueError, match="norm of x, beyond the range of torch.float16; convert x with .float()"):
        tt_svd(torch.full((4096, 2), 2000.0, dtype=torch.float16), rank=1)


def test_peak_memory_of_a_full_vocabulary_stays_under_a_gigabyte():
    """Runs in a fresh process, where the high-water mark belongs to the decomposition alone."""
    import subprocess
    import sys

    pytest.importorskip("resource", reason="this system does not tell the peak so")
    code = """
import resource, sys, torch
from ttref import tt_svd
x = torch.randn(50257, 768)
tt_svd(x[:4000], (4, 4, 4, 4, 3), rank=4, batch_dims=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tt_svd(x, (4, 4, 4, 4, 3), rank=4, batch_dims=1)
tt_svd(x, (4, 4, 4, 4, 3), eps=0.3, batch_dims=1)
unit = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 2**30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0


def test_the_pool_works_in_inference_mode(three_threads, monkeypatch):
    monkeypatch.setattr(threads, "CHUNK_BYTES", 64 * 8 * 10)
    x = gaussian((100, 4, 4, 4), 1)
    with torch.inference_mode():
        inside = tt_svd(x, rank=2, batch_dims=1)
    torch.testing.assert_close(tt_to_tensor(inside), tt_to_tensor(tt_svd(x, rank=2, batch_dims=1)))


@pytest.mark.parametrize("n", [100, 600])
def test_eps_zero_finds_the_rank_under_float64_rounding(n):
    x = gaussian((n, 5), 0) @ gaussian((5, n), 1)
    assert tt_svd(x, eps=0)[0].shape[-1] == 5


def test_cores_can_be_saved_as_they_are(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(threads, "CHUNK_BYTES", 64 * 8 * 10)
    for cores in (tt_svd(gaussian((100, 4, 4, 4), 2), eps=0.5, batch_dims=1), tt_svd(gaussian((4, 4, 4), 2), rank=2)):
        save_file({str(k): core for k, core in enumerate(cores)}, tmp_path / "cores.safetensors")
        assert torch.equal(load_file(tmp_path / "cores.safetensors")["0"], cores[0])


def test_numpy_integers_are_integers():
    import numpy as np

    x = gaussian((3, 8), 0)
    cores = tt_svd(x, np.array([2, 4]), rank=np.int64(2), batch_dims=np.int64(1))
    torch.testing.assert_close(tt_to_tensor(cores), tt_to_tensor(tt_svd(x, (2, 4), rank=2, batch_dims=1)))
    assert len(tt_svd(x[0], (2, 4), eps=np.float32(0.1))) == 2


def test_an_index_error_shows_one_index_not_all_of_them():
    index = torch.full((100_000, 1), 7)
    with pytest.raises(IndexError, match=r"index \[7\] lies outside the modes \(2,\)$"):
        tt_entry([torch.ones(1, 2, 1)], index)
