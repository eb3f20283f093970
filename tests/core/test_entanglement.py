"""Schmidt values and entropies: states with a known answer, tensors against trains, ranks that keep their word."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dense, gaussian, modes, random_train, seeds

from ttref.canonical import tt_round
from ttref.entanglement import entanglement_entropy, schmidt_values, suggest_ranks
from ttref.shapes import tt_ranks
from ttref.trains import tt_svd

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
some_modes = modes.filter(lambda shape: len(shape) > 1)
few = settings(max_examples=30)


def exact_train(x):
    return tt_svd(x, rank=x.numel())


def ghz(sites, levels=2, dtype=torch.float64):
    x = torch.zeros((levels,) * sites, dtype=dtype)
    for level in range(levels):
        x[(level,) * sites] = 1
    return x


def w_state(sites):
    x = torch.zeros((2,) * sites, dtype=torch.float64)
    for site in range(sites):
        x[tuple(int(site == k) for k in range(sites))] = 1
    return x


def binary_entropy(p):
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def forms(x):
    """A tensor and its exact train: every answer must be the same for both."""
    return [x, exact_train(x)]


# States whose entropy is in the textbooks


def test_a_bell_pair_holds_one_bit():
    for bell in forms(torch.eye(2, dtype=torch.float64) / 2**0.5):
        torch.testing.assert_close(schmidt_values(bell, 1), torch.full((2,), 0.5**0.5, dtype=torch.float64))
        assert float(entanglement_entropy(bell, 1)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sites", [2, 3, 6, 10])
@pytest.mark.parametrize("levels", [2, 3])
def test_ghz_holds_the_same_information_at_every_bond(sites, levels):
    x = ghz(sites, levels) if levels**sites < 10_000 else ghz(6, levels)
    for state in forms(x):
        for bond in range(1, x.ndim):
            assert float(entanglement_entropy(state, bond)) == pytest.approx(math.log2(levels), abs=1e-12)
            values = schmidt_values(state, bond)
            torch.testing.assert_close(values[:levels], torch.ones(levels, dtype=torch.float64))
            assert (values[levels:] < 1e-12).all()


@given(some_modes, seeds)
def test_a_product_of_vectors_holds_nothing(shape, seed):
    x = dense(random_train(shape, 1, seed))
    for state in forms(x):
        for bond in range(1, len(shape)):
            assert float(entanglement_entropy(state, bond)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("sites", [2, 5, 8])
def test_the_w_state(sites):
    """Bond k sees the excitation on its left with probability k/n: the entropy is that of such a coin."""
    for state in forms(w_state(sites)):
        for bond in range(1, sites):
            expected = binary_entropy(bond / sites)
            assert float(entanglement_entropy(state, bond)) == pytest.approx(expected, abs=1e-12)
            values = schmidt_values(state, bond)[:2].square()  # unnormalized: they sum to the number of ones
            expected = sorted([bond, sites - bond], reverse=True)
            torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@given(st.integers(1, 8), st.integers(1, 8), seeds)
def test_an_isometry_is_maximally_entangled(m, n, seed):
    q, _ = torch.linalg.qr(gaussian((max(m, n), min(m, n)), seed))
    for state in forms(q if m >= n else q.T.contiguous()):
        assert float(entanglement_entropy(state, 1)) == pytest.approx(math.log2(min(m, n)), abs=1e-10)


def test_the_zero_tensor_has_entropy_zero_alone_and_in_a_batch():
    x = torch.zeros(2, 3, 4)
    assert float(entanglement_entropy(x, 1)) == 0
    assert float(entanglement_entropy([torch.zeros(1, 2, 2), torch.zeros(2, 3, 1)], 1)) == 0
    both = torch.stack([torch.zeros(2, 2), torch.eye(2)])
    torch.testing.assert_close(entanglement_entropy(both, 1, batch_dims=1), torch.tensor([0.0, 1.0]))
    assert suggest_ranks(x, eps=0.1) == (1, 1, 1, 1)


# Properties


@given(some_modes, seeds)
def test_schmidt_values_are_the_singular_values_of_the_unfolding(shape, seed):
    x = gaussian(tuple(shape), seed)
    for bond in range(1, len(shape)):
        expected = torch.linalg.svdvals(x.reshape(math.prod(shape[:bond]), -1))
        weights = expected.square() / expected.square().sum()
        entropy = -(weights * weights.log2()).sum()
        for state in forms(x):
            torch.testing.assert_close(schmidt_values(state, bond), expected)
            torch.testing.assert_close(entanglement_entropy(state, bond), entropy)
        assert 0 <= entropy <= math.log2(len(expected)) + 1e-12


@few
@given(some_modes, st.integers(1, 4), seeds)
def test_a_train_has_no_more_schmidt_values_than_its_rank(shape, rank, seed):
    cores = random_train(shape, rank, seed)
    full = dense(cores)
    for bond in range(1, len(shape)):
        ours, theirs = schmidt_values(cores, bond), schmidt_values(full, bond)
        assert len(ours) <= rank
        torch.testing.assert_close(ours, theirs[: len(ours)], rtol=1e-8, atol=1e-8 * float(theirs[0]))
        assert (theirs[len(ours) :] <= 1e-10 * theirs[0]).all()
        torch.testing.assert_close(
            entanglement_entropy(cores, bond), entanglement_entropy(full, bond), rtol=1e-7, atol=1e-7
        )


@settings(max_examples=10)
@given(some_modes, seeds, st.sampled_from([(3,), (2, 2)]))
def test_a_batch_is_answered_one_by_one(shape, seed, batch):
    x = gaussian((*batch, *shape), seed)
    cores = random_train(shape, 2, seed, batch)
    for bond in range(1, len(shape)):
        values = schmidt_values(x, bond, batch_dims=len(batch))
        entropies = entanglement_entropy(x, bond, batch_dims=len(batch))
        of_trains = schmidt_values(cores, bond)
        entropies_of_trains = entanglement_entropy(cores, bond)
        assert entropies.shape == entropies_of_trains.shape == batch
        for where in torch.cartesian_prod(*[torch.arange(n) for n in batch]).reshape(-1, len(batch)).tolist():
            i = tuple(where)
            torch.testing.assert_close(values[i], schmidt_values(x[i], bond))
            torch.testing.assert_close(entropies[i], entanglement_entropy(x[i], bond))
            alone = [core[i] for core in cores]
            torch.testing.assert_close(of_trains[i], schmidt_values(alone, bond))
            torch.testing.assert_close(entropies_of_trains[i], entanglement_entropy(alone, bond))


@few
@given(some_modes, seeds, st.floats(1.1, 20))
def test_the_base_only_changes_the_unit(shape, seed, base):
    x = gaussian(tuple(shape), seed)
    bits, nats = entanglement_entropy(x, 1), entanglement_entropy(x, 1, base=math.e)
    torch.testing.assert_close(nats, bits * math.log(2))
    torch.testing.assert_close(entanglement_entropy(x, 1, base=base), nats / math.log(base))


@few
@given(some_modes, seeds)
def test_turning_one_mode_on_itself_changes_nothing(shape, seed):
    x = gaussian(tuple(shape), seed)
    turned = x
    for axis, n in enumerate(shape):
        q, _ = torch.linalg.qr(gaussian((n, n), seed + axis))
        turned = torch.tensordot(turned, q, ([axis], [0])).movedim(-1, axis)
    for bond in range(1, len(shape)):
        torch.testing.assert_close(schmidt_values(turned, bond), schmidt_values(x, bond))
        torch.testing.assert_close(entanglement_entropy(turned, bond), entanglement_entropy(x, bond))


@given(some_modes, seeds, st.sampled_from([1e-200, 1e-30, 7.0, 1e30, 1e200]))
def test_entropy_and_ranks_do_not_depend_on_the_scale(shape, seed, scale):
    x = gaussian(tuple(shape), seed)
    cores = exact_train(x)
    for state, scaled in ((x, x * scale), (cores, [cores[0] * scale, *cores[1:]])):
        torch.testing.assert_close(entanglement_entropy(scaled, 1), entanglement_entropy(state, 1))
        torch.testing.assert_close(schmidt_values(scaled, 1) / scale, schmidt_values(state, 1))
        assert suggest_ranks(scaled, eps=0.3) == suggest_ranks(state, eps=0.3)


def test_schmidt_values_beyond_the_range_of_the_dtype_spoil_no_entropy():
    half = torch.full((8, 8), 30000.0, dtype=torch.float16)  # a norm of 240,000 is no float16
    assert float(entanglement_entropy(half, 1)) == pytest.approx(0, abs=1e-3)
    assert suggest_ranks(torch.diag(half.diag()), eps=0.5) == (1, 6, 1)
    for factor in (1e30, 1e-30):
        cores = [core.float() * factor for core in exact_train(ghz(6))]  # a norm of 1e180 is no float32
        assert float(entanglement_entropy(cores, 3)) == pytest.approx(1, abs=1e-6)
        assert suggest_ranks(cores, eps=0.1) == (1, 2, 2, 2, 2, 2, 1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_kept(dtype):
    x = gaussian((4, 3, 4), 0, dtype)
    expected = torch.linalg.svdvals(x.double().reshape(4, 12))
    for state in forms(x):
        values, entropy = schmidt_values(state, 1), entanglement_entropy(state, 1)
        assert values.dtype == entropy.dtype == dtype
        assert (values.double() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected[0]


def test_no_gradient_is_recorded():
    x = gaussian((3, 4), 0).requires_grad_()
    assert not schmidt_values(x, 1).requires_grad and not entanglement_entropy(x, 1).requires_grad


# Suggested ranks


@given(modes, st.floats(0, 0.95), seeds, st.sampled_from(FLOATS[:2]), st.integers(0, 8))
def test_suggested_ranks_keep_the_error_within_eps(shape, eps, seed, dtype, decades):
    fade = torch.logspace(0, -decades, math.prod(shape), dtype=torch.float64).reshape(shape)
    x = (gaussian(tuple(shape), seed) * fade).to(dtype)
    bound = (eps + 10 * len(shape) * torch.finfo(dtype).eps) * torch.linalg.vector_norm(x.double())
    for state in forms(x):
        ranks = suggest_ranks(state, eps=eps)
        for cores in (tt_svd(x, rank=ranks), tt_round(exact_train(x), rank=ranks)):
            assert torch.linalg.vector_norm(dense([core.double() for core in cores]) - x.double()) <= bound


@few
@given(some_modes, seeds)
def test_suggested_ranks_are_the_smallest_that_the_rule_allows(shape, seed):
    x = gaussian(tuple(shape), seed)
    ranks = suggest_ranks(x, eps=0.4)
    for bond in range(1, len(shape)):
        s = torch.linalg.svdvals(x.reshape(math.prod(shape[:bond]), -1))
        allowed = 0.4 / (len(shape) - 1) ** 0.5 * torch.linalg.vector_norm(s)
        assert torch.linalg.vector_norm(s[ranks[bond] :]) <= allowed * (1 + 1e-12)
        assert ranks[bond] == 1 or torch.linalg.vector_norm(s[ranks[bond] - 1 :]) > allowed


@few
@given(st.lists(st.integers(2, 4), min_size=2, max_size=5), st.integers(1, 3), seeds)
def test_suggested_ranks_of_an_exact_train_are_its_own(shape, rank, seed):
    cores = random_train(shape, rank, seed)
    for state in (cores, dense(cores)):
        assert suggest_ranks(state, eps=1e-9) == tt_ranks(shape, rank)


def test_one_mode_has_no_bond_to_suggest_for():
    assert suggest_ranks(torch.ones(5), eps=0.1) == suggest_ranks([torch.ones(1, 5, 1)], eps=0.1) == (1, 1)


# Bad input

X = torch.ones(2, 3, 4)
CORES = [torch.ones(1, 2, 2), torch.ones(2, 3, 2), torch.ones(2, 4, 1)]
BATCH = [core.expand(5, *core.shape) for core in CORES]
HOLED = [CORES[0], CORES[1] * float("inf"), CORES[2]]


@pytest.mark.parametrize("function", [schmidt_values, entanglement_entropy])
@pytest.mark.parametrize(
    ("state", "bond", "batch_dims", "error", "message"),
    [
        (X, 0, 0, IndexError, "bond must lie between 1 and 2, got 0; bond k has k of the 3 modes on its left"),
        (X, 3, 0, IndexError, "bond must lie between 1 and 2, got 3"),
        (X, -1, 0, IndexError, "bond must lie between 1 and 2, got -1"),
        (X, 2, 1, IndexError, "bond must lie between 1 and 1, got 2"),
        (CORES, 3, 0, IndexError, "bond must lie between 1 and 2, got 3"),
        (X, 1.0, 0, TypeError, "bond must be an integer, got 1.0"),
        (CORES, True, 0, TypeError, "bond must be an integer, got True"),
        (torch.ones(3), 1, 0, IndexError, "1 modes have no bond between them"),
        (X, 1, 3, ValueError, "batch_dims is 3, but x has 3 axes"),
        (X, 1, -1, ValueError, "batch_dims must be at least 0, got -1"),
        (X, 1, 0.5, TypeError, "batch_dims must be an integer, got 0.5"),
        (X.long(), 1, 0, TypeError, "x is torch.int64"),
        (X.cfloat(), 1, 0, TypeError, "complex tensors are not supported"),
        (X / 0, 1, 0, ValueError, "x has 24 entries that are NaN or Inf"),
        (X[:0], 1, 0, ValueError, "x has no entries"),
        (HOLED, 1, 0, ValueError, r"cores\[1\] has 12 entries that are NaN or Inf"),
        (CORES[:2], 1, 0, ValueError, "end ranks of cores must be 1, got 1 on the left and 2"),
        (CORES[::2] + CORES[:1], 1, 0, ValueError, r"cores\[1\] ends with rank 1 but|end ranks"),
        ("abc", 1, 0, TypeError, "cores must be a list of cores, got str"),
        ([[1.0]], 1, 0, TypeError, r"cores\[0\] must be a torch.Tensor, got list"),
    ],
)
def test_bad_states_and_bonds(function, state, bond, batch_dims, error, message):
    with pytest.raises(error, match=message):
        function(state, bond, batch_dims=batch_dims)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: entanglement_entropy(X, 1, base=1), ValueError, "base must be above 1 .* got 1"),
        (lambda: entanglement_entropy(X, 1, base=0.5), ValueError, "base must be above 1 .* got 0.5"),
        (lambda: entanglement_entropy(X, 1, base=float("nan")), ValueError, "base must be above 1 .* got nan"),
        (lambda: suggest_ranks(X, eps=1), ValueError, r"must lie in \[0, 1\), got 1"),
        (lambda: suggest_ranks(X, eps=-0.1), ValueError, r"must lie in \[0, 1\), got -0.1"),
        (lambda: suggest_ranks(X, eps="0.1"), TypeError, "eps must be a number"),
        (lambda: suggest_ranks(BATCH, eps=0.1), ValueError, r"takes one train, but the cores have batch axes \(5,\)"),
        (lambda: suggest_ranks(torch.tensor(1.0), eps=0.1), ValueError, "single number"),
        (lambda: suggest_ranks(torch.ones(3).long(), eps=0.1), TypeError, "x is torch.int64"),
        (lambda: suggest_ranks(torch.full((3,), float("nan")), eps=0.1), ValueError, "x has 3 entries that are NaN"),
        (lambda: suggest_ranks(HOLED, eps=0.1), ValueError, r"cores\[1\] has 12 entries that are NaN or Inf"),
        (lambda: suggest_ranks(3.0, eps=0.1), TypeError, "cores must be a list of cores, got float"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
