"""What the tests of releases share: a small model with a layer of every kind, its release, and a forger's tools."""

import copy
import hashlib
import json
import shutil

import torch
from safetensors.torch import load
from torch import nn

from ttref import MPSEmbedding, TTConv2d, TTLinear, TTMEmbedding, swap_layer
from ttref.files import digest, sealed
from ttref.release import save_release
from ttref.release.manifest import MANIFEST, MODEL, encoded

WHY = "a test, nothing was measured"


class Net(nn.Module):
    """Two tables, a convolution, linear layers, and statistics."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(24, 12, padding_idx=0), nn.Embedding(16, 12)
        self.conv, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.hidden, self.out = nn.Linear(12, 12), nn.Linear(12, 8)

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.norm(self.conv(x.unsqueeze(1))).mean((2, 3))
        return self.out(self.hidden(x).relu())


IDS = torch.tensor([[0, 5, 23, 7], [1, 1, 2, 3]])


def dense(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


def compressed(model, **layers):
    """A copy with these layers in it; left out, one of every kind."""
    small = copy.deepcopy(model)
    for name, layer in (layers or every(small)).items():
        swap_layer(small, name, layer)
    return small


def every(model):
    conv = {"row_shape": (12, 1), "col_shape": (1, 9), "taps_first": True}
    return {
        "words": MPSEmbedding.from_embedding(model.words, eps=0.4, center=True),
        "places": TTMEmbedding.from_embedding(model.places, rank=3),
        "conv": TTConv2d.from_conv(model.conv, rank=4, **conv),
        "hidden": TTLinear.from_linear(model.hidden, rank=3),
    }


def released(folder, model=None, **options):
    """The dense model, the compressed one, and the folder of its release."""
    model = model or dense()
    small = compressed(model, **options.pop("layers", {}))
    save_release(small, folder, **{"source": model, "override": WHY, **options})
    return model, small, folder


def output(model):
    with torch.no_grad():
        return model(IDS)


def same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def forged(folder, change=lambda tensors, manifest: None, name=MODEL):
    """Change tensors and manifest, and give both new hashes: what somebody does who knows the format."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    tensors = load((folder / name).read_bytes())  # not mapped: the file is written over
    change(tensors, manifest)
    (folder / name).write_bytes(b"".join(sealed({**manifest["ties"], "format": "pt"}, tensors)))
    if name == MODEL:
        manifest["tensors"] = {key: digest(tensor) for key, tensor in tensors.items()}
    resealed(folder, manifest)


def resealed(folder, manifest):
    """Write a manifest with the hashes of the files as they are now."""
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_bytes(encoded(manifest))


def small_dense(seed=0):
    """A model that is quickly saved and verified: the tensors 0.weight, 1.*, 3.*."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(24, 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 8))


def small_layers(model):
    return {"0": MPSEmbedding.from_embedding(model[0], rank=2), "1": TTLinear.from_linear(model[1], rank=3)}


def copied(folder, to):
    """A fresh copy of a release."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to
