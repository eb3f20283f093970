"""One safetensors file for the adapters of a model, with a hash of the base model they belong to."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import check_header, digest, digest_of_version_1, read, write
from ..surgery.wrappers import bare_modules, bare_state, find
from .base import widths
from .delta import TTDelta
from .model import adapters, install, saved_along

__all__ = ["load_tt_lora", "save_tt_lora"]

KIND = "TT-LoRA"
DIGITS = 4  # of each tensor's hash: enough to name the first that differs
_TYPES = {"layers": (dict,), "modules_to_save": (list,), "base": (dict,)}
_BASE = {"sha256": (str,), "each": (str,), "rule": (int,)}  # no rule: the hashes are those of version 1


def save_tt_lora(model: nn.Module, path: str | Path) -> None:
    """Write cores, and modules saved along, to one safetensors file with a JSON header.

    The header holds each layer's shape, ranks, alpha, init and dropout, and a sha256 of the base model: of every tensor
    in its ``state_dict()`` that the file does not hold, with unmerged weights.

    Args:
        model: A model with TT-LoRA layers, merged or not. Names in the file are those of the bare model, without the
            wrappers of ``torch.compile`` or parallel training.
        path: The file; its folder must exist. Written whole or not at all.

    Raises:
        ValueError: The model has no TT-LoRA layers, or numbers among them that are NaN or infinite; a module saved
            along whose state holds more than parameters and buffers.
        FileNotFoundError: No such folder.
        ModuleNotFoundError: safetensors is missing; the message holds the install line.

    Cost:
        The file holds the cores and the modules saved along; reading the base for its hash is O(size of the model).

    Example:
        >>> import tempfile, torch
        >>> from ttref import add_tt_lora
        >>> model = add_tt_lora(nn.Sequential(nn.Linear(64, 64)), "0", rank=2, alpha=2)
        >>> base = nn.Sequential(nn.Linear(64, 64))
        >>> frozen = model[0].base_layer
        >>> base.load_state_dict({"0.weight": frozen.weight, "0.bias": frozen.bias})
        <All keys matched successfully>
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tt_lora(model, f"{folder}/adapter.safetensors")
        ...     loaded = load_tt_lora(base, f"{folder}/adapter.safetensors")
        >>> x = torch.randn(3, 64)
        >>> torch.equal(loaded(x), model(x))
        True
    """
    layers = adapters(model)
    if not layers:
        raise ValueError("the model has no TT-LoRA layers to save; add_tt_lora puts them in")
    along = saved_along(model)
    _check_whole(model, along)
    tensors = {f"{name}.cores.{k}": core for name, layer in layers.items() for k, core in enumerate(layer.cores)}
    tensors |= _saved_along(model, along)
    header = {
        "layers": {name: layer.delta.about() for name, layer in layers.items()},
        "modules_to_save": along,
        "base": _fingerprint(model, along, digest)[0] | {"rule": 2},
    }
    # Copies, because the format refuses two names for one memory.
    write(path, KIND, {name: tensor.detach().clone() for name, tensor in tensors.items()}, header, _checked)


@torch.inference_mode(False)  # cores made in inference mode could never be trained
def load_tt_lora(model: nn.Module, path: str | Path, *, check_base: bool = True) -> nn.Module:
    """Load adapters, and modules saved along, into the model they were trained on.

    As after :func:`add_tt_lora`, cores and modules saved along are trainable and all other parameters frozen.

    Args:
        model: The base model, without TT-LoRA layers; changed in place, or left as it was if anything is wrong.
        path: The file.
        check_base: Refuse a base model that differs in any bit from that of the training. False is for the same model
            in another dtype, whose outputs differ.

    Returns:
        The model itself.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is truncated, damaged or of another kind; another base; a model with TT-LoRA layers.
        TypeError: A layer of the model that cannot be adapted.

    Cost:
        As :func:`save_tt_lora`.

    Example:
        See :func:`save_tt_lora`.
    """
    tensors, header, deltas = read(path, KIND, _checked)
    if present := adapters(model):
        raise ValueError(
            f"the model has TT-LoRA layers already, such as {next(iter(present))}; load into the base model, or "
            "merge_tt_lora them first"
        )
    _check_belongs(model, tensors, header, path)
    if check_base:
        _check_fingerprint(model, header, path)
    along = header["modules_to_save"]
    install(model, deltas, along, [(value, tensors[key]) for key, value in _saved_along(model, along).items()])
    return model


def _checked(
    tensors: dict[str, Tensor], header: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, TTDelta]]:
    """The file's tensors and header, checked for completeness, and the updates made of them."""
    check_header(header, _TYPES)
    check_header(header["base"], _BASE, optional=("rule",))
    if not header["layers"] or header["base"].get("rule", 2) != 2:
        raise ValueError("its header has no layers, or hashes its base in a way that is not known")
    along = header["modules_to_save"]
    if {type(name) for name in along} - {str} or "" in along or len(set(along)) < len(along):
        raise ValueError(f"its header's modules_to_save is {reprlib.repr(along)}")
    deltas, wanted = {}, set()
    for name, about in header["layers"].items():
        deltas[name] = TTDelta.made_of(name, about, tensors)
        wanted |= {f"{name}.cores.{k}" for k in range(len(about["shape"]))}
    inside = tuple(f"{name}." for name in along)
    for key in tensors:
        if key not in wanted and not key.startswith(inside):
            raise ValueError(f"it holds {key}, which its header does not name")
    _check_finite(tensors, wanted)
    return tensors, header, deltas


