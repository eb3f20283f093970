"""What an index answers about itself, its parameters checked, and its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ..files import check_header, read, write
from .estimator import Estimator, not_fitted
from .handover import Scanner
from .settings import PARAMETERS, check_each, plain
from .stored import Stored

KIND = "TTIndex"  # the kind in files, also for subclasses


class Held(Estimator):
    """Base class of :class:`TTIndex`: what it holds, counts and files."""

    _stored: Stored | None = None
    _scanner: Scanner | None = None  # FAISS's copy of the codes

    def _hold(self, stored: Stored) -> None:
        """Replace what is held."""
        self._stored, self._scanner = stored, None

    def _held(self) -> Stored:
        if self._stored is None:
            raise not_fitted(type(self).__name__)
        return self._stored

    def __sklearn_is_fitted__(self) -> bool:
        return self._stored is not None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_scanner"}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; :func:`~ttref.files.load` and :meth:`load` read it.

        Raises:
            ValueError: Not fitted.
            FileNotFoundError, OSError: No such folder; a folder, a full disk, missing permissions. The old file stays.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
        """
        held = self._held()
        params = {name: plain(value) for name, value in self.get_params().items()}
        header = {"params": params, "fitted": held.header()}
        write(path, KIND, held.tensors(), header, self._restore)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file of :meth:`save`: stored numbers are equal bit for bit.

        Raises:
            FileNotFoundError, OSError: No such file; a folder, missing permissions.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
            ValueError: A file that is damaged, was changed, or is of something else; the message names it.

        Example:
            >>> import tempfile, torch
            >>> from ttref.retrieval import TTIndex
            >>> index = TTIndex(8).fit(torch.eye(16))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     index.save(f"{folder}/index.safetensors")
            ...     again = TTIndex.load(f"{folder}/index.safetensors")
            >>> torch.equal(again.kneighbors(torch.eye(16), 3)[0], index.kneighbors(torch.eye(16), 3)[0])
            True
        """
        return read(path, KIND, cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        check_header(header, {"params": (dict,), "fitted": (dict,)})
        check_header(header["params"], PARAMETERS)
        made, fitted = cls(**header["params"]), header["fitted"]
        check_each(made)  # together they are checked where they are used: by a fit, by a search
        check_header(fitted, {"bits": (int,), "metric": (str,), "next_id": (int,), "shape": (list,)})
        made._hold(Stored.of(tensors, **fitted))
        return made

    @property
    def n_features_in_(self) -> int:
        """Entries of a document, flattened."""
        return self._held().shared.width

    @property
    def n_samples_fit_(self) -> int:
        """Documents held now."""
        return self._held().count

    @property
    def n_components_(self) -> int:
        """The bond between documents and shared cores."""
        return self._held().shared.rank

    @property
    def ids_(self) -> Tensor:
        """The ids of the documents in the order in which they were added, int64 ``(n,)``."""
        return self._held().all_ids()

    @property
    def params(self) -> int:
        """Numbers stored."""
        return self._held().params

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return self._held().nbytes

    @property
    def code_nbytes(self) -> float:
        """Bytes of a document: codes, scale, and id if ids are stored."""
        held = self._held()
        parts = (held.codes, held.scales if held.grid.bits != 32 else None, held.ids)
        return sum(math.prod(x.shape[1:]) * x.element_size() for x in parts if x is not None)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the documents in float32."""
        held = self._held()
        return 4 * held.count * held.shared.width

    @property
    def ratio(self) -> float:
        """Numbers of the dense matrix for each number stored."""
        return self.dense_nbytes / 4 / self.params

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the train with the document as its first mode."""
        return (1, self._held().shared.rank, *(core.shape[2] for core in self._held().shared.cores))

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """Row and column mode of each core: the documents, then the modes of one."""
        held = self._held()
        return ((held.count, 1), *((1, core.shape[1]) for core in held.shared.cores))
