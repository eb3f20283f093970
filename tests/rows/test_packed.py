"""Rows in int8: each core's rounding and no more; the frame's axes, in half precision and of huge rows."""

import copy
import math

import pytest
import torch
from compressed import FLOATS, embedding, every, noise, rebuilt, row_norms, unit
from compressed import smooth as smooth_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from mps_tables import (
    KINDS,
    made,
    matrix_of,
    tables_to_compress,
)
from strategies import norm

from ttref import MPSEmbedding
from ttref.rows import frame


@settings(max_examples=40)
@given(tables_to_compress(), st.integers(1, 5), st.booleans(), st.booleans())
def test_rows_in_a_frame(example, rank, center, rotate):
    """The oracle works on what the stored mean and axes leave, and the frame is checked on its own."""
    count, width, shape, seed = example
    w = noise(count, width, seed, torch.float64)
    table = MPSEmbedding.from_embedding(embedding(w), rank=rank, shape=shape, center=center, rotate=rotate)
    mean, axes = table.store.frame.mean, table.store.frame.rotation
    assert (mean is not None, axes is not None) == (center, rotate)
    inner = w
    if center:
        torch.testing.assert_close(mean, w.mean(0), rtol=0, atol=1e-13)
        inner = inner - w.mean(0)
    if rotate:
        torch.testing.assert_close(axes @ axes.T, torch.eye(width).double(), rtol=0, atol=1e-12)
        inner = inner @ axes.T
        spread = inner.T @ inner
        scale = float(spread.diagonal().max()) + 1e-300
        assert (spread - spread.diagonal().diag()).abs().max() <= 1e-11 * scale
        assert (spread.diagonal().diff() <= 1e-11 * scale).all()  # largest variance first
    expected = rebuilt(inner, table.shape, rank)
    expected = expected @ axes if rotate else expected
    expected = expected + mean if center else expected
    torch.testing.assert_close(matrix_of(table), expected, rtol=0, atol=1e-11)
    shared = center * width + rotate * width**2
    assert table.params == count * table.store.buckets[0].layout.numbers + shared


def test_a_frame_brings_the_rows_of_a_common_shape_closer():
    w = noise(200, 1, 0) @ noise(1, 64, 1) + 5 * noise(1, 64, 2) + 0.05 * noise(200, 64, 3)
    errors = [
        norm(matrix_of(MPSEmbedding.from_embedding(embedding(w), rank=1, **frame)) - w) / norm(w)
        for frame in ({}, {"center": True}, {"center": True, "rotate": True})
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


# int8 cores


@settings(max_examples=80)
@given(tables_to_compress(), st.integers(1, 6), st.booleans(), st.sampled_from(FLOATS))
def test_rounding_to_int8_costs_no_more_than_each_core_s_rounding(example, rank, rotate, dtype):
    """An orthogonal core moves by half a code an entry, the carrier by half of its scale."""
    count, width, shape, seed = example
    w = noise(count, width, seed, dtype)
    kind = {"rank": rank, "shape": shape, "rotate": rotate}
    exact, rounded = (MPSEmbedding.from_embedding(embedding(w), **kind, core_bits=bits) for bits in (32, 8))
    layout = exact.store.buckets[0].layout
    sizes = [layout.last_size] if layout.dense else [math.prod(core) for core in layout.cores]
    grows = math.prod(1 + 1.01 * size**0.5 / 254 for size in sizes) - 1
    expected = matrix_of(exact).double()
    error = row_norms(matrix_of(rounded).double() - expected)
    assert (error <= (grows + 40 * unit(dtype)) * row_norms(expected) + 1e-30).all()
    shared = rotate * width**2
    assert rounded.params == count * (layout.numbers + 1) + shared
    assert rounded.nbytes == count * (layout.numbers + 2) + shared * w.element_size()
    assert matrix_of(rounded).dtype == dtype


def test_int8_cores_are_near_the_exact_ones():
    w = smooth_rows(100, 96)
    for rank in (1, 4):
        exact, rounded = (
            matrix_of(MPSEmbedding.from_embedding(embedding(w), rank=rank, core_bits=bits)) for bits in (32, 8)
        )
        assert 1e-4 < norm(rounded - exact) / norm(exact) < 0.02


def test_int8_cores_are_not_trained_but_pass_gradients_on_to_the_vectors():
    table = made(KINDS["int8 buckets in a frame"])
    assert not list(table.parameters())
    assert not table(every(table)).requires_grad
    hidden = noise(3, 48).requires_grad_()
    table.logits(hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, matrix_of(table).sum(0).expand(3, 48), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_int8_cores_keep_their_bytes_and_their_range_in_every_dtype(dtype):
    w = smooth_rows(8, 48) * 1e-4
    table = MPSEmbedding.from_embedding(embedding(w), rank=3, core_bits=8)
    moved = copy.deepcopy(table).to(dtype)
    assert moved.nbytes == table.nbytes
    expected = matrix_of(table).to(dtype)
    assert norm(matrix_of(moved).double() - expected.double()) <= 1e-3 * norm(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_axes_in_half_precision_are_undone_exactly(dtype):
    """Their rounding leaves them oblique: the transpose would be off by a quarter of a percent."""
    w = smooth_rows(60, 48, 0, torch.float32)
    axes = frame.Frame.of(w.to(dtype), center=False, rotate=True)
    assert norm(axes.outer(axes.inner(w)) - w) <= 1e-5 * norm(w)


def test_axes_of_huge_rows():
    w = noise(20, 8, 0, torch.float64) * 1e300
    found = frame.Frame.of(w, center=True, rotate=True)
    torch.testing.assert_close(found.rotation @ found.rotation.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(found.mean, w.mean(0))
