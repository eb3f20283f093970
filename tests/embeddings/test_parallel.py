"""Tables in the hands of tools: replicas, parallel training, the meta device, offloading."""

import copy
import importlib

import pytest
import torch
import torch.distributed as dist
from compressed import every, noise
from small_tables import TABLES
from strategies import agree
from torch import nn

from ttref import MPSEmbedding, TTMEmbedding

IDS = torch.tensor([1, 2, 2, 3])


@pytest.mark.parametrize("kind", TABLES)
def test_replicas_have_the_rows(kind, monkeypatch):
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    copies = lambda found, devices, detach=False: [[t.clone() for t in found] for _ in devices]  # noqa: E731
    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)
    table = TABLES[kind]()
    hidden = noise(2, table.embedding_dim)
    for replica in replicate.replicate(table, [0, 1]):
        assert torch.allclose(replica(IDS), table(IDS), atol=1e-6)
        assert torch.allclose(replica.logits(hidden), table.logits(hidden), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind != "int8"])
def test_every_parameter_takes_part_in_every_look_up(kind):
    table = TABLES[kind]().requires_grad_()
    for ids in (torch.tensor([1]), torch.tensor([1, 1, 2]), torch.tensor([], dtype=torch.int64)):
        table.zero_grad(set_to_none=True)
        table(ids).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in table.parameters())


def test_parallel_training_with_unused_buckets(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for kind in ("buckets", "pieces"):
            model = nn.parallel.DistributedDataParallel(TABLES[kind]().requires_grad_())
            for _ in range(3):
                model(torch.tensor([1])).sum().backward()
    finally:
        dist.destroy_process_group()


def test_sparse_gradients_of_unused_buckets():
    table = MPSEmbedding.from_embedding(nn.Embedding(12, 16, sparse=True), row_ranks=[1, 2] * 6)
    table(torch.tensor([0])).sum().backward()
    assert all(p.grad.is_sparse for p in table.parameters())
    torch.optim.SparseAdam(table.parameters()).step()


@pytest.mark.parametrize("kind", TABLES)
def test_emptied_and_loaded_or_drawn_again(kind):
    table = TABLES[kind]()
    other = copy.deepcopy(table).to("meta").to_empty(device="cpu")
    other.load_state_dict(table.state_dict())
    assert agree(other(every(table)), table(every(table)))
    drawn = copy.deepcopy(table).to("meta").to_empty(device="cpu")
    drawn.reset_parameters()
    assert drawn(every(drawn)).isfinite().all() and drawn(every(drawn)).std() > 0.1


def test_made_on_the_meta_device():
    table = MPSEmbedding(100, 64, 2, device="meta")
    assert table(torch.tensor([1], device="meta")).shape == (1, 64)
    table = table.to_empty(device="cpu")
    table.reset_parameters()
    assert table(every(table)).std() > 0.1


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_offloaded_tables_give_their_rows(kind, buffers):
    accelerate = pytest.importorskip("accelerate")
    table = TABLES[kind]()
    model = nn.Sequential(copy.deepcopy(table))
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=buffers)
    hidden = noise(2, table.embedding_dim)
    assert torch.allclose(model(IDS), table(IDS), atol=1e-6)
    assert torch.allclose(model[0].logits(hidden), table.logits(hidden), atol=1e-5)


def test_modes_are_chosen_where_none_are_given():
    table = TTMEmbedding.from_embedding(nn.Embedding(60, 12), rank=4)
    assert len(table.row_shape) == 3 and table(every(table)).shape == (60, 12)
    assert TTMEmbedding(61, 13, rank=2)(torch.tensor([60])).shape == (1, 13)


@pytest.mark.parametrize("value", [nn.Parameter(torch.ones(2)), torch.ones(2)])
def test_a_weight_cannot_be_assigned(value):
    with pytest.raises(AttributeError, match="rebuilt from its cores and cannot be assigned"):
        TABLES["one bucket"]().weight = value
