"""Trains that change hands: each peer rebuilds the tensor that the cores stand for, and gives the same cores back."""

import builtins
import warnings

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import agree, dense, dense_matrix, modes, pairs, random_matrix_train, random_train, seeds
from torch import nn

from ttref import interop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchTT tells everyone that its C++ part was not built
    import quimb.tensor
    import torchtt

PEERS = ["tensorly", "torchtt", "quimb"]
WIDE = [torch.float32, torch.float64]
DTYPES = st.sampled_from(WIDE)
RANKS = st.sampled_from([(1, 1, 1), (2, 4, 3), (5, 1, 2)])
TRAIN = random_train([3, 2, 4], 2, 0)
MATRIX = random_matrix_train([(2, 3), (4, 2), (3, 3)], 0)
SENT = {"tensorly": interop.to_tensorly, "torchtt": interop.to_torchtt, "quimb": interop.to_quimb}
TAKEN = {"tensorly": interop.from_tensorly, "torchtt": interop.from_torchtt, "quimb": interop.from_quimb}

peers = pytest.mark.parametrize("peer", PEERS)
trains = pytest.mark.parametrize("cores", [TRAIN, MATRIX], ids=["train", "matrix"])
pytestmark = pytest.mark.usefixtures("torch_backend")


def rebuilt(train, matrix):
    """What the peer says the train is: its own reconstruction, as a vector or as a matrix."""
    if isinstance(train, torchtt.TT):
        assert train.is_ttm == matrix
        full = train.full()
        return full.reshape(int(np.prod(train.M)), -1) if matrix else full.reshape(-1)
    if isinstance(train, quimb.tensor.TensorNetwork):
        full = train.to_dense()
        return full if matrix else full.reshape(-1)
    return tensorly.tt_matrix_to_matrix(train) if matrix else tensorly.tt_to_tensor(train).reshape(-1)


