"""CIFAR-10: its pictures, and two networks that others trained on it, a ResNet-20 and a vision transformer.

The files of weights name their layers in one way, the modules here may name them in another; :class:`Trained` goes
from the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PICTURES = "cifar10/cifar10_part.npz"


def pixels(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """The pictures of a part, "train" or "test", ``(pictures, 3, 32, 32)`` from 0 to 1, and their classes."""
    held = np.load(folder / PICTURES)
    return torch.from_numpy(held[f"{part}_x"]).float() / 255, torch.from_numpy(held[f"{part}_y"].astype(np.int64))


def convolution(ins: int, outs: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution without bias."""
    return nn.Conv2d(ins, outs, 3, stride, 1, bias=False)


class Residual(nn.Module):
    """Two convolutions beside a shortcut; where the picture is halved, the shortcut pads channels with zeros."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(ins, outs, stride), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = convolution(outs, outs), nn.BatchNorm2d(outs)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ins, height, width)`` to ``(batch, outs, height / stride, width / stride)``."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            quarter = x.shape[1] // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """A stem, three stages of three blocks with 16, 32 and 64 channels, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 16), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            ins, outs = widths[stage - 1 : stage + 1]
            blocks = [Residual(ins, outs, 2 if stage > 1 else 1), Residual(outs, outs, 1), Residual(outs, outs, 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, 32, 32)`` to ``(batch, 10)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Patches(nn.Module):
    """Pictures ``(batch, 3, 32, 32)`` to states ``(batch, 65, 128)``: patches of 4 x 4 behind a class vector."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(48, 128)
        self.class_vector = nn.Parameter(torch.empty(1, 1, 128))
        self.positions = nn.Parameter(torch.empty(1, 65, 128))

    def forward(self, x: Tensor) -> Tensor:
        """Patches row by row, the class vector first, positions added."""
        patches = F.unfold(x, 4, stride=4).mT
        x = torch.cat((self.class_vector.expand(len(x), -1, -1), self.projection(patches)), 1)
        return x + self.positions


class Block(nn.Module):
    """Attention of eight heads and two linear layers, each half with a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(128, 128) for _ in range(4))
        self.linear1, self.linear2 = nn.Linear(128, 256), nn.Linear(256, 128)
        self.norm1, self.norm2 = nn.LayerNorm(128), nn.LayerNorm(128)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 65, 128)`` to the same."""
        q, k, v = (part(x).unflatten(-1, (8, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = self.norm1(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Head(nn.Module):
    """The class vector's last state to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 65, 128)`` to ``(batch, 10)``."""
        return self.linear(self.norm(x[:, 0]))


class ViT(nn.Module):
    """A vision transformer of six layers and width 128, with query, key and value as layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = Patches(), Head()
        self.blocks = nn.ModuleList(Block() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to logits."""
        for part in vit_parts(self):
            x = part(x)
        return x


def vit_parts(model: nn.Module) -> list[nn.Module]:
    """Patches, blocks and head of a :class:`ViT`."""
    return [model.patches, *model.blocks, model.head]


def vit_state(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the file's names as weights by the names of :class:`ViT`."""
    state = {
        "patches.projection.weight": held["patch_embed.proj.weight"].flatten(1),
        "patches.projection.bias": held["patch_embed.proj.bias"],
        "patches.class_vector": held["cls_token"],
        "patches.positions": held["pos_embed"],
    }
    for own, theirs in (("head.norm", "mlp_head.0"), ("head.linear", "mlp_head.1")):
        state |= {f"{own}.{kind}": held[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    for k in range(6):
        own, theirs = f"blocks.{k}", f"transformer.layers.{k}"
        for kind in ("weight", "bias"):
            parts = held[f"{theirs}.self_attn.in_proj_{kind}"].chunk(3)
            state |= {f"{own}.{n}.{kind}": p for n, p in zip(("query", "key", "value"), parts, strict=True)}
            state[f"{own}.out.{kind}"] = held[f"{theirs}.self_attn.out_proj.{kind}"]
            state |= {f"{own}.{n}.{kind}": held[f"{theirs}.{n}.{kind}"] for n in ("linear1", "linear2")}
            state |= {f"{own}.{n}.{kind}": held[f"{theirs}.{n}.{kind}"] for n in ("norm1", "norm2")}
    return state


@dataclass(frozen=True)
class Trained:
    """A trained network: its file, and how its pictures were normalized.

    Attributes:
        name, file: What tables call it, and where its weights lie in the folder of data.
        mean, std: Of each channel, subtracted and divided by.
        architecture: Makes the module.
        state: From the file's weights by name to those of the module.
    """

    name: str
    file: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: Callable[[], nn.Module]
    state: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """The weights by the file's names."""
        held = np.load(folder / self.file)
        return {name: torch.from_numpy(held[name]) for name in held.files}

    def module(self, weights: dict[str, Tensor]) -> nn.Module:
        """The module with these weights, by the file's names, in eval mode."""
        model = self.architecture()
        lacking, unknown = model.load_state_dict(self.state(weights), strict=False)
        lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]  # counts, not weights
        if lacking or unknown:
            raise ValueError(f"{self.file}: weights that are lacking {lacking}, or unknown {unknown}")
        return model.eval()

    def read(self, folder: Path) -> nn.Module:
        """The module as it was trained, in eval mode."""
        return self.module(self.weights(folder))

    def normalized(self, x: Tensor) -> Tensor:
        """Pictures from 0 to 1, as this network takes them."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def pictures(self, folder: Path, part: str) -> tuple[Tensor, Tensor]:
        """The pictures of a part, "train" or "test", as this network takes them, and their classes."""
        x, y = pixels(folder, part)
        return self.normalized(x), y


RESNET20 = Trained(
    "ResNet-20",
    "resnet_cifar10/resnet20_cifar10.npz",
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    ResNet20,
)
VIT = Trained(
    "ViT",
    "vit_cifar10/vit_cifar10.npz",
    (0.4914, 0.4822, 0.4465),
    (0.2023, 0.1994, 0.2010),
    ViT,
    vit_state,
)


@torch.no_grad()
def scores(model: nn.Module, x: Tensor) -> Tensor:
    """The class scores of normalized pictures, ``(pictures, 10)``."""
    return torch.cat([model(part) for part in x.split(128)])
