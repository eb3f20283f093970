"""MPSEmbedding saved, copied, moved, described, and started at random."""

import copy
import io
import pickle

import pytest
import torch
from compressed import assert_rows, embedding, every, noise
from compressed import smooth as smooth_rows
from mps_tables import (
    KINDS,
    kinds,
    made,
    matrix_of,
    rows_for,
)
from strategies import agree
from torch import nn

from ttref import MPSEmbedding

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


def through_torch_save(table):
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# Saving, copying, moving


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table)), through_torch_save])
@kinds
def test_copies_work_and_share_nothing(kind, copied):
    table = made(kind, padding_idx=2).eval()
    rows, caps = rows_for(table)
    table.append(rows, **caps)
    twin, before = copied(table), matrix_of(table)
    assert agree(matrix_of(twin), before) and repr(twin) == repr(table) and not twin.training
    assert (twin.padding_idx, twin.num_embeddings) == (2, 17)
    twin.append(rows, **caps)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert agree(matrix_of(table), before) and table.num_embeddings == 17


@kinds
def test_state_goes_into_a_table_of_the_same_form(kind):
    table, other = made(kind), made(kind)
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            if name not in ("bucket", "place"):
                tensor.zero_()
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert agree(matrix_of(other), matrix_of(table))


@kinds
def test_a_table_without_numbers(kind):
    """On the meta device, as large models are laid out before their weights are read."""
    table = made(kind)
    bare = copy.deepcopy(table).to("meta")
    assert (bare.params, bare.nbytes, repr(bare)) == (table.params, table.nbytes, repr(table))
    assert bare(torch.zeros(3, dtype=torch.long, device="meta")).shape == (3, 48)
    bare.load_state_dict(table.state_dict(), assign=True)
    assert bare.device == table.device and bare.dtype == table.dtype
    assert agree(matrix_of(bare), matrix_of(table))
    hidden = noise(2, 48)
    assert agree(bare.logits(hidden), table.logits(hidden))
    rows, caps = rows_for(table)
    assert bare.append(rows, **caps).device == table.device


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@kinds
def test_a_table_moves_to_another_dtype(kind, dtype):
    table = made(kind)
    moved = copy.deepcopy(table).to(dtype)
    assert moved.dtype == dtype
    for mode in MODES:
        with mode():
            rows = moved(every(moved))
            assert rows.dtype == dtype
            assert_rows(rows, matrix_of(table), torch.float32 if dtype == torch.float64 else dtype)
            assert moved.logits(noise(2, 48, 0, dtype)).dtype == dtype
    assert moved.to_embedding().weight.dtype == dtype
    rows, caps = rows_for(moved)
    assert moved.append(rows, **caps).tolist() == [12, 13, 14, 15, 16]
    assert moved(every(moved)).isfinite().all()


def test_half_and_double_are_short_for_that():
    assert made(KINDS["buckets in a frame"]).half()(torch.tensor(1)).dtype == torch.float16
    assert made(KINDS["buckets in a frame"]).double()(torch.tensor(1)).dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@kinds
def test_a_table_moves_to_a_gpu(kind):
    table = made(kind)
    moved = copy.deepcopy(table).cuda()
    assert_rows(moved(every(table).cuda()).cpu(), matrix_of(table), torch.float32)
    hidden = noise(2, 48)
    torch.testing.assert_close(moved.logits(hidden.cuda()).cpu(), table.logits(hidden), rtol=1e-4, atol=1e-3)
    rows, caps = rows_for(table)
    assert moved.append(rows, **caps).is_cuda
    on_gpu = MPSEmbedding.from_embedding(embedding(smooth_rows(12, 48)).cuda(), **kind)
    assert_rows(on_gpu(every(table).cuda()).cpu(), matrix_of(table), torch.float32, factor=1000)


@kinds
def test_parameters_and_bytes_are_those_of_the_state(kind):
    table = made(kind)
    state = table.state_dict()
    assert table.params == sum(tensor.numel() for tensor in state.values())
    assert table.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert table.ratio == 12 * 48 / table.params


def test_what_a_table_says_about_itself():
    table = MPSEmbedding.from_embedding(nn.Embedding(100, 768, padding_idx=3), rank=1)
    assert table.extra_repr() == (
        "100, 768, shape=(2, 2, 2, 2, 2, 2, 2, 2, 2, 2), ranks=(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), padding_idx=3, "
        "ratio=38.4"
    )
    w = smooth_rows(6, 48)
    table = MPSEmbedding.from_embedding(embedding(w), row_ranks=[1, 1, 1, 2, 99, 99], center=True, core_bits=8)
    assert "rows by rank=(3 1, 1 2, 2 whole), mean=True, core_bits=8, ratio=" in repr(table)
    table = MPSEmbedding.from_embedding(embedding(w), rank=1, rotate=True)
    assert "rotation=True" in repr(table) and "mean" not in repr(table)


def test_in_a_sequential_model():
    model = nn.Sequential(made(KINDS["frame"]), nn.Linear(48, 3))
    model(torch.tensor([[1, 2]])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_random_rows_to_be_trained():
    torch.manual_seed(0)
    table = MPSEmbedding(50, 48, rank=64, padding_idx=-1, dtype=torch.float64)
    assert table.padding_idx == 49 and table.dtype == torch.float64 and not matrix_of(table)[49].any()
    assert abs(matrix_of(table).square().mean() - 1) < 0.1  # nothing is cut: the rows of nn.Embedding
    table = MPSEmbedding(50, 48, 2, shape=(6, 8), sparse=True)
    assert table.store.buckets[0].layout.ranks == (1, 2, 1) and table.sparse
    loss = (table(torch.arange(50)) - 1).square().sum()
    loss.backward()
    assert all(p.grad.is_sparse for p in table.parameters())
    with pytest.raises(ValueError, match="padding_idx is 50, but the table has 50 rows"):
        MPSEmbedding(50, 48, 2, padding_idx=50)
