"""Distances and ids against a search without an index, over the documents as they are decoded."""

import itertools

import pytest
import torch
from compressed import Largest
from corpora import asked, scores, texts
from torch.nn import functional as F

from ttref import tt_svd, tt_to_tensor
from ttref.codes import unpack_bits
from ttref.retrieval import TTIndex, scanning
from ttref.retrieval.grid import STEPS

BITS = (1, 2, 4, 8, 32)
METRICS = ("cosine", "inner_product")
X = texts(400)
Q = asked(X, 9)


def lengthened(x, seed=5):
    """Documents whose norms differ by a factor of nine."""
    return x * 3 ** (2 * torch.rand(len(x), 1, generator=torch.Generator().manual_seed(seed)) - 1)


def decoded(index):
    """The documents by the definition: every code looked at alone, in float64."""
    held = index._stored
    n, r = held.count, held.shared.rank
    made = held.shared.floats()[0].double()
    for core in held.shared.floats()[1:]:
        made = torch.einsum("...i,inj->...nj", made, core.double())
    basis = made.reshape(r, -1)
    if held.grid.bits == 32:
        return held.codes.double() @ basis + held.shared.mean.double()
    if held.grid.bits == 8:
        codes = held.codes.double()
    else:
        together = 8 // held.grid.bits
        padded = -(-r // together) * together
        codes = unpack_bits(held.codes.reshape(-1), held.grid.bits, n * padded, signed=False).view(n, padded)[:, :r]
        codes = codes.double() - 2 ** (held.grid.bits - 1)
    levels = (codes + 0.5) * STEPS[held.grid.bits] * held.grid.ranges.double()
    return levels * held.scales.double().unsqueeze(1) * held.grid.unit.double() @ basis + held.shared.mean.double()


@pytest.mark.parametrize("how", [{}, {"core_bits": 32}, {"shape": (4, 12), "rank": 9}, {"shape": (4, 3, 4)}], ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bits", BITS)
def test_distances_are_those_of_the_decoded_documents(bits, metric, how):
    x = lengthened(X) if metric == "inner_product" else X
    index = TTIndex(30, bits=bits, metric=metric, **how).fit(x)
    exact = decoded(index)
    torch.testing.assert_close(index.dense().double(), exact, rtol=1e-5, atol=1e-5)
    q = F.normalize(Q, dim=1) if metric == "cosine" else Q
    expected = q.double() @ exact.mT
    for engine in ("auto", "float"):
        distances, ids = index.set_params(engine=engine).kneighbors(Q, 10)
        assert distances.dtype == torch.float32 and ids.dtype == torch.int64
        found = (1 if metric == "cosine" else 0) - distances.double()
        bound = 1e-5 * expected.abs().max()
        assert (found - expected.gather(1, ids)).abs().max() <= bound
        assert (found - expected.topk(10, dim=1).values).abs().max() <= bound  # so no better document was missed


@pytest.mark.parametrize(("bits", "metric"), list(itertools.product(BITS[:-1], METRICS)))
def test_integers_find_what_floating_point_finds_to_the_bit(bits, metric):
    index = TTIndex(30, bits=bits, metric=metric).fit(lengthened(X))
    for k in (1, 10, 400):
        integers, floats = (index.set_params(engine=engine).kneighbors(Q, k) for engine in ("int8", "float"))
        assert torch.equal(integers[0], floats[0]) and torch.equal(integers[1], floats[1])


@pytest.mark.parametrize("bits", BITS)
def test_one_query_is_scored_as_in_a_batch(bits):
    """Ranges are those of the fit, and each query has a scale of its own: a batch of one is nothing special."""
    index = TTIndex(30, bits=bits).fit(X)
    distances, ids = index.kneighbors(Q, 7)
    for k in range(len(Q)):
        alone, names = index.kneighbors(Q[k : k + 1], 7)
        torch.testing.assert_close(alone[0], distances[k], rtol=0, atol=1e-6)
        assert torch.equal(names[0], ids[k])


def test_a_small_query_is_scored_beside_a_large_one():
    """Integers have one scale for each query: in that of the batch a small query would be all zeros."""
    index = TTIndex(30, metric="inner_product").fit(lengthened(X))
    q = Q * torch.logspace(-6, 3, len(Q)).unsqueeze(1)
    expected, found = index.kneighbors(Q, 5), index.kneighbors(q, 5)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0] / torch.logspace(-6, 3, len(Q)).unsqueeze(1), expected[0], rtol=1e-4, atol=1e-4)


