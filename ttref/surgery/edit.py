"""Changing a model layer by layer, and never half-way."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .wrappers import bare_names, rebind

__all__ = ["swap_layer"]

# They took down the parameters when they were made.
_SYNCHRONISING = ("DistributedDataParallel", "FullyShardedDataParallel")


def swap_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put ``layer`` where the module called ``name`` stands. Nothing changes if it does not fit.

    Args:
        model: The model, changed in place.
        name: The module's name, as in ``model.named_modules()``, or as the model has it inside ``torch.compile`` and
            ``nn.DataParallel``.
        layer: The replacement, of the same widths. Bias, dtype and device are yours to match.

    Returns:
        The module that was replaced: keep it, and swapping it back undoes the change.

    Raises:
        TypeError: ``layer`` is no module.
        ValueError: No module of this name, other widths, a model that parallel training has wrapped, or a parameter,
            buffer or the module itself that other modules use too (a tied output head, a :class:`TiedHead`): replacing
            one of them alone would break the tie.

    Ties:
        Where transformers ties weights by name, it is told of names that are gone, and ``tie_weights`` leaves a head
        alone that was untied and then swapped. Swapped back, it stays untied.

    Cost:
        O(number of modules and of parameters' names).

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
    if name not in modules:  # as the bare model has it, without what torch.compile and its like put around modules
        name = {bare: full for full, bare in bare_names(model).items()}.get(name, name)
    if not name or name not in modules:
        known = [known for known, module in modules.items() if known and not list(module.children())]
        raise ValueError(f"the model has no module {name!r}; its innermost modules are {', '.join(known[:20])}")
    old = modules[name]
    for width, in_gpt2 in (("in_features", "nx"), ("out_features", "nf")):  # Conv1D has its own names
        before, after = (getattr(module, width, getattr(module, in_gpt2, None)) for module in (old, layer))
        if before is not None and after is not None and before != after:
            raise ValueError(f"{name} has {width} = {before}, but the replacement has {after}")
    path, _, leaf = name.rpartition(".")
    parent = modules[path]
    for prefix in (name[:end] for end in range(len(name)) if end == 0 or name[end] == "."):
        if type(modules[prefix]).__name__ in _SYNCHRONISING:
            raise ValueError(
                f"{type(modules[prefix]).__name__} would not synchronise the new layer's parameters: "
                "swap the layer in the bare model, then wrap that"
            )
    _check_ties(model, modules, name)
    with all_or_nothing(model):
        _put(parent, leaf, layer)
        _declare_ties(model, name)
    return old


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Every module's attributes as they were, should what is done inside fail or be interrupted."""
    before = [(vars(part), dict(vars(part)), dict(part._modules), dict(part._parameters)) for part in model.modules()]
    try:
        yield
    except BaseException:
        for now, attributes, modules, parameters in before:
            now.update(attributes)
            for name in now.keys() - attributes.keys():
                del now[name]
            for kept, saved in ((now["_modules"], modules), (now["_parameters"], parameters)):
                kept.clear()
                kept.update(saved)
        raise


def _check_ties(model: nn.Module, modules: dict[str, nn.Module], name: str) -> None:
    """Refuse a module whose numbers another one uses too."""
    old, (path, _, leaf) = modules[name], name.rpartition(".")
    # A block under two names holds one layer, which is then replaced under both.
    places = [place.rpartition(".") for place, module in modules.items() if module is old]
    same = tuple(f"{up}.{end}.".lstrip(".") for up, _, end in places if modules[up] is modules[path] and end == leaf)
    own = {key: leaf for leaf, tensor in [*old.named_parameters(), *old.named_buffers()] for key in _keys(tensor)}
    for kind, named in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for other, tensor in named(remove_duplicate=False):
            shared = own.keys() & _keys(tensor)
            if shared and not other.startswith(same):
                copied = f"layer.{own[shared.pop()]}"
                copy = f"{copied}.detach().clone()"
                raise ValueError(
                    f"{name} shares a {kind} with {other}: replacing one of the two would break the tie; "
                    f"untie them first by giving one a copy: {copied} = "
                    + (f"nn.Parameter({copy})" if kind == "parameter" else copy)
                )
    inside = {id(module) for module in old.modules() if module is old or any(True for _ in module.parameters())}
    for other, module in modules.items():
        if not f"{other}.".startswith(same) and any(id(used) in inside for used in _hidden(module)):
            raise ValueError(
                f"{other} uses {name} without holding it as a module (a tied output head): it would go on with the old "
                "one; replace both, for a model's token table by replace_embedding"
            )


def _keys(tensor: Tensor) -> list[object]:
    """By what a tensor is known: itself, and where its numbers begin, which another parameter may have too."""
    if tensor.is_meta or isinstance(tensor, nn.parameter.UninitializedTensorMixin) or not tensor.numel():
        return [id(tensor)]
    try:
        return [id(tensor), (tensor.device, tensor.data_ptr())]
    except RuntimeError:  # a kind of tensor without memory of its own
        return [id(tensor)]


def _hidden(module: nn.Module) -> list[object]:
    """The modules that a module uses without registering them, as far as can be seen."""
    found = list(module.shares()) if callable(getattr(module, "shares", None)) else []
    for name, value in vars(module).items():
        if name == "_modules":
            continue
        if isinstance(value, dict):
            found += value.values()
        elif isinstance(value, (list, tuple)):
            found += value
        else:
            found.append(value() if isinstance(value, weakref.ref) else value)
    return [value for value in found if isinstance(value, nn.Module)]


def _put(parent: nn.Module, leaf: str, layer: nn.Module) -> None:
    setattr(parent, leaf, layer)
    if leaf == "_orig_mod":
        rebind(parent)


def _declare_ties(model: nn.Module, name: str) -> None:
    """Tell transformers, which ties weights by name whenever it loads or saves, what has no such weight any more."""
    for prefix, part in model.named_modules():
        ties = getattr(part, "_tied_weights_keys", None)
        if not hasattr(part, "get_expanded_tied_weights_keys") or not name.startswith(f"{prefix}." if prefix else ""):
            continue
        declared = {**(ties or {}), **(getattr(ties, "declared", None) or {})}
        inner = name[len(prefix) :].lstrip(".") + "."
        if any(end.startswith(inner) for tie in declared.items() for end in tie):
            from .ties import declare  # only a model of transformers needs it

            try:
                look_up = part.get_input_embeddings()
            except NotImplementedError:
                look_up = None
            declare(part, look_up, untied=True)
