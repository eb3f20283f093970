"""Tensor trains for compressing neural networks: a small, tested reference.

Functions on plain lists of cores come first; layers and tools are thin shells around them. Every public name can be
taken from here: ``from ttref import tt_svd``. Nothing is imported until it is asked for, so ``import ttref`` is
instant and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import fixedpoint

__version__ = "0.1.0"

_HOME = {
    "shapes": ("factorize", "balanced_modes", "tt_ranks", "tt_params", "ttm_params"),
    "trains": ("tt_svd", "tt_to_tensor", "tt_entry"),
    "canonical": ("tt_orthogonalize", "tt_round", "tt_norm"),
    "algebra": ("tt_dot", "tt_add", "tt_hadamard"),
    "matrices": ("ttm_svd", "ttm_to_matrix"),
    "plans": ("plan_contraction", "Plan"),
    "contraction": ("ttm_matvec",),
    "layers": ("TTLinear",),
    "embeddings": ("MPSEmbedding", "TTMEmbedding", "TiedHead", "replace_embedding"),
    "surgery": ("swap_layer",),
    "lora": ("TTLoRALinear", "add_tt_lora", "merge_tt_lora", "save_tt_lora", "load_tt_lora"),
    "peft_bridge": ("TTLoraConfig",),
    "entanglement": ("schmidt_values", "entanglement_entropy", "suggest_ranks"),
    "bounds": ("gaussian_distortion",),
    "baselines": ("truncated_svd", "quantize_integer", "product_quantize", "gaussian_null", "Baseline"),
    "fixedpoint": tuple(fixedpoint.__all__),  # a list of names too; its modules are not imported either
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ttref' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
