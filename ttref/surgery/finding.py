"""The layers of a model that can be replaced, and what a layer or a replacement costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from ..advice.kinds import kind_of
from ..checks import several
from ..costs import Plan
from ..linears import conv1d_of, numbers_of, weight_and_bias
from .ties import Users, leaving
from .wrappers import Names, bare_modules

__all__ = ["Layer", "Layers", "find_layers"]

LINEAR, CONVOLUTION, TABLE = "linear", "convolution", "table"
LEAST = 8  # rows and columns of a layer that is worth it
BATCH = 64  # vectors multiplied at once, for the account of multiply-adds
PIXELS = 32  # and the sides of a picture


class Cost(NamedTuple):
    """What the weights of a layer cost, without its bias.

    Attributes:
        params: Numbers.
        nbytes: Bytes.
        macs: Multiply-adds for each vector that is multiplied, in a batch of 64: a token, or an output pixel of a
            convolution (of a picture of 32 x 32). For each row that is looked up in a table.
    """

    params: int
    nbytes: int
    macs: int


class Layer(NamedTuple):
    """A layer that can be replaced.

    Attributes:
        name: Bare name in the model.
        kind: What it is for, as in :func:`advise`: ``"token table"``, ``"attention q, k"``, ``"feed-forward"``, ...
        shape: Rows (outputs) and columns (inputs) of its matrix; of a convolution, columns are inputs times taps.
        params, nbytes, macs: As in :class:`Cost`.
        module: The layer itself.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    params: int
    nbytes: int
    macs: int
    module: nn.Module


class Layers(list[Layer]):
    """Layers in order, and in ``skipped`` the names of those left out, each with the reason."""

    def __init__(self, layers: Iterable[Layer], skipped: dict[str, str]) -> None:
        super().__init__(layers)
        self.skipped = skipped


def find_layers(model: nn.Module, layers: str | Iterable[str] | None = None) -> Layers:
    """The layers that can be replaced one by one: tables first, then the others by depth.

    Args:
        model: The model; it is only read.
        layers: Their names, each a whole bare name or the end of one after a dot, which may match several. Left out:
            every ``nn.Linear``, GPT-2 ``Conv1D``, ``nn.Conv2d`` and ``nn.Embedding`` of at least 8 rows and columns.

    Returns:
        A list of :class:`Layer`; its ``skipped`` has the names of the others of these classes, with reasons.

    Raises:
        ValueError: No such layer; and of a layer that was asked for by name: it is tied or used in two places, it was
            named twice, or its numbers are on the meta device.
        TypeError: A layer that was asked for by name is of another kind, quantized, or computes more than its kind.

    Cost:
        O(number of modules); no weight is copied.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Embedding(30, 16), nn.Linear(16, 2))
        >>> found = find_layers(model)
        >>> [layer.name for layer in found], found.skipped
        (['2', '0'], {'3': 'too small: 2 x 16'})
    """
    modules = bare_modules(model, remove_duplicate=False)
    if layers is None:
        names = [name for name, module in bare_modules(model).items() if name and kind_of_layer(module)]
    else:
        known = Names(model)
        names = [
            name
            for target in ([layers] if isinstance(layers, str) else _listed(layers))
            for name in known.match(target)
        ]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ValueError(f"{twice[0]} is asked for twice in layers; name it once")
    users, found, skipped = Users(modules), [], {}
    for name in names:
        try:
            found.append(_layer(name, modules[name], users, small=layers is not None))
        except (TypeError, ValueError) as error:
            if layers is not None:
                raise type(error)(f"{name} cannot be replaced: {error}") from error
            skipped[name] = str(error)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise ValueError(
            "the model has no layer to replace: no nn.Linear, Conv1D, nn.Conv2d or nn.Embedding with 8 rows and "
            f"columns that stands alone{f' ({reasons})' if reasons else ''}"
        )
    return Layers(sorted(found, key=lambda layer: not isinstance(layer.module, nn.Embedding)), skipped)


