"""TT-LoRA inside PEFT: ``peft.get_peft_model(model, TTLoraConfig(...))`` and every verb that follows from it.

Importing this module registers the method. PEFT's list of methods is a closed enumeration, so the registration fills
the same three public dictionaries as PEFT's own; nothing of PEFT is changed. A program that reads a saved adapter must
import this module first: without it, PEFT raises a KeyError.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import nn

try:
    from peft import mapping
    from peft.config import PeftConfig
    from peft.tuners.lora import LoraModel
    from peft.tuners.tuners_utils import BaseTuner
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "TT-LoRA inside PEFT needs PEFT; install it with: python -m pip install 'peft>=0.21.2,<0.22'"
    ) from error

from ..surgery.edit import edit
from ..surgery.ties import check_unshared
from ..surgery.wrappers import bare_modules, bare_names, names_it, rebind
from .model import check_shape_names
from .peft_layer import TTLoraLayer, TTLoraLinear

__all__ = ["TTLoraConfig"]


class TTPeftType(enum.StrEnum):
    """PEFT's own enumeration of methods is closed. A member of this one equals, and hashes as, its string in a file."""

    TTLORA = "TTLORA"

    def __str__(self) -> str:
        """PEFT's status report cuts the method's name off behind a dot."""
        return f"{type(self).__name__}.{self.name}"


@dataclass
class TTLoraConfig(PeftConfig):
    """Configuration of TT-LoRA for PEFT.

    Args:
        rank: Cap on the TT-ranks, one int or one for each bond with ones at both ends.
        alpha: The update is multiplied by it. PEFT's LoRA multiplies by ``lora_alpha / r``: give that quotient here.
        shape: Modes of the rows, then of the columns; or a dict from module names, or their ends, to modes. Chosen
            for each layer if left out.
        init: "zero_last", "orthogonal" or "paper"; see :class:`~ttref.lora.layer.TTLoRALinear`.
        dropout: Dropout probability of the input of the update, while training.
        target_modules: Names, or a regular expression, as in every method of PEFT.
        exclude_modules: Likewise, modules to leave alone.
        modules_to_save: Modules to train and save in full besides, such as a new head.
        layers_to_transform: Indices of the layers to adapt; all if left out. Only beside a list of names.
        layers_pattern: Name of the list of layers, if it is no usual one.
        bias: Only "none": biases stay frozen.
        ensure_weight_tying: Train a table in ``modules_to_save`` and the head tied to it as one, as PEFT's LoRA does.

    Numbers may be NumPy's and sequences arrays; they are converted to plain ones.

    Raises:
        ValueError: No target modules, another bias, layers counted beside a pattern; in ``get_peft_model``, a layer
            whose weight another module shares, such as a head tied to the token table.
        TypeError: In ``get_peft_model``, a layer that cannot be adapted.

    Cost:
        None by itself; the layers cost what :class:`~ttref.lora.layer.TTLoRALinear` costs.

    Source:
        Anjum et al. (2024), Tensor Train Low-rank Approximation (TT-LoRA).

    Example:
        >>> from peft import get_peft_model
        >>> config = TTLoraConfig(rank=2, alpha=2, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(64, 64)), config)
        >>> model.print_trainable_parameters()
        trainable params: 96 || all params: 4,256 || trainable%: 2.2556
    """

    rank: int | list[int] = field(default=4, metadata={"help": "Cap on the TT-ranks"})
    alpha: float = field(default=2.0, metadata={"help": "Factor of the update, not divided by the rank"})
    shape: list[int] | dict[str, list[int]] | None = field(default=None, metadata={"help": "Modes, rows first"})
    init: str = field(default="zero_last", metadata={"help": "'zero_last', 'orthogonal' or 'paper'"})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the update"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to adapt"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved in full"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indices of layers to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers"})
    bias: str = field(default="none", metadata={"help": "Only 'none'"})
    ensure_weight_tying: bool = field(default=False, metadata={"help": "Train tied modules_to_save as one"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "alpha", "shape", "dropout", "layers_to_transform"):  # they are written as JSON
            setattr(self, name, _plain(getattr(self, name)))
        self.peft_type = TTPeftType.TTLORA
        if self.bias != "none":
            raise ValueError(f"TT-LoRA leaves biases frozen: bias must be 'none', got {self.bias!r}")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts; give both")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform counts among layers named in a list, and target_modules is the pattern "
                f"{self.target_modules!r}; name the modules in a list, or say in the pattern which layers"
            )
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), list | tuple):
                setattr(self, name, set(value))
        # PEFT writes tied modules here; no part of the file.
        self.modules_to_tie = None