def assert_handed_over(peer, cores, expected, matrix):
    theirs = SENT[peer](cores)
    assert agree(torch.as_tensor(rebuilt(theirs, matrix)), expected)
    back = TAKEN[peer](theirs)
    assert type(back) is list and len(back) == len(cores)
    for one, other in zip(back, cores, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@peers
@given(modes, st.integers(1, 4), seeds, DTYPES)
def test_trains_both_ways(peer, shape, rank, seed, dtype):
    cores = random_train(shape, rank, seed, dtype=dtype)
    assert_handed_over(peer, cores, dense(cores).reshape(-1), False)


@peers
@given(pairs, RANKS, seeds, DTYPES)
def test_matrices_both_ways(peer, shape, ranks, seed, dtype):
    cores = random_matrix_train(shape, seed, dtype, ranks)
    assert_handed_over(peer, cores, dense_matrix(cores), True)


@pytest.fixture
def numpy_backend():
    tensorly.set_backend("numpy")
    yield
    tensorly.set_backend("pytorch")


@trains
@pytest.mark.parametrize("dtype", WIDE)
def test_tensorly_on_numpy(numpy_backend, cores, dtype):
    cores = [core.to(dtype) for core in cores]
    assert all(type(factor) is np.ndarray for factor in interop.to_tensorly(cores).factors)
    matrix = cores[0].ndim == 4
    assert_handed_over("tensorly", cores, dense_matrix(cores) if matrix else dense(cores).reshape(-1), matrix)


def test_what_numpy_lacks_and_what_it_forbids(numpy_backend):
    with pytest.raises(TypeError, match="NumPy, TensorLy's backend now, has no bfloat16; call tensorly.set_backend"):
        interop.to_tensorly([core.bfloat16() for core in TRAIN])
    array = np.ones((1, 2, 1))
    array.flags.writeable = False
    (core,) = interop.from_tensorly(tensorly.tt_tensor.TTTensor([array]))
    core.zero_()
    assert array.sum() == 2


def test_numpy_arrays_that_torch_cannot_share(numpy_backend):
    """Of negative strides, as ``array[::-1]`` and ``numpy.flip`` make them, and of the other byte order."""
    array = np.arange(6.0).reshape(1, 6, 1)
    for other in (array[:, ::-1], np.flip(array), array.astype(array.dtype.newbyteorder())):
        (core,) = interop.from_tensorly(tensorly.tt_tensor.TTTensor([other]))
        assert core.dtype == torch.float64 and core.flatten().tolist() == other.flatten().tolist()
    state = quimb.tensor.MatrixProductState([np.ones((2, 2))[::-1], np.arange(4.0).reshape(2, 2)[:, ::-1]])
    assert torch.equal(dense(interop.from_quimb(state)), torch.as_tensor(state.to_dense()).reshape(2, 2))


def test_tensorly_on_what_it_is_not_tested_with(monkeypatch):
    monkeypatch.setattr(tensorly, "get_backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="TensorLy's backend is 'jax'; choose one by"):
        interop.to_tensorly(TRAIN)


@peers
@trains
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(peer, cores, dtype):
    cores = [core.to(dtype) for core in cores]
    for one, other in zip(TAKEN[peer](SENT[peer](cores)), cores, strict=True):
        assert one.dtype == dtype and torch.equal(one, other)


@peers
@trains
def test_gradients_pass_through_and_nothing_is_copied(peer, cores):
    cores = nn.ParameterList(core.clone() for core in cores)
    matrix = cores[0].ndim == 4
    theirs = SENT[peer](cores)
    found = torch.autograd.grad(rebuilt(theirs, matrix).square().sum(), list(cores))
    twin = dense_matrix(list(cores)) if matrix else dense(list(cores))
    for one, other in zip(found, torch.autograd.grad(twin.square().sum(), list(cores)), strict=True):
        assert agree(one, other)
    assert [core.data_ptr() for core in TAKEN[peer](theirs)] == [core.data_ptr() for core in cores]


@peers
@trains
def test_from_one_peer_to_the_next(peer, cores):
    for other in PEERS:
        back = TAKEN[other](SENT[other](TAKEN[peer](SENT[peer](cores))))
        assert all(map(torch.equal, back, cores))


def test_what_quimb_makes_of_a_train():
    """Its axes in another order, a norm outside of the data, a bond that is gone, tensors of NumPy."""
    state = interop.to_quimb(TRAIN)
    state.canonicalize_(1)
    state.permute_arrays("prl")
    state.exponent = 2.0
    assert agree(dense(interop.from_quimb(state)), 100 * dense(TRAIN))
    assert state.exponent == 2.0, "the reader's own state is left as it is"
    apart = quimb.tensor.MatrixProductState([np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])])
    apart.squeeze_()
    assert dense(interop.from_quimb(apart)).tolist() == [[3.0, 4.0], [6.0, 8.0]]
    heisenberg = quimb.tensor.MPO_ham_heis(4)
    found = dense_matrix(interop.from_quimb(heisenberg))
    assert agree(found, torch.from_numpy(heisenberg.to_dense()))


# What is refused


@peers
@pytest.mark.parametrize(
    ("cores", "error", "message"),
    [
        ([], ValueError, "cores is empty"),
        (TRAIN[0], TypeError, "cores must be a list of cores, got Tensor"),
        ([np.ones((1, 2, 1))], TypeError, r"cores\[0\] must be a torch.Tensor, got ndarray"),
        (TRAIN[:2], ValueError, "the end ranks of cores must be 1, got 1 on the left and 2 on the right"),
        ([TRAIN[0], TRAIN[2], TRAIN[1]], ValueError, "bond 2 does not chain"),
        ([TRAIN[0], MATRIX[2]], ValueError, r"cores\[1\] has batch axes \(4,\), cores\[0\] has \(\)"),
        ([MATRIX[0], TRAIN[2]], ValueError, "a TT-matrix core is .*, four axes"),
        ([torch.ones(2, 1, 3, 1)] * 2, ValueError, r"cores\[0\] ends with rank 1 but cores\[1\] begins with rank 2"),
        ([torch.ones(5, 2, 1, 3, 1)], ValueError, "four axes|batch of trains"),
        ([torch.ones(5, 1, 2, 3), torch.ones(5, 3, 2, 1)], ValueError, "bond 1 .* like a batch of trains, .5,., which"),
        ([torch.ones(5, 1, 2, 1)], ValueError, "end ranks .* like a batch of trains, .5,., which"),
        ([torch.ones(1, 1, 2, 3), torch.ones(1, 3, 2, 1)], ValueError, "bond 1 .* like a batch of trains, .1,., which"),
        ([TRAIN[0], TRAIN[1].float(), TRAIN[2]], TypeError, "convert them to one dtype"),
        ([torch.ones(1, 2, 1).cfloat()], TypeError, "complex tensors are not supported"),
    ],
)
def test_what_is_no_train_is_not_sent(peer, cores, error, message):
    with pytest.raises(error, match=message):
        SENT[peer](cores)


