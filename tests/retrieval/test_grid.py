"""Codes of a few bits: packed as the house packs, levels as they are defined, scales that are right on average."""

import pytest
import torch
from strategies import gaussian

from ttref.codes import pack_bits, unpack_bits
from ttref.retrieval.grid import STEPS, Grid

PACKED = (1, 2, 4)


def grid_of(c, bits, alike=False):
    return Grid.of(c, bits, alike=alike)


@pytest.mark.parametrize("r", [1, 7, 8, 24, 30])
@pytest.mark.parametrize("bits", PACKED)
def test_codes_are_packed_and_unpacked_in_one_order(bits, r):
    c = gaussian((40, r), r, torch.float32)
    grid = grid_of(c, bits)
    codes, _ = grid.encode(c)
    assert codes.dtype == torch.uint8 and codes.shape == (40, -(-r * bits // 8))
    padded = codes.shape[1] * 8 // bits
    counted = unpack_bits(codes.flatten(), bits, 40 * padded, signed=False).view(40, padded)
    assert torch.equal(pack_bits(counted, bits).view_as(codes), codes)
    assert torch.equal(grid.unpacked(codes).long(), grid.planes(counted))  # what queries are turned into
    q = gaussian((3, r), 1, torch.float32)
    levels = counted[:, :r] + grid.middle
    expected = (q * grid.ranges * STEPS[bits]).double() @ levels.double().mT
    torch.testing.assert_close((grid.queries(q) @ grid.levels(codes).mT).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", STEPS)
def test_levels_are_the_nearest_and_keep_signs(bits):
    c = gaussian((60, 24), 3, torch.float32)
    grid = grid_of(c, bits)
    codes, scales = grid.encode(c)
    levels = grid.decode(codes, scales) / grid.factors(scales).unsqueeze(1)
    normed = c / c.square().mean(1, keepdim=True).sqrt()
    step = grid.ranges * STEPS[bits]
    inside = normed.abs() < step * (2 ** (bits - 1) - 1e-3)
    assert ((levels - normed).abs() <= (0.5001 * step).expand_as(c))[inside].all()
    assert (levels.sign() == c.sign()).all() and inside.double().mean() > (0 if bits == 1 else 0.9)


@pytest.mark.parametrize("bits", STEPS)
def test_the_scale_makes_the_product_with_the_document_itself_exact(bits):
    """That is what makes the others right on average; a float16 keeps three digits of it."""
    c = gaussian((50, 40), 4, torch.float32) * torch.logspace(-3, 3, 50).unsqueeze(1)
    grid = grid_of(c, bits)
    made = grid.decode(*grid.encode(c))
    torch.testing.assert_close((made * c).sum(1), c.square().sum(1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_products_are_right_on_average_over_rotations(bits):
    """Within five standard errors, and one of least squares would be off by more than ten."""
    c, q = gaussian((1, 32), 5), gaussian((1, 32), 6)
    q = q + c  # so that the product is far from 0
    found, least_squares = [], []
    for seed in range(2000):
        turn = torch.linalg.qr(gaussian((32, 32), 100 + seed))[0]
        turned = (c @ turn).float()
        grid = Grid(bits, torch.ones(32), torch.ones(()), False)
        made = grid.decode(*grid.encode(turned)).double()
        found.append((made @ (q @ turn).mT).item())
        shrink = (made @ turned.double().mT) / made.square().sum()
        least_squares.append((shrink * made @ (q @ turn).mT).item())
    true = (q @ c.mT).item()
    found, least_squares = torch.tensor(found), torch.tensor(least_squares)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - true) < 5 * error
    if bits < 4:
        assert true - least_squares.mean() > 10 * error


def test_ranges_are_those_of_the_fit_and_no_coordinate_has_none():
    c = gaussian((80, 16), 7, torch.float32) * torch.logspace(0, -2, 16)
    c[:, 5] = 0
    grid = grid_of(c, 4)
    normed = c / c.square().mean(1, keepdim=True).sqrt()
    expected = normed.square().mean(0).sqrt().clamp(min=1e-3)
    torch.testing.assert_close(grid.ranges, expected, rtol=1e-5, atol=0)
    later = gaussian((5, 16), 8, torch.float32) * 30
    together, alone = grid.encode(later), [grid.encode(one.unsqueeze(0)) for one in later]
    assert torch.equal(together[0], torch.cat([codes for codes, _ in alone]))
    assert torch.equal(together[1], torch.cat([scales for _, scales in alone]))


def test_documents_without_coordinates_decode_to_none():
    c = gaussian((6, 16), 9, torch.float32)
    c[2] = 0
    for bits in (*STEPS, 32):
        grid = grid_of(c, bits)
        assert (grid.decode(*grid.encode(c))[2] == 0).all()
        nothing = grid_of(torch.zeros(3, 16), bits)
        assert (nothing.decode(*nothing.encode(torch.zeros(3, 16))) == 0).all()


def test_a_document_far_larger_than_those_of_the_fit_is_refused():
    c = gaussian((20, 16), 10, torch.float32)
    grid = grid_of(c, 4)
    grid.encode(c * 1e4)
    with pytest.raises(ValueError, match=r"document 3 is \S+ times as long as the typical one of the fit"):
        grid.encode(torch.cat((c[:3], c[3:4] * 1e6)))
