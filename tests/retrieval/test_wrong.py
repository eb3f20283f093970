"""Bad input: a message that names what is wrong and the way out, and nothing changed by it."""

import numpy as np
import pytest
import torch
from corpora import asked, texts

from ttref.retrieval import TTIndex

X = texts(60)
Q = asked(X, 3)


def with_nan(x):
    x = x.clone()
    x[[4, 9], 2] = torch.tensor([float("nan"), float("inf")])
    return x


def with_zero(x):
    x = x.clone()
    x[1] = 0
    return x


WRONG = {
    "NaN": (with_nan(X), ValueError, r"X has NaN or infinite entries .* in 2 of 60 vectors, the first in vector 4"),
    "zero": (with_zero(X), ValueError, r"X has 1 zero vectors, the first is vector 1; .* metric='inner_product'"),
    "one vector": (X[0], ValueError, r"X must have shape .*, got \(48,\); Reshape your data: X\[None\]"),
    "four axes": (X.reshape(3, 4, 5, 48), ValueError, r"or \(documents, views, dim\) for a stack, got \(3, 4, 5, 48\)"),
    "nothing": (X[:0], ValueError, r"X has 0 sample\(s\) \(shape=\(0, 48\)\)"),
    "no width": (X[:, :0], ValueError, r"X has 0 feature\(s\) \(shape=\(60, 0\)\)"),
    "complex": (X + 1j, ValueError, "Complex data not supported: X is torch.complex64"),
    "complex array": (X.numpy() + 1j, ValueError, "Complex data not supported: X is complex64"),
    "huge": (X * 1e30, ValueError, r"X has entries up to \S+, too large for their products; rescale them"),
    "sparse": (X.to_sparse(), TypeError, r"X is a sparse tensor, which is not supported; use X.to_dense\(\)"),
    "text": ([["a", "b"]], ValueError, "could not convert string to float"),
}


@pytest.mark.parametrize(("x", "error", "message"), WRONG.values(), ids=WRONG)
def test_vectors(x, error, message):
    """Of documents, of more of them and of queries; what was there stays."""
    with pytest.raises(error, match=message):
        TTIndex(20).fit(x)
    index = TTIndex(20).fit(X)
    before = index._stored
    for call in (index.add, index.kneighbors, index.partial_fit):
        with pytest.raises(error, match=message):
            call(x)
    assert index._stored is before


def test_sparse_matrices_of_scipy():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"X is a sparse matrix, which is not supported; use X.toarray\(\)"):
        TTIndex().fit(sparse.csr_matrix(X.numpy()))


def test_zero_vectors_have_an_inner_product():
    index = TTIndex(None, metric="inner_product", bits=8).fit(with_zero(X))
    distances, ids = index.kneighbors(torch.zeros(1, 48), 3)
    assert distances.abs().max() == 0
    distances, ids = index.kneighbors(Q, 60)
    assert distances[ids == 1].abs().max() < 0.1


def test_widths_and_numbers():
    index = TTIndex(20).fit(X)
    with pytest.raises(ValueError, match="X has 47 features, but TTIndex is expecting 48 features as input"):
        index.kneighbors(Q[:, 1:])
    with pytest.raises(ValueError, match="X has 49 features"):
        index.add(torch.ones(1, 49))
    with pytest.raises(ValueError, match="n_neighbors is 61, but the index holds 60 documents; ask for fewer or add"):
        index.kneighbors(Q, 61)
    with pytest.raises(ValueError, match="n_neighbors must be at least 1, got 0"):
        index.kneighbors(Q, 0)
    with pytest.raises(TypeError, match="n_neighbors must be an integer, got 2.5"):
        index.kneighbors(Q, 2.5)


IDS = {
    "equal": ([1, 2, 1] + list(range(3, 60)), ValueError, "ids has 1 twice; every document needs an id of its own"),
    "too few": (range(59), ValueError, r"ids has shape \(59,\) for 60 vectors; give one id for each vector"),
    "two axes": (torch.zeros(60, 1).long(), ValueError, r"ids has shape \(60, 1\) for 60 vectors"),
    "negative": (range(-1, 59), ValueError, "ids has -1; ids are integers from 0 on"),
    "text": (
        [str(k) for k in range(60)],
        TypeError,
        r"ids must be integers below 2\^63, one for each vector, got \['0'",
    ),
    "fractions": (np.arange(60) / 2, TypeError, "ids must be integers below"),
    "float tensor": (torch.arange(60.0), TypeError, "ids must be integers, got torch.float32; keep a dict from your"),
    "truth": ([True] * 60, TypeError, "ids must be integers below"),
    "too large": ([2**63] + list(range(59)), TypeError, "ids must be integers below"),
    "the largest": ([2**63 - 1] + list(range(59)), ValueError, r"ids has 9223372036854775807; .* up to 2\^63 - 2"),
    "one": (3, TypeError, "ids must be integers below"),
}


