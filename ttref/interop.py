"""The same train in TensorLy, torchTT and quimb: both ways, nothing is decomposed again.

A train here is a list of cores ``(r_{k-1}, n_k, r_k)``, a TT-matrix one of cores ``(r_{k-1}, m_k, n_k, r_k)``, rows
first. Four axes always mean a TT-matrix: no peer has batches of trains, and they are refused, but a batch of one whose
ranks are all 1, ``(1, 1, n_k, 1)``, has the shapes of a TT-matrix and is read as one. The peers keep the same numbers
in objects of their own:

========  ================  ======================  ===========================================================
package   imported as       a train                 a TT-matrix
========  ================  ======================  ===========================================================
TensorLy  ``tensorly``      ``TTTensor``            ``TTMatrix``
torchTT   ``torchtt``       ``TT``                  ``TT``, with ``is_ttm`` true
quimb     ``quimb.tensor``  ``MatrixProductState``  ``MatrixProductOperator``: rows upper, columns lower indices
========  ================  ======================  ===========================================================

``from torchTT import TensorTrain``, a line that goes round, fails twice: torchTT is the name on the package index, the
module is ``torchtt``, and its class is ``TT``. The line that works is ``from torchtt import TT``.

A peer is imported when one of its functions is called; the module itself needs torch alone. Cores are handed over, not
copied: torch tensors stay on their device and in their graph, so gradients pass through a peer that computes with
torch. What changes a core in place changes it on both sides; clone the cores where that matters. NumPy arrays that
torch cannot share are copied: those of negative strides, of the other byte order, or that may not be written to.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_listed, check_matrix_train, check_train

__all__ = ["from_quimb", "from_tensorly", "from_torchtt", "to_quimb", "to_tensorly", "to_torchtt"]

# The name of the module, and what pip calls it.
_PACKAGES = {"tensorly": "tensorly", "torchtt": "torchTT", "quimb": "quimb"}
_NO_BATCH = "which no peer has: hand the trains over one by one"


def to_tensorly(cores: Sequence[Tensor]) -> Any:
    """Hand a train or a TT-matrix to TensorLy.

    Args:
        cores: d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix.

    Returns:
        ``TTTensor`` or ``TTMatrix``, in arrays of TensorLy's backend as it is set now: with ``"pytorch"`` the cores
        themselves, with ``"numpy"``, TensorLy's default, arrays on the same memory, without gradients.

    Raises:
        ModuleNotFoundError: TensorLy is not installed; the message holds the install line.
        TypeError, ValueError: The cores are no train, a batch of trains, or bfloat16, which NumPy lacks.
        RuntimeError: TensorLy's backend is another one.

    Cost:
        None; a copy of cores that are not on the CPU, for NumPy.

    Example:
        >>> import tensorly
        >>> from ttref import tt_svd
        >>> cores = tt_svd(torch.arange(8.0), (2, 2, 2), eps=1e-6)
        >>> train = to_tensorly(cores)
        >>> train.shape, tuple(train.rank)
        ((2, 2, 2), (1, 2, 2, 1))
        >>> [round(float(x)) for x in tensorly.tt_to_tensor(train).reshape(-1)]
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    tensorly = _peer("tensorly")
    matrix = _is_matrix(cores)
    factors = list(cores)
    backend = tensorly.get_backend()
    if backend not in ("numpy", "pytorch"):
        raise RuntimeError(
            f"TensorLy's backend is {backend!r}; choose one by tensorly.set_backend('pytorch') or 'numpy'"
        )
    if backend == "numpy":
        if cores[0].dtype == torch.bfloat16:
            way_out = "call tensorly.set_backend('pytorch'), or convert the cores with .float()"
            raise TypeError(f"NumPy, TensorLy's backend now, has no bfloat16; {way_out}")
        factors = [core.detach().cpu().numpy() for core in factors]
    kind = tensorly.tt_matrix.TTMatrix if matrix else tensorly.tt_tensor.TTTensor
    return kind(factors)


