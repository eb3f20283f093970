"""TT-LoRA: fine-tuning by a trainable tensor train beside each frozen weight."""

from .layer import TTLoRALinear
from .model import add_tt_lora, merge_tt_lora
from .saving import load_tt_lora, save_tt_lora

__all__ = ["TTLoRALinear", "add_tt_lora", "load_tt_lora", "merge_tt_lora", "save_tt_lora"]
