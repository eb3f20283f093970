"""Ties of a model: parameters and modules that several modules use, and the ties that a transformers model declares.

transformers ties weights by name. A compressed table has no weight of that name, nor has a layer around another one.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

_REGISTERED = ("_modules", "_parameters", "_buffers")
_PLAIN_NAME = re.compile(r"[\w.]+\.(weight|bias)")  # of a parameter; other entries are patterns, never of tables


def check_unshared(
    modules: Mapping[str, nn.Module],
    used: Mapping[str, Iterable[Tensor | nn.Module | None]],
    *,
    aliases: bool = False,
) -> None:
    """Refuse to change tensors and modules that other modules of the model use too; :meth:`Users.check`, once."""
    Users(modules).check(used, aliases=aliases)


class Users:
    """Who uses which tensor and module of a model, found in one walk and asked for any number of layers.

    Args:
        modules: All modules of the model by their bare names, shared ones under each of their names.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._places: dict[tuple[int, str], list[str]] = {}
        self._uses: list[tuple[str, str, Tensor | nn.Module | None]] = []
        self._by_key: dict[object, list[int]] = {}
        for other, module in modules.items():
            self._places.setdefault(_place(modules, other), []).append(other)
            held = [(f".{leaf}", tensor) for leaf, tensor in (*module._parameters.items(), *module._buffers.items())]
            for leaf, one in (*held, *(("", one) for one in hidden(module))):
                for key in _keys(one):
                    self._by_key.setdefault(key, []).append(len(self._uses))
                self._uses.append((other, leaf, one))

    def check(self, used: Mapping[str, Iterable[Tensor | nn.Module | None]], *, aliases: bool = False) -> None:
        """Refuse to change tensors and modules that other modules of the model use too.

        Args:
            used: By names of modules, the tensors and modules in them that are to be changed or replaced.
            aliases: True if the two names of a module inside a shared block count as one.

        Raises:
            ValueError: Another module uses one of them.

        Cost:
            O(number of their uses), however large the model.
        """
        modules, same = self._modules, {name: (f"{name}.",) for name in used}
        if aliases:
            for place, owner in {_place(modules, name): name for name in used}.items():
                same[owner] += tuple(f"{name}." for name in self._places[place])
        keys = {key: (name, part) for name, own in used.items() for part in own for key in _keys(part)}
        for k in sorted({k for key in keys for k in self._by_key.get(key, ())}):
            other, leaf, one = self._uses[k]
            name, part = next(keys[key] for key in _keys(one) if key in keys)
            if f"{other}{leaf}.".startswith(same[name]):
                continue
            user = f"{other}{leaf}".removeprefix(".")
            if isinstance(part, nn.Module):
                raise ValueError(
                    f"{user} uses {name} without holding it as a module (a tied output head): it would go on with the "
                    "old one; replace both, for a model's token table by replace_embedding"
                )
            kind = "parameter" if isinstance(part, nn.Parameter) else "buffer"
            tensors = (*modules[name].named_parameters(), *modules[name].named_buffers())
            own = next((f"layer.{own}" for own, tensor in tensors if tensor is part), "layer.weight")
            raise ValueError(
                f"{name} shares a {kind} with {user}: to change one of the two would break the tie, or change both; "
                f"untie them first by giving one a copy: {own} = copy.deepcopy({own})"
            )


def _place(modules: Mapping[str, nn.Module], name: str) -> tuple[int, str]:
    """Parent and attribute name of the module of this name."""
    up, _, leaf = name.rpartition(".")
    return id(modules[up]), leaf


def leaving(old: nn.Module, new: nn.Module) -> list[Tensor | nn.Module]:
    """The old module and those of its parts that the new one does not hold."""
    stays = {id(part) for part in parts(new)}
    goes = [part for part in parts(old) if id(part) not in stays]
    return [old, *(part for part in goes if not isinstance(part, nn.Module) or any(True for _ in part.parameters()))]


def parts(module: nn.Module) -> list[Tensor | nn.Module]:
    """All parts of a module: modules, parameters and buffers."""
    return [*module.modules(), *module.parameters(), *module.buffers()]


def _keys(part: Tensor | nn.Module | None) -> list[object]:
    """Keys that identify a part: its id, and the address of its numbers, which another parameter may share."""
    if not isinstance(part, Tensor):
        return [] if part is None else [id(part)]
    if part.is_meta or isinstance(part, nn.parameter.UninitializedTensorMixin) or not part.numel():
        return [id(part)]
    try:
        return [id(part), (part.device, part.data_ptr())]
    except RuntimeError:  # a tensor subclass without storage
        return [id(part)]


def hidden(module: nn.Module) -> list[nn.Module]:
    """The modules that a module uses without registering them: from ``shares()`` and its attributes."""
    found = list(module.shares()) if hasattr(type(module), "shares") else []
    for name, value in vars(module).items():
        if isinstance(value, dict):  # first, because most are: empty ones
            if value and name not in _REGISTERED:
                found += value.values()
        elif isinstance(value, (list, tuple)):
            found += value
        elif not isinstance(value, (bool, int, str)):
            found.append(value() if isinstance(value, weakref.ref) else value)
    return [value for value in found if isinstance(value, nn.Module)]


