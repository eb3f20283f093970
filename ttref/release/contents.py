"""What a model holds, for its release: compressed layers, tensors stored once, and ties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..surgery.wrappers import bare, bare_state
from .described import build
from .manifest import USING
from .placing import describe_model


class Contents(NamedTuple):
    """What a model holds.

    Attributes:
        layers: Descriptions of the compressed layers and tables by their bare names.
        users: Descriptions of what uses a table that stands elsewhere: tied heads, and other places of shared tables.
        tensors: All tensors of the state by name, those that several names share once.
        ties: From the other names of shared tensors to the one under which they are stored.
    """

    layers: dict[str, dict[str, Any]]
    users: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]
    ties: dict[str, str]


def contents(model: nn.Module) -> Contents:
    """What a model holds.

    Raises:
        TypeError: No module, or a part that cannot be described.
        ValueError: No compressed layer; a state that holds more than tensors; numbers on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    specs = describe_model(bare(model))
    if not specs or "" in specs:
        raise ValueError(
            "the model has no compressed layers inside, so there is no release to save: partial_tensorize, swap_layer "
            "and replace_embedding put them in; one layer alone is saved by layer.save(path)"
        )
    users = {name: spec for name, spec in specs.items() if spec["kind"] in USING}
    layers = {name: spec for name, spec in specs.items() if name not in users}
    return Contents(layers, users, *_once(bare_state(model)))


def inside(name: str, layers: Iterable[str]) -> bool:
    """True if this is the name of a module or tensor within one of the layers."""
    return any(name.startswith(f"{layer}.") for layer in layers)


def own(name: str, layers: Iterable[str]) -> bool:
    """True for a tensor that a compressed layer has in place of its dense weight; a bias is what it was."""
    return inside(name, layers) and not any(name == f"{layer}.bias" for layer in layers)


def standing(name: str, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The layer of a description with its numbers among these tensors.

    Raises:
        ValueError: Tensors that are missing, too many, or of another shape or dtype than described.
    """
    layer = build(spec)
    state = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
    wanted = {key: _kind(tensor) for key, tensor in layer.state_dict().items()}
    if wrong := [key for key in {**wanted, **state} if key not in state or wanted.get(key) != _kind(state[key])]:
        raise ValueError(f"{name}.{wrong[0]} is not as the layer is described")
    layer.load_state_dict(state, assign=True)
    return layer


def devices_of(model: nn.Module) -> dict[str, torch.device]:
    """The device of each module that has numbers, by its name; to be asked before layers are put in place."""
    held = {
        name: next((tensor.device for tensor in (*module.parameters(), *module.buffers()) if not tensor.is_meta), None)
        for name, module in model.named_modules(remove_duplicate=False)
    }
    return {name: device for name, device in held.items() if device is not None}


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], ties: Mapping[str, str], devices: Mapping[str, torch.device]
) -> None:
    """Give a model its numbers, those on the meta device too; parameters that modules share stay shared.

    Args:
        model: The model, with new layers in place that have no numbers.
        tensors: The numbers by name.
        ties: From the other names of shared tensors to the one among these.
        devices: Of the modules as they were, from :func:`devices_of`; what was on the meta device goes to where its
            parent is, and to the CPU if no part of the model is anywhere.

    Raises:
        ValueError: A tensor that the model lacks, has besides, or has in another shape: it is another model. A buffer
            on the meta device that no state holds.
    """
    wanted = model.state_dict(keep_vars=True)
    given = {name: tensors[ties.get(name, name)] for name in wanted if ties.get(name, name) in tensors}
    if lacking := [name for name in wanted if name not in given]:
        raise ValueError(f"this is another model: it has {lacking[0]}, which the release has not")
    if besides := sorted(tensors.keys() - {ties.get(name, name) for name in given}):
        raise ValueError(f"this is another model: it has no {besides[0]}, which the release has")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            shapes = tuple(wanted[name].shape), tuple(tensor.shape)
            raise ValueError(f"this is another model: its {name} has shape {shapes[0]}, and the release's {shapes[1]}")
    shared: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                shared.setdefault(id(parameter), []).append((module, leaf))
    homes = {name: _home(name, devices) if wanted[name].is_meta else wanted[name].device for name in given}
    state = {name: tensor.to(homes[name], copy=True) for name, tensor in given.items()}
    model.load_state_dict(state, assign=True)
    for (first, name), *others in shared.values():
        for module, leaf in others:
            module._parameters[leaf] = first._parameters[name]
    if empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise ValueError(f"{empty[0]} is on the meta device, and no state holds it: make the model on the CPU")


def _home(name: str, devices: Mapping[str, torch.device]) -> torch.device:
    """The device of the innermost module around a tensor that had one."""
    while name not in devices and name:
        name = name.rpartition(".")[0]
    return devices.get(name, torch.device("cpu"))


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


@torch.no_grad()
def _once(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a state on the CPU, each in its own memory, and the ties between names."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} in the model's state is a {type(tensor).__name__}; a release holds tensors only")
        if tensor.is_meta:
            raise ValueError(f"{name} has no numbers (meta device, offloaded); load the model whole first")
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            ties[name] = first[key]
            continue
        first[key] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, ties
