"""What transformers is told about tied weights while a compressed table, which has no such weight, is in a model."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import Any

from torch import nn

from .wrappers import bare_modules

_PLAIN_NAME = re.compile(r"[\w.]+\.(weight|bias)")  # a parameter's; other entries are patterns, and not of tables


class _Declared(dict):
    """Ties as they hold now, with those that the model declared itself, and the ends of those that were untied."""

    def __init__(
        self, now: dict[str, str], declared: dict[str, str] | None, own: bool, parted: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(now)
        self.declared, self.own, self.parted = declared, own, parted

    def __reduce__(self) -> tuple:
        return _Declared, (dict(self), self.declared, self.own, self.parted)


def declare(model: nn.Module, look_up: nn.Module, *, untied: bool) -> None:
    """Let every part of the model declare the ties that hold with this look-up, and no resizing it cannot do.

    transformers ties weights by name whenever it loads, saves or resizes. The names are taken out here, and not by
    ``config.tie_word_embeddings``, which some models read while they compute.

    Args:
        model: The model, with the look-up put in.
        look_up: The new one.
        untied: Whether the head was told to keep its own matrix: then nothing may tie it again, as long as it has one.
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
            declared = now.declared if isinstance(now, _Declared) else now
            own = now.own if isinstance(now, _Declared) else name in vars(part)
            parted = now.parted if isinstance(now, _Declared) else frozenset()
            kept = {
                target: source
                for target, source in (declared or {}).items()
                if not (_PLAIN_NAME.fullmatch(target) and _PLAIN_NAME.fullmatch(source))
                or (target in weights and weights[target] is weights.get(source))
                or (target in weights and source in weights and not part_them and target not in parted)
            }
            gone = (declared or {}).keys() - kept.keys()
            parted = frozenset(gone if part_them else gone & parted)
            if compressed and name == "_tied_weights_keys":
                kept |= _repeated(part, look_up)
            if kept != (declared or {}):
                setattr(part, name, _Declared(kept, declared, own, parted))
            elif own:
                setattr(part, name, declared)
            else:
                vars(part).pop(name, None)
        _resizing(part, look_up if compressed else None)
    if hasattr(model, "get_expanded_tied_weights_keys"):
        model.get_expanded_tied_weights_keys(all_submodels=True)  # fails now, if at all, and not when it is saved


def untie(model: nn.Module, names: Collection[str]) -> None:
    """Declare what holds after modules of these bare names were replaced, where ties were declared for one of them."""
    for prefix, part in bare_modules(model).items():
        if not hasattr(part, "get_expanded_tied_weights_keys"):
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
    """The names of a look-up that encoder and decoder share, as patterns: a file may hold its numbers once."""
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
    """What stands for ``resize_token_embeddings`` meanwhile."""
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
