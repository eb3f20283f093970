"""TT-LoRA on a whole model: put adapters in by module names, and turn them into plain weights again."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..surgery.edit import edit, to_the_end
from ..surgery.ties import check_unshared
from ..surgery.wrappers import bare, bare_modules, find, named, names_it, put, synchronizing
from .base import check_addable, delta_for
from .delta import TTDelta
from .layer import TTLoRALinear

__all__ = ["add_tt_lora", "merge_tt_lora"]

# Set on a module that is trained and saved along with the adapters; on the module, so that it survives a deepcopy and
# does not depend on how the model is wrapped.
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

    Everything but the cores stops requiring a gradient, ``modules_to_save`` excepted. Adapters that the model has
    already stay, and stay trainable. Save with :func:`save_tt_lora`; a model's own ``save_pretrained`` is for after
    :func:`merge_tt_lora`, since the adapted layers have other names in its state.

    Args:
        model: The model, changed in place. Names are those of the bare model, whatever ``torch.compile`` or parallel
            training has put around it or its parts.
        target_modules: A string, or several. It matches a module that is named so, or whose name ends in "." and it;
            it is no pattern.
        rank: Cap on the TT-ranks, as in :class:`TTLoRALinear`.
        alpha: The update is multiplied by it.
        shape: Modes for every layer, or a dict from names to modes when widths differ; of several names that match a
            layer, the longest counts. Left out, or absent from the dict, they are chosen for each layer.
        init: "zero_last", "orthogonal" or "paper", as in :class:`TTLoRALinear`.
        dropout: Probability of dropping an entry on the adapter's way, while training.
        modules_to_save: Modules to train and save in full, matched alike: a new classification head.

    Returns:
        The model itself.

    Raises:
        TypeError: A module that cannot be adapted: parametrized, already adapted, not linear; the message names it.
        ValueError: A name that matches nothing, a shape that does not fit, a layer that shares its weight with another.

    Cost:
        O(numbers in the cores), and some walks over the modules and parameters of the model.

    Source:
        Anjum et al. (2024), Tensor Train Low-rank Approximation (TT-LoRA): query and value of every layer.

    Example:
        >>> model = nn.ModuleDict({"query": nn.Linear(64, 64), "head": nn.Linear(64, 2)})
        >>> _ = add_tt_lora(model, "query", rank=2, alpha=2, modules_to_save="head")
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())
        (226, 4386)
    """
    targets, saved = _names("target_modules", target_modules), _names("modules_to_save", modules_to_save)
    if not targets:
        raise ValueError("target_modules is empty; name the layers to adapt, such as ['query', 'value']")
    inside = tuple(f"{name}." for name in adapters(model))  # adapters have no inside here
    found = {target: named(model, target, outside=inside) for target in (*targets, *saved)}
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
    """Put adapters around the layers of these names, all or none; then freeze all but cores and what is saved along.

    ``contents`` are tensors of the model, and the numbers that they get.
    """
    layers, marked = adapters(model), saved_along(model)
    saved = {*along, *marked}
    for name in saved:
        if clash := [layer for layer in (*deltas, *layers) if layer == name or layer.startswith(name + ".")]:
            raise ValueError(f"{name} is to be saved in full, but {clash[0]} in it is adapted; choose one")
    modules = {name: find(model, name) for name in (*deltas, *saved)}
    # A weight that is merged later, and parameters that are trained, would change for others too.
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
    """Add every update to its weight and put the plain layers back, so that nothing of the adapters is left.

    As PEFT's ``merge_and_unload``: the layers stay frozen as they are. All layers are merged or none: every sum is made
    and looked at first, one at a time, and then made again to stay, layer by layer. No old weight is kept besides that
    of the layer at hand, so there is no way back: an interrupt in the second round is raised when all are merged. An
    error there, such as memory that something else has taken meanwhile, leaves adapters in the layers that are left:
    the model computes the same, and another call goes on.

    Args:
        model: A model with :class:`TTLoRALinear` layers, merged or not; changed in place.

    Returns:
        The model itself.

    Raises:
        TypeError: A layer whose weight is quantized.
        ValueError: No such layers, a sum that is not finite, or a weight that accelerate keeps elsewhere.

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
    """Refuse a layer that cannot be merged."""
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
    """The modes given for the layer of this name, or None where they are to be chosen."""
    if not isinstance(shape, Mapping):
        return shape
    fitting = [key for key in shape if names_it(key, name)]
    return shape[max(fitting, key=len)] if fitting else None


def check_shape_names(names: Collection[str], shape: object) -> None:
    """Every name in a dict of modes is that of one of these layers: a misspelt one would be passed over in silence."""
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
