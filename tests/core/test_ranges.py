"""Trains whose numbers leave the range of their dtype on the way: what is in range comes out, what is not is said."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from strategies import dense, gaussian, random_train

from ttref import (
    entanglement_entropy,
    schmidt_values,
    suggest_ranks,
    tt_add,
    tt_norm,
    tt_orthogonalize,
    tt_round,
)

CENTERS = ["first", "last"]


def constant(order, mode, value, dtype=torch.float64):
    return [torch.full((1, mode, 1), value, dtype=dtype) for _ in range(order)]


def log2_norm(cores):
    """Of a constant train, from the numbers it was made of."""
    return sum(math.log2(abs(core.flatten()[0].item())) + math.log2(core.numel()) / 2 for core in cores)


def exact_log2_norm(cores):
    """log2 of the norm in exact rationals, the ladder of squares core by core; rank 1 bonds and small ranks only."""
    ladder = [[Fraction(1)]]
    for core in cores:
        rows = [[[Fraction(x) for x in line] for line in block] for block in core.double().tolist()]
        r, n, s = core.shape
        ladder = [
            [
                sum(
                    ladder[a][b] * rows[a][i][c] * rows[b][i][d]
                    for a, b, i in itertools.product(range(r), range(r), range(n))
                )
                for d in range(s)
            ]
            for c in range(s)
        ]
    square = ladder[0][0]
    return (math.log2(square.numerator) - math.log2(square.denominator)) / 2


def size(core):
    """Norm of a core, whose squares may leave the range."""
    peak = core.double().abs().max()
    return (torch.linalg.vector_norm(core.double() / peak) * peak).item()


def position(cores, center):
    return {"first": 0, "middle": len(cores) // 2, "last": len(cores) - 1}[center]


WIDE = {
    "long": constant(1100, 10, 0.25),
    "long, of modest cores": constant(1100, 6, 0.4),
    "powers of two": constant(200, 1, 32.0),
    "large, then small": [*constant(3, 2, 1e300), *constant(3, 2, 1e-300)],
    "small, then large": [*constant(3, 2, 1e-300), *constant(3, 2, 1e300)],
    "subnormal cores": [*constant(2, 3, 1e-310), *constant(2, 3, 1e300)],
    "of rank 16": [torch.ones(1 if k == 0 else 16, 4, 1 if k == 59 else 16).double() * 2.0**-20 for k in range(60)],
}


@pytest.mark.parametrize("name", WIDE)
def test_a_norm_in_range_is_found_whatever_the_products_on_the_way(name):
    cores = WIDE[name]
    expected = log2_norm(cores) if "rank" not in name else sum([-20 * 60, 4 * 59, 60])
    if name == "subnormal cores":
        expected = exact_log2_norm(cores)
    assert math.log2(tt_norm(cores).item()) == pytest.approx(expected, rel=1e-9)
    for how in ({"eps": 1e-6}, {"rank": 2}):
        rounded = tt_round(cores, **how)
        assert math.log2(size(rounded[-1])) == pytest.approx(expected, rel=1e-9)
    for center in CENTERS:
        k = position(cores, center)
        moved = tt_orthogonalize(cores, k)
        assert math.log2(size(moved[k])) == pytest.approx(expected, rel=1e-9)


def test_sums_of_trains_of_large_norm_are_rounded():
    ones = total = constant(400, 10, 1.0)  # norm 1e200
    for _ in range(3):
        total = tt_round(tt_add(total, ones), eps=1e-3)
    assert tt_norm(total).item() == pytest.approx(4e200)


@pytest.mark.parametrize(
    ("dtype", "order", "value"),
    [
        (torch.float32, 25, 1e-3),
        (torch.float32, 25, 1e3),
        (torch.float16, 3, 100.0),
        (torch.float16, 5, 1e-2),
        (torch.bfloat16, 25, 1e-3),
        (torch.float64, 120, 1e-3),
        (torch.float64, 120, 1e3),
    ],
)
def test_a_train_stands_for_what_its_dtype_cannot_hold(dtype, order, value):
    cores = constant(order, 2, value, dtype)
    expected = log2_norm(cores)
    for how in ({"eps": 1e-3}, {"rank": 1}):
        rounded = tt_round(cores, **how)
        norms = [size(core) for core in rounded]
        assert sum(math.log2(norm) for norm in norms) == pytest.approx(expected, rel=1e-12 + 2 * torch.finfo(dtype).eps)
        assert max(norms) <= 4.1 * min(norms), "in equal parts"
        assert all(core.isfinite().all() and core.abs().min() > 0 for core in rounded)
    for refused in (tt_norm, lambda train: tt_orthogonalize(train, 0), lambda train: schmidt_values(train, 1)):
        with pytest.raises(ValueError, match=rf"beyond the range of {dtype}; convert"):
            refused(cores)
    assert entanglement_entropy(cores, 1) == 0
    assert suggest_ranks(cores, eps=0.1) == (1,) * (order + 1)


def test_each_train_of_a_batch_has_its_own_range():
    core = torch.tensor([1.0, 1e-15, 1e15, 0.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 1)
    rounded = tt_round([core.clone() for _ in range(4)], eps=1e-3)
    assert torch.equal(rounded[0][0], tt_round([core[0]] * 4, eps=1e-3)[0])  # an ordinary one is as it is alone
    for row, log in ((0, 0.0), (1, -15 * 4), (2, 15 * 4)):
        found = sum(math.log10(torch.linalg.vector_norm(part[row].double())) for part in rounded)
        assert found == pytest.approx(log + 4 * math.log10(2**0.5), abs=1e-5)
    assert not any(part[3].isnan().any() for part in rounded) and not dense([part[3] for part in rounded]).any()


def test_a_norm_just_within_the_range_stays_in_the_last_core():
    for dtype, size in ((torch.float16, 6e4), (torch.float16, 1e-4), (torch.float32, 3e38), (torch.float32, 2e-38)):
        cores = [torch.ones(1, 1, 1, dtype=dtype), torch.full((1, 1, 1), size, dtype=dtype)]
        rounded = tt_round(cores, rank=1)
        assert rounded[0].item() == 1 and rounded[1].item() == cores[1].item()


def test_parts_that_are_too_large_as_well_are_refused():
    with pytest.raises(ValueError, match=r"core 0 would have to carry .* beyond the range of torch.float16"):
        tt_round(constant(3, 16, 6e4, torch.float16), rank=1)


def exact(cores):
    """Entries in exact rationals."""
    states = {(): [Fraction(1)]}
    for core in cores:
        r, n, s = core.shape
        rows = core.tolist()
        states = {
            (*index, i): [sum(state[a] * Fraction(rows[a][i][b]) for a in range(r)) for b in range(s)]
            for index, state in states.items()
            for i in range(n)
        }
    return [state[0] for _, state in sorted(states.items())]


def relative_error(cores, rounded):
    wanted, found = exact([core.double() for core in cores]), exact([core.double() for core in rounded])
    square = sum((x - y) ** 2 for x, y in zip(wanted, found, strict=True)) / sum(x * x for x in wanted)
    return math.sqrt(square)


def difference(distance, seed, dtype=torch.float64, shape=(2, 3, 2, 2)):
    """a - b with b at this relative distance from a, all in one train."""
    a = random_train(list(shape), 2, seed, dtype=dtype)
    b = [core.clone() for core in a]
    b[2] = (b[2].double() * (1 + distance * gaussian(b[2].shape, seed + 1))).to(dtype)
    return tt_add(a, [-b[0], *b[1:]])


@pytest.mark.parametrize("distance", [1e-3, 1e-7, 1e-10, 1e-13])
@pytest.mark.parametrize("eps", [0, 1e-9, 1e-6, 0.1])
def test_the_guarantee_of_eps_holds_for_trains_that_cancel(distance, eps):
    for seed in range(2):
        cores = difference(distance, seed)
        assert relative_error(cores, tt_round(cores, eps=eps)) <= eps + 40 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("eps", [0, 1e-4])
def test_other_gauges_other_dtypes_and_batches_cancel_too(eps):
    u = torch.finfo(torch.float64).eps
    a = random_train([2, 3, 2, 2], 2, 5)
    b = tt_orthogonalize(a, 2)  # the same tensor to rounding, by other numbers
    far = tt_add(a, [-b[0], *b[1:]])
    assert relative_error(far, tt_round(far, eps=eps)) <= eps + 40 * u
    single = difference(1e-6, 1, torch.float32)
    assert relative_error(single, tt_round(single, eps=eps)) <= eps + 40 * torch.finfo(torch.float32).eps
    trains = [difference(distance, 2) for distance in (1.0, 1e-10, 1e-12)]
    rounded = tt_round([torch.stack(cores) for cores in zip(*trains, strict=True)], eps=eps)
    for row, cores in enumerate(trains):
        assert relative_error(cores, [core[row] for core in rounded]) <= eps + 40 * u


def test_a_train_minus_itself_is_zero_and_ranks_do_not_grow():
    a = random_train([3, 2, 3, 2, 2], 3, 0)
    nothing = tt_round(tt_add(a, [-a[0], *a[1:]]), eps=1e-8)
    assert not dense(nothing).any()
    cores = difference(1e-10, 0)
    assert all(core.shape[-1] <= 4 for core in tt_round(cores, eps=1e-6))
    tall = difference(1e-10, 0, shape=(9, 8, 7))
    full = [core.shape[-1] for core in tt_round(tall, eps=0)]
    assert full[0] <= 4 and full[1] <= 4 and full[2] == 1
