"""A table in a folder: rows from the shards that hold them, all of it in one, and an index of its rows."""

import pytest
import torch
from compressed import smooth
from row_sources import written
from strategies import agree, gaussian

import ttref
from ttref import MPSEmbedding
from ttref.retrieval import TTIndex
from ttref.scale import Table, compress_rows

HERE = {"engine": "pool", "workers": 1}


def table_of(folder, rows, **how):
    folder.mkdir(exist_ok=True)
    source = written(folder, rows, "npy")
    return compress_rows(source, folder / "out", **({"rank": 2, "rows_per_shard": 30} | how), **HERE).table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("table")


@pytest.fixture(scope="module")
def table(folder):
    return table_of(folder, smooth(100, 24), eps=0.2, rank=None, center=True)


def opened(monkeypatch):
    """The names of the files that are loaded from now on."""
    names, load = [], MPSEmbedding.load
    monkeypatch.setattr(MPSEmbedding, "load", lambda path: names.append(path.name[5:10]) or load(path))
    return names


def test_only_shards_that_hold_the_ids_are_read(folder, table, monkeypatch):
    table, dense = Table(folder / "out"), table.dense()
    names = opened(monkeypatch)
    ids = torch.tensor([99, 3, 3, 98, 29, 0], dtype=torch.int32)
    assert agree(table.rows(ids), dense[ids.long()]) and names == ["00001", "00004"]
    assert agree(table.rows([95]), dense[95:96]) and names == ["00001", "00004"]  # the last one stays
    assert table.rows([]).shape == (0, 24)


@pytest.mark.parametrize(
    "ids, error, says",
    [
        ([100], IndexError, "id 100 is out of range: the table has 100 rows"),
        ([-1], IndexError, "id -1 is out of range"),
        ([1.0], TypeError, "ids must be a tensor of int32 or int64"),
        ([[1]], ValueError, r"ids have shape \(1, 1\); rows takes one axis"),
        (torch.tensor(1), ValueError, r"ids have shape \(\); rows takes one axis"),
        (1, ValueError, r"ids have shape \(\); rows takes one axis"),
    ],
)
def test_ids_that_are_none(table, ids, error, says):
    with pytest.raises(error, match=says):
        table.rows(ids)


def test_it_gives_the_account_of_everything_compressed(table):
    assert isinstance(table, ttref.Compressed)
    whole = table.embedding()
    assert (len(table), table.embedding_dim, table.dtype) == (100, 24, torch.float32)
    assert (table.ranks, table.modes, table.dense_nbytes) == (whole.ranks, whole.modes, whole.dense_nbytes)
    assert table.params == sum(shard.params for shard in table) and table.nbytes == sum(s.nbytes for s in table)
    assert table.ratio == 2400 / table.params
    assert repr(table) == f"Table(100, 24, 4 shards, shape=(2, 2, 2, 2, 2), ratio={table.ratio:.3g})"
    assert agree(table.dense(), whole.dense())
    assert table.about["source"] == [{"name": "rows.npy", "rows": 100, "nbytes": 9728}]


def test_one_file_of_it_all(folder, table):
    table.save(folder / "whole.safetensors")
    assert torch.equal(ttref.load(folder / "whole.safetensors").dense(), table.embedding().dense())
    assert ttref.load(folder / "out").shards == table.shards


def test_the_whole_can_be_used_as_any_table(table):
    whole = table.embedding()
    assert not any(parameter.requires_grad for parameter in whole.parameters())
    ids = whole.append(smooth(2, 24, 5))
    assert ids.tolist() == [100, 101] and agree(whole.rows(ids[:0]), whole.dense()[:0])


@pytest.mark.parametrize("damage", ["damaged", "another", "gone"])
def test_a_shard_is_checked_when_it_is_opened(tmp_path, damage):
    table, path = table_of(tmp_path, smooth(60, 24)), tmp_path / "out" / "rows-00002-of-00002.safetensors"
    if damage == "damaged":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "another":
        path.write_bytes((tmp_path / "out" / "rows-00001-of-00002.safetensors").read_bytes())
    else:
        path.unlink()
    assert table.rows([29]).shape == (1, 24)
    says = {"damaged": "its sha256 differs", "another": "is not the file that table.json lists", "gone": "no file"}
    says = f"{says[damage]}.*: call compress_rows as before, which makes lost and damaged shards again"
    with pytest.raises(FileNotFoundError if damage == "gone" else ValueError, match=says):
        table.rows([30])
    assert table_of(tmp_path, smooth(60, 24)).rows([30]).shape == table.rows([30]).shape == (1, 24)


def same(one, other):
    one, other = one._stored, other._stored
    return all(torch.equal(one.tensors()[name], other.tensors()[name]) for name in one.tensors()) and (
        one.header() == other.header()
    )


def test_an_index_of_a_small_table_is_that_of_one_fit(tmp_path):
    table = table_of(tmp_path, gaussian((70, 24), 0, torch.float32), rank=4)
    index = TTIndex(8, bits=8)
    assert table.index(index) is index
    assert same(index, TTIndex(8, bits=8).fit(table.dense()))


@pytest.mark.parametrize("how", [{}, {"metric": "inner_product", "bits": 8}, {"bits": 32}])
def test_an_index_is_fitted_to_a_sample_and_filled_shard_by_shard(table, how):
    index = table.index(TTIndex(12, **how), sample=40)
    chosen = torch.arange(40) * 100 // 40
    twin = TTIndex(12, **how).fit(table.rows(chosen), ids=chosen)
    twin.remove(chosen).add(table.dense(), ids=torch.arange(100))
    assert same(index, twin) and index.ids_.tolist() == list(range(100))
    _, ids = index.kneighbors(table.rows([0, 31, 99]), 3)
    assert ids.shape == (3, 3)


def test_each_row_is_coded_once(table, monkeypatch):
    """A shard is not added behind the codes of those before it, which each time would be copied."""
    held, add = [], TTIndex.add
    monkeypatch.setattr(TTIndex, "add", lambda self, *given: held.append(self.n_samples_fit_) or add(self, *given))
    assert table.index(TTIndex(12), sample=40).n_samples_fit_ == 100 and held == [0] * 4


def test_an_index_is_filled_or_left_as_it_was(tmp_path):
    rows = smooth(60, 24)
    rows[45] = 0
    table, index = table_of(tmp_path, rows), TTIndex(8)
    for sample in (20, 60):
        with pytest.raises(ValueError, match="zero"):
            table.index(index, sample=sample)
    assert index._stored is None
    with pytest.raises(ValueError, match="holds documents already"):
        table.index(TTIndex(8).fit(rows[:40]))
    with pytest.raises(ValueError, match="sample must be at least 1"):
        table.index(index, sample=0)
