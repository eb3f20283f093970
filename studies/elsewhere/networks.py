"""The networks for CIFAR-10 as weights by the names of their files, which records name layers by."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from ttref import quantize_integer

from ..cifar import RESNET20, VIT, Trained, scores


class Network:
    """Weights by name, and the answers that they give."""

    trained: Trained

    def __init__(self, folder: Path) -> None:
        self.state = self.trained.weights(folder)

    def weights(self) -> dict[str, Tensor]:
        """The matrices and convolutions to compress, without norms, biases, position and class vectors."""
        named = ("weight", "in_proj_weight")
        return {k: v for k, v in self.state.items() if v.ndim in (2, 4) and k.rsplit(".", 1)[-1] in named}

    def answers(self, x: Tensor) -> Tensor:
        """The class given to each picture, with values from 0 to 1."""
        return scores(self.trained.module(self.state), self.trained.normalized(x)).argmax(-1)

    def correct(self, x: Tensor, y: Tensor) -> int:
        """Number of pictures classified correctly."""
        return int((self.answers(x) == y).sum())

    def having(self, state: dict[str, Tensor]) -> Network:
        """The network with other weights."""
        other = copy.copy(self)
        other.state = state
        return other


class ResNet20(Network):
    """Nineteen 3 x 3 convolutions in three stages, and a linear head."""

    trained = RESNET20


class ViT(Network):
    """Six layers of width 128 with eight heads; query, key and value are one matrix."""

    trained = VIT

    @torch.no_grad()
    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Inputs of each linear layer for these pictures, ``(tokens, features)``, by the name of its weight."""
        found: dict[str, Tensor] = {}
        model = self.trained.module(self.state)
        for k, block in enumerate(model.blocks):
            seen = {"self_attn.in_proj_weight": block.query, "self_attn.out_proj.weight": block.out}
            seen |= {f"{name}.weight": block.get_submodule(name) for name in ("linear1", "linear2")}
            for name, layer in seen.items():

                def keep(_: object, given: tuple[Tensor], name: str = f"transformer.layers.{k}.{name}") -> None:
                    found[name] = given[0].flatten(0, -2)

                layer.register_forward_pre_hook(keep)
        model(self.trained.normalized(x))
        return found


def rounded(network: Network, bits: int) -> Network:
    """The network with every weight rounded to integers, one scale for each output."""
    state = dict(network.state)
    for name, w in network.weights().items():
        state[name] = quantize_integer(w.flatten(1), bits).approximation.view(w.shape)
    return network.having(state)
