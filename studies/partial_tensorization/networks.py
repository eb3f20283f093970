"""Models that are run part by part, so that what a changed layer leaves alone is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Parts = Callable[[nn.Module], list[nn.Module]]


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
    """The vision transformer of ``vit_cifar10``, with query, key and value as layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = Patches(), Head()
        self.blocks = nn.ModuleList(Block() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to logits."""
        for part in vit_parts(self):
            x = part(x)
        return x

    @classmethod
    def read(cls, folder: Path) -> ViT:
        """The trained weights."""
        held = np.load(folder / "vit_cifar10" / "vit_cifar10.npz")
        s = {name: torch.from_numpy(held[name]) for name in held.files}
        state = {
            "patches.projection.weight": s["patch_embed.proj.weight"].flatten(1),
            "patches.projection.bias": s["patch_embed.proj.bias"],
            "patches.class_vector": s["cls_token"],
            "patches.positions": s["pos_embed"],
        }
        for own, theirs in (("head.norm", "mlp_head.0"), ("head.linear", "mlp_head.1")):
            state |= {f"{own}.{kind}": s[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
        for k in range(6):
            own, theirs = f"blocks.{k}", f"transformer.layers.{k}"
            for kind in ("weight", "bias"):
                parts = s[f"{theirs}.self_attn.in_proj_{kind}"].chunk(3)
                state |= {f"{own}.{n}.{kind}": p for n, p in zip(("query", "key", "value"), parts, strict=True)}
                state[f"{own}.out.{kind}"] = s[f"{theirs}.self_attn.out_proj.{kind}"]
                state |= {f"{own}.{n}.{kind}": s[f"{theirs}.{n}.{kind}"] for n in ("linear1", "linear2")}
                state |= {f"{own}.{n}.{kind}": s[f"{theirs}.{n}.{kind}"] for n in ("norm1", "norm2")}
        model = cls()
        model.load_state_dict(state)
        return model.eval()


def vit_parts(model: nn.Module) -> list[nn.Module]:
    """Patches, blocks and head of a :class:`ViT`."""
    return [model.patches, *model.blocks, model.head]


def bert_parts(model: nn.Module) -> list[nn.Module]:
    """Look-up and blocks of a BERT encoder; with batches without padding they need no mask."""
    return [model.embeddings, *model.encoder.layer]


class Staged:
    """The last states of a model for fixed batches; what stands before the first changed part is taken from memory.

    A layer-by-layer search changes one layer between two evaluations, so on average half of the work is saved. A part
    counts as changed if a module, a parameter or a buffer in it is another one, or was written to.

    Args:
        parts: From the model to its parts, each called with what the one before returned.
        batches: Inputs of the first part.
    """

    def __init__(self, parts: Parts, batches: Sequence[Tensor]) -> None:
        self.parts, self.computed = parts, 0
        self._states: list[list[Tensor]] = [[batch] for batch in batches]
        self._marks: list[tuple] = []

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> list[Tensor]:
        """The last part's output for each batch."""
        parts = self.parts(model)
        marks = [mark(part) for part in parts]
        same = 0
        while same < len(self._marks) and self._marks[same][0] == marks[same][0]:
            same += 1
        self._marks, found = [], []  # an interrupted pass leaves nothing to build on
        for states in self._states:
            del states[same + 1 :]
            for part in parts[same:]:
                states.append(part(states[-1]))
            found.append(states[-1])
        self.computed += len(parts) - same
        self._marks = marks
        return found


def mark(part: nn.Module) -> tuple[tuple, list]:
    """Who is in a part, and how often it was written to; the list keeps all alive, so that no identity is reused."""
    tensors = [*part.parameters(), *part.buffers()]
    held = [*part.modules(), *tensors]
    return (tuple(map(id, held)), tuple(tensor._version for tensor in tensors)), held
