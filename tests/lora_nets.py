"""What the tests of adapter files share: a small model of many kinds of layers, and what its files hold."""

import json

import torch
from adapters import scatter_all
from safetensors import safe_open
from torch import nn

from ttref import add_tt_lora


class Net(nn.Module):
    """Small enough to be saved hundreds of times: padded, straddling and aligned layers, buffers, a head."""

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(50, 12)
        self.norm = nn.BatchNorm1d(12)
        self.query, self.value, self.up = nn.Linear(12, 12), nn.Linear(12, 18), nn.Linear(12, 13)
        self.head = nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5))
        self.register_buffer("scale", torch.rand(3))
        self.register_buffer("passing", torch.rand(3), persistent=False)
        self.to(dtype)

    def forward(self, input_ids):
        x = self.norm(self.embed(input_ids).mean(1))
        return {"logits": self.head(self.query(x)).sum() * self.scale.sum() + self.value(x).sum() + self.up(x).sum()}


SHAPES = {"query": (3, 4, 4, 3), "value": (4, 9, 6)}


def net(seed=0, dtype=torch.float32):
    return Net(seed, dtype).eval()


def prepared(model, **options):
    settings = {"rank": 2, "alpha": 1.5, "shape": SHAPES, "modules_to_save": "head", **options}
    torch.manual_seed(5)
    add_tt_lora(model, ["query", "value", "up"], **settings)
    scatter_all(model)
    with torch.no_grad():
        for parameter in model.head.parameters() if "head" in settings["modules_to_save"] else ():
            parameter.add_(0.5)
        if "head" in settings["modules_to_save"]:
            model.head[1].running_mean.add_(1)
            model.head[1].num_batches_tracked.add_(7)
    return model


def opened(path):
    with safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    return tensors, json.loads(about["header"]), {key: value for key, value in about.items() if key != "header"}
