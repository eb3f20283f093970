"""Sums and stores of parts, put together as if there had been no parts."""

import weakref

import pytest
import torch
from strategies import gaussian

from ttref.powers import times_power
from ttref.rows.frame import added, summed


def together(sums):
    """The sum with all parts at hand, divided by the largest of their powers from the beginning."""
    parts, powers = map(torch.stack, zip(*sums, strict=True))
    largest, total = powers.max(), torch.zeros_like(parts[0])
    for part, power in zip(parts, powers, strict=True):
        total += times_power(part, power - largest)
    return total, largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("powers", [(0, 0, 0, 0), (0, 9, -30, 9), (90, -7, 60, 0), (-50, -20, 0, 30)])
def test_sums_need_not_be_at_hand_together(dtype, powers):
    """Only powers of two are taken out meanwhile, which cost no digits."""
    blocks = [gaussian((7, 5), k, torch.float64) * 2.0**power for k, power in enumerate(powers)]
    for block in blocks:
        block[:, 0] = -0.0
    sums = [summed(block.to(dtype)) for block in blocks]
    for one, other in zip(added(iter(sums)), together(sums), strict=True):
        assert torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def test_sums_are_let_go_one_after_the_other():
    held, alive = [], []

    def made():
        for k in range(9):
            part = gaussian((3,), k, torch.float64)
            held.append(weakref.ref(part))
            yield part, torch.tensor(0)
            del part
            alive.append(sum(one() is not None for one in held))

    added(made())
    assert max(alive) <= 2
