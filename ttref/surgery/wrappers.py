"""Names of modules as the bare model has them, whatever ``torch.compile`` or parallel training put around it.

Each wrapper is a module that holds the wrapped one under a name of its own: ``_orig_mod.`` or ``module.`` then stands
in front of, or amid, every name. A file that kept such names would fit only models wrapped the same way.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["bare", "bare_modules", "bare_names", "bare_state", "find", "put", "rebind"]

# By name, because importing the classes would load torch's compiler and its distributed package.
_INSIDE = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}


def bare(module: nn.Module) -> nn.Module:
    """The module inside the wrappers around it; itself where there are none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> bare(nn.DataParallel(model)) is model, list(bare_names(nn.DataParallel(model)).values())
        (True, ['', '', '0'])
    """
    while inside := _inside(module):
        module = getattr(module, inside)
    return module


def bare_names(model: nn.Module) -> dict[str, str]:
    """From the name that torch has for a module to the one without wrappers, for all modules, shared ones included."""
    names: dict[str, str] = {}
    wrapped: dict[str, str | None] = {}
    for full, module in model.named_modules(remove_duplicate=False):
        parent, _, leaf = full.rpartition(".")
        inner = not full or wrapped[parent] == leaf
        names[full] = names.get(parent, "") if inner else f"{names[parent]}.{leaf}".removeprefix(".")
        wrapped[full] = _inside(module)
    return names


def bare_modules(model: nn.Module, remove_duplicate: bool = True) -> dict[str, nn.Module]:
    """The modules by their names without wrappers, wrappers left out; a shared one under its first name, or all."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for full, name in bare_names(model).items():
        module = bare(model.get_submodule(full))
        if name in found or (remove_duplicate and id(module) in seen):
            continue
        seen.add(id(module))
        found[name] = module
    return found


def bare_state(model: nn.Module, **options: Any) -> dict[str, Any]:
    """The ``state_dict(**options)`` of what is inside the wrappers, with names that know none."""
    model, state = bare(model), {}
    names = bare_names(model)
    for key, value in model.state_dict(**options).items():
        owner, _, own = key.rpartition(".")
        while owner not in names:  # some wrappers take their name out by themselves, and buffers may have dots
            owner, _, leaf = owner.rpartition(".")
            own = f"{leaf}.{own}"
        state[f"{names[owner]}.{own}".removeprefix(".")] = value
    return state


def find(model: nn.Module, name: str) -> nn.Module:
    """The module of this name, without wrappers; AttributeError if there is none."""
    module = bare(model)
    for part in name.split(".") if name else ():
        module = bare(module.get_submodule(part))
    return module


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Let the module of this name be another one. Wrappers around the old one are then around the new one."""
    parent, _, leaf = name.rpartition(".")
    holder = find(model, parent)
    while inside := _inside(getattr(holder, leaf)):
        holder, leaf = getattr(holder, leaf), inside
    setattr(holder, leaf, module)
    if leaf == "_orig_mod":
        rebind(holder)


def rebind(compiled: nn.Module) -> None:
    """Let what ``torch.compile`` made call the module that it holds now: it has the call of an earlier one bound."""
    compiled._initialize()


def _inside(module: nn.Module) -> str | None:
    """Under which name a wrapper holds its module, None for what is no wrapper."""
    for kind in type(module).__mro__:
        if kind.__name__ in _INSIDE and kind.__module__.startswith("torch."):
            return _INSIDE[kind.__name__]
    return None
