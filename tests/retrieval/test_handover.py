"""FAISS as the scanner: exactly our levels, and the answers of the scan here."""

import pytest
import torch
from corpora import asked, texts

from ttref.retrieval import TTIndex
from ttref.retrieval.handover import Scanner, handed_over
from ttref.retrieval.scanning import nearest

pytest.importorskip("faiss")
X = texts(3000, 40, seed=1)
Q = asked(X, 20, seed=2)
BITS = (1, 2, 4, 8, 32)


def lengthened(x):
    return x * 3 ** (2 * torch.rand(len(x), 1, generator=torch.Generator().manual_seed(5)) - 1)


@pytest.mark.parametrize("width", [40, 37])
@pytest.mark.parametrize("bits", BITS)
def test_faiss_holds_the_levels_exactly(bits, width):
    held = TTIndex(None, bits=bits).fit(X[:, :width])._stored
    library = handed_over(held.grid, held.codes)
    levels = torch.from_numpy(library.reconstruct_n(0, len(X)))
    torch.testing.assert_close(levels, held.grid.levels(held.codes), rtol=0, atol=1e-5)
    size = {1: 5, 2: 10, 4: 20, 8: 40, 32: 160}[bits]
    assert library.ntotal == 3000 and (width < 40 or library.sa_code_size() == size)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
@pytest.mark.parametrize("bits", BITS)
def test_answers_are_those_of_the_scan(bits, metric):
    x = lengthened(X) if metric == "inner_product" else X
    index = TTIndex(32, bits=bits, metric=metric).fit(x)
    for k in (1, 10, 60):
        expected = index.set_params(backend="torch").kneighbors(Q, k)
        found = index.set_params(backend="faiss").kneighbors(Q, k)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
        assert (found[1] == expected[1]).double().mean() > 0.999


def test_it_is_asked_for_more_until_no_long_document_is_missing():
    """A few documents are so long that they win with a poor direction, which is all that FAISS sees."""
    x = X.clone()
    x[::100] *= 20
    index = TTIndex(32, metric="inner_product").fit(x)
    held, asked_for = index._stored, []
    parts = held.grid, held.codes, held.scales
    scanner = Scanner(*parts)
    library = scanner.index

    class Counting:
        def search(self, q, count):
            asked_for.append(count)
            return library.search(q, count)

    scanner.index = Counting()
    q = held.shared.carried(Q)
    found = nearest(*parts, q, 10, scanner.find)
    expected = index.kneighbors(Q, 10)
    assert torch.equal(found[1], expected[1]) and asked_for[0] == 72 < max(asked_for, default=0)
    exact = (Q @ index.dense().mT).topk(10, dim=1).values
    torch.testing.assert_close(-expected[0], exact, rtol=1e-4, atol=1e-4)
    _, first = library.search(held.grid.queries(q).numpy(), asked_for[0])
    there = (torch.from_numpy(first).unsqueeze(2) == expected[1].unsqueeze(1)).any(1)
    assert not there.all()  # so the first answer was not enough


def test_the_copy_follows_what_the_index_holds():
    index = TTIndex(32, backend="faiss").fit(X)
    index.kneighbors(Q)
    first = index._scanner.index
    index.kneighbors(Q)
    assert index._scanner.index is first and first.ntotal == 3000
    index.add(Q)
    ids = index.kneighbors(Q, 1)[1][:, 0]
    assert ids.tolist() == list(range(3000, 3020)) and index._scanner.index.ntotal == 3020
    index.remove(range(3000, 3020))
    assert index.kneighbors(Q, 1)[1].max() < 3000 and index._scanner.index.ntotal == 3000


def test_few_documents_are_all_candidates():
    index = TTIndex(16, backend="faiss").fit(X[:30])
    expected = TTIndex(16).fit(X[:30]).kneighbors(Q, 30)
    found = index.kneighbors(Q, 30)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[0], expected[0])