def restored_deltas(tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, TTDelta]:
    """The updates of a file by the names of their layers, for ``ttref.load``."""
    return _checked(tensors, header)[2]


def _check_finite(tensors: dict[str, Tensor], cores: Collection[str]) -> None:
    """Refuse NaN, which a failed training leaves, and infinity among cores; other buffers may hold it on purpose."""
    for key, tensor in tensors.items():
        if tensor.isnan().any() or (key in cores and tensor.isinf().any()):
            raise ValueError(f"{key} has entries that are NaN or infinite, as after a training that went wrong")


def _check_belongs(model: nn.Module, tensors: dict[str, Tensor], header: dict[str, Any], path: str | Path) -> None:
    """Refuse a model that lacks layers of the file, or has them in other sizes."""
    modules = bare_modules(model)
    for name, about in header["layers"].items():
        if name not in modules:
            raise ValueError(f"{path} adapts {name}, which this model does not have; load it into its own base model")
        try:
            features = widths(modules[name])
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from error
        if any(tensor.is_meta for tensor in modules[name].state_dict().values() if isinstance(tensor, Tensor)):
            raise ValueError(f"{name} has no numbers yet (meta device); load the base model's weights first")
        if list(features) != about["features"]:
            raise ValueError(
                f"{path} adapts {name} with {about['features'][0]} outputs and {about['features'][1]} inputs, but here "
                f"it has {features[0]} and {features[1]}; load it into its own base model"
            )
    for name in header["modules_to_save"]:
        if name not in modules:
            raise ValueError(f"{path} holds {name}, which this model does not have; load it into its own base model")
    here = _saved_along(model, header["modules_to_save"])
    there = {key for key in tensors if not any(key.startswith(f"{name}.cores.") for name in header["layers"])}
    for key in here.keys() | there:
        if key not in here or key not in there or here[key].shape != tensors[key].shape:
            sides = [tuple(side[key].shape) if key in side else "nothing" for side in (tensors, here)]
            raise ValueError(f"{path} has {sides[0]} for {key}, and this model {sides[1]}; load it into its own base")
        kinds = tensors[key].dtype, here[key].dtype
        # Weights may have another precision; integers in place of floats may not be loaded.
        if kinds[0] != kinds[1] and not all(kind.is_floating_point for kind in kinds):
            raise ValueError(f"{path} has {kinds[0]} for {key}, and this model {kinds[1]}; load it into its own base")


def _saved_along(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor
        for name in names
        for key, tensor in bare_state(find(model, name), keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }


def _check_whole(model: nn.Module, names: list[str]) -> None:
    """Refuse modules whose state holds more than parameters and buffers, because only those are loaded."""
    for name in names:
        module = find(model, name)
        parts = bare_modules(module, remove_duplicate=False).items()
        own = {f"{part}.{key}".removeprefix(".") for part, held in parts for key in (*held._parameters, *held._buffers)}
        for key, value in bare_state(module).items():
            if value is not None and key not in own:
                raise ValueError(
                    f"{name} cannot be saved along: {key} in its state is neither a parameter nor a buffer of it; "
                    "leave it out of modules_to_save, or save the model's own state_dict()"
                )


def _fingerprint(
    model: nn.Module, along: list[str], hashed: Callable[[Tensor], str]
) -> tuple[dict[str, str], list[str]]:
    """Hash of all tensors of the model that the file does not hold, with first digits of each tensor's; their names."""
    layers, hashes = adapters(model), {}
    tensors = {key: tensor for key, tensor in bare_state(model).items() if isinstance(tensor, Tensor)}
    for key, tensor in tensors.items():
        owner = next((name for name in layers if key.startswith(f"{name}.")), None)
        if owner is not None:
            if key.startswith(f"{owner}.delta."):
                continue
            if key == f"{owner}.base_layer.weight" and layers[owner].merged:
                tensor = layers[owner]._kept
            key = key.replace(f"{owner}.base_layer.", f"{owner}.", 1)
        if not key.startswith(tuple(f"{name}." for name in along)):
            hashes[key] = hashed(tensor)
    combined = hashlib.sha256("".join(f"{key}={hashes[key]};" for key in sorted(hashes)).encode()).hexdigest()
    return {"sha256": combined, "each": "".join(hashes[key][:DIGITS] for key in sorted(hashes))}, sorted(hashes)


def _check_fingerprint(model: nn.Module, header: dict[str, Any], path: str | Path) -> None:
    hashed = digest if "rule" in header["base"] else digest_of_version_1
    here, names = _fingerprint(model, header["modules_to_save"], hashed)
    if here["sha256"] == header["base"]["sha256"]:
        return
    there, count = header["base"]["each"], len(header["base"]["each"]) // DIGITS
    if count != len(names):
        differs = f"that had {count} tensors, this has {len(names)}"
    else:
        differing = [
            name
            for k, name in enumerate(names)
            if here["each"][k * DIGITS : (k + 1) * DIGITS] != there[k * DIGITS : (k + 1) * DIGITS]
        ]
        differs = (
            f"{len(differing)} of {count} tensors differ, the first is {differing[0]}"
            if differing
            else "tensors have other names"
        )
    raise ValueError(
        f"{path} was trained on another base model ({differs}); load it into that one. A head that starts at random, "
        "and statistics that move while training, belong in modules_to_save; for the same model in another dtype, "
        "pass check_base=False"
    )
