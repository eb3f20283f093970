"""What is computed agrees to rounding, wherever its inputs lie in memory and whatever is computed beside it.

The alignment of memory, the number of rows, the number of threads and the instruction set are what processors differ
in; each is varied here for every public function that computes. What has to be equal to the bit (stored numbers,
merging, undoing) has tests of its own.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from public_names import CASES, WIDTH, adapter, flattened, linear, matrix_train, mps, noise, train, ttm
from shake import LYING, lying, threads

import ttref
from ttref.fixedpoint import QuantizedTT

ROUNDING = 1e-5  # relative; the inputs are float32, well conditioned and about 1 in size
LEAST = 1e-6  # what a measured error of a few machine epsilons may differ by


def assert_close(found, expected):
    found, expected = flattened(found), flattened(expected)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        gap = torch.linalg.vector_norm(one.double() - other.double())
        assert gap <= ROUNDING * torch.linalg.vector_norm(other.double()) + LEAST


@pytest.mark.parametrize("how", LYING)
@pytest.mark.parametrize("name", CASES)
def test_where_the_numbers_lie_changes_rounding_only(name, how):
    expected = CASES[name]()
    with lying(how):
        assert_close(CASES[name](), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_second_thread_changes_rounding_only(name):
    with threads(1):
        expected = CASES[name]()
    with threads(2):
        assert_close(CASES[name](), expected)


# Functions of rows, each computed apart: (rows, what computes all of them).
ROWS = {
    "tt_svd": (lambda: noise(9, 64), lambda x: ttref.tt_to_tensor(ttref.tt_svd(x, (4, 4, 4), rank=3, batch_dims=1))),
    "tt_to_tensor": (lambda: noise(9, 4), lambda x: ttref.tt_to_tensor([x[:, None, :, None], x[:, None, :, None]])),
    "tt_dot": (lambda: noise(9, 4), lambda x: ttref.tt_dot(*[[x[:, None, :, None]] * 2] * 2)),
    "tt_norm": (lambda: noise(9, 4), lambda x: ttref.tt_norm([x[:, None, :, None]] * 2)),
    "tt_entry": (lambda: torch.arange(9)[:, None] % 4, lambda x: ttref.tt_entry(train(), x.repeat(1, 3))),
    "schmidt_values": (lambda: noise(9, 16), lambda x: ttref.schmidt_values(x.view(-1, 4, 4), 1, batch_dims=1)),
    "ttm_matvec": (lambda: noise(9, 36), lambda x: ttref.ttm_matvec(matrix_train(), x)),
    "TTLinear": (lambda: noise(9, 36), ttref.TTLinear.from_linear(linear(), rank=4)),
    "TTLoRALinear": (lambda: noise(9, 36), adapter()),
    "MPSEmbedding": (lambda: torch.arange(9), mps(rank=2, center=True, rotate=True)),
    "MPSEmbedding, eps": (lambda: torch.arange(9), mps(eps=0.05)),
    "MPSEmbedding, int8": (lambda: torch.arange(9), mps(rank=2, core_bits=8)),
    "MPSEmbedding.logits": (lambda: noise(9, WIDTH), mps(rank=2, rotate=True).logits),
    "TTMEmbedding": (lambda: torch.arange(9), ttm(rank=4)),
    "TTMEmbedding.logits": (lambda: noise(9, WIDTH), ttm(rank=4).logits),
    "TiedHead": (lambda: noise(9, WIDTH), ttref.TiedHead(mps(rank=2))),
}


@pytest.mark.parametrize("name", ROWS)
def test_one_row_more_or_less_changes_rounding_only(name):
    make, function = ROWS[name]
    rows = make()
    with torch.no_grad():
        expected = function(rows)
        for count in (1, 2, 3, 5, 8):
            assert_close(function(rows[:count].clone()), expected[:count])
            assert_close(function(rows[-count:].clone()), expected[-count:])


def test_integers_are_the_same_to_the_bit():
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=shape) / 4 for shape in [(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)]]
    q = QuantizedTT.from_float(cores, weight_width=8, act_width=16, x_max=1.0)
    x = rng.uniform(-1, 1, (9, 64))
    expected = q.matvec_float(x)
    room = np.empty(x.size + 3)
    room[3:] = x.ravel()
    displaced = room[3:].reshape(x.shape)
    for shaken in (displaced, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2]):
        assert np.array_equal(q.matvec_float(shaken), expected)
        for count in (1, 2, 5):
            assert np.array_equal(q.matvec_float(shaken[:count]), expected[:count])


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from public_names import CASES, flattened
torch.save({name: flattened(case()) for name, case in CASES.items()}, sys.argv[3])
"""


def test_without_vector_instructions_only_rounding_changes(tmp_path, monkeypatch):
    root, saved = Path(__file__).resolve().parents[1], tmp_path / "numbers.pt"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    subprocess.run([sys.executable, "-c", PROGRAM, root, root / "tests", saved], check=True, cwd=tmp_path)
    for name, found in torch.load(saved, weights_only=True).items():
        assert_close(found, CASES[name]())