def _listed(layers: Iterable[str]) -> list[str]:
    if not several(layers):
        raise TypeError(f"layers must be names of modules, got {layers!r}")
    names = list(layers)
    if not names:
        raise ValueError("layers is empty; leave it out for all layers")
    return names


def _layer(name: str, module: nn.Module, users: Users, *, small: bool) -> Layer:
    """The record of a layer; an error says why it cannot be replaced."""
    kind = kind_of_layer(module)
    if kind is None:
        raise TypeError(f"{type(module).__name__} is no nn.Linear, Conv1D, nn.Conv2d or nn.Embedding")
    if hasattr(module, "nbytes"):
        raise TypeError("it is compressed already")
    numbers_of(module, conv1d_of(module) or _CLASSES[kind], "weight")
    shape = sizes_of(module)
    if min(shape) < LEAST and not small:
        raise ValueError(f"too small: {shape[0]} x {shape[1]}")
    users.check({name: leaving(module, nn.Identity())}, aliases=True)
    return Layer(name, kind_of(f"{name}.weight", module.weight.ndim, module), shape, *cost_of(module), module)


_CLASSES = {LINEAR: nn.Linear, CONVOLUTION: nn.Conv2d, TABLE: nn.Embedding}


def kind_of_layer(layer: nn.Module) -> str | None:
    """What kind of layer this is for a candidate: linear, convolution, table; None for others."""
    if isinstance(layer, nn.Linear) or conv1d_of(layer):
        return LINEAR
    return CONVOLUTION if isinstance(layer, nn.Conv2d) else TABLE if isinstance(layer, nn.Embedding) else None


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """Rows (outputs) and columns (inputs) of a layer's matrix; of a convolution, columns are inputs times taps."""
    if conv1d_of(layer):
        return layer.weight.shape[1], layer.weight.shape[0]
    return layer.weight.shape[0], math.prod(layer.weight.shape[1:])


def matrix_of(layer: nn.Module) -> Tensor:
    """The matrix ``(out, in)`` that a layer, or a replacement of one, stands for."""
    if hasattr(layer, "dense") and not hasattr(layer, "taps_first"):  # a convolution's may have another order
        return layer.dense().detach()
    if kind_of_layer(layer) == LINEAR:
        return weight_and_bias(layer)[0].detach()
    return layer.weight.detach().flatten(1)


def cost_of(layer: nn.Module) -> Cost:
    """What a layer or a replacement costs; one that says nothing of itself, by its parameters except ``bias``."""
    params, nbytes = getattr(layer, "params", None), getattr(layer, "nbytes", None)
    weights = [weight for name, weight in layer.named_parameters() if name.rpartition(".")[2] != "bias"]
    dense = sum(weight.numel() for weight in weights)
    if params is None or nbytes is None:
        params, nbytes = dense, sum(weight.numel() * weight.element_size() for weight in weights)
    return Cost(params, nbytes, _macs(layer, dense))


def _macs(layer: nn.Module, dense: int) -> int:
    if isinstance(layer, nn.Embedding):
        return 0
    if hasattr(layer, "num_embeddings"):  # a row of a train is the product of slices
        shapes, macs, done = [tuple(core.shape) for core in layer.cores], 0, 1
        for r, _, n, s in shapes:
            macs, done = macs + done * r * n * s, done * n
        return macs - shapes[0][2] * shapes[0][3]  # the first slice is taken as it is
    if hasattr(layer, "taps_first"):
        plan, sizes = layer.plan((1, layer.in_channels, PIXELS, PIXELS)), (layer.out_channels, layer.in_channels)
        return math.ceil(plan.macs * math.prod((*sizes, *layer.kernel_size)) / plan.dense)
    if isinstance(plan := layer.plan(BATCH) if hasattr(layer, "plan") else None, Plan):
        return math.ceil(plan.macs / BATCH)
    return dense
