"""The weights of a model or of a state dict: each with its kind, its name, and the matrix that it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..checks import check_input
from ..compressed import Compressed
from ..linears import conv1d_of
from .kinds import COMPRESSED, CONVOLUTION, INTEGERS, SMALL, kind_of, plain

LEAST = 8  # rows and columns of a matrix that is worth a look
_SMALL_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32)
_IN_BY_OUT = r"\.(c\.attn|c\.fc|c\.proj)\."  # GPT-2's Conv1D


class Weight(NamedTuple):
    """One weight.

    Attributes:
        name: As in ``model.named_parameters()`` or in the state dict.
        kind: One of ``kinds.KINDS``.
        numbers: How many; integers that are packed together count as one.
        matrix: ``(out, in)``, rows first, a view where that is possible; None where there is nothing to compress.
        view: ``""`` if the tensor itself is that matrix, else what makes it one: ``".mT"``, ``".flatten(1)"``, ...
        layer: Kind of the module that owns it, ``"Linear"``, ``"Embedding"`` or ``""``, where it is the module's
            ``weight`` and the module lies in another.
        tied: True if several modules have it.
    """

    name: str
    kind: str
    numbers: int
    matrix: Tensor | None
    view: str = ""
    layer: str = ""
    tied: bool = False


def weights_of(model: nn.Module | Mapping[str, Tensor], *, in_by_out: bool | None = None) -> list[Weight]:
    """Every weight once, in the model's order. The model is read, never changed.

    Args:
        model: A model or a state dict.
        in_by_out: True if a state dict has layers with GPT-2's names in x out; left out, its shapes tell. To be given
            with a part of one, whose shapes may not.

    Raises:
        TypeError: No model and no state dict.
        ValueError: Nothing in it; a weight on the meta device, or with NaN or Inf.
    """
    if isinstance(model, nn.Module):
        found = list(_of_module(model))
    elif isinstance(model, Mapping):
        found = list(_of_state(model, in_by_out))
    elif isinstance(model, Tensor):
        raise TypeError("model is one tensor; does_a_train_pay(weight) looks at a single matrix")
    else:
        raise TypeError(
            f"model must be an nn.Module or a state dict (names to tensors), got {type(model).__name__}; "
            "for a file: safetensors.torch.load_file(path), or AutoModel.from_pretrained(folder)"
        )
    if not found:
        raise ValueError("the model has no weights: nothing to look at")
    return found


def _of_module(model: nn.Module) -> Iterator[Weight]:
    owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    seen: set[int] = set()
    trains = {id(part) for module in model.modules() if isinstance(module, Compressed) for part in _parts(module)}
    for path, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = f"{path}.{key}" if path else key
            if id(module) in trains and tensor.ndim > 1:
                yield Weight(name, COMPRESSED, tensor.numel(), None)
            elif key in module._parameters or _is_integer(tensor):
                yield _weight(name, tensor, module, conv1d_of(module) is not None, owners[id(tensor)] > 1)
        packed = getattr(module, "_packed_params", None)  # torch's own quantized layers keep no parameter
        if packed is not None and callable(getattr(module, "weight", None)):
            yield Weight(f"{path}.weight", INTEGERS, module.weight().numel(), None)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """A compressed layer and what is in it, but not the frozen layer beside an adapter."""
    yield module
    for name, part in module.named_children():
        if name != "base_layer":
            yield from _parts(part)


def _of_state(state: Mapping[str, Tensor], in_by_out: bool | None) -> Iterator[Weight]:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) and "_packed_params" not in str(name):
            raise TypeError(
                f"the value of {name!r} is a {type(tensor).__name__}, no tensor: pass the state dict itself "
                "(of a checkpoint often checkpoint['state_dict']), arrays through torch.from_numpy"
            )
    seen: dict[tuple, str] = {}
    if in_by_out is None:
        in_by_out = stored_in_by_out({name: one.shape for name, one in state.items() if isinstance(one, Tensor)})
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or (tensor.dtype in (torch.int64, torch.bool)):
            continue  # indices, counters, masks
        where = (tensor.data_ptr(), tensor.shape, tensor.stride()) if _in_memory(tensor) else (name,)
        if seen.setdefault(where, name) == name:
            yield _weight(name, tensor, None, in_by_out and bool(re.search(_IN_BY_OUT, plain(name))), False)


def stored_in_by_out(shapes: Mapping[str, Sequence[int]]) -> bool:
    """True if GPT-2's layers are stored in x out: in 1 x 3 and 1 x 4 they are wide, their square ones tell nothing."""
    for name, shape in shapes.items():
        known = re.search(r"\.(c\.attn|c\.fc|mlp\.c\.proj)\.", plain(name))
        if known and len(shape) == 2 and shape[0] != shape[1]:
            return (shape[0] < shape[1]) == (known[1] != "mlp.c.proj")
    return True


def _weight(name: str, tensor: Tensor, module: nn.Module | None, in_by_out: bool, tied: bool) -> Weight:
    if isinstance(tensor, nn.parameter.UninitializedParameter):
        raise ValueError(f"{name} has no numbers yet: call the model once with a batch, which tells it its width")
    axes = [size for size in tensor.shape if size > 1]
    if _is_integer(tensor):
        return Weight(name, INTEGERS if len(axes) > 1 else SMALL, tensor.numel(), None)
    if len(axes) < 2:
        return Weight(name, SMALL, tensor.numel(), None)
    kind = kind_of(name, len(axes), module)
    view, matrix = "", tensor
    if tensor.ndim > 2:
        stacked = tensor.shape[0] == 1 or kind != CONVOLUTION
        view, matrix = (".flatten(0, -2)", tensor.flatten(0, -2)) if stacked else (".flatten(1)", tensor.flatten(1))
    elif in_by_out:
        view, matrix = ".mT", tensor.mT
    if min(matrix.shape) < LEAST:
        return Weight(name, SMALL, tensor.numel(), None)
    if tensor.is_meta:
        raise ValueError(
            f"the numbers of {name} are not here but on the meta device (offloaded, or never loaded); load the model "
            "into memory first"
        )
    check_input(name, matrix.detach())
    layer = "Linear" if isinstance(module, nn.Linear) or view == ".mT" else ""
    layer = "Embedding" if isinstance(module, nn.Embedding) else layer
    in_a_model = module is not None and "." in name  # a bare layer has no place where another could be put
    layer = layer if in_a_model and getattr(module, "weight", None) is tensor else ""
    return Weight(name, kind, tensor.numel(), matrix.detach(), view, layer, tied)


def _is_integer(tensor: Tensor) -> bool:
    """True for integer codes, torch's quantized tensors, and tensors of other packages that hide such codes."""
    if tensor.is_quantized or tensor.dtype in _SMALL_INTEGERS or "float8" in str(tensor.dtype):
        return True
    return is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "placements")  # distributed ones have those


def _in_memory(tensor: Tensor) -> bool:
    return not tensor.is_meta and type(tensor) in (Tensor, nn.Parameter) and tensor.numel() > 0
