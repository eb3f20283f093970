"""What the tests of TT-LoRA through PEFT share: tiny models to adapt, their configurations, and cores to fill."""

import pytest
import torch
from adapters import bits, scatter, tiny_bert, tiny_gpt2, tiny_llama
from peft import get_peft_model

from ttref import TTLoRALinear
from ttref.lora.peft import TTLoraConfig, TTLoraLayer

MODELS = {
    "bert": (tiny_bert, ["query", "value"]),
    "llama": (tiny_llama, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (tiny_gpt2, ["c_attn", "c_proj"]),
}
models = pytest.mark.parametrize("name", MODELS)


def config(targets=("query", "value"), **options):
    targets = targets if isinstance(targets, str) else list(targets)
    return TTLoraConfig(**{"rank": 2, "alpha": 1.5, "target_modules": targets, **options})


def fill(model, seed=3, adapter="default"):
    """Gaussian numbers in every core of one adapter."""
    for k, layer in enumerate(layers(model).values()):
        if adapter in layer.ttlora_delta:
            scatter(layer.ttlora_delta[adapter], seed + 100 * k)
    return model


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoraLayer)}


def made(name="bert", dtype=torch.float32, **options):
    make, targets = MODELS[name]
    return fill(get_peft_model(make(dtype=dtype), config(options.pop("targets", targets), **options))).eval()


def weights_of(model):
    return {name: bits(layer.base_layer.weight) for name, layer in layers(model).items()}


def base_of(name="bert", dtype=torch.float32):
    return MODELS[name][0](dtype=dtype).eval()


def own_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoRALinear)}


def two_adapters(tmp_path, name="bert"):
    """A second adapter of other ranks and modes, read from disk."""
    other = fill(get_peft_model(MODELS[name][0](), config(MODELS[name][1], rank=3, alpha=-0.5)), seed=40).eval()
    other.save_pretrained(tmp_path)
    model = made(name)
    model.load_adapter(tmp_path, adapter_name="second")
    return model.eval(), other
