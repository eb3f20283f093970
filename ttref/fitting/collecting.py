"""Gram matrices of the inputs of a model's layers, collected while it runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bars import bar
from ..linears import conv1d_of
from ..precision import full_precision
from .gram import CHUNK_BYTES, Gram, Grams, summed

__all__ = ["collect_gram"]


@torch.no_grad()
def collect_gram(
    model: nn.Module,
    layers: str | Iterable[str],
    batches: Iterable[Any],
    *,
    mask: Callable[[Any], Tensor | None] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: bool = True,
) -> Grams:
    """Run a model over batches and sum the Gram matrices of its layers' inputs, in float64.

    The model runs in evaluation mode and without gradients. Afterwards its training modes are what they were and its
    hooks are gone, whatever happened.

    Args:
        model: Any module, already on the device of the batches.
        layers: Names of layers in the bare model: full names, or ends of names after a dot, which then name all layers
            that end so (``"query"``). ``nn.Linear``, GPT-2's ``Conv1D``, :class:`TTLinear` and other layers that have
            ``in_features``; ``nn.Conv2d`` without groups.
        batches: Batches of inputs. A mapping is passed as keywords, a tuple or list as arguments, all else as the one
            argument. An iterator is used up.
        mask: From a batch to its mask ``(batch, tokens)``, booleans or zeros and ones: inputs whose leading axes are
            these (or their product) are counted where it is true; inputs of another shape are counted whole. Left out,
            the mask is a mapping's ``"attention_mask"`` if there is one.
        forward: Runs the model on a batch, instead of calling it as above: ``lambda model, batch: model(batch[0])``.
        progress: Show a bar where somebody may be watching.

    Returns:
        :class:`~ttref.fitting.gram.Grams` on the CPU by full names, in the order asked for. Layers that always saw the
        same tensor (query, key and value) share one Gram matrix. The inputs of a convolution are its patches, padding
        included, in the order (in, height, width) of ``weight.flatten(1)``; each output position counts as a token. A
        layer used several times in a pass sums over all uses.

    Raises:
        TypeError: A layer of another kind; inputs that are no floating-point numbers; ``batches`` that is one batch.
        ValueError: No layer or several kinds of names that match none; a convolution with groups; no batches; a layer
            that was never called, or whose tokens were all masked; NaN or Inf in a layer's inputs; a mask that has not
            two axes.

    Cost:
        One pass, and O(tokens d^2) in float64 for each different input; d x d numbers for each layer, two more, and
        64 MB of pieces of inputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> grams = collect_gram(model, ["0", "2"], [torch.ones(5, 4), torch.ones(2, 4)])
        >>> grams, grams["0"].tokens, grams["0"].matrix[0].tolist()
        (Grams(0: 4 x 4, 2: 3 x 3), 7, [7.0, 7.0, 7.0, 7.0])
    """
    seen = seen_by(model, layers, batches, mask, forward, progress)
    made: dict[tuple[int, ...], Gram] = {}
    for name, one in seen.items():
        key = tuple(one.inputs)
        if key not in made:
            made[key] = gram_of(name, one.total, one.tokens, one.called)
    return Grams({name: made[tuple(one.inputs)] for name, one in seen.items()})


@torch.no_grad()
def seen_by(
    model: nn.Module,
    layers: str | Iterable[str],
    batches: Iterable[Any],
    mask: Callable[[Any], Tensor | None] | None,
    forward: Callable[[nn.Module, Any], Any] | None,
    progress: bool,
) -> dict[str, Watched]:
    """What layers saw of batches, by full names: the sums of :func:`collect_gram`, some perhaps of nothing."""
    # Importing it above would lead around: what changes models stands on layers, and layers on what is fitted here.
    from ..surgery.wrappers import Names, bare, bare_modules

    if isinstance(batches, (Tensor, Mapping, str)):
        raise TypeError(f"batches must be an iterable of batches, got one {type(batches).__name__}; put it into a list")
    there = bare_modules(model, remove_duplicate=False)
    wanted = [layers] if isinstance(layers, str) else list(layers)
    known = Names(model)
    names = list(dict.fromkeys(name for target in wanted for name in known.match(target)))
    if not names:
        raise ValueError("layers is empty; name at least one layer")
    watched = {id(there[name]): Watched(name, there[name]) for name in reversed(names)}  # errors tell the first name
    model = bare(model)
    modes = [(part, part.training) for part in model.modules()]
    watch = _Watch(watched)

    def put_back() -> None:
        for one in watched.values():
            one.unhook()
        for part, training in modes:
            part.training = training

    # Twice: an interrupt may come at the first line of the first.
    try:
        try:
            model.eval()
            for one in watched.values():
                one.hook(watch)
            count = 0
            for batch in bar(batches, progress, "Gram matrices"):
                watch.begin(batch, mask)
                _run(model, batch) if forward is None else forward(model, batch)
                count += 1
        finally:
            put_back()
    finally:
        put_back()
    if not count:
        raise ValueError("there were no batches; an iterator that was used before has none left")
    return {name: watched[id(there[name])] for name in names}


def gram_of(name: str, total: Tensor | None, tokens: int, called: bool) -> Gram:
    """The Gram matrix of what a layer saw, or why there is none."""
    if not called:
        raise ValueError(
            f"{name} was never called, so it has no inputs: either these batches do not reach it, or another "
            "module uses its weight without calling it, as nn.MultiheadAttention does with its out_proj"
        )
    if not tokens:
        raise ValueError(f"{name} saw no tokens: the mask, or the shape of the inputs, left none")
    return Gram(total.cpu(), tokens)


class Watched:
    """One layer: how its inputs are read, and their sum."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name, self.layer = name, layer
        self.total: Tensor | None = None
        self.tokens = 0
        self.inputs: list[int] = []  # numbers of the inputs summed: layers with equal ones share their Gram matrix
        self.called = False
        self._hook: Callable | None = None
        kind = type(layer).__name__
        if isinstance(layer, nn.Conv2d):
            if layer.groups != 1:
                raise ValueError(
                    f"{name} is a convolution in {layer.groups} groups, whose outputs see a part of the inputs each; "
                    "its Gram matrix is not one matrix, so leave it out"
                )
            kernel = layer.kernel_size
            self.how = (kernel, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
            self.width = layer.in_channels * kernel[0] * kernel[1]
            return
        width = layer.weight.shape[0] if conv1d_of(layer) else getattr(layer, "in_features", None)
        if not isinstance(width, int):
            raise TypeError(
                f"{name} is a {kind}; Gram matrices are collected for nn.Linear, Conv1D, TTLinear and nn.Conv2d"
            )
        self.how, self.width = None, width

    def hook(self, watch: _Watch) -> None:
        def see(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            watch.add(self, args[0] if args else next(iter(kwargs.values())))

        self._hook = see
        self.layer.register_forward_pre_hook(see, with_kwargs=True)

    def unhook(self) -> None:
        held = self.layer._forward_pre_hooks
        for key in [key for key, hook in held.items() if hook is self._hook]:
            self.layer._forward_pre_hooks_with_kwargs.pop(key, None)
            held.pop(key)


class _Watch:
    """The sums of all layers, and the last input, which the next layer may be given too."""

    def __init__(self, watched: Mapping[int, Watched]) -> None:
        self.watched = watched
        self.mask: Tensor | None = None
        self._last: tuple | None = None
        self._number = 0

    def begin(self, batch: Any, mask: Callable[[Any], Tensor | None] | None) -> None:
        self._last = None
        if mask is not None:
            self.mask = mask(batch)
        else:
            self.mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if self.mask is not None and (not isinstance(self.mask, Tensor) or self.mask.ndim != 2):
            shape = tuple(self.mask.shape) if isinstance(self.mask, Tensor) else type(self.mask).__name__
            raise ValueError(
                f"the mask must be a tensor (batch, tokens), got {shape}; mask=lambda batch: ... gives another"
            )

    @full_precision
    @torch.no_grad()
    def add(self, one: Watched, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"the inputs of {one.name} are {found}, but a Gram matrix needs floating-point numbers")
        one.called = True
        fits = x.ndim in (3, 4) if one.how else x.ndim and x.shape[-1] == one.width
        if not fits:
            return  # the layer itself will say so
        number, total, tokens = self._summed(one, x)
        if tokens:
            one.total = total.clone() if one.total is None else one.total.add_(total)
            one.tokens += tokens
            one.inputs.append(number)

    def _summed(self, one: Watched, x: Tensor) -> tuple[int, Tensor, int]:
        """The number of this input, its Gram matrix and tokens: those of the last input if it is the same tensor."""
        version = None if x.is_inference() else x._version
        if self._last is not None:
            seen, before, how, found = self._last
            if seen() is x and version is not None and (version, one.how) == (before, how):
                return found
        self._number += 1
        if one.how:
            total, tokens = _of_patches(x if x.ndim == 4 else x.unsqueeze(0), one.layer)
        else:
            tokens_of_x = self._tokens(x)
            total, tokens = summed(_exact(tokens_of_x)), len(tokens_of_x)
        if not total.diagonal().sum().isfinite():
            raise ValueError(
                f"the inputs of {one.name} hold NaN or Inf; run the model in float32, or leave out what makes them"
            )
        self._last = weakref.ref(x), version, one.how, (self._number, total, tokens)
        return self._last[3]

    def _tokens(self, x: Tensor) -> Tensor:
        """The inputs ``(tokens, d)`` that the mask lets through."""
        flat = x.reshape(-1, x.shape[-1])
        if self.mask is None or x.shape[:-1] not in (self.mask.shape, (self.mask.numel(),)):
            return flat
        return flat[self.mask.reshape(-1).to(x.device) != 0]


def _exact(x: Tensor) -> Tensor:
    """Inputs where float64 is known: Apple's GPUs have none."""
    return x.cpu() if x.device.type == "mps" else x


def _of_patches(x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, int]:
    """Gram matrix and number of the patches that a convolution multiplies with, some images at a time."""
    padding = []
    for k in (1, 0):  # F.pad begins with the last axis
        reach = conv.dilation[k] * (conv.kernel_size[k] - 1)
        if isinstance(conv.padding, str):
            padding += [reach // 2, reach - reach // 2] if conv.padding == "same" else [0, 0]
        else:
            padding += [conv.padding[k]] * 2
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    settings = {"dilation": conv.dilation, "stride": conv.stride}
    width = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=_exact(x[:0]).device)
    positions = x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    tokens = 0
    for images in x.split(max(1, CHUNK_BYTES // (8 * width * max(positions, 1)))):
        padded = F.pad(_exact(images).double(), padding, mode=mode)
        patches = F.unfold(padded, conv.kernel_size, **settings).mT.flatten(0, 1)
        total += summed(patches)
        tokens += len(patches)
    return total, tokens


def _run(model: nn.Module, batch: Any) -> Any:
    """A model's call with one batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
