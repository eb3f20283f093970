"""One matrix: gains against trains that are built, noise that is not taken for structure, structure that is found."""

import math

import numpy as np
import pytest
import torch
from small_checkpoints import falling, noise, waves
from strategies import gaussian

from ttref import does_a_train_pay, entanglement_entropy, gaussian_null, quantize_integer, ttm_svd, ttm_to_matrix
from ttref.advice.check import modes_of
from ttref.audit import forms as forms_module
from ttref.audit.forms import SVD, WIDEST, Form, Spectra, energies, forms_of, seen_forms
from ttref.audit.looking import LEVEL, NULLS, _chance, look

EPS = (0.1, 0.3, 0.5)
SHAPES = [(256, 96), (96, 256), (64, 64), (30, 42)]


def unfolded(matrix, rows, cols):
    """The matrix across a bond: the first digits of its row and of its column on the left."""
    m, n = matrix.shape
    return matrix.reshape(rows, m // rows, cols, n // cols).permute(0, 2, 1, 3).reshape(rows * cols, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [noise, waves, lambda m, n: falling(max(m, n), min(m, n)).reshape(m, n)])
def test_a_train_of_these_ranks_keeps_the_error_and_has_the_size_that_was_said(shape, make):
    matrix = make(*shape)
    spectra = Spectra(matrix, forms_of(*shape))
    for form in spectra.forms:
        for eps in EPS:
            cores = ttm_svd(matrix, form.rows, form.cols, rank=(1, *spectra.ranks(form, eps), 1))
            assert (ttm_to_matrix(cores) - matrix).norm() <= (eps + 1e-5) * matrix.norm()
            assert spectra.gain(form, eps) == matrix.numel() / sum(core.numel() for core in cores)


@pytest.mark.parametrize("make", [noise, waves])
def test_no_other_ranks_make_a_smaller_train(make):
    """Among all pairs of ranks whose cuts lose the error together, counted one by one."""
    matrix = make(30, 42)
    spectra, form = Spectra(matrix, forms_of(30, 42)), Form("TT-matrix, 3 modes", (2, 3, 5), (2, 3, 7))
    assert form in spectra.forms
    lost = []
    for a, b in form.cuts():
        values = np.linalg.svd(unfolded(matrix, a, b).double().numpy(), compute_uv=False) ** 2
        lost.append([values[r:].sum() / values.sum() for r in range(len(values) + 1)])
    for eps in EPS:
        sizes = {
            (r, s): 4 * r + 9 * r * s + 35 * s
            for r in range(1, len(lost[0]))
            for s in range(1, len(lost[1]))
            if lost[0][r] + lost[1][s] <= eps**2 + 1e-9
        }
        r, s = spectra.ranks(form, eps)
        assert sizes[r, s] == min(sizes.values())


@pytest.mark.parametrize("matrix", [waves(), noise(256, 96), falling()], ids=["waves", "noise", "falling"])
@pytest.mark.parametrize("eps", EPS)
def test_it_says_what_the_check_of_one_matrix_says(matrix, eps):
    found, check = look(matrix, [eps]), does_a_train_pay(matrix, eps)
    assert found["svd"] == [check.svd] and found["bits"] == [check.bits]
    assert found["integers"] == [pytest.approx(check.integers)]
    assert found["train"][0] >= 0.8 * check.train
    assert found["noise"][0] >= 0.8 * check.noise  # of the best form for noise, not of the form that won
    assert found["verdicts"] == [{"train": "tt", "SVD": "svd", "integers": "quantize"}[check.verdict]]
    m, n = matrix.shape
    assert (tuple(found["row_shape"][0]), tuple(found["col_shape"][0])) == modes_of(found["form"][0], m, n)


def test_the_cuts_are_those_of_the_folded_tensor():
    matrix, form = noise(24, 30), Form("TT-matrix, 3 modes", (2, 3, 4), (2, 3, 5))
    paired = matrix.reshape(2, 3, 4, 2, 3, 5).permute(0, 3, 1, 4, 2, 5)
    spectra = Spectra(matrix, [Form(SVD, (24, 1), (1, 30)), form])
    for bond, (cut, entropy) in enumerate(zip(form.cuts(), spectra.entropies(form), strict=True), 1):
        folded = paired.reshape(math.prod(paired.shape[: 2 * bond]), -1)
        values = np.linalg.svd(folded.double().numpy(), compute_uv=False)
        assert np.allclose(energies(matrix, *cut).sqrt().numpy(), values, rtol=1e-6, atol=1e-6)
        assert entropy == pytest.approx(entanglement_entropy(paired.reshape(4, 9, 20), bond).item(), abs=1e-5)


@pytest.mark.parametrize("piece", [1, 100, 500, 1 << 21])
@pytest.mark.parametrize("shape", [(24, 30), (30, 24), (5, 144), (144, 5)])
def test_pieces_of_an_unfolding_make_its_gram_matrix(shape, piece, monkeypatch):
    """Across every bond that a matrix can have, with the smaller side on the left and on the right."""
    monkeypatch.setattr(forms_module, "PIECE", piece)
    matrix = noise(*shape)
    for rows in (q for q in range(1, shape[0] + 1) if shape[0] % q == 0):
        for cols in (q for q in range(1, shape[1] + 1) if shape[1] % q == 0):
            values = np.linalg.svd(unfolded(matrix, rows, cols).double().numpy(), compute_uv=False)
            assert np.allclose(energies(matrix, rows, cols).sqrt().numpy(), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(30520, 384), (49152, 576), (4096, 2048), (1536, 384), (512, 384), (8, 9), (11, 13)])