def test_blocks_of_documents_and_of_queries_change_nothing(monkeypatch):
    index = TTIndex(30, metric="inner_product").fit(lengthened(X))
    for engine in ("int8", "float"):
        expected = index.set_params(engine=engine).kneighbors(Q, 12)
        for name, size in (
            ("scanning.DOCUMENTS", 7),
            ("scanning.SCORED", 99),
            ("scanning.PIECE", 99),
            ("scanning.UNPACKED", 64),
            ("index.QUERIES", 2),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(f"ttref.retrieval.{name}", size)
                found = index.kneighbors(Q, 12)
            torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
            assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("how", ["as they come", "better and better", "alike"])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_no_document_is_missed_among_many(bits, how, monkeypatch):
    """Scores are looked at in groups, and against those of the blocks before."""
    monkeypatch.setattr("ttref.retrieval.scanning.DOCUMENTS", 2000)
    x = texts(9000, 16, seed=7)
    q = asked(x, 6, seed=8)
    if how == "better and better":
        x = x[(x @ q[0]).argsort()]
    if how == "alike":
        x = x[:90].repeat(100, 1)
    index = TTIndex(16, bits=bits, metric="inner_product").fit(x)
    expected = q.double() @ index.dense().double().mT
    for engine, k in itertools.product(["auto", "float"], [1, 10, 100]):
        distances, ids = index.set_params(engine=engine).kneighbors(q, k)
        torch.testing.assert_close(-distances.double(), expected.topk(k, dim=1).values, rtol=0, atol=1e-5)
        torch.testing.assert_close(-distances.double(), expected.gather(1, ids), rtol=0, atol=1e-5)
        assert all(len(set(row)) == k for row in ids.tolist())


def test_working_memory_does_not_grow_with_the_documents(monkeypatch):
    small, large = TTIndex(16).fit(texts(20_000, 16)), TTIndex(16).fit(texts(60_000, 16))
    sizes = []
    for index in (small, large):
        with Largest() as largest:
            index.kneighbors(texts(300, 16, seed=3), 5)
        sizes.append(largest.numbers)
    assert sizes[0] == sizes[1] <= 4 << 20
    monkeypatch.setattr("ttref.retrieval.scanning.UNPACKED", 1 << 15)
    with Largest() as largest:  # all of them, in order: the answer is large, and no coordinates beside it
        large.kneighbors(X[:2, :16], 60_000)
    assert largest.numbers == large._stored.codes.numel() == 60_000 * 16 // 2


def test_a_query_is_carried_through_the_cores_as_through_the_basis():
    for shape, rank in (((48,), None), ((4, 12), 5), ((2, 6, 4), (1, 11, 3, 1))):
        rank = rank if len(shape) > 1 else None
        shared = TTIndex(20, shape=shape, rank=rank).fit(X)._stored.shared
        torch.testing.assert_close(shared.carried(Q), Q @ shared.basis().mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [None, (6, 8), (4, 3, 4)])
def test_documents_minus_their_mean_are_the_train_where_nothing_is_cut(shape):
    index = TTIndex(None, bits=32, metric="inner_product", shape=shape, core_bits=32).fit(X)
    torch.testing.assert_close(index.dense(), X, rtol=0, atol=1e-5)
    assert index.n_components_ == 48
    index = TTIndex(None, bits=32, metric="inner_product", shape=shape, core_bits=8).fit(X)
    torch.testing.assert_close(index.dense(), X, rtol=0, atol=1e-4)  # coordinates make up for rounded cores


@pytest.mark.parametrize("rank", [2, 4])
def test_a_train_loses_no_more_than_that_of_the_documents_themselves(rank):
    """The shared cores are cut where the documents vary least, not where the axes are many."""
    x = X * torch.logspace(0, -2, 48)
    index = TTIndex(12, bits=32, metric="inner_product", shape=(6, 8), rank=rank, core_bits=32).fit(x)
    r, centered = index.n_components_, x - x.mean(0)
    twin = tt_to_tensor(tt_svd(centered.reshape(-1, 6, 8), rank=(1, r, rank, 1))).reshape(-1, 48)
    lost = torch.linalg.vector_norm(index.dense() - x)
    assert lost <= 1.02 * torch.linalg.vector_norm(twin - centered)


def test_equal_documents_come_in_their_order():
    x = X[:40].repeat(3, 1)
    for engine in ("int8", "float"):
        ids = TTIndex(30, engine=engine).fit(x).kneighbors(X[:5], 3, return_distance=False)
        assert ids.tolist() == [[k, 40 + k, 80 + k] for k in range(5)]


def test_the_kinds_of_vectors_are_one():
    np = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas")
    tensor = TTIndex(20).fit(X).kneighbors(Q, 4)
    for kind in (
        lambda x: x.numpy(),
        lambda x: x.double().numpy(),
        lambda x: x.tolist(),
        lambda x: pandas.DataFrame(x),
    ):
        distances, ids = TTIndex(20).fit(kind(X)).kneighbors(kind(Q), 4)
        assert isinstance(distances, np.ndarray) and isinstance(ids, np.ndarray)
        assert np.array_equal(ids, tensor[1].numpy()) and np.allclose(distances, tensor[0].numpy(), atol=1e-6)
    half = TTIndex(20).fit(X.bfloat16()).kneighbors(list(Q), 4)
    assert torch.isin(torch.as_tensor(half[1])[:, 0], tensor[1]).all()


def test_the_twin_without_an_index_is_the_nearest_there_is():
    """At full width and in float32 nothing is lost."""
    for metric in METRICS:
        index = TTIndex(None, bits=32, metric=metric).fit(lengthened(X))
        true = scores(lengthened(X), Q, metric).topk(10, dim=1)
        distances, ids = index.kneighbors(Q, 10)
        assert torch.equal(ids, true.indices)
        expected = (1 if metric == "cosine" else 0) - true.values
        torch.testing.assert_close(distances.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["auto", "int8"])
@pytest.mark.parametrize(("rotate", "bits"), [(False, 8), (True, 8), (True, 4)])
def test_integers_lose_no_neighbor_where_rounding_hides_the_differences(rotate, bits, engine):
    """One large axis takes the whole scale of a query; nearly equal documents differ by less than it rounds."""
    generator = torch.Generator().manual_seed(4)
    x, q = torch.randn(6000, 64, generator=generator), torch.randn(20, 64, generator=generator)
    if rotate:
        x, q = x[:1] + 0.01 * x, x[:1] + 0.01 * q
    else:
        x[:, 0], q[:, 0] = 100 * x[:, 0], 100 * q[:, 0]
    index = TTIndex(64, rotate=rotate, bits=bits).fit(x)
    expected, found = (index.set_params(engine=name).kneighbors(q, 10) for name in ("float", engine))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-7)
    assert (found[1] == expected[1]).double().mean() > 0.99  # equal to float32's own rounding


@pytest.mark.parametrize(("how", "integers"), [({}, True), ({"rotate": False}, False), ({"bits": 32}, False)], ids=str)
def test_the_engine_that_auto_takes(how, integers, monkeypatch):
    index, taken = TTIndex(30, **how).fit(X), []
    product = scanning.int_product
    monkeypatch.setattr(scanning, "int_product", lambda *args: taken.append(1) or product(*args))
    index.kneighbors(Q, 3)
    assert bool(taken) == integers
