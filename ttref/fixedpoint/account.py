"""The account of an integer train: counts of numbers and bytes, its cores as real numbers, and its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from . import arithmetic as fp
from .formats import FixedPointFormat

KIND = "QuantizedTT"  # in files, whatever the class is called


class IntegerCores:
    """Integer cores ``(*batch, r_{k-1}, m_k, n_k, r_k)``, each with a format, as :class:`QuantizedTT` holds them."""

    cores: tuple[np.ndarray, ...]
    core_formats: tuple[FixedPointFormat, ...]
    stage_formats: tuple[FixedPointFormat, ...]

    @property
    def in_features(self) -> int:
        """Length of an input, ``n_1 ... n_d``."""
        return math.prod(core.shape[-2] for core in self.cores)

    @property
    def out_features(self) -> int:
        """Length of an output, ``m_1 ... m_d``."""
        return math.prod(core.shape[-3] for core in self.cores)

    @property
    def storage_bits(self) -> int:
        """Bits of all cores: the least size of a weight memory."""
        return sum(core.size * fmt.width for core, fmt in zip(self.cores, self.core_formats, strict=True))

    @property
    def params(self) -> int:
        """Integers in the cores."""
        return sum(core.size for core in self.cores)

    @property
    def nbytes(self) -> int:
        """Bytes of all cores, each packed bit to bit."""
        return sum(-(-core.size * fmt.width // 8) for core, fmt in zip(self.cores, self.core_formats, strict=True))

    @property
    def dense_nbytes(self) -> int:
        """Bytes of all entries of the dense matrix, in the format of the widest core."""
        entries = math.prod(self.cores[0].shape[:-4]) * self.in_features * self.out_features
        return -(-entries * max(fmt.width for fmt in self.core_formats) // 8)

    @property
    def ratio(self) -> float:
        """Entries of the dense matrix for each integer stored."""
        return math.prod(self.cores[0].shape[:-4]) * self.in_features * self.out_features / self.params

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT-ranks, ones at both ends."""
        return (1, *(core.shape[-1] for core in self.cores))

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """``(m_k, n_k)`` of each core."""
        return tuple(core.shape[-3:-1] for core in self.cores)

    def dense(self) -> np.ndarray:
        """The dense matrix, float64 ``(*batch, out_features, in_features)``: the product of :attr:`float_cores`."""
        made, *behind = self.float_cores
        for core in behind:
            product = np.einsum("...amns,...sijr->...aminjr", made, core)
            rows, columns = made.shape[-3] * core.shape[-3], made.shape[-2] * core.shape[-2]
            made = product.reshape(*product.shape[:-6], 1, rows, columns, core.shape[-1])
        return made[..., 0, :, :, 0]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, each core packed bit to bit, whole or not at all.

        Raises:
            FileNotFoundError, OSError: No such folder; a folder, a full disk, missing rights. The old file stays.
            ModuleNotFoundError: torch or safetensors is not installed.
        """
        import torch

        from ..codes import pack_bits
        from ..files import write

        tensors = {
            f"cores.{k}": pack_bits(torch.from_numpy(core.copy()), fmt.width)
            for k, (core, fmt) in enumerate(zip(self.cores, self.core_formats, strict=True))
        }
        header = {
            "shapes": [core.shape for core in self.cores],
            "core_formats": [str(fmt) for fmt in self.core_formats],
            "stage_formats": [str(fmt) for fmt in self.stage_formats],
        }
        write(path, KIND, tensors, header, self._restore)

    @classmethod
    def load(cls, path: str | Path) -> IntegerCores:
        """Read what :meth:`save` wrote, to the last bit.

        Raises:
            FileNotFoundError, OSError: No such file; a folder, missing rights.
            ModuleNotFoundError: torch or safetensors is not installed.
            ValueError: A file that is not what was written, or holds something else; the message names it.
        """
        from ..files import read

        return read(path, KIND, cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Any], header: dict[str, Any]) -> IntegerCores:
        from ..codes import unpack_bits
        from ..files import check_header

        check_header(header, dict.fromkeys(("shapes", "core_formats", "stage_formats"), (list,)))
        formats = [list(map(FixedPointFormat.parse, header[name])) for name in ("core_formats", "stage_formats")]
        cores = []
        for k, (shape, fmt) in enumerate(zip(header["shapes"], formats[0], strict=True)):
            if {type(size) for size in shape} != {int} or min(shape) < 1:
                raise ValueError(f"its header has a core of shape {shape}")
            packed = tensors.pop(f"cores.{k}")
            cores.append(unpack_bits(packed, fmt.width, math.prod(shape), signed=fmt.signed).reshape(shape).numpy())
        if tensors:
            raise ValueError(f"it holds {', '.join(sorted(tensors))} too")
        return cls(cores, *formats)

    @property
    def float_cores(self) -> list[np.ndarray]:
        """The cores as real numbers, float64."""
        return [fp.dequantize(core, fmt) for core, fmt in zip(self.cores, self.core_formats, strict=True)]