@peers
@pytest.mark.parametrize("wrong", [TRAIN, None, np.ones(3), "train"])
def test_what_is_no_train_of_the_peer_is_not_taken(peer, wrong):
    with pytest.raises(TypeError, match=f"train must be .*, got {type(wrong).__name__}"):
        TAKEN[peer](wrong)


def replaced(train, cores):
    """Somebody put other cores into a train of theirs, and the train did not look."""
    setattr(train, "cores" if isinstance(train, torchtt.TT) else "factors", cores)
    return train


@pytest.mark.parametrize("peer", ["tensorly", "torchtt"])
@pytest.mark.parametrize(
    ("cores", "error", "message"),
    [
        ([TRAIN[0], TRAIN[0]], ValueError, "bond 1 does not chain"),
        (TRAIN[1:], ValueError, "the end ranks of cores must be 1"),
        ([torch.ones(1, 2, 1).int()], TypeError, r"cores\[0\] is torch.int32"),
        (MATRIX, ValueError, r"core 0 of train has shape \(1, 2, 3, 2\), but 3 axes are expected"),
    ],
)
def test_a_broken_train_is_not_taken(peer, cores, error, message):
    with pytest.raises(error, match=message):
        TAKEN[peer](replaced(SENT[peer](TRAIN), cores))


def test_networks_of_quimb_that_are_no_trains():
    ring = quimb.tensor.MPS_rand_state(4, 3, cyclic=True, dtype="float64")
    with pytest.raises(ValueError, match="beyond its own and those of its neighbors: a ring or a network is no train"):
        interop.from_quimb(ring)
    doubled = interop.to_quimb(TRAIN)
    (bond,) = doubled[0].bonds(doubled[1])
    for k in (0, 1):
        doubled[k].unfuse_({bond: ("one", "other")}, {bond: (2, 1)})
    with pytest.raises(ValueError, match="site 0 shares several bonds with a neighbor; fuse_multibonds_"):
        interop.from_quimb(doubled)
    doubled.fuse_multibonds_()
    assert agree(dense(interop.from_quimb(doubled)), dense(TRAIN))
    with pytest.raises(TypeError, match="complex tensors are not supported"):
        interop.from_quimb(quimb.tensor.MPS_rand_state(3, 2, dtype="complex128"))


@peers
@pytest.mark.parametrize("way", [SENT, TAKEN], ids=["to", "from"])
def test_a_peer_that_is_not_installed(peer, way, monkeypatch):
    wanted = {"tensorly": "tensorly", "torchtt": "torchTT", "quimb": "quimb"}[peer]

    def absent(name, *args, **kwargs):
        raise ModuleNotFoundError(f"No module named {peer!r}", name=peer)

    monkeypatch.setattr("ttref.interop.peers.importlib.import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=f"imported as {peer}; install it with: .*pip install {wanted}$"):
        way[peer](TRAIN)


def test_a_peer_that_lacks_something_says_so_itself(monkeypatch):
    def lacking(name, *args, **kwargs):
        raise ModuleNotFoundError("No module named 'autoray'", name="autoray")

    monkeypatch.setattr("ttref.interop.peers.importlib.import_module", lacking)
    with pytest.raises(ModuleNotFoundError, match="^No module named 'autoray'$"):
        interop.to_quimb(TRAIN)


def test_the_import_line_that_goes_round_fails():
    """``from torchTT import TensorTrain``: neither the module nor the class has this name."""
    with pytest.raises(ModuleNotFoundError):
        builtins.__import__("torchTT")
    assert not hasattr(torchtt, "TensorTrain") and hasattr(torchtt, "TT")
