"""Tensor trains for compressing neural networks: a small, tested reference.

Functions on plain lists of cores come first; layers and tools are thin shells around them. Names that need only torch
are imported from here: ``from ttref import tt_svd``. Fixed point is :mod:`ttref.fixedpoint` (NumPy, and Amaranth for
circuits); the adapter for PEFT is in :mod:`ttref.lora.peft`. A module is imported when one of its names is first used,
so ``import ttref`` is instant and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import fixedpoint as fixedpoint
from .lazy import lazy_names
from .when_imported import when_imported

if TYPE_CHECKING:  # what type checkers and editors read; a test holds the three lists of this file together
    from .advice import advise, does_a_train_pay
    from .algebra import tt_add, tt_dot, tt_hadamard
    from .approximation import Baseline
    from .baselines import gaussian_null, product_quantize, quantize_integer, truncated_svd
    from .bounds import gaussian_distortion
    from .canonical import tt_norm, tt_orthogonalize, tt_round
    from .compressed import Compressed
    from .contraction import ttm_matvec
    from .conv import TTConv2d
    from .costs import Plan
    from .embeddings import MPSEmbedding, TiedHead, TTMEmbedding, replace_embedding
    from .entanglement import entanglement_entropy, schmidt_values, suggest_ranks
    from .files import load
    from .layers import TTLinear
    from .lora import TTLoRALinear, add_tt_lora, load_tt_lora, merge_tt_lora, save_tt_lora
    from .matrices import ttm_svd, ttm_to_matrix
    from .plans import plan_contraction
    from .shapes import balanced_modes, factorize, tt_params, tt_ranks, ttm_params
    from .surgery.edit import edit, swap_layer
    from .trains import tt_entry, tt_svd, tt_to_tensor

__version__ = "0.1.0"

__all__ = [
    "Baseline",
    "Compressed",
    "MPSEmbedding",
    "Plan",
    "TTConv2d",
    "TTLinear",
    "TTLoRALinear",
    "TTMEmbedding",
    "TiedHead",
    "add_tt_lora",
    "advise",
    "balanced_modes",
    "does_a_train_pay",
    "edit",
    "entanglement_entropy",
    "factorize",
    "gaussian_distortion",
    "gaussian_null",
    "load",
    "load_tt_lora",
    "merge_tt_lora",
    "plan_contraction",
    "product_quantize",
    "quantize_integer",
    "replace_embedding",
    "save_tt_lora",
    "schmidt_values",
    "suggest_ranks",
    "swap_layer",
    "truncated_svd",
    "tt_add",
    "tt_dot",
    "tt_entry",
    "tt_hadamard",
    "tt_norm",
    "tt_orthogonalize",
    "tt_params",
    "tt_ranks",
    "tt_round",
    "tt_svd",
    "tt_to_tensor",
    "ttm_matvec",
    "ttm_params",
    "ttm_svd",
    "ttm_to_matrix",
]

_HOME = {
    "shapes": ("factorize", "balanced_modes", "tt_ranks", "tt_params", "ttm_params"),
    "trains": ("tt_svd", "tt_to_tensor", "tt_entry"),
    "canonical": ("tt_orthogonalize", "tt_round", "tt_norm"),
    "algebra": ("tt_dot", "tt_add", "tt_hadamard"),
    "matrices": ("ttm_svd", "ttm_to_matrix"),
    "costs": ("Plan",),
    "plans": ("plan_contraction",),
    "contraction": ("ttm_matvec",),
    "layers": ("TTLinear",),
    "conv": ("TTConv2d",),
    "embeddings": ("MPSEmbedding", "TTMEmbedding", "TiedHead", "replace_embedding"),
    "surgery.edit": ("edit", "swap_layer"),
    "lora": ("TTLoRALinear", "add_tt_lora", "merge_tt_lora", "save_tt_lora", "load_tt_lora"),
    "files": ("load",),
    "entanglement": ("schmidt_values", "entanglement_entropy", "suggest_ranks"),
    "bounds": ("gaussian_distortion",),
    "baselines": ("truncated_svd", "quantize_integer", "product_quantize", "gaussian_null"),
    "approximation": ("Baseline",),
    "compressed": ("Compressed",),
    "advice": ("advise", "does_a_train_pay"),
}
if not TYPE_CHECKING:  # a checker that saw it would take any name for granted
    __getattr__, __dir__ = lazy_names(__name__, _HOME)

# Then transformers reads and writes compressed models by itself; it is not imported for that.
when_imported("transformers.quantizers.auto", f"{__name__}.release.quantizer")
