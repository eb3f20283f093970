"""What the handing over to every peer shares: the import of the peer, the checks of cores, and arrays as tensors."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_listed, check_matrix_train, check_train

# The name of the module, and what pip calls it.
_PACKAGES = {"tensorly": "tensorly", "torchtt": "torchTT", "quimb": "quimb"}
_NO_BATCH = "which no peer has: hand the trains over one by one"


def peer(module: str) -> Any:
    """The peer's module, imported now; its absence is told with the line that installs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchTT tells everyone that its C++ part was not built
            peer = importlib.import_module(module)
            if module == "quimb":
                importlib.import_module("quimb.tensor")
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # it is there, but lacks something of its own
        package = _PACKAGES[module]
        line = f"this needs {package}, imported as {module}; install it with: python -m pip install {package}"
        raise ModuleNotFoundError(line, name=module) from error
    return peer


def is_matrix(cores: Sequence[Tensor]) -> bool:
    """Whether the cores are a TT-matrix; an error if they are neither that nor one train."""
    check_listed(cores)
    if len(cores) and getattr(cores[0], "ndim", 3) == 4:
        try:
            check_matrix_train(cores)
        except ValueError as error:
            if batch := _batch(cores):
                raise ValueError(f"{error}; the cores look like a batch of trains, {batch}, {_NO_BATCH}") from None
            raise
        return True
    batch, _, _ = check_train(cores)
    if batch:
        raise ValueError(f"cores are a batch of trains, {batch}, {_NO_BATCH}")
    return False


def _batch(cores: Sequence[Tensor]) -> tuple[int, ...]:
    """The batch axes if the cores are a batch of trains, else none."""
    try:
        return check_train(cores)[0]
    except (TypeError, ValueError):
        return ()


def checked_cores(cores: list[Tensor], axes: int) -> list[Tensor]:
    """The cores, if each has so many axes and they chain."""
    for k, core in enumerate(cores):
        if core.ndim != axes:
            raise ValueError(f"core {k} of train has shape {tuple(core.shape)}, but {axes} axes are expected")
    if axes == 4:
        check_matrix_train(cores)
    else:
        check_train(cores)
    return cores


def as_tensor(array: Any) -> Tensor:
    """A tensor on the memory of an array, or on a copy where torch cannot share it or nobody may write to it."""
    if isinstance(array, Tensor):
        return array
    import numpy

    array = numpy.asarray(array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    shared = array.flags.writeable and all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    return torch.from_numpy(array if shared else numpy.array(array, order="C"))