@pytest.mark.parametrize(("ids", "error", "message"), IDS.values(), ids=IDS)
def test_ids(ids, error, message):
    with pytest.raises(error, match=message):
        TTIndex(20).fit(X, ids=ids)
    index = TTIndex(20).fit(texts(10, seed=2), ids=range(1000, 1010))
    before = index._stored
    with pytest.raises(error, match=message):
        index.add(X, ids=ids)
    assert index._stored is before


def test_ids_that_are_there_and_ids_that_are_not():
    index = TTIndex(20).fit(X)
    before = index._stored
    with pytest.raises(ValueError, match=r"ids has 7, which the index holds already; remove\(\[7\]\) first"):
        index.add(X[:2], ids=[99, 7])
    with pytest.raises(KeyError, match="the index has no document 77 and 1 more; nothing was removed"):
        index.remove([5, 77, 78])
    with pytest.raises(ValueError, match="ids has 5 twice"):
        index.remove([5, 5])
    with pytest.raises(TypeError, match="ids must be integers"):
        index.remove("5")
    assert index._stored is before and index.remove([]).n_samples_fit_ == 60


def test_no_ids_are_left():
    index = TTIndex(20).fit(X, ids=range(2**63 - 61, 2**63 - 1))
    with pytest.raises(ValueError, match="no ids after 9223372036854775806 for 2 more documents; give ids"):
        index.add(X[:2])
    assert index.add(X[:2], ids=[3, 4]).tolist() == [3, 4]


def test_a_document_too_long_is_named_by_its_own_place_and_length(monkeypatch):
    monkeypatch.setattr("ttref.retrieval.grid.AT_ONCE", 4)
    index = TTIndex(None, metric="inner_product").fit(X)
    more = X[:12].clone()
    more[6] *= 1e6
    more[7] *= 1e9
    with pytest.raises(ValueError, match=r"document 6 is \d\S*e\+0[56] times as long as the typical one"):
        index.add(more)


PARAMETERS = [
    ({"bits": 3}, ValueError, "bits must be one of 1, 2, 4, 8, 32, got 3"),
    ({"bits": True}, ValueError, "bits must be one of 1, 2, 4, 8, 32, got True"),
    ({"metric": "euclidean"}, ValueError, "metric must be one of 'cosine', 'inner_product', got 'euclidean'"),
    ({"core_bits": 4}, ValueError, "core_bits must be one of 8, 32, got 4"),
    ({"engine": "gpu"}, ValueError, "engine must be one of 'auto', 'int8', 'float', got 'gpu'"),
    ({"engine": "int8", "bits": 32}, ValueError, "engine='int8' needs codes of 8 bits or fewer, and bits is 32"),
    ({"backend": "annoy"}, ValueError, "backend must be one of 'torch', 'faiss', got 'annoy'"),
    ({"bits": 4.0}, TypeError, "bits must be an integer, got 4.0"),
    ({"core_bits": 8.0}, TypeError, "core_bits must be an integer, got 8.0"),
    ({"random_state": -1}, ValueError, "random_state must be at least 0, got -1"),
    ({"random_state": 2**64}, ValueError, r"random_state must be below 2\^64, got 18446744073709551616"),
    ({"n_components": 0}, ValueError, "n_components must be at least 1, got 0"),
    ({"n_components": 2.0}, TypeError, "n_components must be an integer"),
    ({"random_state": None}, TypeError, "random_state must be an integer, got None"),
    ({"rotate": 1}, TypeError, "rotate must be True or False, got 1"),
    ({"rank": 4}, ValueError, "rank caps the ranks between shared cores, of which there is one; give shape"),
    ({"shape": (6, 7)}, ValueError, r"shape \(6, 7\) multiplies to 42, but documents have 48 entries"),
    ({"shape": 48}, TypeError, "shape must be a sequence of modes"),
    ({"shape": (6, 8), "rank": 0}, ValueError, "rank"),
]


@pytest.mark.parametrize(("how", "error", "message"), PARAMETERS, ids=str)
def test_parameters(how, error, message):
    """They are stored as they are, as scikit-learn wants it, and refused by the fit."""
    index = TTIndex(**how)
    with pytest.raises(error, match=message):
        index.fit(X)
    fitted = TTIndex(20).fit(X)
    before = fitted._stored
    with pytest.raises(error, match=message):
        fitted.set_params(**how).fit(X)
    assert fitted._stored is before
    if "engine" in how or "backend" in how:
        with pytest.raises(error, match=message):
            TTIndex(20, bits=how.get("bits", 4)).fit(X).set_params(**how).kneighbors(Q)


def test_more_components_than_there_are_become_the_width():
    assert TTIndex(1000).fit(X).n_components_ == TTIndex(None).fit(X).n_components_ == 48
    assert TTIndex(1000, shape=(6, 8)).fit(X).ranks == (1, 48, 8, 1)
