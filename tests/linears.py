"""What the tests of TTLinear share: layers that differ in all that matters, their weights, and vectors for them."""

import torch
from strategies import dense_matrix, gaussian

from ttref import TTLinear

# Arguments of layers that differ in all that matters: modes given or chosen, padding on either side, a bias or none.
ARGUMENTS = [
    {"in_shape": (4, 3), "out_shape": (2, 5), "rank": 3},
    {"in_shape": (8, 8, 12), "out_shape": (12, 16, 16), "rank": 8},
    {"in_shape": 64, "out_shape": 48, "rank": 4, "bias": False},
    {"in_shape": 61, "out_shape": 60, "rank": 5},
    {"in_shape": 60, "out_shape": 61, "rank": (1, 2, 5, 1)},
    {"in_shape": 67, "out_shape": 71, "rank": 2, "bias": False},
    {"in_shape": (12,), "out_shape": 7, "rank": 1},
    {"in_shape": 1, "out_shape": 1, "rank": 9},
]


def made(arguments, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return TTLinear(**arguments, dtype=dtype)


def weight_of(layer):
    """The dense weight, contracted independently of ttref and without its padding."""
    return dense_matrix(list(layer.cores))[: layer.out_features, : layer.in_features]


def vectors(layer, *batch, seed=1):
    return gaussian((*batch, layer.in_features), seed, layer.cores[0].dtype)


def assert_close(actual, expected, dtype=None):
    """Within rounding of the largest entry."""
    dtype = expected.dtype if dtype is None else dtype
    scale = float(expected.detach().abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=200 * torch.finfo(dtype).eps * max(scale, 1e-30))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module, before):
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