def from_tensorly(train: Any) -> list[Tensor]:
    """Take the cores of a TensorLy ``TTTensor`` or ``TTMatrix``.

    Args:
        train: What ``tensorly.decomposition.tensor_train`` or ``tensor_train_matrix`` returns, in torch or NumPy.

    Returns:
        d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix, of the dtype of the factors.

    Raises:
        ModuleNotFoundError: TensorLy is not installed; the message holds the install line.
        TypeError: ``train`` is something else, or its factors are complex or integers.
        ValueError: The factors do not chain, or the end ranks are not 1: a tensor ring is no train.

    Cost:
        None.

    Example:
        >>> import numpy, tensorly
        >>> from tensorly.decomposition import tensor_train
        >>> from ttref import tt_to_tensor
        >>> array = tensorly.tensor(numpy.arange(8.0).reshape(2, 2, 2))
        >>> cores = from_tensorly(tensor_train(array, rank=2))
        >>> torch.allclose(tt_to_tensor(cores).reshape(-1), torch.arange(8.0, dtype=torch.float64))
        True
    """
    tensorly = _peer("tensorly")
    kinds = {tensorly.tt_tensor.TTTensor: 3, tensorly.tt_matrix.TTMatrix: 4}
    axes = next((axes for kind, axes in kinds.items() if isinstance(train, kind)), None)
    if axes is None:
        raise TypeError(f"train must be a TTTensor or a TTMatrix of TensorLy, got {type(train).__name__}")
    return _checked([_tensor(factor) for factor in train.factors], axes)


def to_torchtt(cores: Sequence[Tensor]) -> Any:
    """Hand a train or a TT-matrix to torchTT, whose module is called ``torchtt``.

    Args:
        cores: d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix.

    Returns:
        ``torchtt.TT`` that holds the cores themselves.

    Raises:
        ModuleNotFoundError: torchTT is not installed; the message holds the install line.
        TypeError, ValueError: The cores are no train, or are a batch of trains.

    Cost:
        None.

    Example:
        >>> from ttref import ttm_svd
        >>> w = torch.kron(torch.eye(2), torch.ones(3, 4))
        >>> matrix = to_torchtt(ttm_svd(w, (2, 3), (2, 4), eps=1e-6))
        >>> matrix.is_ttm, matrix.M, matrix.N, matrix.R
        (True, [2, 3], [2, 4], [1, 1, 1])
        >>> torch.allclose(matrix.full().reshape(6, 8), w)
        True
    """
    torchtt = _peer("torchtt")
    _is_matrix(cores)
    return torchtt.TT(list(cores))


def from_torchtt(train: Any) -> list[Tensor]:
    """Take the cores of a ``torchtt.TT``, train or TT-matrix.

    Args:
        train: A ``torchtt.TT``.

    Returns:
        d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix: the tensors that it holds.

    Raises:
        ModuleNotFoundError: torchTT is not installed; the message holds the install line.
        TypeError: ``train`` is something else, or its cores are complex or integers.
        ValueError: It is empty, or somebody put cores into it that do not chain.

    Cost:
        None.

    Example:
        >>> import torchtt
        >>> from ttref import tt_to_tensor
        >>> x = torch.arange(8.0).reshape(2, 2, 2)
        >>> torch.allclose(tt_to_tensor(from_torchtt(torchtt.TT(x))), x, atol=1e-4)
        True
    """
    torchtt = _peer("torchtt")
    if not isinstance(train, torchtt.TT):
        raise TypeError(f"train must be a torchtt.TT, got {type(train).__name__}")
    return _checked(list(train.cores), 4 if train.is_ttm else 3)