def _plain(value: Any) -> Any:
    """Numbers, sequences and dicts as JSON types; anything else unchanged, for the layers to refuse."""
    if hasattr(value, "tolist"):  # NumPy's and torch's
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return float(value) if isinstance(value, Real) and not isinstance(value, (bool, int)) else value


class TTLoraModel(BaseTuner):
    """The tuner that PEFT calls for every target module."""

    prefix = "ttlora_"  # PEFT trains parameters with this in their names and freezes all others
    tuner_layer_cls = TTLoraLayer
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **options: Any) -> None:
        """As in PEFT, but all or nothing: an error at one layer leaves the model as it was."""
        check_shape_names([name for name, _ in model.named_modules()], self.peft_config[adapter_name].shape)
        with edit(self):
            super().inject_adapter(model, adapter_name, *args, **options)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **options: Any) -> Iterator[None]:
        """PEFT's hook around a forward pass: refuse an option that would be ignored."""
        if options.get("adapter_names") is not None:
            raise ValueError(
                "TT-LoRA cannot take another adapter for every sample of a batch: adapter_names must be left out; "
                "set_adapter chooses one for all"
            )
        yield

    # As in LoRA: the table is trained, and the head tied to it follows.
    _add_modules_to_save_to_tie = LoraModel._add_modules_to_save_to_tie

    def _check_tied_modules(self, model: nn.Module, peft_config: TTLoraConfig) -> None:
        """PEFT's hook; its own version recognizes tables and heads by two names only."""
        tied = self._get_module_names_tied_with_embedding() if peft_config.ensure_weight_tying else []
        if not tied:
            super()._check_tied_modules(model, peft_config)
            return
        table = model.get_input_embeddings()
        names = [name for name, module in model.named_modules() if module is table or name in tied]
        saved = peft_config.modules_to_save or []
        if not any(names_it(entry, name) for name in names for entry in saved):
            raise ValueError(
                f"ensure_weight_tying trains tied modules_to_save as one, and none of {', '.join(names)} is among them"
            )
        if tables := [name for name in tied if not isinstance(model.get_submodule(name), nn.Linear)]:
            raise ValueError(
                f"PEFT ties heads to the table and no tables to one another, and {tables[0]} is tied as well: "
                "ensure_weight_tying must be left out, and modules_to_save copied for training one by one"
            )
        self._add_modules_to_save_to_tie(peft_config, tied)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT's hook that maps names in the model to names in the file, in saving and loading.

        Its own version expects the adapter's name as the last part or the last but one; here ``cores.0`` follows it.
        """
        head, mark, tail = key.rpartition(f".ttlora_delta.{adapter_name}.cores.")
        return f"{head}.ttlora_delta.cores.{tail}" if mark else super()._remove_adapter_name_from_key(key, adapter_name)

    def _create_and_replace(
        self,
        config: TTLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **options: Any,
    ) -> None:
        try:
            if isinstance(target, TTLoraLayer):
                target.update_layer(adapter_name, config, current_key)
                return
            layer = TTLoraLinear(target, adapter_name, config, current_key)
            used = {bare_names(self.model)[current_key]: [getattr(target, "weight", None), target]}
            check_unshared(bare_modules(self.model, remove_duplicate=False), used)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{current_key}: {error}") from error
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT's hook: a layer made by ``torch.compile`` has bound the call of its old inner layer."""
        super()._replace_module(parent, child_name, new_module, child)
        if child_name == "_orig_mod":
            rebind(parent)


# As ``peft.utils.register_peft_method``, without its look-up of the name in PEFT's enumeration.
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[TTPeftType.TTLORA] = TTLoraConfig
mapping.PEFT_TYPE_TO_TUNER_MAPPING[TTPeftType.TTLORA] = TTLoraModel
mapping.PEFT_TYPE_TO_PREFIX_MAPPING[TTPeftType.TTLORA] = TTLoraModel.prefix
