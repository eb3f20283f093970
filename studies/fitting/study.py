"""Cores fitted to inputs, beside SVD, whitened SVD, TT-SVD and integers: a ViT on CIFAR-10 and MiniLM on texts.

``python -m studies.fitting`` measures the rows that the record lacks and keeps the others, so a run that was stopped
continues; ``python -m studies.fitting vit spectra`` does so for these sections alone. To measure again, remove
``book/results/fitting.json``, or a section from it. All of it takes about twenty minutes on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch

from book.tools import results
from book.workbook import sources

from ..elsewhere.networks import ViT
from ..toy_classifier.data import brief
from . import data, keys_values, spectra, stacks, untried, whole
from .data import Layer
from .methods import integers, low_rank
from .summary import summary

RATIOS = (4, 8, 16)
SOME = 5  # every fifth of the 36 matrices of the ViT: each kind is among them
MINILM_RATIO = 4

Keep = Callable[[list[dict]], None]
Section = Callable[[Path, list[dict], Keep], list[dict]]
Layers = Callable[[Path], list[Layer]]


def missing(
    keys: Iterable[tuple], rows: list[dict], measure: Callable[[tuple], dict], keep: Keep, names: tuple[str, ...]
) -> list[dict]:
    """One row for each key, named by the columns ``names``: recorded, or measured now and kept at once."""
    keys, found = list(keys), {tuple(row[name] for name in names): row for row in rows}
    for key in keys:
        if key not in found:
            found[key] = brief(measure(key))
            print(*found[key].values(), flush=True)
            keep([found[other] for other in keys if other in found])
    return [found[key] for key in keys]


@cache
def vit(folder: Path) -> tuple[ViT, list[Layer]]:
    """The ViT's matrices with the Gram matrices of 512 training pictures, and of 256 test pictures to judge by."""
    net = ViT(folder)
    grams = data.gram_matrices(net, data.calibration(folder))
    held_out = data.gram_matrices(net, data.fresh(folder))
    return net, data.vit_layers(net, grams, held_out)


@cache
def minilm(folder: Path) -> tuple[sources.LoadedModel, list[Layer]]:
    """MiniLM's attention with the Gram matrices of WikiText-2 sentences, and of news to judge by."""
    loaded = sources.load_encoder()
    lines = (data.minilm_texts(folder), data.other_texts(folder), data.same_texts(folder))
    return loaded, data.minilm_layers(loaded.model, *(data.text_grams(loaded, each) for each in lines))


def vit_layers(folder: Path) -> list[Layer]:
    """Every matrix of the ViT."""
    return vit(folder)[1]


def noise(folder: Path) -> list[Layer]:
    """Gaussian weights that see the same inputs, for some matrices of the ViT."""
    return [layer.noise() for layer in vit_layers(folder)[::SOME]]


def shuffled(folder: Path) -> list[Layer]:
    """Some matrices of the ViT with inputs whose features were shuffled over the tokens; judged by the real ones."""
    net = vit(folder)[0]
    grams = data.shuffled(net, data.calibration(folder))
    return data.vit_layers(net, grams, data.gram_matrices(net, data.fresh(folder)))[::SOME]


def minilm_layers(folder: Path) -> list[Layer]:
    """The 24 attention matrices of MiniLM."""
    return minilm(folder)[1]


def in_cores(layers: Layers, *ratios: int, search: bool = True) -> Section:
    """A section of every matrix by every method at every ratio."""

    def section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
        by_name = {layer.name: layer for layer in layers(folder)}
        keys = [(name, ratio) for ratio in ratios for name in by_name]
        measure = lambda key: low_rank(by_name[key[0]], key[1], search=search)  # noqa: E731
        return missing(keys, rows, measure, keep, ("layer", "ratio"))

    return section


def in_integers(layers: Layers) -> Section:
    """A section of integers in every matrix."""

    def section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
        by_name = {layer.name: layer for layer in layers(folder)}
        return missing([(n,) for n in by_name], rows, lambda key: integers(by_name[key[0]]), keep, ("layer",))

    return section


def vit_whole(keys: list[tuple[str, int]]) -> Section:
    """A section of all matrices of the ViT exchanged at once: right of 761 pictures, and answers as before."""

    def section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
        net, layers = vit(folder)
        judge, chosen = whole.Pictures(net, folder), results.read("fitting").get("vit", [])
        return missing(keys, rows, lambda key: judge.measure(key, layers, chosen), keep, ("method", "size"))

    return section


