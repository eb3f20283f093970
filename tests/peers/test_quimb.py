"""quimb as oracle: entropies in bits and Schmidt values (quimb's are squared) of matrix product states."""

import math
import warnings

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian, random_train, seeds

from ttref.entanglement import entanglement_entropy, schmidt_values
from ttref.trains import tt_to_tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import quimb.tensor

few = settings(max_examples=20)
modes = st.lists(st.integers(2, 4), min_size=2, max_size=5)


def normalized(x):
    return x / torch.linalg.vector_norm(x)


def matrix_product_state(x):
    return quimb.tensor.MatrixProductState.from_dense(x.numpy().reshape(-1), dims=list(x.shape))


def assert_same_entanglement(ours, state, sites):
    for bond in range(1, sites):
        np.testing.assert_allclose(float(entanglement_entropy(ours, bond)), state.entropy(bond), atol=1e-9)
        theirs = np.sort(np.abs(state.schmidt_values(bond)))[::-1]
        squared = schmidt_values(ours, bond).square().numpy()
        # quimb drops what rounding left over; we keep one value for each row of the smaller side.
        kept = max(len(theirs), len(squared))
        pad = [np.pad(values, (0, kept - len(values))) for values in (theirs, squared)]
        np.testing.assert_allclose(*pad, atol=1e-10)


@few
@given(modes, seeds)
def test_dense_states(shape, seed):
    x = normalized(gaussian(tuple(shape), seed))
    assert_same_entanglement(x, matrix_product_state(x), len(shape))


@few
@given(modes, st.integers(1, 3), seeds)
def test_trains(shape, rank, seed):
    cores = random_train(shape, rank, seed)
    cores[0] = cores[0] / torch.linalg.vector_norm(tt_to_tensor(cores))
    assert_same_entanglement(cores, matrix_product_state(tt_to_tensor(cores)), len(shape))


def test_ghz_and_w_states_of_its_own_making():
    for state, bits in (
        (quimb.tensor.MPS_ghz_state(6), [1.0] * 5),
        (quimb.tensor.MPS_w_state(6), [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in np.arange(1, 6) / 6]),
    ):
        x = torch.from_numpy(np.asarray(state.to_dense()).real.reshape([2] * 6).copy()).double()
        assert_same_entanglement(x, state, 6)
        np.testing.assert_allclose([float(entanglement_entropy(x, bond)) for bond in range(1, 6)], bits, atol=1e-9)
