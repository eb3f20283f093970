"""Changing a model that is there already: all of it or nothing, and back again."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .ties import untie
from .wrappers import bare_modules, named, put, synchronizing

__all__ = ["edit", "swap_layer"]

_GONE = object()
_MOST_INTERRUPTS = 100


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
        self._held: dict[int, tuple[nn.Module, str, Any, dict]] = {}  # a container of a module, and its first entries
        self._flags: dict[nn.Parameter, bool] = {}
        self._numbers: list[tuple[Tensor, Tensor]] = []
        self._changes: list[tuple] | None = None  # none before the end, nor after undoing

    def __enter__(self) -> edit:
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
        """
        there = bare_modules(self.model, remove_duplicate=False)
        new = {
            key if key and key in there else named(self.model, key, one=True)[0]: layer for key, layer in layers.items()
        }
        for name, layer in new.items():
            if not isinstance(layer, nn.Module):
                raise TypeError(f"layer must be an nn.Module, got {type(layer).__name__}")
            for width, in_gpt2 in (("in_features", "nx"), ("out_features", "nf")):  # Conv1D has its own names
                before, after = (getattr(one, width, getattr(one, in_gpt2, None)) for one in (there[name], layer))
                if before is not None and after is not None and before != after:
                    raise ValueError(f"{name} has {width} = {before}, but the replacement has {after}")
        check_unshared(self.model, {name: _leaving(there[name], layer) for name, layer in new.items()}, aliases=True)
        for name, layer in new.items():
            self._see(layer)
            put(self.model, name, layer)
        untie(self.model, new)
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
        alive = {id(part) for part in _parts(self.model)}
        wanted = []
        for part, name, held, before, after, inside in self._changes:
            now = _entries(held)
            for key in before.keys() | after.keys():
                old, new = before.get(key, _GONE), after.get(key, _GONE)
                if old is not new and (now.get(key, _GONE) is not new or (inside and id(part) not in alive)):
                    self._changed_since(f"{key} of {name or 'the model'}")
                now[key] = now.get(key, _GONE) if old is new else old
            wanted.append((held, {key: now[key] for key in {**before, **now} if now.get(key, _GONE) is not _GONE}))
        for parameter, (_, flag) in self._flags.items():
            if parameter.requires_grad != flag:
                self._changed_since("requires_grad of a parameter")
        if not alive.issuperset(id(tensor) for tensor, _ in self._numbers):
            self._changed_since("a tensor that it filled")

        def put_back() -> None:
            for held, entries in wanted:
                _write(held, entries)
            self._write_tensors({parameter: flag for parameter, (flag, _) in self._flags.items()})
            self._changes = None

        to_the_end(put_back)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            to_the_end(self._restore)
            return
        inside = {id(part) for part in self.model.modules()}
        changes = [(*seen, _entries(seen[2]), id(seen[0]) in inside) for seen in self._held.values()]
        self._flags = {one: (flag, one.requires_grad) for one, flag in self._flags.items() if flag != one.requires_grad}
        self._changes = [change for change in changes if not _same(change[3], change[4])]
        self._held = {}

    def _see(self, module: nn.Module) -> None:
        """Take down what the modules hold before it is changed."""
        for name, part in module.named_modules():
            for held in (vars(part), *vars(part).values()):
                if isinstance(held, (dict, list, set)) and id(held) not in self._held:
                    self._held[id(held)] = part, name, held, _entries(held)
        for parameter in module.parameters():
            self._flags.setdefault(parameter, parameter.requires_grad)

    def _restore(self) -> None:
        for _, _, held, entries in self._held.values():
            if not _same(_entries(held), entries):
                _write(held, entries)
        self._write_tensors(self._flags)

    @torch.no_grad()
    def _write_tensors(self, flags: Mapping[nn.Parameter, bool]) -> None:
        for tensor, numbers in reversed(self._numbers):
            tensor.copy_(numbers)
        for parameter, flag in flags.items():
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)

    def _changed_since(self, place: str) -> None:
        raise RuntimeError(
            f"the model was changed since where the edit had changed it, in {place}; put that back first, "
            "as by the undo of a later edit"
        )


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