def test_no_cut_is_too_wide_but_that_of_the_matrix(shape):
    m, n = shape
    found = forms_of(m, n)
    assert found[0] == Form(SVD, (m, 1), (1, n))
    for form in found:
        assert math.prod(form.rows) == m and math.prod(form.cols) == n
        for a, b in form.cuts():
            assert (a, b) == (m, 1) or min(a * b, m * n // (a * b)) <= WIDEST
    if min(m, n) > 100 and (m, n) != (4096, 2048):
        assert {form.name for form in found} >= {"rows in blocks", "columns in blocks", "TT-matrix, 2 modes"}


def test_narrower_forms_are_trains_of_the_same_matrix(monkeypatch):
    monkeypatch.setattr(forms_module, "WIDEST", 40)
    matrix = noise(240, 36)
    spectra = Spectra(matrix, forms_of(240, 36))
    assert {form.rows for form in spectra.forms} != {modes_of(name, 240, 36)[0] for name in ("SVD", "rows in blocks")}
    for form in spectra.forms:
        cores = ttm_svd(matrix, form.rows, form.cols, rank=(1, *spectra.ranks(form, 0.3), 1))
        assert (ttm_to_matrix(cores) - matrix).norm() <= 0.30001 * matrix.norm()


def uneven(m, n, seed):
    """Noise whose rows differ in size by orders of magnitude: factors keep the large ones, and no order is in it."""
    scale = torch.logspace(0, -3, m)[torch.randperm(m, generator=torch.Generator().manual_seed(seed))]
    return noise(m, n, seed) * scale.unsqueeze(1)


@pytest.mark.parametrize("make", [noise, uneven], ids=["even", "uneven rows"])
def test_noise_is_taken_for_structure_once_in_twenty_at_most(make):
    """Verdicts on 90 matrices of noise, at three errors each."""
    wrong = [
        look(make(*shape, seed), EPS, seed=10_000 + 100 * seed)["verdicts"]
        for seed in range(30)
        for shape in ((48, 64), (64, 24), (32, 32))
    ]
    for k in range(len(EPS)):
        assert sum(verdict[k] in ("tt", "svd") for verdict in wrong) <= LEVEL * len(wrong)


@pytest.mark.parametrize("make", [noise, uneven], ids=["even", "uneven rows"])
def test_the_chance_is_never_too_small(make):
    """Of 60 matrices of noise, the test with 19 draws calls a twentieth better than noise at most; ties are noise's."""
    forms, better = forms_of(24, 40), 0
    for seed in range(60):
        matrix = make(24, 40, seed)
        nulls = [Spectra(gaussian_null(matrix, seed=1000 * (seed + 1) + k), forms) for k in range(NULLS)]
        better += _chance([one.best(0.3)[1] for one in nulls], Spectra(matrix, forms).best(0.3)[1]) <= LEVEL
    assert better <= 60 * LEVEL
    assert _chance([1.0] * 19, 1.0) == 1 and _chance([1.0] * 19, 1.1) == 1 / 20


@pytest.mark.parametrize("seed", range(20))
def test_a_planted_train_is_found(seed):
    """Ranks of three in a TT-matrix, and noise of a fifth of its size."""
    bonds, shape = (1, 3, 3, 1), [(4, 4), (8, 4), (8, 6)]
    cores = [gaussian((bonds[k], m, n, bonds[k + 1]), 100 * seed + k, torch.float32) for k, (m, n) in enumerate(shape)]
    matrix = ttm_to_matrix(cores)
    dirt = noise(*matrix.shape, 7000 + seed)
    found = look(matrix + dirt * (0.2 * matrix.norm() / dirt.norm()), (0.25, 0.3, 0.5), seed=seed)
    assert found["verdicts"] == ["tt"] * 3
    assert found["form"][0] == "TT-matrix, 3 modes" and found["p"] == [1 / 20] * 3 and found["draws"] == 19


def test_integers_are_those_of_the_rounding():
    matrix = noise(96, 64)
    found = look(matrix, EPS)
    assert found["int8"] == pytest.approx(quantize_integer(matrix, 8).relative_error(matrix))
    assert found["int4"] == pytest.approx(quantize_integer(matrix, 4).relative_error(matrix))
    for bits, ratio in zip(found["bits"], found["integers"], strict=True):
        assert ratio == 4 * matrix.numel() / quantize_integer(matrix, bits).nbytes


def test_a_matrix_of_zeros_is_no_structure():
    found = look(torch.zeros(32, 48), EPS)
    assert found["verdicts"] == ["quantize"] * 3 and found["int8"] == 0 and found["p"] == [1] * 3


@pytest.mark.parametrize("eps", EPS)
def test_in_the_norm_of_the_outputs_it_is_the_best_train_of_that_norm(eps):
    """Rows in blocks, built for W times the root and taken apart again: the error of the outputs is within eps."""
    weight = waves(64, 48) + 0.1 * noise(64, 48)
    inputs = noise(500, 48, 3) * torch.logspace(0, -2, 48)
    gram = inputs.double().mT @ inputs.double()
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.sqrt()) @ vectors.mT
    forms = seen_forms(64, 48)
    found = look(weight, [eps], forms=forms, root=root)
    form = next(form for form in forms if form.name == found["form"][0])
    cores = ttm_svd((weight.double() @ root).float(), form.rows, form.cols, rank=found["ranks"][0])
    made = ttm_to_matrix(cores).double() @ torch.linalg.inv(root)
    lost = inputs.double() @ (made - weight.double()).mT
    assert lost.norm() <= (eps + 1e-4) * (inputs.double() @ weight.double().mT).norm()
    assert sum(core.numel() for core in cores) == pytest.approx(weight.numel() / found["train"][0])
    assert found["svd"][0] > look(weight, [eps])["svd"][0]  # inputs of falling size need fewer ranks
