"""Trains put to work: canonical forms, rounding, inner products, norms, sums and products against their dense twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dense, gaussian, modes, random_train, seeds

from ttref.algebra import tt_add, tt_dot, tt_hadamard
from ttref.canonical import tt_norm, tt_orthogonalize, tt_round
from ttref.shapes import tt_ranks
from ttref.trains import tt_svd, tt_to_tensor

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BATCHES = [(), (3,), (2, 2)]
# Batch axes of a, of b, and of what they make together.
PAIRS = [((), (), ()), ((3,), (3,), (3,)), ((3,), (), (3,)), ((), (2, 3), (2, 3)), ((2, 1), (3,), (2, 3))]
ranks = st.integers(1, 4)
few = settings(max_examples=25)  # each of these examples is many calls


def ranks_of(cores):
    return (1, *(core.shape[-1] for core in cores))


def double(cores):
    return [core.double() for core in cores]


def norms(x, d):
    return torch.linalg.vector_norm(x.double(), dim=tuple(range(x.ndim - d, x.ndim)))


def identities(gram):
    return torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram)


def assert_left_orthonormal(cores):
    for core in cores:
        flat = core.flatten(-3, -2)
        torch.testing.assert_close(flat.mT @ flat, identities(flat.mT @ flat))


def assert_right_orthonormal(cores):
    for core in cores:
        flat = core.flatten(-2)
        torch.testing.assert_close(flat @ flat.mT, identities(flat @ flat.mT))


# Canonical forms


@few
@given(modes, ranks, seeds, st.sampled_from(BATCHES))
def test_every_center_keeps_the_tensor_and_makes_its_neighbors_orthonormal(shape, rank, seed, batch):
    cores = random_train(shape, rank, seed, batch)
    full, d = dense(cores), len(shape)
    for center in range(d):
        moved = tt_orthogonalize(cores, center)
        torch.testing.assert_close(dense(moved), full, rtol=1e-10, atol=1e-10 * float(full.abs().max()))
        assert_left_orthonormal(moved[:center])
        assert_right_orthonormal(moved[center + 1 :])
        norm_of_center = torch.linalg.vector_norm(moved[center], dim=(-3, -2, -1))
        torch.testing.assert_close(norm_of_center, norms(full, d))


@few
@given(modes, seeds)
def test_orthogonalizing_shrinks_bonds_that_one_side_cannot_fill(shape, seed):
    cores = random_train(shape, 30, seed)
    for k in range(1, len(shape)):
        assert ranks_of(tt_orthogonalize(cores, len(shape) - 1))[k] <= math.prod(shape[:k])
        assert ranks_of(tt_orthogonalize(cores, 0))[k] <= math.prod(shape[k:])


@given(st.integers(1, 6), st.integers(1, 6), ranks, seeds)
def test_signs_are_those_of_a_triangular_factor_with_positive_diagonal(m, n, rank, seed):
    """QR leaves the signs to the library; printed cores must not."""
    cores = random_train([m, n], rank, seed)
    left = tt_orthogonalize(cores, 1)[0][0]
    assert ((left.T @ cores[0][0]).diagonal() >= 0).all()
    right = tt_orthogonalize(cores, 0)[1][..., 0]
    assert ((right @ cores[1][..., 0].T).diagonal() >= 0).all()


def test_a_zero_train_has_a_canonical_form_and_no_norm():
    zeros = [torch.zeros_like(core) for core in random_train([3, 4, 2], 2, 0)]
    moved = tt_orthogonalize(zeros, 1)
    assert_left_orthonormal(moved[:1])
    assert torch.equal(tt_to_tensor(moved), torch.zeros(3, 4, 2, dtype=torch.float64))
    assert tt_norm(zeros) == 0
    assert torch.equal(tt_to_tensor(tt_round(zeros, eps=0.1)), torch.zeros(3, 4, 2, dtype=torch.float64))


# Rounding


@given(modes, ranks, st.floats(0, 0.95), seeds, st.sampled_from(FLOATS))
def test_eps_bounds_the_error_of_every_train_in_a_batch(shape, rank, eps, seed, dtype):
    cores = random_train(shape, rank, seed, (3,), dtype)
    cores[0][1] = 0
    cores[-1][2, :, 1:] *= 1e-2  # three trains that need different ranks
    rounded = tt_round(cores, eps=eps)
    assert {core.dtype for core in rounded} == {dtype}
    full = dense(double(cores))
    gap = norms(dense(double(rounded)) - full, len(shape))
    bound = eps + 10 * len(shape) * torch.finfo(dtype).eps
    assert (gap <= bound * norms(full, len(shape)) + 1e-300).all()
    assert torch.equal(tt_to_tensor(rounded)[1], torch.zeros(shape, dtype=dtype))


@given(modes, ranks, st.floats(0.02, 0.9), seeds)
def test_rounding_by_eps_finds_what_tt_svd_of_the_tensor_finds(shape, rank, eps, seed):
    cores = random_train(shape, rank, seed)
    full = dense(cores)
    rounded, direct = tt_round(cores, eps=eps), tt_svd(full, eps=eps)
    assert ranks_of(rounded) == ranks_of(direct)
    torch.testing.assert_close(dense(rounded), dense(direct), rtol=1e-8, atol=1e-8 * float(full.abs().max()))


@given(modes, st.integers(1, 5), seeds, st.sampled_from([torch.float64, torch.float32]))
def test_rounding_by_rank_finds_what_tt_svd_of_the_tensor_finds(shape, cap, seed, dtype):
    x = gaussian(tuple(shape), seed, dtype)
    exact = tt_svd(x, rank=math.prod(shape))
    rounded = tt_round(exact, rank=cap)
    assert ranks_of(rounded) == tt_ranks(shape, cap)
    assert_left_orthonormal(rounded[:-1])
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3  # generic singular values: gaps well above the rounding error
    expected = dense(double(tt_svd(x, rank=cap)))
    assert norms(dense(double(rounded)) - expected, len(shape)) <= tolerance * norms(x, len(shape))


@few
@given(modes, st.floats(0.05, 0.8), seeds)
def test_a_batch_gives_each_train_what_it_gets_alone(shape, eps, seed):
    cores = random_train(shape, 3, seed, (2, 2))
    together = tt_round(cores, eps=eps)
    alone = [[tt_round([core[i, j] for core in cores], eps=eps) for j in range(2)] for i in range(2)]
    for k in range(len(shape) + 1):
        assert ranks_of(together)[k] == max(ranks_of(alone[i][j])[k] for i in range(2) for j in range(2))
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(dense(together)[i, j], dense(alone[i][j]), rtol=1e-8, atol=1e-8)


@few
@given(st.lists(st.integers(2, 4), min_size=2, max_size=5), st.integers(1, 3), seeds, st.sampled_from(FLOATS[:2]))
def test_the_ranks_of_a_doubled_train_come_back(shape, rank, seed, dtype):
    cores = random_train(shape, rank, seed, dtype=dtype)
    doubled = tt_add(cores, cores)
    rounded = tt_round(doubled, eps=1e-3 if dtype == torch.float32 else 1e-8)
    assert all(r <= cap for r, cap in zip(ranks_of(rounded), tt_ranks(shape, rank), strict=True))
    error = norms(dense(double(rounded)) - 2 * dense(double(cores)), len(shape))
    assert error <= 1.1e-3 * norms(2 * dense(double(cores)), len(shape))


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1.0, 1e30, 1e200])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    cores = random_train([4, 4, 4], 3, 0)
    scaled = [cores[0] * scale, *cores[1:]]
    for how in ({"eps": 0.1}, {"rank": 2}):
        expected = dense(tt_round(cores, **how))
        torch.testing.assert_close(dense(tt_round(scaled, **how)) / scale, expected)
    torch.testing.assert_close(tt_norm(scaled) / scale, norms(dense(cores), 3))


def test_cores_of_extreme_float32_scales_that_cancel():
    cores = random_train([4, 4, 4, 4], 2, 1, dtype=torch.float32)
    factors = (1e25, 1e-25, 1e25, 1e-25)
    scaled = [core * factor for core, factor in zip(cores, factors, strict=True)]
    error = norms(dense(double(tt_round(scaled, eps=0))) - dense(double(scaled)), 4)
    assert error <= 1e-5 * norms(dense(double(scaled)), 4)


# Inner products and norms


@given(modes, ranks, ranks, seeds, st.sampled_from(PAIRS))
def test_dot_is_the_sum_of_the_entrywise_product(shape, r, s, seed, batches):
    a, b = random_train(shape, r, seed, batches[0]), random_train(shape, s, seed + 1, batches[1])
    axes = tuple(range(-len(shape), 0))
    expected = (dense(a) * dense(b)).sum(axes)
    assert expected.shape == batches[2]
    scale = float((dense(a).abs() * dense(b).abs()).sum(axes).max())
    torch.testing.assert_close(tt_dot(a, b), expected, rtol=1e-10, atol=1e-12 * scale)


@given(modes, ranks, seeds, st.sampled_from(BATCHES), st.sampled_from(FLOATS))
def test_norm_is_the_dense_norm(shape, rank, seed, batch, dtype):
    cores = random_train(shape, rank, seed, batch, dtype)
    norm = tt_norm(cores)
    assert norm.shape == batch and norm.dtype == dtype
    expected = norms(dense(double(cores)), len(shape))
    torch.testing.assert_close(norm.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-12)


@pytest.mark.parametrize("distance", [1e-4, 1e-8, 1e-12])
def test_norm_of_a_difference_of_near_equals_is_right_where_the_square_root_of_the_dot_is_not(distance):
    a, step = random_train([4] * 6, 3, 0), random_train([4] * 6, 3, 1)
    size = float(tt_norm(a))
    step = [step[0] * (distance * size / float(tt_norm(step))), *step[1:]]
    other = tt_orthogonalize(a, 3)  # the same tensor in other cores, or every rounding error would cancel too
    difference = tt_add(tt_add(a, step), [-other[0], *other[1:]])
    error = abs(float(tt_norm(difference)) - distance * size)
    assert error <= 100 * torch.finfo(torch.float64).eps * size
    if distance < 1e-8:
        squared = float(tt_dot(difference, difference))
        assert squared < 0 or abs(squared**0.5 - distance * size) > 100 * error


# Sums and products


@given(modes, ranks, ranks, seeds, st.sampled_from(PAIRS))
def test_add_is_the_dense_sum_and_ranks_add(shape, r, s, seed, batches):
    a, b = random_train(shape, r, seed, batches[0]), random_train(shape, s, seed + 1, batches[1])
    total = tt_add(a, b)
    assert ranks_of(total) == (1, *[r + s] * (len(shape) - 1), 1)
    assert all(core.shape[:-3] == batches[2] for core in total)
    torch.testing.assert_close(dense(total), dense(a) + dense(b), rtol=1e-10, atol=1e-10)


@given(modes, ranks, ranks, seeds, st.sampled_from(PAIRS))
def test_hadamard_is_the_dense_product_and_ranks_multiply(shape, r, s, seed, batches):
    a, b = random_train(shape, r, seed, batches[0]), random_train(shape, s, seed + 1, batches[1])
    product = tt_hadamard(a, b)
    assert ranks_of(product) == (1, *[r * s] * (len(shape) - 1), 1)
    assert all(core.shape[:-3] == batches[2] for core in product)
    expected = dense(a) * dense(b)
    torch.testing.assert_close(dense(product), expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


@few
@given(modes, seeds)
def test_laws_that_tie_the_operations_together(shape, seed):
    a, b, c = (random_train(shape, r, seed + r) for r in (1, 2, 3))
    scale = float(tt_norm(a) * (tt_norm(b) + tt_norm(c)))
    torch.testing.assert_close(tt_dot(a, tt_add(b, c)), tt_dot(a, b) + tt_dot(a, c), rtol=1e-9, atol=1e-10 * scale)
    torch.testing.assert_close(tt_dot(tt_hadamard(a, b), c), tt_dot(a, tt_hadamard(b, c)), rtol=1e-9, atol=1e-6)
    assert abs(tt_dot(a, b)) <= tt_norm(a) * tt_norm(b) * (1 + 1e-10)  # Cauchy-Schwarz


@pytest.mark.parametrize("operation", [tt_dot, tt_add, tt_hadamard])
@pytest.mark.parametrize("batches", [((), ()), ((2,), ())])
def test_gradients_reach_every_core(operation, batches):
    a, b = (random_train([2, 3, 2], 2, seed, batch) for seed, batch in enumerate(batches))
    cores = [core.requires_grad_() for core in (*a, *b)]

    def apply(*flat):
        return operation(list(flat[:3]), list(flat[3:]))

    assert torch.autograd.gradcheck(apply, cores)


def test_what_truncates_or_orthogonalizes_carries_no_gradient():
    cores = [core.requires_grad_() for core in random_train([2, 3, 2], 2, 0)]
    for result in (tt_round(cores, rank=1), tt_orthogonalize(cores, 1), [tt_norm(cores)]):
        assert not any(piece.requires_grad for piece in result)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_kept_and_the_result_is_good_to_that_dtype(dtype):
    a, b = random_train([3, 4, 3], 2, 0, dtype=dtype), random_train([3, 4, 3], 3, 1, dtype=dtype)
    u = torch.finfo(dtype).eps
    x, y = dense(double(a)), dense(double(b))
    for cores, expected in [
        (tt_add(a, b), x + y),
        (tt_hadamard(a, b), x * y),
        (tt_round(a, rank=2), x),
        (tt_round(a, eps=0), x),
        (tt_orthogonalize(a, 1), x),
    ]:
        assert {core.dtype for core in cores} == {dtype}
        assert norms(dense(double(cores)) - expected, 3) <= 30 * u * norms(expected, 3)
    product = tt_dot(a, b)
    assert product.dtype == dtype
    assert abs(product.double() - (x * y).sum()) <= 4 * u * norms(x, 3) * norms(y, 3)


# Bad input

ONES = [torch.ones(1, 2, 3), torch.ones(3, 2, 1)]
SHORT = [torch.ones(1, 4, 1)]
WIDE = [torch.ones(1, 2, 3), torch.ones(3, 5, 1)]
BROKEN = [torch.ones(1, 2, 3), torch.ones(2, 2, 1)]
HOLED = [torch.ones(1, 2, 3), torch.full((3, 2, 1), float("nan"))]
LARGE = [torch.full((1, 4, 1), 200.0, dtype=torch.float16)] * 4
BATCH2 = [core.expand(2, *core.shape) for core in ONES]
BATCH3 = [core.expand(3, *core.shape) for core in ONES]


@pytest.mark.parametrize("operation", [tt_dot, tt_add, tt_hadamard])
@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (ONES, SHORT, ValueError, "a has 2 cores and b has 1; trains to combine need equal modes"),
        (ONES, WIDE, ValueError, "core 1 of a has mode 2 but core 1 of b has mode 5"),
        (ONES, [core.double() for core in ONES], TypeError, "a is torch.float32 and b is torch.float64; convert"),
        (BATCH2, BATCH3, ValueError, r"batch axes \(2,\) of a and \(3,\) of b do not broadcast"),
        (BROKEN, ONES, ValueError, r"a\[0\] ends with rank 3 but a\[1\] begins with rank 2: bond 1"),
        (ONES, BROKEN, ValueError, r"b\[0\] ends with rank 3 but b\[1\] begins with rank 2: bond 1"),
        (ONES, [], ValueError, "b is empty"),
        (torch.ones(1, 2, 1), ONES, TypeError, "a must be a list of cores, got Tensor"),
        (ONES, [core.long() for core in ONES], TypeError, r"b\[0\] is torch.int64.*floating-point"),
        ([core.cfloat() for core in ONES], ONES, TypeError, r"a\[0\] is torch.complex64: complex .* not supported"),
    ],
)
def test_mismatched_trains(operation, a, b, error, message):
    with pytest.raises(error, match=message):
        operation(a, b)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tt_orthogonalize(ONES, 2), IndexError, "center must be a core position from 0 to 1, got 2"),
        (lambda: tt_orthogonalize(ONES, -1), IndexError, "from 0 to 1, got -1"),
        (lambda: tt_orthogonalize(ONES, 0.5), TypeError, "center must be an integer, got 0.5"),
        (lambda: tt_orthogonalize(BROKEN, 0), ValueError, r"cores\[1\] begins with rank 2"),
        (lambda: tt_norm(BROKEN), ValueError, r"cores\[1\] begins with rank 2"),
        (lambda: tt_norm([]), ValueError, "cores is empty"),
        (lambda: tt_round(BROKEN, rank=1), ValueError, r"cores\[1\] begins with rank 2"),
        (lambda: tt_round(HOLED, eps=0.1), ValueError, r"cores\[1\] has 6 entries that are NaN or Inf.*\(0, 0, 0\)"),
        (lambda: tt_round(ONES), ValueError, "exactly one of rank and eps, got neither"),
        (lambda: tt_round(ONES, rank=1, eps=0.1), ValueError, "exactly one of rank and eps, got both"),
        (lambda: tt_round(ONES, eps=1), ValueError, r"must lie in \[0, 1\), got 1"),
        (lambda: tt_round(ONES, rank=0), ValueError, "rank must be at least 1, got 0"),
        (lambda: tt_round(ONES, rank=(1, 2, 2, 1)), ValueError, "rank has 4 entries, but 2 modes have 3 ranks"),
        (
            lambda: tt_orthogonalize(LARGE, 1),
            ValueError,
            "core 1 would have to carry the norm .* range of torch.float16",
        ),
        (lambda: tt_round([torch.ones(1, 0, 1)], rank=1), ValueError, r"cores\[0\] has no entries"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_cores_whose_product_alone_is_in_range():
    cores = [torch.full((1, 2, 1), value, dtype=torch.float64) for value in (1e200, 1e200, 1e-300)]
    assert float(tt_norm(cores)) == pytest.approx(1e100 * 8**0.5)
    too_large = [torch.full((1, 2, 1), 1e200, dtype=torch.float64)] * 3
    with pytest.raises(ValueError, match="beyond the range of torch.float64"):
        tt_orthogonalize(too_large, 0)


@pytest.mark.parametrize(
    "operation", [tt_norm, lambda cores: tt_orthogonalize(cores, 0), lambda c: tt_round(c, eps=0.1)]
)
def test_nan_is_refused_where_a_factorization_starts(operation):
    with pytest.raises(ValueError, match=r"cores\[1\] has 1 entries that are NaN or Inf"):
        operation([torch.ones(1, 2, 1), torch.tensor([1.0, float("nan")]).reshape(1, 2, 1)])
