"""Changing a model that is there already: all of it or nothing, and back again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .ties import check_unshared, leaving, parts, untie
from .wrappers import bare_modules, named, put, synchronizing

__all__ = ["edit", "swap_layer"]

_CONTAINERS = (dict, list, set)
_GONE = object()
_MOST_INTERRUPTS = 100
_CHANGED = (
    "the model was changed since where the edit changed it, in {}; put that back first, as a later edit's undo does"
)


class edit:
    """A change of a model that happens as a whole or not at all, and can be undone.

    Whatever is done inside of the ``with`` to modules, parameters, buffers, hooks, attributes and ``requires_grad`` is
    taken back if anything is raised there, ``KeyboardInterrupt`` included. Numbers are taken back where :meth:`fill`
    wrote them.

    Args:
        model: The model, changed in place; whatever ``torch.compile``, parallel training or PEFT put around it or its
            parts stays around them.

    Cost:
        O(number of modules and parameters), twice. The old modules are kept as long as the edit is.

    Example:
        >>> from ttref import TTLinear
        >>> from ttref.surgery import edit
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> with edit(model) as change:
        ...     _ = change.put({name: TTLinear.from_linear(model[int(name)], rank=4) for name in ("0", "2")})
        ...     _ = model.requires_grad_(False)
        >>> type(model[0]).__name__, model[2].bias.requires_grad
        ('TTLinear', False)
        >>> change.undo()
        >>> type(model[0]).__name__, model[2].bias.requires_grad
        ('Linear', True)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._changes: list[tuple] | None = None  # known between the end and the undoing

    def __enter__(self) -> edit:
        self._changes, self._numbers = None, []
        self._seen: dict[int, tuple[nn.Module, str, dict, dict]] = {}
        self._see(self.model)
        return self

    def put(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Put modules where others stand.

        Args:
            layers: From names to modules. A name is a whole name, or the end of one after a dot if only one module's
                name ends so; wrappers are not part of it. Widths must be those of the old module; bias, dtype and
                device are yours to match.

        Returns:
            The modules that were replaced, by their whole names.

        Raises:
            TypeError: No module.
            ValueError: No module of this name or several, other widths, or a parameter, a buffer or the module itself
                that other modules use too and that the new module does not hold: the tie would break.

        Ties:
            Where transformers ties weights by name, it is told of names that are gone.
        """
        there = bare_modules(self.model, remove_duplicate=False)
        names = [key if key and key in there else named(self.model, key, one=True)[0] for key in layers]
        new = dict(zip(names, layers.values(), strict=True))
        if len(new) < len(names):
            raise ValueError(f"{', '.join(layers)} name the same module more than once")
        for name, layer in new.items():
            if not isinstance(layer, nn.Module):
                raise TypeError(f"layer must be an nn.Module, got {type(layer).__name__}")
            for width, in_gpt2 in (("in_features", "nx"), ("out_features", "nf")):  # Conv1D has its own names
                before, after = (getattr(one, width, getattr(one, in_gpt2, None)) for one in (there[name], layer))
                if before is not None and after is not None and before != after:
                    raise ValueError(f"{name} has {width} = {before}, but the replacement has {after}")
        check_unshared(there, {name: leaving(there[name], layer) for name, layer in new.items()}, aliases=True)
        for name, layer in new.items():
            self._see(layer, name)
            put(self.model, name, layer)
        untie(there, new)
        return {name: there[name] for name in new}

    @torch.no_grad()
    def fill(self, tensor: Tensor, numbers: Tensor) -> None:
        """Copy numbers into a tensor of the model; those that were there are kept for as long as the edit is."""
        self._numbers.append((tensor, tensor.detach().clone()))
        tensor.copy_(numbers)

    def undo(self) -> None:
        """Put everything back that the edit changed, once. What was taken out comes back as it was left, mode included.

        Raises:
            RuntimeError: The edit was not completed, or was undone before; or the model was changed since in a place
                that the edit had changed. Nothing is undone then.
        """
        if self._changes is None:
            raise RuntimeError("there is nothing to undo: the edit was not completed, or it was undone already")
        alive, wanted = {id(part) for part in parts(self.model)}, []
        for part, name, held, before, after, inside in self._changes:
            now = _entries(held)
            for key in {**before, **after}:
                old, new = before.get(key, _GONE), after.get(key, _GONE)
                if old is new:
                    continue
                if now.get(key, _GONE) is not new or (inside and id(part) not in alive):
                    raise RuntimeError(_CHANGED.format(f"{key} of {name or 'the model'}"))
                now[key] = old
            wanted.append((held, {key: now[key] for key in {**before, **now} if now.get(key, _GONE) is not _GONE}))
        if not alive.issuperset(id(tensor) for tensor, _ in self._numbers):
            raise RuntimeError(_CHANGED.format("a tensor that it filled"))

        def put_back() -> None:
            self._write(wanted)
            self._changes, self._numbers = None, []

        to_the_end(put_back)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            to_the_end(lambda: self._write([(held, before) for _, _, held, before in self._first()]))
            return
        inside = {id(part) for part in self.model.modules()}
        changed = [first for first in self._first() if not _holds(first[2], first[3])]
        self._changes = [(*first, _entries(first[2]), id(first[0]) in inside) for first in changed]
        self._seen = {}

    def _see(self, module: nn.Module, prefix: str = "") -> None:
        """Take down what the modules hold before it is changed."""
        for name, part in module.named_modules(prefix=prefix):
            if id(part) not in self._seen:
                own = dict(vars(part))
                held = {key: _entries(one) for key, one in own.items() if isinstance(one, _CONTAINERS) and one}
                flags = {one: _entries(one) for one in part._parameters.values() if one is not None}
                self._seen[id(part)] = part, name, own, held | flags

    def _first(self) -> Iterator[tuple[nn.Module, str, Any, dict]]:
        """What was taken down: module, its name, a container or parameter, and the entries."""
        for part, name, own, held in self._seen.values():
            yield part, name, vars(part), own
            for key, one in own.items():
                if isinstance(one, _CONTAINERS):
                    yield part, name, one, held.get(key, {})
            for one, entries in held.items():
                if not isinstance(one, str):
                    yield part, name, one, entries

    @torch.no_grad()
    def _write(self, wanted: list[tuple[Any, dict]]) -> None:
        for held, entries in reversed(wanted):  # what two modules share is as it was when the first was seen
            if not _holds(held, entries):
                _write(held, entries)
        for tensor, numbers in reversed(self._numbers):
            tensor.copy_(numbers)


def swap_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put ``layer`` where the module called ``name`` stands. Nothing changes if it does not fit.

    Args:
        model: The model, changed in place.
        name: The module's name in the bare model, whatever ``torch.compile``, ``nn.DataParallel`` or PEFT has put
            around it or its parts: the whole name, or the end of it after a dot if no other module's name ends so.
        layer: The replacement, of the same widths. Bias, dtype and device are yours to match.

    Returns:
        The module that was replaced: keep it, and swapping it back undoes the change. :class:`edit` changes several at
        once and undoes them.

    Raises:
        TypeError: ``layer`` is no module.
        ValueError: No module of this name or several, other widths, a model that parallel training has wrapped, or a
            parameter, buffer or the module itself that other modules use too (a tied output head, a
            :class:`TiedHead`): replacing one of them alone would break the tie.

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
    with edit(model) as change:
        [(place, old)] = change.put({name: layer}).items()
        if kind := synchronizing(model, place):
            raise ValueError(
                f"{kind} would not synchronize the new layer's parameters: "
                "swap the layer in the bare model, then wrap that"
            )
    return old


def to_the_end(work: Callable[[], None]) -> None:
    """Do work that may be begun again from its start: an interrupt begins it again, and is raised when it is done."""
    interrupt: BaseException | None = None
    for _ in range(_MOST_INTERRUPTS):
        try:
            work()
            break
        except Exception:
            raise
        except BaseException as stop:
            interrupt = stop
    if interrupt is not None:
        raise interrupt


def _entries(held: dict | list | set | nn.Parameter) -> dict:
    """What a module holds, as a dict: containers entry by entry, and of a parameter whether it is trained."""
    if isinstance(held, dict):
        return dict(held)
    if isinstance(held, (list, set)):
        return dict(enumerate(held)) if isinstance(held, list) else dict.fromkeys(held)
    return {"requires_grad": held.requires_grad}


def _holds(held: dict | list | set | nn.Parameter, entries: dict) -> bool:
    """Whether these are still the entries: the same objects in the same order."""
    if not entries and not held:  # most: the hooks that a module does not have
        return True
    now = _entries(held)
    same = list(map(id, now.values())) == list(map(id, entries.values()))
    return same and list(map(hash, now)) == list(map(hash, entries))


def _write(held: dict | list | set | nn.Parameter, entries: dict) -> None:
    if isinstance(held, nn.Parameter):
        held.requires_grad_(entries["requires_grad"])
        return
    held.clear()
    held.extend(entries.values()) if isinstance(held, list) else held.update(entries)
