"""What functions on trains accept: cores as layers keep them, numbers in arrays; and what the messages name."""

import numpy as np
import pytest
import torch
from strategies import gaussian, random_matrix_train, random_train
from torch import nn

import ttref

X = gaussian((4, 4, 4), 0)
W = gaussian((16, 16), 1)
TRAIN = random_train([3, 2, 3], 2, 0)
MATRIX = random_matrix_train([(2, 3), (3, 2)], 0)

OF_TRAINS = {
    "tt_to_tensor": ttref.tt_to_tensor,
    "tt_entry": lambda cores: ttref.tt_entry(cores, (2, 1, 0)),
    "tt_orthogonalize": lambda cores: ttref.tt_orthogonalize(cores, 1),
    "tt_round": lambda cores: ttref.tt_round(cores, rank=1),
    "tt_norm": ttref.tt_norm,
    "tt_dot": lambda cores: ttref.tt_dot(cores, cores),
    "tt_add": lambda cores: ttref.tt_add(cores, cores),
    "tt_hadamard": lambda cores: ttref.tt_hadamard(cores, cores),
    "schmidt_values": lambda cores: ttref.schmidt_values(cores, 1),
    "entanglement_entropy": lambda cores: ttref.entanglement_entropy(cores, 2),
    "suggest_ranks": lambda cores: ttref.suggest_ranks(cores, eps=0.1),
}
OF_MATRICES = {
    "ttm_to_matrix": ttref.ttm_to_matrix,
    "ttm_matvec": lambda cores: ttref.ttm_matvec(cores, torch.ones(2, 6, dtype=torch.float64)),
    "ttm_matvec, merged": lambda cores: ttref.ttm_matvec(cores, torch.ones(2, 6, dtype=torch.float64), "two-gemm"),
    "plan_contraction": lambda cores: ttref.plan_contraction(cores, 4).macs,
    "TTLinear.from_cores": lambda cores: list(ttref.TTLinear.from_cores(cores).cores),
}
CASES = [(call, TRAIN) for call in OF_TRAINS.values()] + [(call, MATRIX) for call in OF_MATRICES.values()]


@pytest.mark.parametrize("kind", [tuple, nn.ParameterList])
@pytest.mark.parametrize(("call", "cores"), CASES, ids=[*OF_TRAINS, *OF_MATRICES])
def test_cores_come_in_lists_tuples_and_parameter_lists(call, cores, kind):
    torch.testing.assert_close(call(kind(cores)), call(cores), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", [iter, dict.fromkeys, lambda cores: cores[0], lambda cores: nn.ModuleList()])
@pytest.mark.parametrize(("call", "cores"), CASES[:-1], ids=[*OF_TRAINS, *OF_MATRICES][:-1])
def test_other_containers_are_named(call, cores, wrong):
    if call in (OF_TRAINS["schmidt_values"], OF_TRAINS["entanglement_entropy"], OF_TRAINS["suggest_ranks"]):
        if isinstance(wrong(cores), torch.Tensor):
            pytest.skip("a tensor is taken for the tensor itself")
    with pytest.raises(TypeError, match=f"must be a list of cores, got {type(wrong(cores)).__name__}"):
        call(wrong(cores))


@pytest.mark.parametrize("number", [np.int64(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.int32)])
def test_a_number_in_an_array_is_a_number(number):
    for found, expected in [
        (ttref.tt_svd(X, rank=number), ttref.tt_svd(X, rank=2)),
        (ttref.tt_svd(X, rank=1, batch_dims=number), ttref.tt_svd(X, rank=1, batch_dims=2)),
        (ttref.tt_round(TRAIN, rank=number), ttref.tt_round(TRAIN, rank=2)),
        (ttref.tt_orthogonalize(TRAIN, number), ttref.tt_orthogonalize(TRAIN, 2)),
        (ttref.ttm_svd(W, (4, 4), (4, 4), rank=number), ttref.ttm_svd(W, (4, 4), (4, 4), rank=2)),
        (ttref.schmidt_values(X, number), ttref.schmidt_values(X, 2)),
        (ttref.truncated_svd(W, rank=number).approximation, ttref.truncated_svd(W, rank=2).approximation),
        (ttref.quantize_integer(W, number).approximation, ttref.quantize_integer(W, 2).approximation),
    ]:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert ttref.tt_ranks((4, 4, 4), number) == (1, 2, 2, 1)
    assert ttref.factorize(768, number) == ttref.factorize(768, 2)
    assert ttref.balanced_modes(769, number) == ttref.balanced_modes(769, 2)


@pytest.mark.parametrize("several", [np.array, torch.tensor, tuple, list])
def test_modes_and_ranks_in_arrays(several):
    shape, ranks = several([4, 4]), several([1, 3, 1])
    assert ttref.tt_ranks(shape, ranks) == (1, 3, 1)
    assert ttref.tt_params(shape, ranks) == 24 and ttref.ttm_params(shape, shape, 2) == 64
    assert all(type(r) is int for r in ttref.tt_ranks(shape, ranks))
    for found, expected in [
        (ttref.tt_svd(W[0], shape, rank=ranks), ttref.tt_svd(W[0], (4, 4), rank=3)),
        (ttref.ttm_svd(W, shape, shape, rank=ranks), ttref.ttm_svd(W, (4, 4), (4, 4), rank=3)),
    ]:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ttref.tt_svd(X, 3), ValueError, "3 stands where the shape is expected; .* write rank=3"),
        (lambda: ttref.tt_svd(X), ValueError, "got neither: rank=8 caps the ranks, eps=0.1 allows"),
        (lambda: ttref.tt_svd(X, rank=2, eps=0.1), ValueError, "got both: a cap on the rank would void the guarantee"),
        (lambda: ttref.tt_svd(X, rank="2"), TypeError, "rank must be an integer, got '2' of type str"),
        (lambda: ttref.tt_svd(X, rank=True), TypeError, "rank must be an integer, got True"),
        (lambda: ttref.tt_svd(X, rank=2.0), TypeError, "rank must be an integer, got 2.0 of type float"),
        (lambda: ttref.tt_svd(X, rank=np.array(2.0)), TypeError, r"rank must be an integer, got array\(2.\)"),
        (lambda: ttref.tt_svd(X, rank=torch.tensor(True)), TypeError, r"rank must be an integer, got tensor\(True\)"),
        (lambda: ttref.tt_svd(X, rank=np.array(True)), TypeError, r"rank must be an integer, got array\(True\)"),
        (lambda: ttref.tt_svd(X, rank=torch.tensor([2])), ValueError, "rank has 1 entries, but 3 modes have 4 ranks"),
        (lambda: ttref.tt_ranks(np.array([[2, 2]]), 2), TypeError, r"shape\[0\] must be an integer, got array"),
        (lambda: ttref.tt_ranks(torch.tensor([2.0, 2.0]), 2), TypeError, r"shape\[0\] must be an integer"),
        (lambda: ttref.tt_ranks("22", 2), TypeError, "shape must be a sequence of modes .*, got '22'"),
        (lambda: ttref.tt_ranks(torch.tensor(4), 2), TypeError, "shape must be a sequence of modes"),
        (lambda: ttref.schmidt_values(X, torch.tensor([1])), TypeError, "bond must be an integer, got tensor"),
    ],
)
def test_what_is_no_number_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
