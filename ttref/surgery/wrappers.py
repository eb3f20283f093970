"""Names of modules in the bare model, without the wrappers of ``torch.compile``, parallel training or PEFT.

A wrapper is a module with the wrapped one as a child: ``_orig_mod.`` or ``module.`` then stands at the beginning of
every name, or within it. A file with such names would fit only models wrapped in the same way.

One rule for names everywhere: a module is named by its full name in the bare model, or by the end of it after a dot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = [
    "Names",
    "bare",
    "bare_modules",
    "bare_names",
    "bare_state",
    "find",
    "named",
    "names_it",
    "put",
    "rebind",
    "way",
]

# By name, because importing the classes would load torch's compiler, its distributed package, and PEFT.
_INSIDE = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "PeftModel": "base_model",
    "PeftMixedModel": "base_model",
    "BaseTuner": "model",
}
# These register the parameters when they are made, and synchronize no new ones.
_SYNCHRONIZING = ("DistributedDataParallel", "FullyShardedDataParallel")


def bare(module: nn.Module) -> nn.Module:
    """The module inside the wrappers around it; itself where there are none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> wrapped = nn.DataParallel(model)
        >>> bare(wrapped) is model, list(bare_names(wrapped).values())
        (True, ['', '', '0'])
    """
    while inside := _inside(module):
        module = getattr(module, inside)
    return module


def bare_names(model: nn.Module) -> dict[str, str]:
    """From torch's name of each module to the one without wrappers, for all modules, shared ones included."""
    return {full: name for full, name, _ in _walk(model)}


def bare_modules(model: nn.Module, remove_duplicate: bool = True) -> dict[str, nn.Module]:
    """Modules by their names without wrappers; a shared one under its first name, or under all its names."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for _, name, module in _walk(model):
        module = bare(module)
        if name in found or (remove_duplicate and id(module) in seen):
            continue
        seen.add(id(module))
        found[name] = module
    return found


def bare_state(model: nn.Module, **options: Any) -> dict[str, Any]:
    """The ``state_dict(**options)`` of the model inside the wrappers, with names without wrappers."""
    model, state = bare(model), {}
    names = bare_names(model)
    for key, value in model.state_dict(**options).items():
        owner, _, own = key.rpartition(".")
        while owner not in names:  # some wrappers remove their names themselves, and names of buffers may have dots
            owner, _, leaf = owner.rpartition(".")
            own = f"{leaf}.{own}"
        state[f"{names[owner]}.{own}".removeprefix(".")] = value
    return state


def names_it(target: str, name: str) -> bool:
    """True if ``target`` is this bare name, or the end of it after a dot."""
    return name == target or name.endswith(f".{target}")


def named(model: nn.Module, target: str, *, one: bool = False, outside: tuple[str, ...] = ()) -> list[str]:
    """The bare names that ``target`` matches: :meth:`Names.match`, once."""
    return Names(model).match(target, one=one, outside=outside)


class Names:
    """The names of a model's modules and their ends, listed in one walk and asked for any number of targets."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = bare_modules(model, remove_duplicate=False)
        self._wrapped = bare_names(model)
        self._ending: dict[str, list[str]] = {}
        for name in self._modules:
            parts = name.split(".") if name else []
            for k in range(len(parts)):
                self._ending.setdefault(".".join(parts[k:]), []).append(name)

    def match(self, target: str, *, one: bool = False, outside: tuple[str, ...] = ()) -> list[str]:
        """The bare names that ``target`` matches, in the order of the model; if none, it may be a name with wrappers.

        Args:
            target: A full name, or the end of one after a dot.
            one: Exactly one match is wanted: the module with this full name, or the only one whose name ends so.
            outside: Prefixes of names to ignore.

        Raises:
            ValueError: No match, or several where one is wanted.
        """
        for whole in (target, self._wrapped.get(target, target)):
            if found := [name for name in self._ending.get(whole, ()) if not name.startswith(outside)]:
                break
        else:
            raise ValueError(self._missing(target, outside))
        if one and whole in found:
            return [whole]
        if one and len(found) > 1:
            raise ValueError(
                f"{target!r} names {len(found)} modules, {found[0]} and {found[1]} among them; give all of it"
            )
        return found

    def _missing(self, target: str, outside: tuple[str, ...]) -> str:
        """Why there is no such name, and what names there are."""
        names = [name for name in self._modules if name and not name.startswith(outside)]
        ends = dict.fromkeys(name.rpartition(".")[2] for name in names if not list(self._modules[name].children()))
        pattern = "" if re.fullmatch(r"[\w.\-]*", str(target)) else " (it is taken as it stands, not as a pattern)"
        inner = f"the innermost modules here end in {', '.join([*ends][:40])}"
        alone = f"the model is a single {type(bare(self._model)).__name__} without modules in it; put it into one first"
        return f"no module is named {target!r} or ends in '.{target}'{pattern}; {inner if names else alone}"


def find(model: nn.Module, name: str) -> nn.Module:
    """The module of this bare name; AttributeError if there is none."""
    steps = way(model, name)
    return getattr(*steps[-1]) if steps else model


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of this bare name. Wrappers around the old one are then around the new one."""
    holder, leaf = way(model, name)[-1]
    setattr(holder, leaf, module)
    if leaf == "_orig_mod":
        rebind(holder)


def synchronizing(model: nn.Module, name: str) -> str | None:
    """Class name of a wrapper around this module that would not synchronize gradients of new parameters, or None."""
    kinds = [type(holder).__name__ for holder, _ in way(model, name)]
    return next((kind for kind in kinds if kind in _SYNCHRONIZING), None)


def _walk(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Every module with torch's name and the name without wrappers."""
    names: dict[str, str] = {}
    wrapped: dict[str, str | None] = {}
    for full, module in model.named_modules(remove_duplicate=False):
        parent, _, leaf = full.rpartition(".")
        inner = not full or wrapped[parent] == leaf
        names[full] = names.get(parent, "") if inner else f"{names[parent]}.{leaf}".removeprefix(".")
        wrapped[full] = _inside(module)
        yield full, names[full], module


def way(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Parent and attribute name of each step down to the module of a bare name, steps into wrappers included."""
    steps: list[tuple[nn.Module, str]] = []
    for part in ("", *name.split(".")):
        if part:
            steps.append((model, part))
            model = model.get_submodule(part)
        while inside := _inside(model):
            steps.append((model, inside))
            model = getattr(model, inside)
    return steps


def rebind(compiled: nn.Module) -> None:
    """Let a module made by ``torch.compile`` call its current inner module: it has bound the call of the old one."""
    compiled._initialize()


def _inside(module: nn.Module) -> str | None:
    """Attribute name under which a wrapper holds its module; None for other modules."""
    for kind in type(module).__mro__:
        if kind.__name__ in _INSIDE and kind.__module__.startswith(("torch.", "peft.")):
            return _INSIDE[kind.__name__]
    return None
