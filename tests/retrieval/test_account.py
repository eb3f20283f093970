"""Bytes, numbers, ranks and modes: exact, everything counted."""

import pytest
import torch
from corpora import texts

from ttref import Compressed
from ttref.retrieval import TTIndex

X = texts(200)


@pytest.mark.parametrize("core_bits", [8, 32])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
def test_bytes(bits, core_bits):
    index = TTIndex(30, bits=bits, core_bits=core_bits).fit(X)
    codes = {1: 4, 2: 8, 4: 15, 8: 30, 32: 120}[bits]
    scale, ranges = (0, 0) if bits == 32 else (2, 4 * 30 + 4)
    shared = 4 * 48 + 30 * 48 * core_bits // 8 + (2 * 30 if core_bits == 8 else 0) + ranges
    assert index.code_nbytes == codes + scale
    assert index.nbytes == 200 * (codes + scale) + shared
    numbers = 200 * 30 + 48 + 30 * 48 + (30 if core_bits == 8 else 0)
    assert index.params == numbers + (0 if bits == 32 else 200 + 30 + 1)
    assert index.dense_nbytes == 200 * 48 * 4 and index.ratio == 200 * 48 / index.params
    before = index.nbytes
    index.add(X[:7])
    assert index.nbytes == before + 7 * (codes + scale)
    index.remove([0])
    assert index.nbytes == before + 6 * (codes + scale) + 206 * 4 and index.code_nbytes == codes + scale + 4
    index.remove(index.ids_)
    assert index.n_samples_fit_ == 0 and index.code_nbytes == codes + scale


def test_the_sizes_of_the_chapter():
    """Rank 192 and full width of MiniLM's 384 numbers, 4 bits each, with the scale."""
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(0))
    assert TTIndex(192).fit(x).code_nbytes == 98 and TTIndex(None).fit(x).code_nbytes == 194


def test_a_train_of_shared_cores():
    index = TTIndex(20, shape=(4, 3, 4), rank=(1, 9, 3, 1)).fit(X)
    assert index.ranks == (1, 20, 9, 3, 1) and index.modes == ((200, 1), (1, 4), (1, 3), (1, 4))
    cores = 20 * 4 * 9 + 9 * 3 * 3 + 3 * 4
    assert index.nbytes == 200 * 12 + 4 * 48 + cores + 2 * (20 + 9 + 3) + 4 * 20 + 4
    assert TTIndex(20).fit(X).ranks == (1, 20, 1) and TTIndex(20).fit(X).modes == ((200, 1), (1, 48))


def test_the_protocol_of_what_is_compressed():
    index = TTIndex(20).fit(X)
    assert isinstance(index, Compressed)
    dense = index.dense()
    assert dense.shape == X.shape and dense.dtype == torch.float32
    index.kneighbors(X[:2])
    assert torch.equal(index.dense(), dense)
