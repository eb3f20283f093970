"""Releases of compressed models, read and written by transformers itself: the quantization method ``tensor_train``.

After ``import ttref``, ``AutoModel.from_pretrained(folder)`` reads a release as any other model. Its ``config.json``
holds the descriptions of its compressed layers (see :mod:`ttref.release.described`)::

    "quantization_config": {"quant_method": "tensor_train", "version": 1, "layers": {"encoder.layer.0...": {...}}}

This module registers the method when it is imported, and ``import ttref`` has it imported as soon as transformers is.
transformers makes the model on the meta device, this quantizer puts the compressed layers in place there, and then the
numbers are read straight into cores: no dense layer is ever made. Each tensor keeps the dtype it was saved in, so that
the numbers are those of :func:`~ttref.release.load_release`; a ``dtype=`` that is asked for is that of all numbers but
codes, indices and the scales of rows, and but for what the class of the model keeps in float32.

Hashes and signatures are not checked here, because transformers opens the files: :func:`~ttref.release.load_release`
and :func:`~ttref.release.verify` check them.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .configs import METHOD, VERSION

if TYPE_CHECKING:
    from .placing import Placing

__all__ = ["TensorTrainConfig", "TensorTrainQuantizer"]

UNASKED = torch.bool  # stands for the dtype of a configuration until transformers has read it; no model is of it
# Methods of a model that take other ways while it is loaded. The second is the one place that is told what is missing.
_OWN = {"initialize_weights": "_initialize", "_adjust_missing_and_unexpected_keys": "_check"}


class TensorTrainConfig(QuantizationConfigMixin):
    """Descriptions of the compressed layers of a model, as its ``config.json`` holds them.

    A compressed model with this configuration is saved by ``save_pretrained`` so that ``from_pretrained`` reads it.

    Args:
        layers: Descriptions by names of modules, from :func:`~ttref.release.placing.describe_model`.
        version: Of the format.
        quant_method: The method, always the same.
        more: Nothing else is known.

    Raises:
        ValueError: Another version or method, descriptions that are none, or anything else.

    Example:
        >>> import tempfile, torch, ttref
        >>> from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
        >>> from ttref.release.placing import describe_model
        >>> sizes = dict(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=1)
        >>> model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
        >>> name = "transformer.h.0.mlp.c_fc"
        >>> _ = ttref.swap_layer(model, name, ttref.TTLinear.from_linear(model.get_submodule(name), rank=2))
        >>> model.config.quantization_config = TensorTrainConfig(describe_model(model))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     loaded = AutoModelForCausalLM.from_pretrained(folder)
        >>> loaded.get_submodule(name).ranks
        (1, 2, 2, 1)
    """

    def __init__(
        self, layers: Mapping[str, Mapping[str, Any]], version: int = VERSION, quant_method: str = METHOD, **more: Any
    ) -> None:
        if type(version) is not int or version < 1:
            raise ValueError(f"the version of a {METHOD} configuration is {reprlib.repr(version)}, no number")
        if version > VERSION:
            raise ValueError(
                f"this model was saved in version {version} of {METHOD}, and this ttref reads version {VERSION}; "
                "install a newer ttref"
            )
        if quant_method != METHOD:
            raise ValueError(f"quant_method is {reprlib.repr(quant_method)}, not {METHOD!r}")
        if more:
            raise ValueError(f"a {METHOD} configuration has no {reprlib.repr(next(iter(more)))}")
        if not isinstance(layers, Mapping) or not all(
            isinstance(name, str) and isinstance(spec, Mapping) for name, spec in layers.items()
        ):
            raise ValueError(
                f"the layers of a {METHOD} configuration are {reprlib.repr(layers)}, no descriptions by name"
            )
        self.quant_method, self.version, self.layers = METHOD, version, dict(layers)


class TensorTrainQuantizer(HfQuantizer):
    """What transformers asks while it loads, saves and makes dense a model with a :class:`TensorTrainConfig`.

    A folder is refused with a ValueError if a tensor is missing or has another shape: transformers alone would go on
    with random numbers.
    """

    requires_calibration = True  # nothing is compressed while it is loaded

    def __init__(self, quantization_config: TensorTrainConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._placing: Placing | None = None
        self._checked = False
        self._own: torch.dtype | None = None
        self._asked = True

    def update_attn_implementation(self, config: Any) -> Any:
        """Mark the configuration's own dtype: transformers does not tell whether a dtype is that, or was asked for."""
        self._own, config.dtype = config.dtype, UNASKED
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the model: the one asked for, else that of its configuration, or the default if it has none."""
        self._asked = dtype != UNASKED
        return dtype if self._asked else self._own or torch.get_default_dtype()

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """None, for the dtype that a tensor was saved in, unless one was asked for."""
        return super().get_new_dtype(converter, param, dtype) if self._asked else None

    def _process_model_before_weight_loading(self, model: nn.Module, **options: Any) -> None:
        from .placing import Placing  # late: who loads no release should not wait for it

        try:
            dtype = model.dtype if self._asked else None
            placing = Placing(model, self.quantization_config.layers, dtype, same=_released(model))
        except ValueError as error:
            raise ValueError(f"{_folder(model)} does not hold this model: {error}") from error
        self._placing, self._checked = placing, False
        for name, own in _OWN.items():
            setattr(model, name, functools.partial(getattr(self, own), model))

    def _initialize(self, model: nn.Module) -> None:
        """Random numbers for what a new head lacks. Models write them into weights of their layers, also from above."""
        with self._placing.undone(model) as dense:
            for layer in dense:
                for part in (layer, *layer.parameters(), *layer.buffers()):
                    part._is_hf_initialized = True
            type(model).initialize_weights(model)

    def _check(self, model: nn.Module, found: Any) -> None:
        """Refuse what is missing or has another shape, where transformers would warn."""
        type(model)._adjust_missing_and_unexpected_keys(model, found)
        self._checked = True
        for name, shape, wanted in sorted(found.mismatched_keys, key=lambda key: key[0]):
            if self._needs(model, name):
                found.mismatched_keys = set()  # or transformers would raise an error of its own on top
                raise ValueError(
                    f"{_folder(model)} does not hold this model: {name} has shape {tuple(shape)}, and by its "
                    f"configuration it has {tuple(wanted)}"
                )
        if not _released(model) and (untied := sorted(found.missing_keys & self._placing.untied)):
            raise ValueError(
                f"{_folder(model)} holds no {untied[0]}: a {type(model).__name__} ties it to a weight that is "
                f"compressed here. Load it as the {model.config.architectures[0]} that it is, or with AutoModel"
            )
        if missing := sorted(name for name in found.missing_keys if self._needs(model, name)):
            raise ValueError(
                f"{_folder(model)} is incomplete: it holds no {_listed(missing)}, which would be random numbers; "
                "get it again, or save it again"
            )

    def _needs(self, model: nn.Module, name: str) -> bool:
        """True if a tensor must be in the folder: any of the model that was saved, of another those of its layers."""
        return _released(model) or name.startswith(tuple(f"{layer}." for layer in self._placing.names))

    def _process_model_after_weight_loading(self, model: nn.Module, **options: Any) -> None:
        for name in _OWN:
            vars(model).pop(name, None)
        if not self._checked:
            raise ValueError(f"{_folder(model)} was read in a way that does not tell what is missing in it")
        self._placing.complete(model)
        if not self._asked and self._own is None:  # nothing told it before
            model.config.dtype = model.dtype

    def dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        """Put dense layers in place; all numbers get ``dtype`` if one is given, and else each keeps its own."""
        wanted = None if dtype is None else getattr(torch, str(dtype).removeprefix("torch."))
        self._placing.undo(model)
        self.remove_quantization_config(model)
        return model if wanted is None else model.to(wanted)

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict[str, str]]:
        """Before the model is saved: the layers may have changed since it was loaded."""
        from .placing import describe_model

        self.quantization_config.layers = describe_model(model)
        model.config.quantization_config = self.quantization_config
        return None, {}

    def is_serializable(self) -> bool:
        """True: ``save_pretrained`` writes what ``from_pretrained`` reads."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: cores are parameters, as the weights of dense layers."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: a Trainer needs no adapter."""
        return True


def _released(model: nn.Module) -> bool:
    """True if the model is of the class that was saved."""
    return type(model).__name__ in (model.config.architectures or [type(model).__name__])


def _folder(model: nn.Module) -> str:
    return str(getattr(model.config, "name_or_path", "") or "the state")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


if METHOD not in auto.AUTO_QUANTIZER_MAPPING:  # where another copy of this module was first, its classes stay
    auto.register_quantization_config(METHOD)(TensorTrainConfig)
    auto.register_quantizer(METHOD)(TensorTrainQuantizer)