def to_quimb(cores: Sequence[Tensor]) -> Any:
    """Hand a train to quimb as a matrix product state, a TT-matrix as a matrix product operator.

    Args:
        cores: d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix.

    Returns:
        ``MatrixProductState`` or ``MatrixProductOperator`` with open ends, its data torch tensors. quimb has no bonds
        at the ends, so these axes are dropped. The state keeps its norm, whatever that is.

    Raises:
        ModuleNotFoundError: quimb is not installed; the message holds the install line.
        TypeError, ValueError: The cores are no train, or are a batch of trains.

    Cost:
        None: the data are views of the cores.

    Example:
        >>> from ttref import tt_svd
        >>> state = to_quimb(tt_svd(torch.arange(8.0), (2, 2, 2), eps=1e-6))
        >>> state.L, state.bond_sizes()
        (3, [2, 2])
        >>> [round(float(x)) for x in state.to_dense().reshape(-1)]
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    quimb = _peer("quimb")
    matrix = _is_matrix(cores)
    arrays = list(cores)
    arrays[-1] = arrays[-1].squeeze(-1)
    arrays[0] = arrays[0].squeeze(0)
    if matrix:
        return quimb.tensor.MatrixProductOperator(arrays, shape="ludr")
    return quimb.tensor.MatrixProductState(arrays, shape="lpr")


def from_quimb(train: Any) -> list[Tensor]:
    """Take the cores of a matrix product state or operator of quimb, whatever the order of its axes.

    Args:
        train: A ``MatrixProductState`` or ``MatrixProductOperator`` with open ends, data of torch or NumPy.

    Returns:
        d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for an operator, the upper indices as rows.
        Between neighbors that no bond joins the rank is 1.

    Raises:
        ModuleNotFoundError: quimb is not installed; the message holds the install line.
        TypeError: ``train`` is something else, or its data are complex or integers.
        ValueError: The train is a ring, two sites share several bonds, or sites that are no neighbors share one.

    Cost:
        None but for a train with an exponent of its own, which is multiplied into copies of the data.

    Example:
        >>> import quimb.tensor
        >>> from ttref import tt_to_tensor
        >>> x = torch.arange(8.0, dtype=torch.float64)
        >>> state = quimb.tensor.MatrixProductState.from_dense(x.numpy(), dims=[2, 2, 2])
        >>> torch.allclose(tt_to_tensor(from_quimb(state)).reshape(-1), x)
        True
    """
    quimb = _peer("quimb")
    kinds = quimb.tensor.MatrixProductState, quimb.tensor.MatrixProductOperator
    if not isinstance(train, kinds):
        raise TypeError(f"train must be a MatrixProductState or -Operator of quimb, got {type(train).__name__}")
    if getattr(train, "exponent", 0):
        train = train.copy()
        train.distribute_exponent()
    matrix, sites = isinstance(train, kinds[1]), list(train.sites)
    tensors = [train[site] for site in sites]
    own = [(train.upper_ind(s), train.lower_ind(s)) if matrix else (train.site_ind(s),) for s in sites]
    cores = []
    for k, (here, free) in enumerate(zip(tensors, own, strict=True)):
        left = set(here.inds) & set(tensors[k - 1].inds) if k else set()
        right = set(here.inds) & set(tensors[k + 1].inds) if k + 1 < len(tensors) else set()
        if len(left) > 1 or len(right) > 1:
            raise ValueError(f"site {sites[k]} shares several bonds with a neighbor; fuse_multibonds_() makes them one")
        if odd := set(here.inds) - left - right - set(free):
            raise ValueError(
                f"site {sites[k]} has the indices {sorted(odd)} beyond its own and those of its neighbors: a ring or a "
                "network is no train; its ends must be open"
            )
        core = _tensor(here.transpose(*left, *free, *right).data)
        core = core if left else core.unsqueeze(0)
        cores.append(core if right else core.unsqueeze(-1))
    return _checked(cores, 4 if matrix else 3)


def _peer(module: str) -> Any:
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


def _is_matrix(cores: Sequence[Tensor]) -> bool:
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


def _checked(cores: list[Tensor], axes: int) -> list[Tensor]:
    """The cores, if each has so many axes and they chain."""
    for k, core in enumerate(cores):
        if core.ndim != axes:
            raise ValueError(f"core {k} of train has shape {tuple(core.shape)}, but {axes} axes are expected")
    if axes == 4:
        check_matrix_train(cores)
    else:
        check_train(cores)
    return cores


def _tensor(array: Any) -> Tensor:
    """A tensor on the memory of an array, or on a copy where torch cannot share it or nobody may write to it."""
    if isinstance(array, Tensor):
        return array
    import numpy

    array = numpy.asarray(array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    shared = array.flags.writeable and all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    return torch.from_numpy(array if shared else numpy.array(array, order="C"))