class _Declared(dict):
    """The ties that hold now, with those that the model declared itself, and the targets that were untied."""

    def __init__(
        self, now: dict[str, str], declared: dict[str, str] | None, own: bool, parted: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(now)
        self.declared, self.own, self.parted = declared, own, parted


def declare(model: nn.Module, look_up: nn.Module, *, untied: bool) -> None:
    """Let every part of the model declare the ties that hold with this look-up, and refuse resizing if compressed.

    transformers ties weights by name whenever it loads, saves or resizes. The names are removed here, and not by
    ``config.tie_word_embeddings``, which some models read in their forward pass.

    Args:
        model: The model, with the new look-up.
        look_up: The new look-up.
        untied: True if the head keeps a dense matrix: then it may not be tied again while it has one.
    """
    # Rows without a weight that could be tied by its name, or resized.
    rows = hasattr(look_up, "num_embeddings") and not isinstance(look_up, nn.Embedding)
    compressed = rows and "weight" not in look_up._parameters
    for part in model.modules():
        if not hasattr(part, "get_expanded_tied_weights_keys"):
            continue
        weights = dict(part.named_parameters(remove_duplicate=False))
        part_them = untied and getattr(part.config, "tie_word_embeddings", False)
        for name in ("_tied_weights_keys", "all_tied_weights_keys"):
            now = getattr(part, name, None)
            if not isinstance(now, _Declared):
                now = _Declared(now or {}, now, name in vars(part))
            declared, parted = now.declared or {}, now.parted
            kept = {
                target: source
                for target, source in declared.items()
                if not (_PLAIN_NAME.fullmatch(target) and _PLAIN_NAME.fullmatch(source))
                or (target in weights and weights[target] is weights.get(source))
                or (target in weights and source in weights and not part_them and target not in parted)
            }
            gone = declared.keys() - kept.keys()
            parted = frozenset(gone if part_them else gone & parted)
            if compressed and name == "_tied_weights_keys":
                kept |= _repeated(part, look_up)
            if kept != declared:
                setattr(part, name, _Declared(kept, now.declared, now.own, parted))
            elif now.own:
                setattr(part, name, now.declared)
            else:
                vars(part).pop(name, None)
        _resizing(part, look_up if compressed else None)
    if hasattr(model, "get_expanded_tied_weights_keys"):
        model.get_expanded_tied_weights_keys(all_submodels=True)  # fails now, if at all, and not when it is saved


def declares(part: nn.Module) -> bool:
    """True if a bare module is a model whose weights transformers ties by names."""
    return hasattr(type(part), "get_expanded_tied_weights_keys")  # the class is fast to ask


def untie(modules: Mapping[str, nn.Module], names: Collection[str]) -> None:
    """Redeclare ties after modules of these bare names were replaced, if ties were declared for one of them."""
    for prefix, part in modules.items():
        if not declares(part):
            continue
        ties = getattr(part, "_tied_weights_keys", None)
        declared = {**(ties or {}), **(getattr(ties, "declared", None) or {})}
        within = f"{prefix}." if prefix else ""
        inner = tuple(f"{name.removeprefix(within)}." for name in names if name.startswith(within))
        if any(end.startswith(inner) for tie in declared.items() for end in tie):
            try:
                look_up = part.get_input_embeddings()
            except NotImplementedError:
                look_up = None
            declare(part, look_up, untied=True)


def _repeated(part: nn.Module, look_up: nn.Module) -> dict[str, str]:
    """Ties between the names of a look-up shared by encoder and decoder, as patterns: a file holds its numbers once."""
    names = [name for name, module in part.named_modules(remove_duplicate=False) if module is look_up]
    return {f"{name}.": f"{names[0]}." for name in names[1:]}


def _resizing(part: nn.Module, look_up: nn.Module | None) -> None:
    name = "resize_token_embeddings"
    if look_up is not None and any(module is look_up for module in part.modules()):
        setattr(part, name, functools.partial(_cannot_resize, look_up))
    elif getattr(vars(part).get(name), "func", None) is _cannot_resize:
        delattr(part, name)


def _cannot_resize(
    look_up: nn.Module, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *_: Any, **__: Any
) -> nn.Module:
    """In place of ``resize_token_embeddings`` while the table is compressed."""
    rows = look_up.num_embeddings
    wanted = rows if new_num_tokens is None else new_num_tokens
    if pad_to_multiple_of is not None:
        wanted += -wanted % pad_to_multiple_of
    if wanted == rows:
        return look_up
    raise TypeError(
        f"the model's table is compressed and keeps its {rows} rows; table.append(rows) adds tokens to it, or put the "
        "dense table back with replace_embedding, resize that, compress it and replace it again"
    )
