"""The dense model that a release comes from: its tensors by name, wherever they are, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..audit.naming import beginnings
from ..audit.reading import open_checkpoint
from ..files import digest
from ..linears import conv1d_of
from ..surgery.wrappers import bare_modules, bare_state


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
        self._in_by_out: dict[str, bool] = {}  # of weights of modules, where the source has modules
        self._before, self._after = "", ""  # beginnings of all names in a model, and of the same names here

    @classmethod
    def of(cls, source: Any) -> Source:
        """The tensors of a model, a mapping from names to tensors or modules, or a checkpoint on disk.

        Raises:
            TypeError, ValueError, FileNotFoundError: Anything else, or nothing that can be read; the message names it.
        """
        if isinstance(source, Source):
            return source
        if isinstance(source, nn.Module):
            made = cls._of_tensors(bare_state(source))
            made._turns(bare_modules(source, remove_duplicate=False))
            return made
        if isinstance(source, Mapping):
            made = cls._of_tensors(_flat(source))
            for name, value in source.items():
                if isinstance(value, nn.Module):
                    made._turns({f"{name}.{inner}".strip("."): one for inner, one in bare_modules(value).items()})
            return made
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

    def _turns(self, modules: Mapping[str, nn.Module]) -> None:
        self._in_by_out |= {f"{name}.weight": conv1d_of(module) is not None for name, module in modules.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def fitted(self, weights: Collection[str], others: Collection[str] = ()) -> Source:
        """The same tensors, found by the names of a model that may begin otherwise: all with a prefix more or less.

        A file of BERT has ``encoder...`` for what a model with a head calls ``bert.encoder...``. One prefix holds for
        all names, so no tensor is ever found under the name of another; equal names come first.

        Args:
            weights: Names in the model of dense weights that the source must have.
            others: Names of other tensors, which decide between prefixes that fit as many weights.

        Cost:
            As :func:`~ttref.audit.naming.beginnings`.
        """
        try:
            there, here = beginnings(self._read, [*weights, *others], weights)
        except ValueError:  # two parts of the source fit as well, and neither is taken
            there = here = ""
        made = Source(self._read, self.nbytes, self.kind)
        made._hashes, made._in_by_out = self._hashes, self._in_by_out
        made._before, made._after = here, there
        return made

    def find(self, name: str) -> str | None:
        """The name here of a tensor that the model calls so; None if there is none."""
        there = _renamed(name, self._before, self._after)
        return there if there in self._read else None

    def names(self) -> Iterator[str]:
        """What the model calls these tensors; those outside of the part that the model is are left out."""
        for own in self._read:
            if own.startswith(self._after):
                yield self._before + own.removeprefix(self._after)

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name, on its own device."""
        return self._read[name]()

    def in_by_out(self, name: str) -> bool | None:
        """True for the weight of a ``Conv1D``, which has it ``(in, out)``; None where tensors are all there is."""
        return self._in_by_out.get(name)

    def hash(self, name: str) -> str:
        """sha256 of dtype, shape and bytes of a tensor."""
        if name not in self._hashes:
            self._hashes[name] = digest(self.tensor(name))
        return self._hashes[name]


def about(name: str, tensor: Tensor) -> dict[str, Any]:
    """Name, hash, dtype and shape of a dense tensor, for the manifest."""
    shape = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    return {"name": name, "sha256": digest(tensor)} | shape


def lacking(manifest: Mapping[str, Any], dense: Source) -> list[str]:
    """Names of the source's tensors that a release has no tensor, no tie and no compressed layer for."""
    there = manifest["tensors"].keys() | manifest["ties"].keys()
    there |= {f"{name}.weight" for name in manifest["layers"].keys() | manifest["users"].keys()}
    return [name for name in dense.names() if name not in there]


def _renamed(name: str, before: str, after: str) -> str | None:
    """A name with another beginning; None if it has not this one."""
    return after + name.removeprefix(before) if name.startswith(before) else None


def _flat(named: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a mapping from names to tensors or modules, as ``edit.put`` gives them back."""
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        if isinstance(value, nn.Module):
            found |= {f"{name}.{key}".removeprefix("."): tensor for key, tensor in value.state_dict().items()}
        else:
            found[name] = value
    return found
