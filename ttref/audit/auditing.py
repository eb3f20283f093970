"""The audit of a checkpoint: every matrix is read, looked at and let go again."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..advice.check import middle_rows
from ..advice.kinds import INTEGERS, SMALL
from ..advice.weights import stored_in_by_out, weights_of
from ..bars import bar
from ..checks import check_real, several
from ..precision import full_precision
from .forms import PIECE, seen_forms
from .looking import look
from .reading import Checkpoint, Entry, open_checkpoint
from .report import Audit
from .sampling import PART, chosen
from .seen import roots_of
from .words import left, reason

__all__ = ["audit"]

EPS = (0.1, 0.3, 0.5)
TIED = "the same numbers as {}: tied, and counted there"
INTEGER_TYPES = ("I8", "U8", "I16", "I32", "F8", "F6", "F4", "int8", "uint8", "int16", "int32", "float8")


@full_precision
@torch.no_grad()
def audit(
    checkpoint: str | Path,
    *,
    eps: Sequence[float] = EPS,
    only: str | None = None,
    sample: bool = False,
    data: str | Path | None = None,
    state_dict: bool = False,
    progress: bool = True,
) -> Audit:
    """Say for each matrix of a checkpoint whether a tensor train, SVD or integers make it smaller, or nothing does.

    Tensors are read one at a time, so that memory does not grow with the checkpoint. Each matrix, convolution and table
    is compared at each error with what it could be: the best of several trains, truncated SVD, the narrowest integers
    with a scale a row; and with **noise** that has the norms of its rows. A verdict of ``tt`` or ``svd`` is given only
    if it takes clearly fewer bytes than integers (the rule of :func:`does_a_train_pay`), fewer than the file does, and
    if none of 19 draws of noise does as well: by chance alone that happens to one matrix in twenty at most.

    Args:
        checkpoint: A safetensors or GGUF file, a list of shards, or a folder with one of these (as Hugging Face has
            them).
        eps: Relative errors to compare at, in (0, 1).
        only: A pattern of names, as a shell has them: ``"*attention*"``. Other tensors are not read.
        sample: Read a part: of layers of one kind and size every sixth, two at least, and of tables their middle rows.
            A row then stands for several matrices, and ``Audit.sampling`` says how far the total may be off.
        data: A file of texts, one a line, for a folder or GGUF file that transformers can run. Matrices are then
            compared a second time, by the error of their layer's outputs on these texts.
        state_dict: Read a file of ``torch.save``, with ``weights_only=True``. A pickle is never opened otherwise.
        progress: Show a bar where somebody may be watching.

    Returns:
        An :class:`Audit`: print it, let a notebook show it, take its ``rows``, ``save`` it or make a ``page`` of it.

    Raises:
        FileNotFoundError: No such file or folder, a shard that is missing, no file of texts.
        ModuleNotFoundError: A package that is needed is not installed: safetensors, gguf, or transformers for ``data``.
        TypeError: Errors that are no numbers.
        ValueError: A truncated, damaged or foreign file; a pickle; an error outside (0, 1); a pattern that matches no
            name; texts, or a model, that cannot be run.

    Guarantee:
        ``ttm_svd(matrix, row_shape, col_shape, rank=ranks)`` of a row has the gain that is told, and errs by eps at
        most. With ``eps=`` instead of ranks, which gives each bond an equal part, it may be larger or smaller.

    Cost:
        An eigenproblem for each cut of a matrix, 4 times with the noise: seconds of one core for a model of ten million
        numbers, minutes for a hundred million; with ``sample`` a fraction of it.
        Memory, whatever the size of the checkpoint: the largest matrix in float32 twice, itself and noise of its size,
        or once beside the tensor of the file while that is read; matrices below four million numbers so often as torch
        has threads. Beside them a work space for each thread: the Gram matrix of the smaller side of a cut in float64
        some times, for its solver needs copies; that side is 1,536 at most, or that of the plain matrix. What the C
        library keeps of memory that was given back adds to it and differs from run to run. A state dict in the old
        format of torch is read as a whole. With ``data`` the model and Gram matrices come on top.

    Accuracy:
        Of a sample: the middle 4,096 rows of a table tell its gain to some per cent, which is not in the error told.

    Source:
        Dwass (1957), Modified randomization tests for nonparametric hypotheses: the draws of noise are a Monte Carlo
        test, valid for any number of them. It is cautious, because equal gains, which are common, count for the noise.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> time = torch.linspace(0, 3, 256).unsqueeze(1)
        >>> noise = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
        >>> state = {"wpe.weight": time * (time * torch.linspace(1, 6, 96)).sin(), "fc1.weight": noise}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(state, f"{folder}/model.safetensors")
        ...     found = audit(folder)
        >>> [(row["name"], row["verdict"]) for row in found.rows]
        [('fc1.weight', 'quantize'), ('wpe.weight', 'tt')]
    """
    errors = errors_of(eps)
    held = open_checkpoint(checkpoint, state_dict=state_dict)
    entries, stands_for = asked_for(held, only, sample)
    wanted = [entry for entry in entries if entry.name in stands_for]
    roots = {} if data is None else roots_of(held, data, wanted, progress)
    in_by_out = stored_in_by_out({entry.known: entry.shape for entry in held.entries})
    rows, before = [], _Before()
    for entry in bar(wanted, progress, "audit"):
        row = row_of(entry, errors, sample, roots, in_by_out, before)
        rows.append(row | {"stands_for": stands_for[entry.name]})
    numbers, nbytes = (sum(getattr(entry, key) for entry in entries) for key in ("numbers", "nbytes"))
    return Audit(str(checkpoint), held.format, errors, rows, numbers, nbytes, sample, data is not None)


def asked_for(held: Checkpoint, only: str | None, sample: bool) -> tuple[list[Entry], dict[str, float]]:
    """The tensors that are asked for; and the names of those to read, with for how many each stands."""
    entries = [entry for entry in held.entries if only is None or fnmatchcase(entry.name, only)]
    if not entries:
        told = f"no name matches {only!r}; the first is {held.entries[0].name!r}" if held.entries else "no tensors"
        raise ValueError(f"{held.path} has nothing to look at: {told}")
    large = [entry for entry in entries if entry.axes > 1]
    return entries, chosen(large) if sample else {entry.name: 1 for entry in large}


def errors_of(eps: Sequence[float]) -> tuple[float, ...]:
    """The relative errors that are asked for, ascending."""
    errors = tuple(eps) if several(eps) else (eps,)
    if not errors:
        raise ValueError("eps is empty; give one relative error or more, such as (0.1, 0.3)")
    for one in errors:
        check_real("eps", one)
        if not 0 < one < 1:
            raise ValueError(f"eps is a relative error and must lie between 0 and 1, got {one}")
    return tuple(sorted(set(errors)))


class _Before:
    """Matrices that were read, by hashes of their numbers, to know one that comes again."""

    def __init__(self) -> None:
        self.known: dict[tuple, str] = {}

    def same(self, entry: Entry, tensor: Tensor) -> str | None:
        """The name of an earlier tensor with the same numbers."""
        earlier = self.known.setdefault((entry.shape, entry.dtype, mark_of(tensor)), entry.name)
        return None if earlier == entry.name else earlier


def mark_of(tensor: Tensor) -> str:
    """The SHA-256 of the numbers of a tensor; -0.0 counts as 0.0, which it equals."""
    made = hashlib.sha256()
    for piece in tensor.flatten().split(PIECE):
        made.update((piece + 0.0).view(torch.uint8).numpy())
    return made.hexdigest()


def row_of(
    entry: Entry,
    errors: tuple[float, ...],
    sample: bool,
    roots: Mapping[str, Tensor],
    in_by_out: bool,
    before: _Before,
) -> dict[str, Any]:
    """What there is to say of one tensor."""
    row = {"name": entry.name, "part": entry.kind, "shape": list(entry.shape), "dtype": entry.dtype}
    row |= {"numbers": entry.numbers, "nbytes": entry.nbytes}
    if not entry.floats:
        known = entry.dtype.startswith(INTEGER_TYPES)
        why = "integers already: what they stand for is not in the tensor" if known else "indices or a mask, no weights"
        return row | {"part": INTEGERS if known else SMALL} | left(row, errors, why)
    tensor = entry.read()
    if why := _incomparable(tensor):
        return row | left(row, errors, why)
    if earlier := before.same(entry, tensor):
        return row | left(row, errors, TIED.format(earlier))
    weight = weights_of({entry.known: tensor}, in_by_out=in_by_out)[0]
    if weight.matrix is None:
        return row | left(row, errors, "too small: 8 rows and columns at least are worth a look")
    begin, end = middle_rows(len(weight.matrix), PART if sample else len(weight.matrix))
    matrix = weight.matrix[begin:end].float().contiguous()
    if (begin, end) != (0, len(weight.matrix)):
        matrix = matrix.clone()  # a part would keep the whole alive
    del tensor, weight
    seed = zlib.crc32(entry.name.encode())
    row["rows"] = [begin, end]
    try:
        row |= _settled(row, look(matrix, errors, seed=seed), errors)
        if entry.name in roots:
            forms = seen_forms(*matrix.shape)
            row["seen"] = _settled(row, look(matrix, errors, seed=seed, forms=forms, root=roots[entry.name]), errors)
    except ValueError as error:  # numbers beyond float32, or beyond the scales of integers
        return left(row, errors, str(error))
    return row | {"looked": True}


def _incomparable(tensor: Tensor) -> str | None:
    """Why the numbers of a tensor cannot be compared; None if they can."""
    wrong = beyond = 0
    for piece in tensor.flatten().split(PIECE):  # in pieces: what is computed of a whole table takes its memory again
        if piece.float().sum().isfinite():  # no sum is, if one entry is not; and it is quicker than to ask them all
            continue
        wrong += len(piece) - int(piece.isfinite().sum())
        beyond += len(piece) - int(piece.float().isfinite().sum())
    if wrong:
        return f"{wrong:,} entries are NaN or infinite: a training that went wrong, or damage"
    return f"{beyond:,} entries are beyond float32, in which matrices are compared" if beyond else None


def _settled(row: Mapping[str, Any], found: dict[str, Any], errors: tuple[float, ...]) -> dict[str, Any]:
    """What was found, with verdicts that beat the file, and their reasons; the middle error has the last word."""
    after = [4 * row["numbers"] / smaller for smaller in found.pop("smaller")]
    found["verdicts"] = [
        "leave" if nbytes >= row["nbytes"] else word for word, nbytes in zip(found["verdicts"], after, strict=True)
    ]
    found["after"] = [min(nbytes, row["nbytes"]) for nbytes in after]
    found["reasons"] = [reason({**row, **found}, errors, k) for k in range(len(errors))]
    middle = len(errors) // 2
    return found | {"verdict": found["verdicts"][middle], "reason": found["reasons"][middle]}
