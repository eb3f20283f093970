"""A small transformer whose linear layers have one structure; it reads characters or patches of pictures."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import BASE, Factors, Make

HEADS, BLOCKS = 4, 2
USUAL = 16  # width of a head for which scores are scaled as usual; they shrink with the width, not with its root


class Form(NamedTuple):
    """What a network reads and gives: ``words`` symbols, or patches of ``entries`` numbers; ``classes`` scores."""

    length: int
    classes: int
    words: int = 0
    entries: int = 0

    @property
    def causal(self) -> bool:
        """True if every place predicts the next symbol; else the whole picture gets one class."""
        return bool(self.words)


class Block(nn.Module):
    """Attention and two layers with a GELU between them, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, make: Make, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.query, self.key, self.value, self.out = (make(width, width) for _ in range(4))
        self.up, self.down = make(width, 4 * width), make(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, length, width)`` to the same."""
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=math.sqrt(USUAL) / q.shape[-1])
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Network(nn.Module):
    """Embedding, two blocks, norm and a head that starts at zero.

    Args:
        form: What it reads and gives.
        width: Of its states.
        make: Makes its linear layers.
        seed: Of the first values.
    """

    def __init__(self, form: Form, width: int, make: Make, seed: int) -> None:
        super().__init__()
        self.form, self.width = form, width
        self.embed = nn.Embedding(form.words, width) if form.causal else nn.Linear(form.entries, width)
        self.positions = nn.Parameter(torch.empty(form.length, width))
        self.blocks = nn.ModuleList(Block(width, make, form.causal) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, form.classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            spread = 1 if form.causal else form.entries**-0.5
            self.embed.weight.normal_(0, spread, generator=generator)
            self.positions.normal_(0, 0.1, generator=generator)
            self.head.weight.zero_()
            self.head.bias.zero_()
            if not form.causal:
                self.embed.bias.zero_()
        for layer in self.structured().values():
            layer.start(generator)

    def structured(self) -> dict[str, Factors]:
        """The layers of the chosen structure by name."""
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, Factors)}

    def forward(self, x: Tensor) -> Tensor:
        """Symbols ``(batch, length)`` to ``(batch, length, classes)``, or patches to ``(batch, classes)``."""
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x if self.form.causal else x.mean(1))

    def macs(self) -> int:
        """Multiply-adds of a forward pass for each symbol or patch."""
        attention = 2 * self.form.length * self.width * BLOCKS
        ends = self.width * (self.form.classes if self.form.causal else self.form.entries)
        return sum(layer.macs for layer in self.structured().values()) + attention + ends

    def groups(self, rate: float, scaled: bool, rest: float | None = None) -> list[dict]:
        """Parameters with their learning rates: ``rate`` for the layers' factors, and ``rest`` for all else.

        Scaled, each factor's is stated for a fan-in of 64. Unscaled, all factors have the same.
        """
        of, rest = {}, rate if rest is None else rest
        for name, layer in self.structured().items():
            of |= {f"{name}.{factor}": rate * (by if scaled else 1) for factor, by in layer.rates().items()}
        if scaled:
            of["head.weight"] = rest * BASE / self.width
        return [{"params": [held], "lr": of.get(name, rest)} for name, held in self.named_parameters()]
