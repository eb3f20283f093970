"""Files of compressed tables: what is read back, and what a failed save leaves behind."""

import errno
import json
import math
import os
import sys

import pytest
import safetensors.torch
import torch
from compressed import FLOATS, embedding, every, noise, same_state, smooth
from strategies import agree
from table_files import (
    KINDS,
    kinds,
    opened,
)
from torch import nn

import ttref
from ttref import MPSEmbedding, TTMEmbedding


def matrix_of(table):
    with torch.no_grad():
        return table(every(table))


# What is read back


@pytest.mark.parametrize("dtype", FLOATS)
@kinds
def test_a_table_comes_back_as_it_was(kind, dtype, path):
    table = KINDS[kind](dtype=dtype, options={"padding_idx": 3})
    if kind == "eps":
        table.append(noise(2, 48, 1, dtype))
    table.save(str(path))
    again = type(table).load(str(path))
    assert same_state(again, table) and repr(again) == repr(table)
    assert agree(matrix_of(again), matrix_of(table)) and again.dtype == dtype
    hidden = noise(2, 48, 0, dtype)
    assert agree(again.logits(hidden), table.logits(hidden))
    assert (again.params, again.nbytes, again.padding_idx) == (table.params, table.nbytes, 3)
    assert [p.requires_grad for p in again.parameters()] == [True] * len(list(table.parameters()))


@pytest.mark.parametrize("dtype", FLOATS)
@kinds
def test_the_payload_is_what_is_counted(kind, dtype, path):
    table = KINDS[kind](dtype=dtype)
    table.save(path)
    tensors, _ = opened(path)
    assert sum(x.numel() for x in tensors.values()) == table.params
    assert sum(x.numel() * x.element_size() for x in tensors.values()) == table.nbytes
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    assert path.stat().st_size == 8 + header + table.nbytes


@kinds
def test_what_was_frozen_or_sparse_stays_so(kind, path):
    sparse = kind != "ttm"
    table = KINDS[kind](options={"sparse": sparse})
    for p in table.parameters():
        p.requires_grad_(False)
    dense = embedding(smooth(12, 48)).requires_grad_(False)
    for frozen in (
        MPSEmbedding.from_embedding(dense, rank=2),
        TTMEmbedding.from_embedding(dense, row_shape=(3, 4), col_shape=(6, 8), rank=2),
    ):
        frozen.save(path)
        again = type(frozen).load(path)
        assert not any(p.requires_grad for p in again.parameters())
    table.save(path)
    assert getattr(type(table).load(path), "sparse", False) == sparse


def test_the_order_of_scores_is_kept(path):
    """As a layer's: scores are computed in it."""
    table = KINDS["ttm"]()
    table.order, table.recompute = "dense", True
    table.save(path)
    again = ttref.load(path)
    assert (again.order, again.recompute) == ("dense", True) and again.plan(8).order == "dense"
    table.order = "sideways"
    with pytest.raises(ValueError, match="its order is 'sideways'"):
        table.save(path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ttm"])
def test_a_table_that_has_grown_goes_on_growing(kind, path):
    table = KINDS[kind]()
    for k in range(3):
        caps = {"row_ranks": [2]} if table.store.by_row else {}
        table.append(noise(1, 48, k), **caps)
    table.save(path)
    again = MPSEmbedding.load(path)
    assert agree(matrix_of(again), matrix_of(table)) and again.num_embeddings == 15
    before = matrix_of(again)
    for one in (table, again):
        caps = {"row_ranks": [1, 99]} if table.store.by_row else {}
        assert one.append(noise(2, 48, 9), **caps).tolist() == [15, 16]
    assert agree(matrix_of(again), matrix_of(table)) and agree(matrix_of(again)[:15], before)
    assert (again.store.eps, again.store.by_row, again.core_bits) == (
        table.store.eps,
        table.store.by_row,
        table.core_bits,
    )


def test_the_frame_of_the_first_rows_is_that_of_later_ones(path):
    table = KINDS["frame"]()
    table.save(path)
    again = MPSEmbedding.load(path)
    for one in (table, again):
        one.append(noise(3, 48, 1))
    assert agree(matrix_of(again), matrix_of(table))


@kinds
def test_a_second_save_replaces_the_first(kind, path):
    KINDS["one bucket"]().save(path)
    table = KINDS[kind]()
    table.save(path)
    assert agree(matrix_of(type(table).load(path)), matrix_of(table))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_says_what_it_is(path):
    KINDS["buckets"]().save(path)
    _, about = opened(path)
    assert about["format"] == "ttref.MPSEmbedding" and about["version"] == "3" and len(about["sha256"]) == 64
    header = json.loads(about["header"])
    assert header["num_embeddings"] == 12 and header["embedding_dim"] == 48 and header["dtype"] == "float32"


def broken(number):
    """A full disk may say so only when what was written is to stay."""
    raise OSError(errno.ENOSPC, "no space left on device")


# What a failed save leaves


@kinds
def test_a_failed_save_leaves_the_old_file(kind, path, monkeypatch):
    old = KINDS["one bucket"]()
    old.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space left"):
        KINDS[kind]().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_first_save_leaves_nothing(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space left"):
        KINDS["ttm"]().save(path)
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_is_not_there(path):
    with pytest.raises((OSError, safetensors.SafetensorError)):
        KINDS["one bucket"]().save(path.parent / "nowhere" / "table.safetensors")
    assert list(path.parent.iterdir()) == []


def test_without_safetensors_the_install_line_is_given(path, monkeypatch):
    table = KINDS["one bucket"]()
    table.save(path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    for call in (table.save, MPSEmbedding.load, TTMEmbedding.load):
        with pytest.raises(ModuleNotFoundError, match="python -m pip install safetensors"):
            call(path)


def test_a_table_in_a_frame_is_written_contiguous(path):
    table = KINDS["frame"]()
    with torch.no_grad():
        table.store.frame.rotation = table.store.frame.rotation.T.contiguous().T
    expected = matrix_of(table)
    table.save(path)
    assert torch.equal(MPSEmbedding.load(path).store.frame.rotation, table.store.frame.rotation)
    torch.testing.assert_close(matrix_of(MPSEmbedding.load(path)), expected)


def test_a_table_in_use_is_saved_where_it_lies(path):
    """Trained, with gradients, as part of a model; the file holds the numbers only."""
    table = KINDS["buckets"]()
    table(every(table)).square().sum().backward()
    nn.Sequential(table).eval()
    table.save(path)
    again = MPSEmbedding.load(path)
    assert all(p.grad is None for p in again.parameters()) and again.training
    assert math.isclose(float(matrix_of(again).sum()), float(matrix_of(table).sum()), rel_tol=1e-6)
