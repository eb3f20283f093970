"""The most bytes that tensors take at once: every storage is followed from its allocation to its release."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that torch operations allocate, until they are released; the same in every run.

    What an operation takes and frees within itself is not seen.

    Attributes:
        now, peak: Bytes alive now, and the most that were alive at once.

    Example:
        >>> with Live() as live:
        ...     x = torch.ones(1000)
        ...     y = torch.exp(x).sum()
        >>> live.peak, live.now
        (8004, 4004)
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in known if _stored(tensor)}  # these do not count

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and count the storages of its results."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and _stored(tensor) and tensor.untyped_storage()._cdata not in self._held:
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._held.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


def _stored(tensor: Tensor) -> bool:
    """True if a tensor has one storage in memory: not a sparse one, nor one of the meta device."""
    return tensor.layout is torch.strided and not tensor.is_meta


def peak_of(work: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Peak bytes of a computation without gradients; those of known tensors, such as parameters, do not count."""
    with torch.no_grad(), Live(known) as live:
        found = work()  # held until the end, as by a caller
    del found
    return live.peak
