"""The dense model that a release comes from: its tensors by name, wherever they are, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..audit.reading import open_checkpoint
from ..files import digest
from ..surgery.wrappers import bare_state


class Source:
    """Dense tensors by name, with their hashes.

    Args:
        read: By names, functions that read the tensors.
        nbytes: Bytes that they take where they are.
        kind: ``"files"``, or ``"tensors"`` of a model in memory.
    """

    def __init__(self, read: Mapping[str, Callable[[], Tensor]], nbytes: int, kind: str) -> None:
        self._read, self.nbytes, self.kind = read, nbytes, kind
        self._hashes: dict[str, str] = {}

    @classmethod
    def of(cls, source: Any) -> Source:
        """The tensors of a model, a mapping from names to tensors or modules, or a checkpoint on disk.

        Raises:
            TypeError, ValueError, FileNotFoundError: Anything else, or nothing that can be read; the message names it.
        """
        if isinstance(source, Source):
            return source
        if isinstance(source, nn.Module):
            return cls._of_tensors(bare_state(source))
        if isinstance(source, Mapping):
            return cls._of_tensors(_flat(source))
        if isinstance(source, (str, Path)):
            entries = open_checkpoint(source).entries
            return cls({entry.name: entry.read for entry in entries}, sum(entry.nbytes for entry in entries), "files")
        raise TypeError(
            "source must be the dense model, its state dict, or the path of its safetensors, "
            f"got {type(source).__name__}"
        )

    @classmethod
    def _of_tensors(cls, state: Mapping[str, Any]) -> Source:
        tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
        if missing := [name for name, tensor in tensors.items() if tensor.is_meta]:
            raise ValueError(f"{missing[0]} of the source has no numbers (meta device); load the dense model first")
        unique = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors.values()}
        reads = {name: lambda tensor=tensor: tensor.detach() for name, tensor in tensors.items()}
        return cls(reads, sum(unique.values()), "tensors")

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def find(self, name: str) -> str | None:
        """The name here of a tensor: the same, or the only one of which one name is the end of the other."""
        if name in self._read:
            return name
        ends = [own for own in self._read if own.endswith(f".{name}") or name.endswith(f".{own}")]
        return ends[0] if len(ends) == 1 else None

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name, on its own device."""
        return self._read[name]()

    def hash(self, name: str) -> str:
        """sha256 of dtype, shape and bytes of a tensor."""
        if name not in self._hashes:
            self._hashes[name] = digest(self.tensor(name))
        return self._hashes[name]


def about(name: str, tensor: Tensor) -> dict[str, Any]:
    """Name, hash, dtype and shape of a dense tensor, for the manifest."""
    shape = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    return {"name": name, "sha256": digest(tensor)} | shape


def _flat(named: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a mapping from names to tensors or modules, as ``edit.put`` gives them back."""
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        if isinstance(value, nn.Module):
            found |= {f"{name}.{key}".removeprefix("."): tensor for key, tensor in value.state_dict().items()}
        else:
            found[name] = value
    return found
