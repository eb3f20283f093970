"""Where the tensors of a release come from: of each layer its dense weight and method, of the others what differs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .contents import Contents, own, standing
from .deriving import derived, oriented
from .sources import Source, about, lacking


def origins(found: Contents, dense: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What each compressed layer was made of and how, and the dense tensors."""
    layers, replaced = {}, {}
    for name in found.layers:
        own_name = dense.find(f"{name}.weight")
        if own_name is None:
            raise ValueError(
                f"the source has no {name}.weight, which the compressed layer stands for; give the dense model as it "
                "was before"
            )
        weight = dense.tensor(own_name).cpu()
        layer = standing(name, found.layers[name], found.tensors)
        matrix, transposed = oriented(name, layer, weight, dense.in_by_out(own_name))
        how = derived(getattr(layer, "table", layer), matrix)
        layers[name] = {
            "spec": found.layers[name],
            "source": about(own_name, weight),
            "transposed": transposed,
            "method": how.method,
            "agrees": how.agrees,
            "relative_error": float(f"{how.relative_error:.6g}"),
        }
        replaced[f"{name}.weight"] = weight.contiguous()
    return layers, replaced


def changes(hashes: dict[str, str], found: Contents, dense: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The other tensors that are no longer what they are in the source."""
    changes, changed = {}, {}
    for name, held in hashes.items():
        own_name = None if own(name, found.layers) else dense.find(name)
        if own_name is not None and dense.hash(own_name) != held:
            changed[name] = dense.tensor(own_name).cpu().contiguous()
            changes[name] = about(own_name, changed[name])
    return changes, changed


def left_out(manifest: dict[str, Any], dense: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the source has besides the model; and biases that compressed layers no longer have, for the way back."""
    absent, biases = {}, {}
    for name in lacking(manifest, dense):
        tensor = dense.tensor(dense.find(name)).cpu().contiguous()
        if name.removesuffix(".bias") in manifest["layers"] | manifest["users"]:
            biases[name] = tensor
        else:
            absent[name] = about(dense.find(name), tensor)
    return absent, biases


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors each in its own memory, as a file has them: layers of the source may have shared theirs."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found
