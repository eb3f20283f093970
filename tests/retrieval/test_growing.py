"""Documents that come and go: codes of the others stay bit for bit, ids stay theirs, ranges stay those of the fit."""

import numpy as np
import pytest
import torch
from corpora import asked, texts

from ttref.retrieval import TTIndex

X = texts(260)
Q = asked(X, 8)
KINDS = [{}, {"bits": 8}, {"bits": 2, "metric": "inner_product"}, {"bits": 32}, {"backend": "faiss"}]
kinds = pytest.mark.parametrize("how", KINDS, ids=str)


def fitted(how, x=X[:200], **more):
    if how.get("backend") == "faiss":
        pytest.importorskip("faiss")
    return TTIndex(30, **how).fit(x, **more)


def rows(index):
    """Codes and scale of each document by its id."""
    held = index._stored
    scales = held.scales if len(held.scales) else held.codes
    return {id: (code, scale) for id, code, scale in zip(index.ids_.tolist(), held.codes, scales, strict=True)}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(a, b) for key in one for a, b in zip(one[key], other[key], strict=True))


def agree(one, other):
    """Equal answers, distances to rounding."""
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-5)
    return torch.equal(one[1], other[1])


@kinds
def test_codes_of_old_documents_stay(how):
    index = fitted(how)
    before, shared = rows(index), index._stored.tensors()
    assert index.add(X[200:]).tolist() == list(range(200, 260))
    after = rows(index)
    assert len(after) == 260 and same({k: after[k] for k in before}, before)
    for name in ("mean", "cores.0", *(["ranges", "unit"] if index.bits != 32 else [])):
        assert torch.equal(index._stored.tensors()[name], shared[name])
    if index.metric == "cosine":  # by inner product a longer one may be nearer than a document itself
        assert index.kneighbors(X[200:], 1)[1][:, 0].tolist() == list(range(200, 260))


@kinds
def test_what_is_removed_and_added_again_is_as_before(how):
    index = fitted(how, X)
    before, expected = rows(index), index.kneighbors(Q, 20)
    index.remove([3, 250, 17])
    assert index.n_samples_fit_ == 257 and not torch.isin(torch.tensor([3, 250, 17]), index.kneighbors(Q, 257)[1]).any()
    left = rows(index)
    assert same(left, {k: before[k] for k in left})
    index.add(X[[17, 3, 250]], ids=[17, 3, 250])
    assert same(rows(index), before) and agree(index.kneighbors(Q, 20), expected)


@kinds
def test_the_order_of_added_documents_does_not_matter(how):
    one, other = fitted(how), fitted(how)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2)) + 200
    one.add(X[200:], ids=range(200, 260))
    for part in order.split(7):
        other.add(X[part], ids=part)
    assert same(rows(one), rows(other)) and agree(one.kneighbors(Q, 30), other.kneighbors(Q, 30))


def test_partial_fit_fits_once_and_then_adds():
    index = TTIndex(30)
    assert index.partial_fit(X[:200]) is index and index.partial_fit(X[200:], ids=np.arange(1000, 1060)) is index
    expected = fitted({})
    expected.add(X[200:], ids=range(1000, 1060))
    assert same(rows(index), rows(expected)) and index.n_samples_fit_ == 260


def test_a_single_document_is_coded_as_among_others():
    """Nothing of a code comes from the batch it is in."""
    together, alone = fitted({}), fitted({})
    together.add(X[200:])
    for k in range(200, 260):
        alone.add(X[k : k + 1])
    assert same(rows(together), rows(alone))


def test_ids_are_those_given():
    index = fitted({}, ids=torch.arange(200) * 3 + 7)
    assert index.kneighbors(X[:5], 1)[1][:, 0].tolist() == [7, 10, 13, 16, 19]
    assert index.add(X[200:202]).tolist() == [605, 606]  # after the largest
    assert index.add(X[202:203], ids=[2**40]).tolist() == [2**40]
    assert index.kneighbors(X[202:203], 1)[1].item() == 2**40
    index.remove(2**40).remove(np.int64(606))
    index.add(X[203:204], ids=[1])
    assert index.add(X[202:203]).tolist() == [2**40 + 1]  # one that was removed does not come back
    assert TTIndex(8).fit(X[:3], ids=np.array([5, 2, 9], dtype=np.uint16)).ids_.tolist() == [5, 2, 9]


def test_ids_take_bytes_only_where_they_say_something():
    plain = fitted({})
    assert plain.code_nbytes == 15 + 2 and plain._stored.ids is None
    kept = plain.nbytes
    plain.add(X[200:])
    assert plain.nbytes == kept + 60 * 17
    assert fitted({}, ids=range(1, 201)).code_nbytes == 17 + 4
    assert fitted({}, ids=[2**31 + k for k in range(200)]).code_nbytes == 17 + 8
    assert plain.remove(range(200, 260)).nbytes == kept


def test_an_index_can_be_emptied_and_filled_again():
    index = fitted({})
    index.remove(index.ids_)
    assert index.n_samples_fit_ == 0 and index.dense().shape == (0, 48)
    with pytest.raises(ValueError, match="n_neighbors is 1, but the index holds 0 documents; add documents first"):
        index.kneighbors(Q, 1)
    assert index.add(X[:3]).tolist() == [200, 201, 202]
    assert index.kneighbors(X[:3], 1)[1][:, 0].tolist() == [200, 201, 202]


def test_fit_forgets_what_was_there():
    index = fitted({}, ids=range(500, 700))
    assert index.fit(X[:50]).ids_.tolist() == list(range(50)) and index.add(X[:1]).tolist() == [50]


def test_an_index_fitted_on_one_document_takes_others():
    """One has no variance and no ranges: the directions are anybody's, and still all of the space."""
    for bits in (1, 4, 8, 32):
        index = TTIndex(None, bits=bits).fit(X[:1])
        index.add(X[1:])
        assert index.kneighbors(X[:1], 1)[1].item() == 0
        if bits > 1:
            assert (index.kneighbors(X, 1)[1][:, 0] == torch.arange(260)).double().mean() > 0.9
