"""Files of rows: what they say, what they hold piece by piece, and what is refused."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from row_sources import KINDS, floats, lists, written
from safetensors.torch import save_file
from strategies import gaussian

from ttref.scale.sources import open_source, read_pieces

ROWS = gaussian((50, 6), 0, torch.float32)


def held(source, most=7, start=0, stop=None):
    """All rows, through pieces and blocks."""
    stop = source.rows if stop is None else stop
    blocks = [(before, rows.clone(), wrong) for before, rows, wrong in read(source, start, stop, most)]
    assert [before for before, _, _ in blocks] == list(range(0, stop - start, most))
    return torch.cat([rows for _, rows, _ in blocks]), {
        a + k: why for a, _, wrong in blocks for k, why in wrong.items()
    }


def read(source, start, stop, most):
    return read_pieces(source.pieces(start, stop), source.width, source.dtype, most)


EVERY = [(kind, dtype) for kind in KINDS for dtype in (torch.float64, torch.float32, torch.float16)]


@pytest.mark.parametrize("kind, dtype", [*EVERY, ("safetensors", torch.bfloat16)])
def test_every_kind_holds_the_same_rows(tmp_path, kind, dtype):
    rows = ROWS.to(dtype)
    source = open_source(written(tmp_path, rows, kind))
    assert (source.rows, source.width, source.dtype) == (50, 6, dtype)
    for start, stop in [(0, 50), (13, 14), (17, 45)]:
        found, wrong = held(source, start=start, stop=stop)
        assert found.dtype == dtype and torch.equal(found, rows[start:stop]) and not wrong


def test_blocks_run_over_files(tmp_path):
    paths = [written(tmp_path, part, "npy", f"{k}") for k, part in enumerate(ROWS.split([20, 1, 29]))]
    source = open_source(paths)
    assert torch.equal(held(source, 8)[0], ROWS)
    assert [(piece["start"], piece["stop"]) for piece in source.pieces(19, 25)] == [(19, 20), (0, 1), (0, 4)]


def test_files_of_a_folder_come_in_the_order_of_their_names(tmp_path):
    for k, part in enumerate(ROWS.split(20)):
        written(tmp_path, part, "npy", f"part-{k}")
    (tmp_path / "README.md").write_text("what this is")
    (tmp_path / ".hidden.npy").write_text("no rows")
    source = open_source(tmp_path)
    assert torch.equal(held(source)[0], ROWS) and source.folder == tmp_path
    written(tmp_path, ROWS, "npy", "part-10")
    with pytest.raises(ValueError, match=r"part-10\.npy comes before part-2\.npy, by their numbers after it"):
        open_source(tmp_path)


def test_a_list_of_shards(tmp_path):
    save_file({"embed.weight": ROWS, "norm": ROWS[0].clone()}, tmp_path / "model-1.safetensors")
    save_file({"head": ROWS[:3].clone()}, tmp_path / "model-2.safetensors")
    names = {"embed.weight": "model-1.safetensors", "norm": "model-1.safetensors", "head": "model-2.safetensors"}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": names}))
    for where in (path, tmp_path):
        assert torch.equal(held(open_source(where, "embed.weight"))[0], ROWS)
    with pytest.raises(ValueError, match=r"lists 3 tensors \(embed.weight, norm, head\); name the one"):
        open_source(path)
    with pytest.raises(ValueError, match="lists no tensor 'wte'"):
        open_source(path, "wte")
    with pytest.raises(ValueError, match=r"norm in .* is F32 \(6,\); rows are a matrix"):
        open_source(path, "norm")


def test_row_groups_are_entered_in_the_middle(tmp_path):
    pq.write_table(pa.table({"x": lists(ROWS)}), tmp_path / "a.parquet", row_group_size=11)
    source = open_source(tmp_path / "a.parquet")
    for start, stop in [(0, 50), (10, 12), (11, 22), (32, 50), (49, 50)]:
        assert torch.equal(held(source, 4, start, stop)[0], ROWS[start:stop])


def test_rows_that_are_not_there_are_told_apart(tmp_path):
    rows = ROWS.tolist()
    rows[3], rows[20], rows[49] = None, rows[20][:5], [*rows[49][:5], None]
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float32())):
        pq.write_table(pa.table({"x": pa.array(rows, kind)}), tmp_path / "a.parquet", row_group_size=17)
        found, wrong = held(open_source(tmp_path / "a.parquet"))
        assert wrong == {3: "null", 20: "5 entries, and others have 6"}
        assert found[[3, 20]].isnan().all() and found[49].isnan().tolist() == [False] * 5 + [True]
        good = [k for k in range(49) if k not in (3, 20)]
        assert torch.equal(found[good], ROWS[good])


def test_a_column_is_chosen(tmp_path):
    columns = {"id": pa.array(range(50)), "tokens": pa.array([[1, 2]] * 50), "x": lists(ROWS)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert torch.equal(held(open_source(tmp_path / "a.parquet"))[0], ROWS)
    pq.write_table(pa.table(columns | {"y": lists(ROWS[:, :3])}), tmp_path / "a.parquet")
    assert torch.equal(held(open_source(tmp_path / "a.parquet", "y"))[0], ROWS[:, :3])
    for tensor, error, says in [
        (None, ValueError, r"has 2 columns of lists \(x, y\); name one with tensor="),
        ("z", ValueError, "has no column 'z'; its columns are id, tokens, x, y"),
        ("id", ValueError, "column id of .* is int64; rows are in a column of lists"),
        (
            "tokens",
            TypeError,
            r"column tokens of .* is list<element: int64>; rows are float64, .* in a column of lists",
        ),
    ]:
        with pytest.raises(error, match=says):
            open_source(tmp_path / "a.parquet", tensor)


@pytest.mark.parametrize(
    "columns, error, says",
    [
        ({**floats(ROWS), "id": pa.array(range(50))}, TypeError, "column id of .* is int64; rows are float64"),
        ({"a": pa.array([1.0]), "b": pa.array([1.0], pa.float32())}, TypeError, "columns a and b of .* are double and"),
        ({"x": pa.array([None], pa.list_(pa.float32()))}, ValueError, "column x of .* is null in its first 1 rows"),
        ({"x": pa.array([[]], pa.list_(pa.float32()))}, ValueError, r"rows without entries: its shape is \(1, 0\)"),
        ({"x": pa.array([], pa.list_(pa.float32()))}, ValueError, "there are no rows"),
        ({}, ValueError, "has no columns"),
    ],
    ids=["an id beside", "two dtypes", "nulls", "empty lists", "no rows", "no columns"],
)
def test_parquet_that_holds_no_rows(tmp_path, columns, error, says):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(error, match=says):
        open_source(tmp_path / "a.parquet")


def test_null_numbers_in_columns_are_nan(tmp_path):
    columns = floats(ROWS) | {"c5": pa.array([None, *ROWS[1:, 5].tolist()], pa.float32())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found, _ = held(open_source(tmp_path / "a.parquet"))
    assert found[0].isnan().tolist() == [False] * 5 + [True] and torch.equal(found[1:], ROWS[1:])


@pytest.mark.parametrize(
    "array, error, says",
    [
        (np.array([[{}]], dtype=object), TypeError, "holds Python objects, a pickle, which is not opened"),
        (np.ones((3, 4), ">f4"), TypeError, "of the other byte order"),
        (np.ones((3, 4), "int8"), TypeError, "is int8; rows are float64, .*astype"),
        (np.ones((3, 4), "complex64"), TypeError, "is complex64"),
        (np.ones(3, "float32"), ValueError, r"has shape \(3,\); rows are a matrix"),
        (np.ones((3, 4, 5), "float32"), ValueError, r"has shape \(3, 4, 5\)"),
        (np.ones((0, 4), "float32"), ValueError, "there are no rows"),
        (np.ones((4, 0), "float32"), ValueError, r"rows without entries: its shape is \(4, 0\)"),
        (np.ones(3, [("a", "f4")]), TypeError, "rows are float64"),
    ],
    ids=["objects", "bytes swapped", "integers", "complex", "vector", "cube", "no rows", "no width", "records"],
)
def test_arrays_that_are_no_rows(tmp_path, array, error, says):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(error, match=says):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_arrays_of_any_order(tmp_path, order):
    array = np.repeat(ROWS.numpy(), 2, axis=1)[:, ::2] if order == "strided" else np.asarray(ROWS.numpy(), order=order)
    np.save(tmp_path / "a.npy", array)
    assert torch.equal(held(open_source(tmp_path / "a.npy"))[0], ROWS)


def test_tensors_to_choose_from(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": ROWS, "b": ROWS.clone(), "ids": torch.arange(50).view(-1, 1), "bias": ROWS[0].clone()}, path)
    for tensor, error, says in [
        (None, ValueError, r"holds 2 matrices \(a, b\); name one of them with tensor="),
        ("c", ValueError, "has no tensor 'c'; its matrices are a, b"),
        ("ids", TypeError, r"ids in .* is I64 \(50, 1\); rows are a matrix of float64"),
        ("bias", ValueError, r"bias in .* is F32 \(6,\)"),
    ]:
        with pytest.raises(error, match=says):
            open_source(path, tensor)
    save_file({"bias": ROWS[0].clone()}, path)
    with pytest.raises(ValueError, match="holds no matrix of float64"):
        open_source(path)
    with pytest.raises(ValueError, match="holds one array without a name; leave tensor='a' out"):
        open_source(written(tmp_path, ROWS, "npy"), "a")


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_named(tmp_path, kind):
    path = written(tmp_path, ROWS, kind)
    whole = path.read_bytes()
    for count in (len(whole) - 1, len(whole) // 2, 20, 5, 0):
        path.write_bytes(whole[:count])
        with pytest.raises(ValueError, match=rf"{path.name}.* (truncated|no safetensors)"):
            open_source(path)


def test_sources_that_are_none(tmp_path):
    written(tmp_path, ROWS, "npy"), written(tmp_path, ROWS, "safetensors")
    (tmp_path / "empty").mkdir()
    torch.save({"w": ROWS}, tmp_path / "model.pt")
    np.savez(tmp_path / "a.npz", a=ROWS.numpy())
    for source, error, says in [
        (tmp_path / "nowhere", FileNotFoundError, "no file or folder"),
        ([tmp_path / "nowhere.npy"], FileNotFoundError, "there is no file"),
        ([], ValueError, "source is an empty list"),
        (3, TypeError, "source is the path of a file or folder, or a list of files, not int"),
        (tmp_path / "empty", ValueError, "holds no .safetensors, no .npy, no .parquet file"),
        (tmp_path, ValueError, r"files of several kinds \(1 of .safetensors and 1 of .npy\)"),
        (tmp_path / "model.pt", ValueError, "is a pickle or an archive, which is not opened"),
        (tmp_path / "a.npz", ValueError, "is a pickle or an archive"),
    ]:
        with pytest.raises(error, match=says):
            open_source(source)


@pytest.mark.parametrize("other", [ROWS[:, :5], ROWS.double()], ids=["width", "dtype"])
def test_files_that_differ_are_named(tmp_path, other):
    one, two = written(tmp_path, ROWS, "npy", "one"), written(tmp_path, other, "safetensors", "two")
    says = rf"two.safetensors has {other.dtype} rows of {other.shape[1]} and .*one.npy has torch.float32 rows of 6"
    with pytest.raises(ValueError, match=says):
        open_source([one, two])


def test_columns_that_differ_are_named(tmp_path):
    """Side by side their order is that of a row's entries; a list of another name is another column."""
    columns = floats(ROWS)
    for name, held in {
        "0": columns,
        "1": columns | {"c0": columns["c1"], "c1": columns["c0"]},
        "turned": dict(reversed(columns.items())),
        "list": {"x": lists(ROWS)},
        "other": {"y": lists(ROWS)},
    }.items():
        pq.write_table(pa.table(held), tmp_path / f"{name}.parquet")
    array = written(tmp_path, ROWS, "npy", "array")
    for one, other, says in [
        ("0", "turned", "among the columns of its rows .*turned.parquet has c5 where .*0.parquet has c0; all files"),
        ("0", "list", "list.parquet has x where .*0.parquet has c0"),
        ("list", "other", "other.parquet has y where .*list.parquet has x"),
    ]:
        with pytest.raises(ValueError, match=says):
            open_source([array, *(tmp_path / f"{name}.parquet" for name in (one, other))])
    assert open_source([tmp_path / "0.parquet", array, tmp_path / "1.parquet"]).rows == 150


@pytest.mark.parametrize("how", ["longer", "touched", "gone", "shorter"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_changes_is_named(tmp_path, how, when):
    path = written(tmp_path, ROWS, "npy")
    blocks = read(open_source(path), 0, 50, 20)
    if when == "meanwhile":
        next(blocks)
    says = {
        "longer": "has changed since the job was planned: it had 1328 bytes and has 1329",
        "touched": "it was written to; run again",
        "gone": "cannot be read any more",
        "shorter": "ended while it was read|had 1328 bytes and has 600",
    }[how]
    content = path.read_bytes()
    if how == "touched":
        os.utime(path, ns=(0, 5))
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(content + b"x" if how == "longer" else content[:600])
    with pytest.raises(ValueError, match=says):
        list(blocks)
