"""What the tests of files share: one small thing of every kind that is saved, and how it is saved and loaded."""

import torch
from compressed import embedding, noise
from torch import nn

from ttref import MPSEmbedding, TTMEmbedding, add_tt_lora, load_tt_lora, save_tt_lora


def base():
    """Frozen numbers that are the same on every machine, exactly."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3), nn.BatchNorm1d(3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) / 64)
    return model


def adapted(**options):
    model = add_tt_lora(base(), "0", **{"rank": 2, "alpha": 0.5, "shape": (2, 3, 4, 2), **options}, modules_to_save="1")
    with torch.no_grad():
        for core in model[0].cores:
            core.copy_(torch.arange(core.numel()).reshape(core.shape) / 8)
        model[1].weight.add_(1)
    return model


def mps(**options):
    return MPSEmbedding.from_embedding(embedding(noise(24, 32)), **(options or {"rank": 2}))


def ttm():
    return TTMEmbedding.from_embedding(embedding(noise(24, 32)), row_shape=(4, 6), col_shape=(4, 8), rank=3)


def grown():
    table = mps(rank=2, core_bits=8, center=True, rotate=True)
    table.append(noise(3, 32, 1))
    return table


MAKERS = {
    "table": mps,
    "buckets": lambda: mps(row_ranks=[1, 2, 99] * 8, center=True),
    "int8 grown": grown,
    "TT-matrix": ttm,
    "adapter": adapted,
}


def save(made, path):
    if isinstance(made, nn.Sequential):
        save_tt_lora(made, path)
    else:
        made.save(path)


def load(kind, path):
    """Loaded by the class that the kind belongs to; an adapter into a base of its own."""
    if kind == "adapter":
        return load_tt_lora(base(), path)
    return (TTMEmbedding if kind == "TT-matrix" else MPSEmbedding).load(path)


def state(made):
    """All numbers held, copied; of rows that came in several pieces, in one."""
    held = made.store.named() if isinstance(made, MPSEmbedding) else made.state_dict()
    return {name: tensor.clone() for name, tensor in held.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
