"""TT-LoRA on a whole model: add adapters by module names, and merge them into plain weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..surgery.edit import edit, to_the_end
from ..surgery.ties import check_unshared
from ..surgery.wrappers import Names, bare, bare_modules, find, names_it, put, synchronizing
from .base import check_addable, delta_for
from .delta import TTDelta
from .layer import TTLoRALinear

__all__ = ["add_tt_lora", "merge_tt_lora"]

# Attribute of a module that is trained and saved along with the adapters; on the module, so that it survives a deepcopy
# and does not depend on wrappers.
SAVED_ALONG = "_tt_lora_saves_this"


def add_tt_lora(
    model: nn.Module,
    target_modules: str | Sequence[str],
    *,
    rank: int | Sequence[int],
    alpha: float,
    shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    init: str = "zero_last",
    dropout: float = 0.0,
    modules_to_save: str | Sequence[str] = (),
) -> nn.Module:
    """Put a :class:`TTLoRALinear` around the named layers and freeze the rest. Nothing changes if one does not fit.

    All parameters but the cores and ``modules_to_save`` are frozen. Adapters already in the model stay, and stay
    trainable. Save with :func:`save_tt_lora`; a model's ``save_pretrained`` is for after :func:`merge_tt_lora`, because
    adapted layers have other names in its state.

    Args:
        model: The model, changed in place. Names are those of the bare model, without the wrappers of
            ``torch.compile`` or parallel training.
        target_modules: One name or several. A name matches a module of this name, and modules whose name ends with
            "." and this name; it is no pattern.
        rank: Cap on the TT-ranks, as in :class:`TTLoRALinear`.
        alpha: The update is multiplied by it.
        shape: Modes for every layer, or a dict from names to modes when widths differ; of several names that match a
            layer, the longest counts. Left out or not in the dict, modes are chosen for each layer.
        init: "zero_last", "orthogonal" or "paper", as in :class:`TTLoRALinear`.
        dropout: Dropout probability of the input of the update, while training.
        modules_to_save: Names of modules to train and save in full, such as a new classification head.

    Returns:
        The model itself.

    Raises:
        TypeError: A module that cannot be adapted: parametrized, already adapted, not linear; the message names it.
        ValueError: A name that matches nothing, a shape that does not fit, a layer that shares its weight with another.

    Cost:
        O(numbers in the cores) plus O(number of modules and parameters).

    Source:
        Anjum et al. (2024), Tensor Train Low-rank Approximation (TT-LoRA): query and value of every layer.

    Example:
        >>> model = nn.ModuleDict({"query": nn.Linear(64, 64), "head": nn.Linear(64, 2)})
        >>> _ = add_tt_lora(model, "query", rank=2, alpha=2, modules_to_save="head")
        >>> trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        >>> trained, sum(p.numel() for p in model.parameters())
        (226, 4386)
    """
    targets, saved = _names("target_modules", target_modules), _names("modules_to_save", modules_to_save)
    if not targets:
        raise ValueError("target_modules is empty; name the layers to adapt, such as ['query', 'value']")
    inside = tuple(f"{name}." for name in adapters(model))  # names inside adapters do not count
    known = Names(model)
    found = {target: known.match(target, outside=inside) for target in (*targets, *saved)}
    deltas: dict[str, TTDelta] = {}
    names = list(dict.fromkeys(name for target in targets for name in found[target]))
    check_shape_names(names, shape)
    for name in names:
        base, modes = find(model, name), modes_for(name, shape)
        try:
            deltas[name] = delta_for(base, rank=rank, alpha=alpha, shape=modes, init=init, dropout=dropout)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    install(model, deltas, [name for target in saved for name in found[target]])
    return model


def install(
    model: nn.Module,
    deltas: Mapping[str, TTDelta],
    along: Sequence[str],
    contents: Sequence[tuple[Tensor, Tensor]] = (),
) -> None:
    """Put adapters around the layers of these names, all or none; freeze all but cores and the modules ``along``.

    ``contents`` are pairs of a tensor of the model and the numbers to copy into it.
    """
    layers, marked = adapters(model), saved_along(model)
    saved = {*along, *marked}
    for name in saved:
        if clash := [layer for layer in (*deltas, *layers) if layer == name or layer.startswith(name + ".")]:
            raise ValueError(f"{name} is to be saved in full, but {clash[0]} in it is adapted; choose one")
    modules = {name: find(model, name) for name in (*deltas, *saved)}
    # Merging a shared weight, or training shared parameters, would change other modules too.
    used = {name: [getattr(modules[name], "weight", None)] for name in deltas}
    used |= {name: modules[name].parameters() for name in saved}
    check_unshared(bare_modules(model, remove_duplicate=False), used)
    if kind := next(filter(None, (synchronizing(model, name) for name in deltas)), None):
        warnings.warn(
            f"{kind} knows only the parameters that were there when it was built, so the adapters' gradients will not "
            "be shared among processes; put adapters in first and wrap the model then",
            stacklevel=3,
        )
    with edit(model) as change:
        change.put({name: TTLoRALinear.from_delta(modules[name], delta) for name, delta in deltas.items()})
        model.requires_grad_(False)
        for name in saved:
            modules[name].requires_grad_(True)
            setattr(modules[name], SAVED_ALONG, True)
        for layer in adapters(model).values():
            layer.cores.requires_grad_(True)
        for tensor, numbers in contents:
            change.fill(tensor, numbers)


def merge_tt_lora(model: nn.Module) -> nn.Module:
    """Add every update to its weight and put the plain layers back, as PEFT's ``merge_and_unload``.

    The layers stay frozen. All layers are merged or none: every sum is computed and checked first, one at a time, then
    computed again and stored, layer by layer. No old weight is kept beyond that of the current layer, so the second
    pass cannot be rolled back: an interrupt in it is raised when all layers are merged. An error in it, such as memory
    taken by another process meanwhile, leaves adapters in the remaining layers: the model computes the same function,
    and another call continues.

    Args:
        model: A model with :class:`TTLoRALinear` layers, merged or not; changed in place.

    Returns:
        The model itself.

    Raises:
        TypeError: A layer whose weight is quantized.
        ValueError: No such layers, a sum that is not finite, or a weight that accelerate has offloaded.

    Cost:
        O(out in r) for every layer, twice; memory for one more weight.

    Example:
        >>> import torch
        >>> model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(3, 64)
        >>> before = add_tt_lora(model, "0", rank=2, alpha=2, init="paper")(x)
        >>> torch.allclose(merge_tt_lora(model)(x), before, atol=1e-5), type(model[0]).__name__
        (True, 'Linear')
    """
    layers, marked = adapters(model), [find(model, name) for name in saved_along(model)]
    if not layers:
        raise ValueError("the model has no TT-LoRA layers to merge")
    for name, layer in layers.items():
        _check_sum(name, layer)
    del layer  # or the last one's old weight would be kept

    def merge() -> None:
        while layers:
            name, layer = next(iter(layers.items()))
            if not layer.merged:
                layer.merge()
            put(model, name, layer.base_layer)
            del layers[name]
        for module in marked:
            vars(module).pop(SAVED_ALONG, None)

    to_the_end(merge)
    return model


@torch.no_grad()
def _check_sum(name: str, layer: TTLoRALinear) -> None:
    """Refuse a layer whose sum cannot be stored or is not finite."""
    try:
        check_addable(layer.base_layer)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    if not layer.weight.isfinite().all():
        raise ValueError(f"{name}: weight plus update has NaN or infinite entries; nothing was merged")


def adapters(model: nn.Module) -> dict[str, TTLoRALinear]:
    """The TT-LoRA layers of a model by name."""
    if isinstance(bare(model), TTLoRALinear):
        raise ValueError("the model is itself a TT-LoRA layer, not a module that holds some; use the layer's own verbs")
    return {name: module for name, module in bare_modules(model).items() if isinstance(module, TTLoRALinear)}


def saved_along(model: nn.Module) -> list[str]:
    """Names of the modules that are trained and saved in full."""
    return [name for name, module in bare_modules(model).items() if SAVED_ALONG in vars(module)]


def modes_for(name: str, shape: Sequence[int] | Mapping[str, Sequence[int]] | None) -> Sequence[int] | None:
    """The modes given for the layer of this name, or None if they are to be chosen."""
    if not isinstance(shape, Mapping):
        return shape
    fitting = [key for key in shape if names_it(key, name)]
    return shape[max(fitting, key=len)] if fitting else None


def check_shape_names(names: Collection[str], shape: object) -> None:
    """Refuse a name in a dict of modes that matches no layer: a misspelled one would be ignored silently."""
    for key in shape if isinstance(shape, Mapping) else ():
        if not any(names_it(key, name) for name in names):
            raise ValueError(f"shape gives modes for {key!r}, but no layer to adapt is named so or ends in '.{key}'")


def _names(argument: str, value: str | Sequence[str]) -> list[str]:
    if not isinstance(value, Sequence) and not isinstance(value, set):
        raise TypeError(f"{argument} must be a module name or several, got {value!r}")
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(f"{argument} must be a module name or several, got {name!r} among them")
    return names
