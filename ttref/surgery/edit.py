"""Changing an existing model: all changes or none, with undo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import is_
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .ties import check_unshared, declares, leaving, parts, untie
from .wrappers import bare_modules, named, put, synchronizing, way

__all__ = ["edit", "swap_layer"]

_CONTAINERS = (dict, list, set)
_GONE = object()
_MOST_INTERRUPTS = 100
_CHANGED = (
    "the model was changed since where the edit changed it, in {}; put that back first, as a later edit's undo does"
)


class edit:
    """A transaction on a model: all changes are made or none, and they can be undone.

    If anything is raised inside the ``with``, ``KeyboardInterrupt`` included, all changes of modules, parameters,
    buffers, hooks, attributes and ``requires_grad`` are rolled back. Numbers of tensors are rolled back only where
    :meth:`fill` wrote them.

    Args:
        model: The model, changed in place; wrappers of ``torch.compile``, parallel training or PEFT around it or its
            parts stay.

    Cost:
        O(number of modules and parameters), twice. The edit keeps the old modules alive for :meth:`undo`.

    Example:
        >>> from ttref import TTLinear
        >>> from ttref.surgery import edit
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> with edit(model) as change:
        ...     trains = {k: TTLinear.from_linear(model[int(k)], rank=4) for k in ("0", "2")}
        ...     _ = change.put(trains)
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
        self._numbers: list[tuple[Tensor, Tensor]] = []
        self._seen: dict[int, tuple[nn.Module, str, list[tuple[Any, dict]]]] = {}

    def __enter__(self) -> edit:
        self._changes, self._numbers, self._seen = None, [], {}
        self._see(self._touched())
        return self

    def _touched(self) -> Iterable[tuple[str, nn.Module]]:
        return self.model.named_modules()

    def put(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Replace modules by name.

        Args:
            layers: From names to new modules. A name is a module's full name, or the end of it after a dot if no other
                module's name ends so; wrappers are not part of it. Widths must be those of the old module; bias, dtype
                and device are not checked.

        Returns:
            The modules that were replaced, by their whole names.

        Raises:
            TypeError: A replacement that is no module.
            ValueError: No module of this name or several, other widths, or a parameter, a buffer or the module itself
                that other modules use too and that the new module does not hold: the tie would break.

        Ties:
            The names of ties that no longer exist are removed from a transformers model's declared ties.
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
        self._see((name, part) for name, part in there.items() if declares(part))
        for name, layer in new.items():
            self._see([(name, way(self.model, name)[-1][0]), *layer.named_modules(prefix=name)])
            put(self.model, name, layer)
        untie(there, new)
        return {name: there[name] for name in new}

    @torch.no_grad()
    def fill(self, tensor: Tensor, numbers: Tensor) -> None:
        """Copy numbers into a tensor of the model; the edit keeps a copy of the old ones."""
        self._numbers.append((tensor, tensor.detach().clone()))
        tensor.copy_(numbers)

    def undo(self) -> None:
        """Undo all changes of the edit, once. Replaced modules return as they are now, training mode included.

        Raises:
            RuntimeError: The edit was not completed, or is undone already; or the model was changed since in a place
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

    def withdraw(self) -> None:
        """Take back whatever the edit has done, completed or not; nothing if it did nothing.

        For who must be sure: an interrupt may come just as the ``with`` block ends, when the edit does not take its
        changes back, and :meth:`undo` does not know whether it was completed.
        """
        to_the_end(lambda: self._take_back() if self._changes is None else self.undo())

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._changes, self._seen = self._made(), {}
                return
        except BaseException:  # what is not known to the end could not be undone
            to_the_end(self._take_back)
            raise
        to_the_end(self._take_back)

    def _made(self) -> list[tuple]:
        """Changed contents: module, name, container or parameter, entries before and after, True if in the model."""
        inside = {id(part) for part in self.model.modules()}
        changed = [first for first in self._first() if not _holds(first[2], first[3])]
        return [(*first, _entries(first[2]), id(first[0]) in inside) for first in changed]

    def _take_back(self) -> None:
        self._write([(held, before) for _, _, held, before in self._first()])

    def _see(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """Record the contents of the modules before they are changed."""
        for name, part in modules:
            if id(part) not in self._seen:
                own = vars(part)
                held = [own, *[one for one in own.values() if isinstance(one, _CONTAINERS)]]
                held += [one for one in part._parameters.values() if one is not None]
                self._seen[id(part)] = part, name, [(one, _entries(one)) for one in held]

    def _first(self) -> Iterator[tuple[nn.Module, str, Any, dict]]:
        """The recorded contents: module, its name, a container or parameter, and its entries."""
        return ((part, name, one, entries) for part, name, held in self._seen.values() for one, entries in held)

    @torch.no_grad()
    def _write(self, wanted: list[tuple[Any, dict]]) -> None:
        for held, entries in reversed(wanted):  # of shared contents the first record counts, which is written last
            if not _holds(held, entries):
                _write(held, entries)
        for tensor, numbers in reversed(self._numbers):
            tensor.copy_(numbers)


class _Swap(edit):
    """An edit in which only ``put`` is called: only the modules that it touches are recorded."""

    def _touched(self) -> Iterable[tuple[str, nn.Module]]:
        return ()


def swap_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Replace the module called ``name`` by ``layer``. Nothing changes if it does not fit.

    Args:
        model: The model, changed in place.
        name: The module's name in the bare model, without the wrappers of ``torch.compile``, ``nn.DataParallel`` or
            PEFT: the full name, or the end of it after a dot if no other module's name ends so.
        layer: The replacement, of the same widths; bias, dtype and device are not checked.

    Returns:
        The module that was replaced; swapping it back undoes the change. :class:`edit` changes several modules at once
        and undoes that.

    Raises:
        TypeError: ``layer`` is no module.
        ValueError: No module of this name or several, other widths, a model that parallel training has wrapped, or a
            parameter, buffer or the module itself that other modules use too (a tied output head, a
            :class:`TiedHead`): replacing one of them alone would break the tie.

    Ties:
        The names of ties that no longer exist are removed from a transformers model's declared ties, and
        ``tie_weights`` does not tie a head again that was untied and then swapped. Swapped back, it stays untied.

    Cost:
        O(number of modules and of parameters' names).

    Example:
        >>> from ttref import TTLinear
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> dense = swap_layer(model, "0", TTLinear.from_linear(model[0], rank=8))
        >>> type(model[0]).__name__, type(dense).__name__
        ('TTLinear', 'Linear')
    """
    with _Swap(model) as change:
        [(place, old)] = change.put({name: layer}).items()
        if kind := synchronizing(model, place):
            raise ValueError(
                f"{kind} would not synchronize the new layer's parameters: "
                "swap the layer in the bare model, then wrap that"
            )
    return old


def to_the_end(work: Callable[[], None]) -> None:
    """Run idempotent work to its end: an interrupt restarts it, and is raised when it is done."""
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
    """The entries of a container as a dict; of a parameter, its ``requires_grad``."""
    if isinstance(held, dict):
        return dict(held)
    if isinstance(held, (list, set)):
        return dict(enumerate(held)) if isinstance(held, list) else dict.fromkeys(held)
    return {"requires_grad": held.requires_grad}


def _holds(held: dict | list | set | nn.Parameter, entries: dict) -> bool:
    """True if these are still the entries: the same objects in the same order."""
    if not entries and not held:  # the most frequent case: a module without such hooks
        return True
    if isinstance(held, list):
        return len(held) == len(entries) and all(map(is_, held, entries.values()))
    now = held if isinstance(held, dict) else _entries(held)
    return len(now) == len(entries) and all(map(is_, now, entries)) and all(map(is_, now.values(), entries.values()))


def _write(held: dict | list | set | nn.Parameter, entries: dict) -> None:
    if isinstance(held, nn.Parameter):
        held.requires_grad_(entries["requires_grad"])
        return
    held.clear()
    held.extend(entries.values()) if isinstance(held, list) else held.update(entries)