def minilm_whole(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
    """All 24 at once: mean cosine of sentence vectors to those of the dense model."""
    loaded, layers = minilm(folder)
    judge = whole.Sentences(loaded, folder)
    return missing(whole.SENTENCE_KEYS, rows, lambda key: judge.measure(key, layers), keep, ("method", "size"))


def spectra_section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
    """What separates the models: ranks of the inputs, and weights and inputs exchanged one for another."""
    layers = [("ViT", layer) for layer in vit_layers(folder)]
    layers += [("MiniLM", layer) for layer in minilm_layers(folder)]
    by_key = {(model, layer.name): layer for model, layer in layers}
    return missing(by_key, rows, lambda key: spectra.row(*key, by_key[key]), keep, ("model", "layer"))


def planted(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
    """Gaussian weights on inputs with planted spectra: where the shared projection begins to pay."""
    return missing(spectra.PLANTED, rows, spectra.planted, keep, ("width", "ratio", "decay"))


def texts_section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
    """Sentences of calibration, 10 to 1,000: MiniLM, three matrices."""
    loaded = sources.load_encoder()
    held_out = data.text_grams(loaded, data.other_texts(folder))
    return missing(
        [(count,) for count in spectra.TEXTS],
        rows,
        lambda key: spectra.with_texts(key[0], loaded, folder, held_out),
        keep,
        ("texts",),
    )


def stacks_section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
    """Matrices of one kind over all layers, of both models."""
    kinds: dict[tuple[str, str], list] = {}
    for model, layers in (("ViT", vit_layers(folder)), ("MiniLM", minilm_layers(folder))):
        for layer in layers:
            kinds.setdefault((model, layer.name.split(".")[-1]), []).append(layer.weight)
    return missing(kinds, rows, lambda key: stacks.row(*key, kinds[key]), keep, ("model", "kind"))


def keys_values_section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
    """The key-value cache of SmolLM2 by integers, and by factors over layers."""
    reader = keys_values.Reader(folder)
    return missing(keys_values.methods(), rows, lambda key: keys_values.row(key, reader), keep, ("method", "size"))


def untried_section(folder: Path, rows: list[dict], keep: Keep) -> list[dict]:
    """Other formats against rivals of the same size; reads the modes chosen in ``vit`` and ``minilm_searched``."""
    there = {("ViT", layer.name): layer for layer in vit_layers(folder)}
    there |= {("MiniLM", layer.name): layer for layer in minilm_layers(folder)}
    return missing(untried.keys(), rows, lambda key: untried.row(key, there[key[2:]]), keep, untried.NAMES)


SECTIONS: dict[str, Section] = {
    "vit": in_cores(vit_layers, *RATIOS, 2),
    "vit_integers": in_integers(vit_layers),
    "vit_noise": in_cores(noise, *RATIOS),
    "vit_shuffled": in_cores(shuffled, 4),
    "vit_whole": vit_whole(whole.PICTURE_KEYS),
    "minilm": in_cores(minilm_layers, MINILM_RATIO, search=False),
    "planted": planted,
    "spectra": spectra_section,
    "stacks": stacks_section,
    "minilm_searched": in_cores(minilm_layers, MINILM_RATIO),
    "minilm_integers": in_integers(minilm_layers),
    "minilm_whole": minilm_whole,
    "texts": texts_section,
    "vit_int4": vit_whole([("searched_int4", ratio) for ratio in (4, 2)]),  # cores rounded against the Gram matrix
    "keys_values": keys_values_section,
    "untried": untried_section,
}


def main(*names: str) -> None:
    """Run some sections, or all, and record them."""
    folder = sources.data_folder()
    if folder is None:
        return
    torch.set_num_threads(1)
    for name in names or SECTIONS:
        start = time.process_time()
        before = results.read("fitting")
        spent = before.get("seconds", {}).get(name, 0)

        def keep(rows: list[dict], name: str = name, start: float = start, spent: int = spent) -> None:
            held = results.read("fitting")
            values = {section: held[section] for section in SECTIONS if section in held} | {name: rows}
            seconds = held.get("seconds", {}) | {name: spent + round(time.process_time() - start)}
            record(values | {"seconds": seconds})

        keep(SECTIONS[name](folder, before.get(name, []), keep))


def record(values: dict) -> Path:
    """Write the record, with its summary."""
    ordered = {name: values[name] for name in SECTIONS if name in values}
    wins = {"untried_wins": brief(untried.wins(values["untried"]))} if "untried" in values else {}
    return results.write(
        "fitting",
        {"summary": brief(summary(ordered))} | ordered | wins | {"seconds": values["seconds"]},
        models=["ViT (CIFAR-10), 36 matrices", "all-MiniLM-L6-v2, 24 attention matrices", "SmolLM2-135M-Instruct"],
        data=[
            "CIFAR-10: 512 training pictures, 256 and 761 of the test part",
            "WikiText-2 valid",
            "MRPC",
            "scikit-learn prose",
        ],
        command="python -m studies.fitting",
    )
