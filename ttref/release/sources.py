"""The dense model that a release comes from: its tensors by name, wherever they are, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..files import MOST_HEADER, digest
from ..surgery.wrappers import bare_state

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


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
        """The tensors of a model, a mapping from names to tensors or modules, a safetensors file or a folder of them.

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
            return cls._of_files(_files(Path(source)))
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

    @classmethod
    def _of_files(cls, paths: Iterable[Path]) -> Source:
        reads, nbytes = {}, 0
        for path in paths:
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118
                    reads[name] = lambda path=path, name=name: _tensor(path, name)
            nbytes += path.stat().st_size
        return cls(reads, nbytes, "files")

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


def _files(path: Path) -> list[Path]:
    """The safetensors files of a path: one file, a folder with one, or a folder with several and an index."""
    if path.is_file():
        return [path]
    if (path / INDEX).is_file():
        try:
            shards = {str(name) for name in json.loads((path / INDEX).read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path / INDEX} is no index of safetensors files ({error})") from error
        if outside := [name for name in shards if Path(name).name != name]:
            raise ValueError(f"{path / INDEX} names {outside[0]}, which is not in its folder")
        return [path / name for name in sorted(shards)]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if not path.exists():
        raise FileNotFoundError(f"there is no source {path}; give the dense model, or a folder with {SINGLE}")
    raise ValueError(f"{path} has neither {SINGLE} nor {INDEX}; load the dense model, and give that as the source")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A safetensors file; ValueError for one that is none."""
    import safetensors

    try:
        with path.open("rb") as file:
            if (size := int.from_bytes(file.read(8), "little")) > MOST_HEADER:
                raise ValueError(f"its header would take {size} bytes")
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged ({error})") from error


def _tensor(path: Path, name: str) -> Tensor:
    with _open(path) as file:
        return file.get_tensor(name).clone()
