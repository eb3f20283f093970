"""Layers with the Gram matrices of their inputs, for calibration and held out: a ViT on pictures, MiniLM on texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from book.workbook import sources
from ttref import gaussian_null
from ttref.fitting.collecting import collect_gram
from ttref.fitting.gram import Gram, Grams

from ..cifar import pixels
from ..elsewhere.networks import ViT
from ..embeddings import data as texts

PICTURES, HELD_OUT = 512, 256
SENTENCES, OTHERS = 400, 200
AT_ONCE = 32  # texts


@dataclass(frozen=True, eq=False)
class Layer:
    """A matrix ``(out, in)``, the Gram matrix of calibration, and those held out, by the suffix of their columns."""

    name: str
    weight: Tensor
    gram: Gram
    held_out: dict[str, Gram]

    def noise(self) -> Layer:
        """Gaussian weights with the row norms of these, and the same inputs."""
        return replace(self, weight=gaussian_null(self.weight))


def calibration(folder: Path, count: int = PICTURES) -> Tensor:
    """Training pictures with values from 0 to 1, evenly spread."""
    x = pixels(folder, "train")[0]
    return x[torch.arange(count) * len(x) // count]


def fresh(folder: Path) -> Tensor:
    """Test pictures with values from 0 to 1, to judge by."""
    return pixels(folder, "test")[0][:HELD_OUT]


def inputs(net: ViT, x: Tensor) -> Iterator[dict[str, Tensor]]:
    """Inputs of the ViT's linear layers, 128 pictures at a time."""
    for part in x.split(128):
        yield net.activations(part)


def gram_matrices(net: ViT, x: Tensor) -> dict[str, Gram]:
    """Their Gram matrices."""
    total: dict[str, Gram] = {}
    for seen in inputs(net, x):
        for name, values in seen.items():
            made = Gram.from_inputs(values)
            total[name] = total[name] + made if name in total else made
    return total


def vit_layers(net: ViT, grams: dict[str, Gram], held_out: dict[str, Gram]) -> list[Layer]:
    """The 36 matrices of the ViT: query, key, value, output and two of the perceptron in each of six layers."""
    found = []
    for name in grams:
        weight, short = net.state[name], name.removeprefix("transformer.layers.").removesuffix(".weight")
        if "in_proj" not in name:
            found.append(Layer(short.replace("self_attn.", ""), weight, grams[name], {"": held_out[name]}))
            continue
        for part, kind in zip(weight.chunk(3), ("query", "key", "value"), strict=True):
            made = Layer(f"{short.split('.')[0]}.{kind}", part.contiguous(), grams[name], {"": held_out[name]})
            found.append(made)
    return found


def put(net: ViT, dense: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ViT's weights with matrices exchanged, by the names of :func:`vit_layers`."""
    state = dict(net.state)
    for name in state:
        if not name.startswith("transformer.layers.") or not name.endswith("weight") or state[name].ndim != 2:
            continue
        short = name.removeprefix("transformer.layers.").removesuffix(".weight").replace("self_attn.", "")
        if "in_proj" in name:
            parts = [dense[f"{short.split('.')[0]}.{kind}"] for kind in ("query", "key", "value")]
            state[name] = torch.cat(parts).float()
        else:
            state[name] = dense[short].float()
    return state


def shuffled(net: ViT, x: Tensor) -> dict[str, Gram]:
    """Gram matrices of inputs in which each feature's values were put onto tokens anew, each feature for itself."""
    generator, total = torch.Generator().manual_seed(0), {}
    for seen in inputs(net, x):
        for name, values in seen.items():
            order = torch.rand(values.shape, generator=generator).argsort(0)
            made = Gram.from_inputs(values.gather(0, order))
            total[name] = total[name] + made if name in total else made
    return total


ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")


def minilm_texts(folder: Path, count: int = SENTENCES) -> list[str]:
    """Sentences to calibrate on: the first half of WikiText-2's validation text."""
    return texts.prose_sentences(texts.wikitext(folder)[0], count)


def other_texts(folder: Path, count: int = OTHERS) -> list[str]:
    """Sentences of another source, held out: news of MRPC."""
    return texts.mrpc(folder, count // 2)


def tokens(loaded: sources.LoadedModel, lines: list[str]) -> dict[str, Tensor]:
    """A batch for MiniLM."""
    made = loaded.tokenizer(lines, padding=True, truncation=True, max_length=128, return_tensors="pt")
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def text_grams(loaded: sources.LoadedModel, lines: list[str]) -> Grams:
    """Gram matrices of MiniLM's attention, padding left out."""
    ordered = sorted(lines, key=len)
    batches = [tokens(loaded, ordered[k : k + AT_ONCE]) for k in range(0, len(ordered), AT_ONCE)]
    return collect_gram(loaded.model, ATTENTION, batches, progress=False)


def same_texts(folder: Path, count: int = OTHERS) -> list[str]:
    """Held-out sentences of the source of calibration: the other half of WikiText-2's validation text."""
    return texts.prose_sentences(texts.wikitext(folder)[1], count)


def minilm_layers(model: nn.Module, grams: Grams, others: Grams, same: Grams) -> list[Layer]:
    """The 24 attention matrices of MiniLM; columns of the same source end in ``_same``."""
    return [
        Layer(
            name.removeprefix("encoder.layer."),
            model.get_submodule(name).weight.detach().clone(),
            grams[name],
            {"": others[name], "_same": same[name]},
        )
        for name in grams
    ]
