"""The way back from a release: the dense model, every weight bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conv import TTConv2d
from ..embeddings.head import ScaledTable, TiedHead
from ..embeddings.tables import CompressedTable
from ..files import digest, sealed
from ..layers import TTLinear
from ..surgery.edit import edit
from ..surgery.ties import declare, declares
from ..surgery.wrappers import bare, put
from .configs import CONFIG
from .contents import devices_of, fill, own
from .folders import recovered, replacing
from .loading import check_class, checked, content_of
from .manifest import ACCEPTANCE, MANIFEST, MODEL, ROLLBACK, USING, read_tensors, refused
from .sources import Source

__all__ = ["rollback"]

_LEFT_OUT = {MANIFEST, MODEL, ROLLBACK, ACCEPTANCE, CONFIG, "README.md"}


@torch.inference_mode(False)
def rollback(
    folder: str | Path,
    target: nn.Module | str | Path,
    *,
    source: Any = None,
    sha256: str | None = None,
    public_key: str | Path | None = None,
) -> nn.Module | Path:
    """Undo a release: put the dense model back, or write it, with every weight bit for bit.

    Args:
        folder: The release.
        target: The model, compressed as the release is or a dense one with any weights: changed in place, or left as it
            was if anything is wrong. Or a new folder, which then holds ``model.safetensors``, and what else
            ``from_pretrained`` needs of a transformers model.
        source: The dense model, its state dict, or the path of its safetensors; needed if the release was saved with
            ``keep_dense=False``. Each tensor must have the hash that the manifest has for it.
        sha256: As for :func:`load_release`.
        public_key: As for :func:`load_release`.

    Returns:
        The target.

    Raises:
        FileNotFoundError: No such folder, or no release.
        FileExistsError: A target folder that is not empty.
        ValueError: As :func:`load_release`; no source where one is needed, or one that differs.
        TypeError: A target that is none.
        ModuleNotFoundError: A public key, and model-signing is not installed.

    Cost:
        The release is read twice; the dense model takes its memory twice meanwhile.

    Example:
        >>> import copy, tempfile, ttref
        >>> from ttref.release import save_release
        >>> dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = copy.deepcopy(dense)
        >>> _ = ttref.swap_layer(small, "0", ttref.TTLinear.from_linear(small[0], rank=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_release(small, f"{folder}/release", source=dense, override="an example, nothing was measured")
        ...     _ = rollback(f"{folder}/release", small)
        >>> type(small[0]).__name__, torch.equal(small[0].weight, dense[0].weight)
        ('Linear', True)
    """
    if not isinstance(target, (nn.Module, str, Path)):
        raise TypeError(f"target must be a model or the path of a new folder, got {type(target).__name__}")
    folder = recovered(folder)
    manifest = checked(folder, sha256, public_key)
    if isinstance(target, nn.Module):
        check_class(folder, target, manifest)
    elif Path(target).exists() and (not Path(target).is_dir() or any(Path(target).iterdir())):
        raise FileExistsError(f"{target} is not empty; name a new folder for the dense model")
    tensors, ties = dense_state(folder, manifest, source)
    if not isinstance(target, nn.Module):
        _write(folder, Path(target), manifest, tensors, ties)
        return Path(target)
    inner = bare(target)
    try:
        with edit(inner):
            devices = devices_of(inner)
            _put_dense(inner, manifest)
            fill(inner, tensors, ties, devices)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be undone in this {type(inner).__name__}: {error}") from error
    if getattr(inner, "hf_quantizer", None) is not None:
        inner.hf_quantizer.remove_quantization_config(inner)
    elif getattr(getattr(inner, "config", None), "quantization_config", None) is not None:
        del inner.config.quantization_config
    return target


def dense_state(folder: Path, manifest: dict[str, Any], source: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of the dense model, each with the hash that the manifest has for it, and their ties.

    Raises:
        ValueError: No source where one is needed; a tensor that is missing, or has another hash.
    """
    layers, users = manifest["layers"], manifest["users"]
    kept = {name: t for name, t in read_tensors(folder, manifest, MODEL).items() if not own(name, layers)}
    origins = {f"{name}.weight": about["source"] for name, about in layers.items()} | manifest["changed"]
    if manifest["rollback"] == ROLLBACK and source is None:
        old = read_tensors(folder, manifest, ROLLBACK)
    elif source is None:
        raise ValueError(f"{folder} was saved with keep_dense=False: give the dense model as the source")
    else:
        dense = Source.of(source).fitted([f"{name}.weight" for name in layers], manifest["changed"])
        there = {name: dense.find(name) for name in origins}
        old = {name: dense.tensor(found).cpu().contiguous() for name, found in there.items() if found is not None}
    for name, about in origins.items():
        if name not in old or digest(old[name]) != about["sha256"]:
            where = "the source" if source is not None else ROLLBACK
            raise refused(folder, f"{name} in {where} is not the tensor that was replaced")
    ties = {name: first for name, first in manifest["ties"].items() if not own(name, [*layers, *users])}
    ties |= {f"{name}.weight": f"{spec[USING[spec['kind']]]}.weight" for name, spec in users.items()}
    return kept | {name: old[name] for name in origins}, ties


def _put_dense(model: nn.Module, manifest: dict[str, Any]) -> None:
    """Put dense layers without numbers into the places of all that are compressed."""
    users = {name: _at(model, name) for name in manifest["users"]}
    lost = {name for name in manifest["changed"] if name.endswith(".bias")}  # by layers that have none now
    biased = {
        name: head.bias is not None or f"{name}.bias" in lost
        for name, head in users.items()
        if isinstance(head, TiedHead)
    }
    for name, about in manifest["layers"].items():
        layer = _at(model, name)
        if isinstance(layer, ScaledTable):
            put(model, name, _scaled(model, name, layer))
        elif isinstance(layer, (TTLinear, TTConv2d, CompressedTable)):
            put(model, name, _dense(layer, about["transposed"], f"{name}.bias" in lost))
    for name, spec in manifest["users"].items():
        shared = _at(model, spec[USING[spec["kind"]]])
        if name in biased:
            rows, width = shared.weight.shape
            dense = nn.Linear(width, rows, bias=biased[name], device="meta", dtype=shared.weight.dtype)
            dense.weight = shared.weight
            put(model, name, dense.train(users[name].training))
        elif isinstance(users[name], (TTLinear, TTConv2d, CompressedTable, ScaledTable)):
            put(model, name, shared)
    if declares(model):
        declare(model, model.get_input_embeddings(), untied=False)


def _scaled(model: nn.Module, name: str, layer: ScaledTable) -> nn.Module:
    """A look-up that scales, of the model's own class, which its configuration makes."""
    if not hasattr(model, "config"):
        raise ValueError(f"{name} scales its rows, and nothing says by which class; give a dense model as the target")
    with torch.device("meta"):
        dense = type(model)(copy.deepcopy(model.config)).get_submodule(name)
    for leaf, held in dense.named_buffers(recurse=False):
        dense.register_buffer(leaf, getattr(layer, leaf).to(held.dtype), persistent=False)
    return dense.train(layer.training)


def _dense(layer: nn.Module, transposed: bool, biased: bool) -> nn.Module:
    """The dense layer that a compressed one stands for, without numbers; it may have had a bias that was lost."""
    sizes = {"device": "meta", "dtype": layer.dtype}
    if isinstance(layer, CompressedTable):
        more = {"padding_idx": layer.padding_idx, "sparse": getattr(layer, "sparse", False)}
        return nn.Embedding(layer.num_embeddings, layer.embedding_dim, **more, **sizes).train(layer.training)
    bias = biased or layer.bias is not None
    if isinstance(layer, TTConv2d):
        more = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        dense = nn.Conv2d(layer.in_channels, layer.out_channels, bias=bias, **more, **sizes)
    elif transposed:
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            dense = Conv1D(layer.out_features, layer.in_features)
    else:
        dense = nn.Linear(layer.in_features, layer.out_features, bias=bias, **sizes)
    return dense.train(layer.training)


def _at(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"this is another model: it has no {name}") from None


def _write(
    folder: Path, target: Path, manifest: dict[str, Any], tensors: dict[str, Tensor], ties: dict[str, str]
) -> None:
    """The dense model as a folder, with the files of the release that are about neither."""
    with replacing(target) as fresh:
        for name in manifest["files"].keys() - _LEFT_OUT:
            (fresh / name).write_bytes(content_of(folder, manifest, name))
        if CONFIG in manifest["files"]:
            config = json.loads(content_of(folder, manifest, CONFIG))
            config.pop("quantization_config", None)
            (fresh / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        with (fresh / MODEL).open("wb") as file:
            for part in sealed({**ties, "format": "pt"}, tensors):
                file.write(part)
