"""What a forward pass must compute and move, by the shapes alone, and how long a roofline says that takes at least.

Counted are the matrices of the blocks, attention and the head; norms, activations and look-ups are left out, as are
caches: what stays in one from call to call need not move.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ttref import TTLinear

from .variants import Codes


class Work(NamedTuple):
    """Multiply-adds and bytes of one product; ``integer`` if int8 kernels do it."""

    macs: int
    bytes: int
    integer: bool = False

    def seconds(self, limits: dict[str, float]) -> float:
        """By the roofline: the slower of arithmetic and memory."""
        peak = limits["int8_ops_per_s" if self.integer else "flops32_per_s"]
        return max(2 * self.macs / peak, self.bytes / limits["bytes_per_s"])


def of_layer(layer: nn.Module, tokens: int) -> Work:
    """A linear layer with so many vectors."""
    if isinstance(layer, TTLinear):
        plan = layer.plan(tokens)
        return Work(plan.macs, plan.bytes)
    if isinstance(layer, Codes):  # codes are read, floats are written and read
        rows, columns = layer.codes.shape
        return Work(tokens * rows * columns, 9 * rows * columns + 4 * tokens * (rows + columns))
    rows, columns = layer.out_features, layer.in_features
    integer = not isinstance(layer, nn.Linear)
    size = 1 if integer else 4
    return Work(tokens * rows * columns, size * rows * columns + 4 * tokens * (rows + columns), integer)


def of_model(model: str, net: nn.Module, names: list[str], batch: int, new: int, before: int = 0) -> list[Work]:
    """All products of a pass over ``new`` tokens of each text that follow ``before`` others."""
    config: Any = net.config
    width, heads = config.hidden_size, config.num_attention_heads
    kept = width * getattr(config, "num_key_value_heads", heads) // heads
    keys = before + new
    attention = Work(2 * batch * new * keys * width, 4 * batch * 2 * (new * width + keys * kept))
    found = [of_layer(net.get_submodule(name), batch * new) for name in names]
    found += [attention] * config.num_hidden_layers
    if model == "smollm2":  # logits of the last token only
        found.append(Work(batch * width * config.vocab_size, 4 * (width + batch) * config.vocab_size))
    return found


def told(works: list[Work], limits: dict[str, float]) -> dict[str, float]:
    """Sums, and the least time by the roofline of every product."""
    return {
        "macs": sum(work.macs for work in works),
        "bytes": sum(work.bytes for work in works),
        "roofline_ms": 1e3 * sum(work.seconds(limits) for work in works),
    }
