"""The candidates of the chapter on the frontier, and its codes: bytes and errors against what they must be."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from book.workbook import codes, frontier
from book.workbook.codes import coded_axes, coded_groups, coded_rows, coded_train, gaussian_levels, rounded
from ttref import gaussian_distortion, quantize_integer


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# --- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_levels_have_the_error_of_max_1960(bits, error):
    sample = torch.special.ndtri((torch.arange(40_001, dtype=torch.float64) + 0.5) / 40_001).float()
    assert (rounded(sample, bits) - sample).square().mean().item() == pytest.approx(error, rel=0.01)


def test_levels_are_symmetric_and_between_their_cells():
    levels = gaussian_levels(3)
    assert torch.allclose(levels, -levels.flip(0), atol=1e-4)
    assert bool((levels.diff() > 0).all())


@pytest.mark.parametrize("way", [coded_rows, coded_axes, coded_train, coded_groups])
def test_no_code_of_gaussian_rows_lies_below_the_bound_or_far_above(way):
    table = noise(3840, 48)
    approximation, nbytes = way(table, 3)
    error = ((approximation - table).norm() / table.norm()).item()
    bits = 8 * nbytes / table.numel()
    spectrum = torch.linalg.eigvalsh(torch.cov(table.double().T))
    least = math.sqrt(gaussian_distortion(spectrum, 48 * bits) / table.double().square().sum(1).mean().item())
    assert least < error < 0.2
    assert nbytes >= table.numel() * 3 // 8


# --- candidates ------------------------------------------------------------------------------------------------------


def test_the_list_has_each_setting_once_and_knows_every_family():
    order = torch.arange(30522)
    listed = [candidate[:2] for candidate in frontier.candidates(nn.Embedding(30522, 384), order, order)]
    assert len({setting for _, setting in listed}) == len(listed) == 34
    assert {family for family, _ in listed} <= set(frontier.LOOKS)


def test_every_recorded_family_has_a_name():
    assert set(frontier.GROUPS.values()) == set(frontier.LOOKS)
    assert frontier.family_of({"family": "int8 rows, MPS rank 1 for the rest"}) == "frequent rows + trains"
    assert frontier.family_of({"family": "TT-matrix in codes, row scales"}) == "TT-matrix, codes"
    with pytest.raises(StopIteration):
        frontier.family_of({"family": "hashing"})


def test_parts_are_stored_in_their_ways():
    table, order = noise(40, 8), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    first, second = quantize_integer(table[order[:10]], 8), quantize_integer(table[order[10:25]], 4)
    ways = (partial(codes.integers, bits=8), partial(codes.integers, bits=4), codes.mean_row)
    approximation, nbytes = codes.parts(table, order, (10, 15), ways)
    assert torch.equal(approximation[order[:10]], first.approximation)
    assert torch.equal(approximation[order[10:25]], second.approximation)
    assert torch.allclose(approximation[order[25:]], table[order[25:]].mean(0).expand(15, 8))
    assert nbytes == first.nbytes + second.nbytes + 4 * 8 + 5 * 40


def test_svd_in_int8_is_near_the_svd_of_the_centered_table():
    table = noise(200, 16) * torch.linspace(1, 0.1, 16) + 3
    approximation, nbytes = frontier.svd_int8(table, 5)
    middle = table.mean(0)
    u, s, v = torch.linalg.svd(table - middle, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ v[:5] + middle
    assert ((approximation - best).norm() / (table - middle).norm()).item() < 0.01
    assert nbytes == 200 * 5 + 2 * 200 + 4 * 16 * 6
