"""MiniLM and SmolLM2 in six forms, each made once, stored in one file, and loaded without its dense weights.

``dense``, ``trains`` (contracted), ``merged`` (the same file, rebuilt as dense layers), ``svd`` (two factors),
``codes`` (int8 with a scale for each row, rebuilt in every call) and ``int8`` (the same file, by torch's int8 kernels).
All matrices inside the blocks are replaced, at half the numbers; tables, norms and heads stay.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from book.workbook import sources
from book.workbook.models import MINILM_SHA256, SMOLLM2_SHA256
from book.workbook.store import built_once
from ttref import TTLinear, quantize_integer, ttm_svd
from ttref.fitting import Grams, collect_gram
from ttref.surgery.candidates import svd

from ..partial_tensorization.methods import made, modes

FORMS = ("dense", "trains", "merged", "svd", "codes", "int8")
FILE_OF = {"merged": "trains", "int8": "codes"}  # forms that are loaded from another's file
RATIO = 2
SHA256 = {"minilm": MINILM_SHA256, "smollm2": SMOLLM2_SHA256}
INSIDE = {"minilm": "encoder.layer.", "smollm2": "model.layers."}
RECIPE = 1  # of the files; another number makes them anew


class Codes(nn.Module):
    """A linear layer with int8 codes ``(out, in)`` and a scale for each row; every call makes floats of the codes."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales.flatten())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in)`` to ``(*batch, out)``."""
        y = F.linear(x, self.codes.float()) * self.scales  # on the answer: fewer numbers than on the weight
        return y if self.bias is None else y + self.bias


def int8_linear(codes: Tensor, scales: Tensor, bias: Tensor | None) -> nn.Module:
    """The same numbers in the layer that ``torch.ao.quantization.quantize_dynamic`` makes: inputs become int8 too."""
    rows, columns = codes.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torchao follows; it has no wheel that the book installs
        layer = torch.ao.nn.quantized.dynamic.Linear(columns, rows, bias_=bias is not None, dtype=torch.qint8)
        weight = torch._make_per_channel_quantized_tensor(
            codes, scales.flatten().double(), torch.zeros(rows, dtype=torch.long), 0
        )
        layer.set_weight_bias(weight, bias)
    return layer


@functools.cache
def dense(model: str) -> sources.LoadedModel:
    """The model as it is; MiniLM without its pooler, which sentence vectors do not use."""
    if model == "smollm2":
        return sources.load_language_model()
    loaded = sources.load_encoder()
    loaded.model.pooler = None
    return loaded


def linears(model: str, net: nn.Module) -> list[str]:
    """Names of the matrices inside the blocks."""
    return [name for name, m in net.named_modules() if isinstance(m, nn.Linear) and name.startswith(INSIDE[model])]


def grams(model: str) -> Grams:
    """Gram matrices of the inputs on prose that is installed with scikit-learn."""
    loaded = dense(model)
    windows = sources.token_windows(loaded.tokenizer, length=64, count=64)
    return collect_gram(loaded.model, linears(model, loaded.model), windows.split(16), progress=False)


def replaced(model: str, form: str) -> dict[str, dict[str, Tensor]]:
    """Tensors of every replaced layer. MiniLM's are fitted to its activations, SmolLM2's have the same sizes."""
    net = dense(model).model
    seen = grams(model) if model == "minilm" and form in ("trains", "svd") else {}
    return {name: maker(model, form)(net.get_submodule(name), seen.get(name)) for name in linears(model, net)}


def maker(model: str, form: str) -> Callable[[nn.Linear, Any], dict[str, Tensor]]:
    """From a layer and its Gram matrix to the tensors of its replacement."""

    def codes(layer: nn.Linear, gram: Any) -> dict[str, Tensor]:
        stored = quantize_integer(layer.weight.detach(), 8).stored
        return {"codes": stored["codes"].reshape(layer.weight.shape), "scales": stored["scales"]} | biased(layer)

    def train(layer: nn.Linear, gram: Any) -> dict[str, Tensor]:
        if model == "minilm":
            new = made("quick" if form == "trains" else "whitened", RATIO).make(layer, gram)
            cores = list(new.cores)
        elif form == "trains":
            rows, cols, rank = modes(layer.weight, RATIO)[0]
            cores = ttm_svd(layer.weight.detach(), rows, cols, rank=rank)
        else:
            cores = list(svd(ratio=RATIO).make(layer).cores)
        return {f"cores.{k}": core.detach() for k, core in enumerate(cores)} | biased(layer)

    return codes if form == "codes" else train


def biased(layer: nn.Linear) -> dict[str, Tensor]:
    """The bias, if there is one."""
    return {} if layer.bias is None else {"bias": layer.bias.detach()}


def folder(model: str, form: str) -> Path:
    """The folder of a form, made if it is missing: one file of all parameters and buffers, and the configuration."""
    kind = FILE_OF.get(form, form)

    def build(partial: Path) -> None:
        net = dense(model).model
        held = {**dict(net.named_parameters()), **dict(net.named_buffers())}  # buffers that no state dict has, too
        if kind != "dense":
            for name, tensors in replaced(model, kind).items():
                held = {key: tensor for key, tensor in held.items() if not key.startswith(f"{name}.")}
                held |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
        save_file({key: tensor.detach().contiguous() for key, tensor in held.items()}, partial / "model.safetensors")
        net.config.save_pretrained(partial)

    return built_once(f"deployment-{RECIPE}-{model}-{kind}", build, source_sha256=SHA256[model])


def skeleton(model: str, made: Path) -> nn.Module:
    """The dense model without numbers."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    kind = AutoModel if model == "minilm" else AutoModelForCausalLM
    with torch.device("meta"):
        net = kind.from_config(AutoConfig.from_pretrained(made))
    if model == "minilm":
        net.pooler = None
    return net


def load(model: str, form: str, made: Path) -> nn.Module:
    """A form of a model from its folder, in eval mode; no dense weight is read that the form does not have."""
    net = skeleton(model, made)
    tensors = load_file(made / "model.safetensors")
    for name in linears(model, net):
        own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
        put(net, name, layer_of(form, {key: tensor.clone() for key, tensor in own.items()}))
    for name in list(tensors):
        put(net, name, tensors.pop(name).clone())
    net.tie_weights()
    return net.requires_grad_(False).eval()


def layer_of(form: str, tensors: dict[str, Tensor]) -> nn.Module:
    """The layer of a form from its tensors."""
    bias = tensors.pop("bias", None)
    if form in ("codes", "int8"):
        kind = Codes if form == "codes" else int8_linear
        return kind(tensors["codes"], tensors["scales"].float(), bias)
    if form == "dense":
        layer = nn.Linear(*tensors["weight"].shape[::-1], bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(tensors["weight"])
        layer.bias = None if bias is None else nn.Parameter(bias)
        return layer
    train = TTLinear.from_cores([tensors[f"cores.{k}"] for k in range(len(tensors))], bias)
    return train.to_linear() if form == "merged" else train


def put(net: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Set a layer, a parameter or a buffer by its full name."""
    parent, _, leaf = name.rpartition(".")
    module = net.get_submodule(parent)
    if isinstance(value, Tensor) and leaf in module._parameters:
        value = nn.Parameter(value, requires_grad=False)
    setattr(module, leaf, value)
