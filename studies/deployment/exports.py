"""What can be exported, by ``torch.export`` and to ONNX, with equal answers; and what cannot, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ttref import MPSEmbedding, TTConv2d, TTLinear, TTLoRALinear, TTMEmbedding

from .graphs import apart, session, silent, written
from .variants import int8_linear

OPEN = ({0: torch.export.Dim("batch", min=2, max=512)},)  # the first axis is left open


class Case(NamedTuple):
    """A module, its inputs, and others with another first axis that a graph of open size must answer, too."""

    module: nn.Module
    args: tuple[Tensor, ...]
    more: tuple[Tensor, ...]


def drawn(*shape: int) -> Tensor:
    """Gaussian numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def vectors(module: nn.Module, width: int) -> Case:
    """A layer with vectors."""
    return Case(module, (drawn(4, width),), (drawn(9, width),))


def pictures(module: nn.Module, channels: int) -> Case:
    """A convolution with pictures."""
    return Case(module, (drawn(2, channels, 8, 8),), (drawn(5, channels, 8, 8),))


def look_ups(module: nn.Module, rows: int = 60) -> Case:
    """A table with ids."""
    ids = torch.arange(24).reshape(8, 3) * 5 % rows
    return Case(module, (ids[:2],), (ids,))


def linear(**how: object) -> Case:
    layer = TTLinear((4, 6), (6, 4), rank=3)
    for name, value in how.items():
        setattr(layer, name, value)
    return vectors(layer, 24)


def convolution(**how: object) -> Case:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    return pictures(TTConv2d.from_conv(conv, rank=3, row_shape=(2, 3), col_shape=(4, 9), **how), 4)


def two_stages() -> Case:
    conv = nn.Conv2d(16, 32, 3, padding=1)
    return pictures(TTConv2d.from_conv(conv, rank=8, row_shape=(32, 1), col_shape=(9, 16), taps_first=True), 16)


def adapter() -> Case:
    layer = TTLoRALinear(nn.Linear(24, 24), rank=4, alpha=2)
    with torch.no_grad():
        for core in layer.cores:
            core.normal_(std=0.3)
    return vectors(layer, 24)


def table(**how: object) -> Case:
    return look_ups(MPSEmbedding.from_embedding(nn.Embedding(60, 12), **how))


class Transformer(nn.Module):
    """A tiny encoder of trains alone: table, attention, two layers; logits for each token from the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = TTMEmbedding((5, 4, 3), (2, 2, 3), rank=4)
        self.query, self.key, self.value = (TTLinear((3, 4), (3, 4), rank=3) for _ in range(3))
        self.wide, self.narrow = TTLinear((3, 4), (6, 8), rank=3), TTLinear((6, 8), (3, 4), rank=3)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        """``(batch, tokens)`` to ``(batch, tokens, 60)``."""
        x = self.table(ids)
        y = self.norms[0](x)
        heads = [part(y).unflatten(-1, (2, 6)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        x = x + nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))
        return self.table.logits(x)


CASES: dict[str, Callable[[], Case]] = {
    "TTLinear": linear,
    "TTLinear, an order named": lambda: linear(order="left-to-right"),
    "TTLinear, padded": lambda: vectors(TTLinear.from_linear(nn.Linear(23, 29), rank=3), 23),
    "TTConv2d, kernel rebuilt": convolution,
    "TTConv2d, two stages": two_stages,
    "TTConv2d, integer cores": lambda: convolution(core_bits=8),
    "TTMEmbedding": lambda: look_ups(TTMEmbedding.from_embedding(nn.Embedding(60, 12), rank=4)),
    "MPSEmbedding": lambda: table(rank=3),
    "MPSEmbedding, eps": lambda: table(eps=0.5),
    "MPSEmbedding, integer cores": lambda: table(rank=3, core_bits=8),
    "TTLoRALinear": adapter,
    "a transformer of trains": lambda: look_ups(Transformer()),
}


class Limit(NamedTuple):
    """What cannot be exported: an attempt, the error that it ends with, and the reason with the way out."""

    attempt: Callable[[], object]
    error: type[Exception]
    reason: str


def any_height() -> object:
    case = two_stages()
    return torch.export.export(case.module, case.args, dynamic_shapes=({2: torch.export.Dim("height", min=4, max=64)},))


def strictly() -> object:
    case = linear()
    return torch.export.export(case.module, case.args, dynamic_shapes=OPEN, strict=True)


def by_tracing() -> object:
    case = linear()
    with silent():
        return torch.onnx.export(case.module, case.args, BytesIO(), dynamo=False)


def of_int8() -> object:
    layer = int8_linear(torch.ones(16, 24, dtype=torch.int8), torch.ones(16, 1), None)
    return torch.export.export(layer, vectors(layer, 24).args)


CANNOT = {
    "TTConv2d in two stages, for pictures of any height": Limit(
        any_height,
        torch._dynamo.exc.UserError,
        "whether two stages pay depends on the height; export for one height, or modes whose kernel is rebuilt",
    ),
    "TTLinear by strict tracing, for any batch size": Limit(
        strictly,
        torch._dynamo.exc.UserError,
        "strict tracing takes the batch for a number and keeps the range where one order is cheapest; name an order, "
        "or leave strict=False, which is the default",
    ),
    "ONNX by the older exporter (dynamo=False)": Limit(
        by_tracing,
        torch.onnx.errors.UnsupportedOperatorError,
        "it knows no transposed view of a matrix (aten::mT); leave dynamo=True, which is the default",
    ),
    "torch's int8 layer of quantize_dynamic": Limit(
        of_int8,
        AttributeError,
        "its weight is packed for one processor, in an object that no exporter reads; export the float model, and let "
        "onnxruntime quantize the graph",
    ),
}


def by_torch(case: Case, dynamic: tuple | None) -> Callable[..., Tensor]:
    """The graph of ``torch.export``."""
    with torch.no_grad():
        return torch.export.export(case.module.eval(), case.args, dynamic_shapes=dynamic).module()


def by_onnx(case: Case, dynamic: tuple | None) -> Callable[..., Tensor]:
    """The graph in onnxruntime."""
    return session(written(case.module.eval(), case.args, dynamic))


WAYS = {"torch.export": by_torch, "onnxruntime": by_onnx}


def exported_apart(name: str, way: str, *, opened: bool) -> float:
    """How far the graph's answers lie apart from the module's, for other inputs of another size if it is left open."""
    torch.manual_seed(0)
    case = CASES[name]()
    call = WAYS[way](case, OPEN if opened else None)
    args = case.more if opened else case.args
    with torch.no_grad():
        return apart(call(*args), case.module(*args))


def exports(limits: dict[str, float], before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``exports``: differences relative to the largest entry, or why there is no graph."""
    for name in CASES:
        if name not in before:
            yield {"key": name} | {way: exported_apart(name, way, opened=True) for way in WAYS}
    for name, limit in CANNOT.items():
        if name not in before:
            yield {"key": name, "reason": limit.reason}