def check_unshared(
    model: nn.Module, used: Mapping[str, Iterable[Tensor | nn.Module | None]], *, aliases: bool = False
) -> None:
    """Refuse to change what other modules of the model use too.

    Args:
        model: The model.
        used: By bare names of modules, the tensors and modules in them that are to be changed or replaced.
        aliases: Whether one place that has two names, in a block that is held twice, counts as one.
    """
    users, places = defaultdict(list), defaultdict(list)
    modules = bare_modules(model, remove_duplicate=False)
    for name, module in modules.items():
        up, _, leaf = name.rpartition(".")
        places[id(modules[up]), leaf].append(f"{name}.")
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            for key in _keys(tensor):
                users[key].append(f"{name}.{leaf}".removeprefix("."))
        for hidden in _hidden(module):
            users[id(hidden)].append(name)
    for name, parts in used.items():
        up, _, leaf = name.rpartition(".")
        same = tuple(places[id(modules[up]), leaf]) if aliases else f"{name}."
        for part in parts:
            for key in _keys(part):
                others = [other for other in users[key] if not f"{other}.".startswith(same)]
                if others and isinstance(part, nn.Module):
                    raise ValueError(
                        f"{others[0]} uses {name} without holding it as a module (a tied output head): it would go on "
                        "with the old one; replace both, for a model's token table by replace_embedding"
                    )
                if others:
                    own = next((other for other in users[key] if other.startswith(same)), f"{name}.weight")
                    tensor = f"layer.{own[len(name) + 1 :]}"
                    copy = f"{tensor}.detach().clone()"
                    kind, copy = (
                        ("parameter", f"nn.Parameter({copy})") if isinstance(part, nn.Parameter) else ("buffer", copy)
                    )
                    raise ValueError(
                        f"{name} shares a {kind} with {others[0]}: to change one of the two would break the tie, or "
                        f"change both; untie them first by giving one a copy: {tensor} = {copy}"
                    )


def _leaving(old: nn.Module, new: nn.Module) -> list[Tensor | nn.Module]:
    """The old module, and what goes with it because the new one does not hold it."""
    stays = {id(part) for part in _parts(new)}
    goes = [part for part in _parts(old) if id(part) not in stays]
    return [old, *(part for part in goes if not isinstance(part, nn.Module) or any(True for _ in part.parameters()))]


def _parts(module: nn.Module) -> list[Tensor | nn.Module]:
    return [*module.modules(), *module.parameters(), *module.buffers()]


def _keys(part: Tensor | nn.Module | None) -> list[object]:
    """By what a part is known: itself, and where its numbers begin, which another parameter may have too."""
    if not isinstance(part, Tensor):
        return [] if part is None else [id(part)]
    if part.is_meta or isinstance(part, nn.parameter.UninitializedTensorMixin) or not part.numel():
        return [id(part)]
    try:
        return [id(part), (part.device, part.data_ptr())]
    except RuntimeError:  # a kind of tensor without memory of its own
        return [id(part)]


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


def _entries(held: dict | list | set) -> dict:
    if isinstance(held, dict):
        return dict(held)
    return dict.fromkeys(held) if isinstance(held, set) else dict(enumerate(held))


def _same(one: dict, other: dict) -> bool:
    """Whether entries are the same objects in the same order."""
    pairs = zip(one.items(), other.items(), strict=False)
    return len(one) == len(other) and all(a is b and hash(k) == hash(j) for (k, a), (j, b) in pairs)


def _write(held: dict | list | set, entries: dict) -> None:
    held.clear()
    held.extend(entries.values()) if isinstance(held, list) else held.update(entries)
