"""Two trained networks for CIFAR-10 from arrays of weights: a residual network and a vision transformer."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ttref import quantize_integer


def cifar(folder: Path) -> tuple[Tensor, Tensor]:
    """Test pictures with values from 0 to 1, and their classes."""
    held = np.load(folder / "cifar10" / "cifar10_part.npz")
    return torch.from_numpy(held["test_x"]).float() / 255, torch.from_numpy(held["test_y"].astype(np.int64))


class Network:
    """A network as weights by name and a forward pass."""

    name, file, mean, std = "", "", (), ()

    def __init__(self, folder: Path) -> None:
        held = np.load(folder / self.file)
        self.state = {name: torch.from_numpy(held[name]) for name in held.files}

    def weights(self) -> dict[str, Tensor]:
        """The matrices and convolutions to compress, without norms, biases, position and class vectors."""
        named = ("weight", "in_proj_weight")
        return {k: v for k, v in self.state.items() if v.ndim in (2, 4) and k.rsplit(".", 1)[-1] in named}

    @torch.no_grad()
    def correct(self, x: Tensor, y: Tensor) -> int:
        """Number of pictures classified correctly."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        answers = [self.logits((part - mean) / std).argmax(-1) for part in x.split(128)]
        return int((torch.cat(answers) == y).sum())

    def logits(self, x: Tensor) -> Tensor:
        """``(batch, 3, 32, 32)`` to ``(batch, 10)``."""
        raise NotImplementedError


def rounded(network: Network, bits: int) -> Network:
    """The network with every weight rounded to integers, one scale for each output."""
    other = copy.copy(network)
    other.state = dict(network.state)
    for name, w in network.weights().items():
        other.state[name] = quantize_integer(w.flatten(1), bits).approximation.view(w.shape)
    return other


class ResNet20(Network):
    """Nineteen 3 x 3 convolutions in three stages; where a stage halves the picture, the shortcut pads channels."""

    name, file = "ResNet-20", "resnet_cifar10/resnet20_cifar10.npz"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def _norm(self, x: Tensor, at: str) -> Tensor:
        s = self.state
        return F.batch_norm(
            x, s[f"{at}.running_mean"], s[f"{at}.running_var"], s[f"{at}.weight"], s[f"{at}.bias"], training=False
        )

    def logits(self, x: Tensor) -> Tensor:
        """The class scores."""
        s = self.state
        x = F.relu(self._norm(F.conv2d(x, s["conv1.weight"], padding=1), "bn1"))
        for stage in (1, 2, 3):
            for block in (0, 1, 2):
                at = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = F.relu(self._norm(F.conv2d(x, s[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1"))
                y = self._norm(F.conv2d(y, s[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
                if stride == 2:
                    quarter = y.shape[1] // 4
                    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
                x = F.relu(x + y)
        return F.linear(x.mean((2, 3)), s["linear.weight"], s["linear.bias"])


class ViT(Network):
    """Six layers of width 128 with eight heads, norms after each half; a class token in front of 64 patches."""

    name, file = "ViT", "vit_cifar10/vit_cifar10.npz"
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    layers, heads = 6, 8
    inputs: dict[str, Tensor] | None = None  # inputs of the linear layers, if they are to be recorded

    def logits(self, x: Tensor) -> Tensor:
        """The class scores."""
        s = self.state
        x = F.conv2d(x, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=4).flatten(2).mT
        x = torch.cat((s["cls_token"].expand(len(x), -1, -1), x), 1) + s["pos_embed"]
        for layer in range(self.layers):
            at = f"transformer.layers.{layer}"
            qkv = self._linear(x, f"{at}.self_attn.in_proj_weight")
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            mixed = self._linear(mixed, f"{at}.self_attn.out_proj.weight")
            x = F.layer_norm(x + mixed, x.shape[-1:], s[f"{at}.norm1.weight"], s[f"{at}.norm1.bias"])
            y = self._linear(F.relu(self._linear(x, f"{at}.linear1.weight")), f"{at}.linear2.weight")
            x = F.layer_norm(x + y, x.shape[-1:], s[f"{at}.norm2.weight"], s[f"{at}.norm2.bias"])
        x = F.layer_norm(x[:, 0], x.shape[-1:], s["mlp_head.0.weight"], s["mlp_head.0.bias"])
        return F.linear(x, s["mlp_head.1.weight"], s["mlp_head.1.bias"])

    def _linear(self, x: Tensor, weight: str) -> Tensor:
        if self.inputs is not None:
            self.inputs[weight] = x.flatten(0, -2)
        return F.linear(x, self.state[weight], self.state[weight.replace("weight", "bias")])

    @torch.no_grad()
    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Inputs of each linear layer for these pictures, ``(tokens, features)``, by the name of its weight."""
        self.inputs = {}
        self.correct(x, torch.zeros(len(x), dtype=torch.long))
        found, self.inputs = self.inputs, None
        return found
