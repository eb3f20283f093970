"""Modes, ranks and counts: known values from the literature, properties, and the messages for bad input."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttref.checks import paired_modes
from ttref.shapes import balanced_modes, factorize, largest, tt_params, tt_ranks, ttm_params


@pytest.mark.parametrize(("rank", "count"), [(1, 20), (2, 72), (3, 140), (4, 232), (8, 680), (16, 1704), (32, 2728)])
def test_parameter_ladder_of_1024_binary_modes(rank, count):
    assert tt_params((2,) * 10, rank) == count


def test_published_shapes():
    assert tt_params((2,) * 8 + (3,), 1) == 19
    assert tt_params((4, 16, 4, 16), 8) == 912
    assert tt_ranks((4, 16, 4, 16), 8) == (1, 4, 8, 8, 1)
    assert ttm_params((16, 24, 131), (4, 12, 16), 8) == 64 * 8 + 8 * 288 * 8 + 8 * 131 * 16
    assert factorize(50304, 3) == (16, 24, 131)
    assert factorize(11008, 3) == (16, 16, 43)


@given(st.integers(2, 5000), st.integers(1, 4))
def test_factorize_with_an_order_is_the_best_split(n, order):
    def splits(rest, k, least):
        if k == 1:
            return [(rest,)] if rest >= least else []
        return [
            (a, *tail)
            for a in range(least, math.isqrt(rest) + 1)
            if rest % a == 0
            for tail in splits(rest // a, k - 1, a)
        ]

    candidates = splits(n, order, 2)
    if not candidates:
        with pytest.raises(ValueError, match="pad to"):
            factorize(n, order)
        return
    modes = factorize(n, order)
    assert math.prod(modes) == n and len(modes) == order and list(modes) == sorted(modes)
    assert sum(modes) == min(sum(split) for split in candidates)


@given(st.integers(2, 100_000))
def test_prime_factors_multiply_back(n):
    modes = factorize(n)
    assert math.prod(modes) == n
    assert all(all(p % q for q in range(2, math.isqrt(p) + 1)) for p in modes)


@given(st.integers(2, 3000), st.integers(2, 20))
def test_max_mode_is_respected_with_fewest_modes(n, most):
    if max(factorize(n)) > most:
        with pytest.raises(ValueError, match=f"each at most {most}"):
            factorize(n, max_mode=most)
        return
    modes = factorize(n, max_mode=most)
    assert math.prod(modes) == n and max(modes) <= most
    for fewer in range(1, len(modes)):
        with pytest.raises(ValueError):
            factorize(n, fewer, max_mode=most)


def test_factorize_proposes_a_number_that_works():
    with pytest.raises(ValueError, match=r"13 is not a product of 3 modes.*pad to 16 = 2 \* 2 \* 4"):
        factorize(13, 3)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 40))
def test_clipped_ranks_are_what_both_sides_can_fill(shape, cap):
    ranks = tt_ranks(shape, cap)
    for k in range(1, len(shape)):
        assert ranks[k] == min(cap, math.prod(shape[:k]), math.prod(shape[k:]))
    assert ranks[0] == ranks[-1] == 1
    assert tt_ranks(shape, ranks) == ranks
    assert tt_params(shape, cap) == sum(ranks[k] * n * ranks[k + 1] for k, n in enumerate(shape))


def test_a_sequence_of_ranks_is_clipped_through_its_neighbors():
    assert tt_ranks((2, 2, 2, 2), (1, 1, 9, 9, 1)) == (1, 1, 2, 2, 1)
    assert tt_ranks((2, 2, 2, 2), (1, 2, 1, 9, 1)) == (1, 2, 1, 2, 1)


def test_balanced_modes_of_the_widths_of_real_models():
    assert balanced_modes(768) == factorize(768, 3) and balanced_modes(3072) == factorize(3072, 3)
    assert balanced_modes(11008) == (16, 16, 43) and balanced_modes(4096) == (16, 16, 16)
    assert balanced_modes(50257) == (12, 59, 71)  # the words of GPT-2, 29 * 1733, padded to 50268
    assert balanced_modes(1) == (1, 1, 1) and balanced_modes(7) == (1, 1, 7) and balanced_modes(64, 1) == (64,)


@given(st.integers(1, 3000), st.integers(1, 4))
def test_balanced_modes_pad_as_little_as_possible(n, order):
    def splits(rest, k, least, most):
        """Every ascending split into k modes within the limits, by trying all divisors."""
        if k == 0:
            return [()] if rest == 1 else []
        modes = [a for a in range(least, min(rest, most) + 1) if rest % a == 0]
        return [(a, *tail) for a in modes for tail in splits(rest // a, k - 1, a, most)]

    def allowed(product, wider):
        # The largest whole number that is at most twice the root, without rounding: (t / 2)^order <= product.
        most = next(t for t in range(2 * product, 0, -1) if t**order <= 2**order * product) if order > 1 else product
        return splits(product, order, 1, max(8, most) + wider)

    modes = balanced_modes(n, order)
    padded, most_padded = math.prod(modes), n + max(8, 3 * n // 100)
    assert n <= padded <= most_padded and len(modes) == order and list(modes) == sorted(modes)
    wider = next(w for w in range(n + 1) if any(allowed(product, w) for product in range(n, most_padded + 1)))
    assert not any(allowed(product, wider) for product in range(n, padded))
    assert sum(modes) == min(sum(split) for split in allowed(padded, wider))


@pytest.mark.parametrize(("order", "largest"), [(1, 20_000), (2, 20_000), (3, 20_000), (4, 20_000), (6, 2_000)])
def test_balanced_modes_pad_by_eight_or_three_per_cent_at_most(order, largest):
    """Every width up to the largest, for the limit is a promise and a range so small can be tried whole."""
    for n in range(1, largest + 1):
        modes = balanced_modes(n, order)
        assert n <= math.prod(modes) <= max(n + 8, 103 * n // 100), (n, modes)
        assert list(modes) == sorted(modes) and len(modes) == order and modes[0] >= 1


def test_balanced_modes_widen_the_limit_on_a_mode_only_where_it_would_waste_more_than_that():
    def within(modes):
        return max(modes) <= max(8, 2 * math.prod(modes) ** (1 / 3) + 1e-9)

    assert [n for n in range(1, 20_001) if not within(balanced_modes(n))] == [151, 201, 365, 366]
    assert balanced_modes(151) == (2, 7, 11) and balanced_modes(366) == (5, 5, 15)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tt_ranks((2, 2), 0), ValueError, "rank must be at least 1, got 0"),
        (lambda: tt_ranks((2, 2), -3), ValueError, "rank must be at least 1, got -3"),
        (lambda: tt_ranks((2, 2), 2.0), TypeError, "rank must be an integer, got 2.0 of type float"),
        (lambda: tt_ranks((2, 2), True), TypeError, "rank must be an integer"),
        (lambda: tt_ranks((2, 2), (1, 2)), ValueError, "rank has 2 entries, but 2 modes have 3 ranks"),
        (lambda: tt_ranks((2, 2), (2, 2, 1)), ValueError, "ends must be 1, got 2 and 1"),
        (lambda: tt_ranks((2, 0), 2), ValueError, r"shape\[1\] must be at least 1, got 0"),
        (lambda: tt_ranks((), 2), ValueError, "shape is empty"),
        (lambda: tt_ranks(8, 2), TypeError, "shape must be a sequence of modes"),
        (lambda: ttm_params((2, 2), (2, 2, 2), 2), ValueError, "equally many"),
        (lambda: factorize(1), ValueError, "n must be at least 2"),
        (lambda: factorize(8.0), TypeError, "n must be an integer"),
        (lambda: factorize(14, max_mode=5), ValueError, "pad to 15"),
        (lambda: factorize(3000, 2, max_mode=20), ValueError, "2 modes of at most 20 reach 400"),
        (lambda: balanced_modes(0), ValueError, "n must be at least 1, got 0"),
        (lambda: balanced_modes(-7), ValueError, "n must be at least 1, got -7"),
        (lambda: balanced_modes(7.0), TypeError, "n must be an integer, got 7.0"),
        (lambda: balanced_modes("7"), TypeError, "n must be an integer, got '7'"),
        (lambda: balanced_modes(True), TypeError, "n must be an integer, got True"),
        (lambda: balanced_modes(7, 0), ValueError, "order must be at least 1, got 0"),
        (lambda: balanced_modes(7, None), TypeError, "order must be an integer, got None"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_paired_modes():
    assert paired_modes((12, 16), (8, 3)) == (96, 48)


def test_an_impossible_order_is_answered_at_once():
    with pytest.raises(ValueError, match="pad to 1099511627776"):
        factorize(768, 40)


@pytest.mark.parametrize("most", [0, 1, 2, 7, 64])
def test_the_largest_that_fits(most):
    for border in range(-1, most + 2):
        asked = []

        def fits(rank, border=border, asked=asked):
            asked.append(rank)
            return rank <= border

        assert largest(fits, most) == max(0, min(border, most))
        assert all(1 <= rank <= most for rank in asked) and len(asked) <= most.bit_length()
