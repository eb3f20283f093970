"""Changing a model layer by layer, and never half-way."""

from __future__ import annotations

from torch import nn

__all__ = ["swap_layer"]


def swap_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put ``layer`` where the module called ``name`` stands. Nothing changes if it does not fit.

    Args:
        model: The model, changed in place.
        name: The module's name, as in ``model.named_modules()``.
        layer: The replacement, of the same widths. Bias, dtype and device are yours to match.

    Returns:
        The module that was replaced: keep it, and swapping it back undoes the change.

    Raises:
        TypeError: ``layer`` is no module.
        ValueError: No module of this name, other widths, or a parameter of the old module that other modules share (a
            tied output head): replacing one of them alone would break the tie.

    Cost:
        O(number of parameters' names).

    Example:
        >>> from ttref import TTLinear
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> dense = swap_layer(model, "0", TTLinear.from_linear(model[0], rank=8))
        >>> type(model[0]).__name__, type(dense).__name__
        ('TTLinear', 'Linear')
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be an nn.Module, got {type(layer).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in modules:
        known = [known for known, module in modules.items() if known and not list(module.children())]
        raise ValueError(f"the model has no module {name!r}; its innermost modules are {', '.join(known[:20])}")
    old = modules[name]
    for width, in_gpt2 in (("in_features", "nx"), ("out_features", "nf")):  # Conv1D has its own names
        before, after = (getattr(module, width, getattr(module, in_gpt2, None)) for module in (old, layer))
        if before is not None and after is not None and before != after:
            raise ValueError(f"{name} has {width} = {before}, but the replacement has {after}")
    own = {id(parameter) for parameter in old.parameters()}
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in own and not other.startswith(name + "."):
            raise ValueError(
                f"{name} shares a parameter with {other}: replacing one of the two would break the tie; "
                "untie them first by giving one a copy: layer.weight = nn.Parameter(layer.weight.detach().clone())"
            )
    parent, _, leaf = name.rpartition(".")
    setattr(modules[parent], leaf, layer)
    return old
