"""Files of compressed tables that are refused: truncated, foreign, or with parts that do not fit together."""

import json

import pytest
import safetensors.torch
import torch
from table_files import (
    KINDS,
    kinds,
    opened,
)

from ttref import MPSEmbedding, TTMEmbedding, files

# What is refused


@kinds
def test_truncated_files(kind, path):
    table = KINDS[kind]()
    table.save(path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    places = [0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 8 + header + 1, len(whole) // 2]
    for size in {*places, len(whole) - 4, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=f"table.safetensors is no {type(table).__name__} saved by ttref, or is dam"
        ):
            type(table).load(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="or is damaged"):
        type(table).load(path)


def test_foreign_files(path):
    for name in ("MPSEmbedding", "TTMEmbedding"):
        kind = getattr(__import__("ttref"), name)
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
        with pytest.raises(ValueError, match=f"table.safetensors is no {name} saved by ttref.*holds nothing of ttref"):
            kind.load(path)
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
        with pytest.raises(ValueError, match="it holds pt"):
            kind.load(path)
        for content in (b"", b"{}", b"PK\x03\x04" + bytes(100), bytes(1000), b"text, and no tensors\n" * 9):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="is damaged"):
                kind.load(path)
        with pytest.raises(FileNotFoundError, match="there is no file .*nothing"):
            kind.load(path.with_name("nothing"))
        with pytest.raises(IsADirectoryError, match="this is a folder"):
            kind.load(path.parent)


def test_a_file_of_the_other_kind(path):
    KINDS["ttm"]().save(path)
    with pytest.raises(ValueError, match="is no MPSEmbedding saved by ttref.*it holds ttref.TTMEmbedding"):
        MPSEmbedding.load(path)
    KINDS["one bucket"]().save(path)
    with pytest.raises(ValueError, match="is no TTMEmbedding saved by ttref.*it holds ttref.MPSEmbedding"):
        TTMEmbedding.load(path)


def rewrite(path, *, tensors=None, header=None, about=None, version=files.VERSION):
    """The same file, under a new seal, with some tensors, header entries or metadata changed; None drops them."""
    held, metadata = opened(path)
    read = json.loads(metadata["header"])
    for change, target in ((tensors, held), (header, read), (about, metadata)):
        for name, value in (change or {}).items():
            if value is None:
                target.pop(name)
            else:
                target[name] = value(target.get(name)) if callable(value) else value
    if about is None or "header" not in about:
        metadata["header"] = json.dumps(read)
    del metadata["sha256"], metadata["each"]
    if version == "1":  # which had no seal: what is wrong shows by itself, or not at all
        content = safetensors.torch.save(
            {name: x.contiguous() for name, x in held.items()}, metadata | {"version": "1"}
        )
    else:
        content = b"".join(files.sealed(metadata, held))
    path.write_bytes(content)


DROP = None
SHORTER, TWICE = (lambda x: x[:-1]), (lambda x: torch.cat((x, x)))
DEEPER, DOUBLE, WHOLE = (lambda x: x.unsqueeze(-1)), (lambda x: x.double()), (lambda x: x.to(torch.int32))
DAMAGE = {
    # kind of table, tensors, header
    "cores missing": ("one bucket", {"cores.0": DROP}, {}),
    "cores of fewer rows": ("one bucket", {"cores.0": SHORTER}, {}),
    "cores of more rows": ("one bucket", {"cores.0": TWICE}, {}),
    "cores of fewer numbers": ("one bucket", {"cores.0": lambda x: x[:, :-1]}, {}),
    "cores with another axis": ("one bucket", {"cores.0": DEEPER}, {}),
    "cores without axes": ("one bucket", {"cores.0": lambda x: x[0, 0]}, {}),
    "cores flat": ("one bucket", {"cores.0": lambda x: x.flatten()}, {}),
    "cores of another dtype": ("one bucket", {"cores.0": DOUBLE}, {}),
    "cores of integers": ("one bucket", {"cores.0": WHOLE}, {}),
    "a tensor more": ("one bucket", {"more": lambda x: torch.zeros(1)}, {}),
    "cores of another bucket": ("one bucket", {"cores.1": lambda x: torch.zeros(12, 40)}, {}),
    "an index without need": ("one bucket", {"place": lambda x: torch.arange(12, dtype=torch.int32)}, {}),
    "bucket missing": ("buckets", {"bucket": DROP}, {}),
    "place missing": ("buckets", {"place": DROP}, {}),
    "index missing": ("buckets", {"bucket": DROP, "place": DROP}, {}),
    "bucket too short": ("buckets", {"bucket": SHORTER}, {}),
    "place too short": ("buckets", {"place": SHORTER}, {}),
    "bucket beyond": ("buckets", {"bucket": lambda x: x + 9}, {}),
    "bucket of the others": ("buckets", {"bucket": lambda x: x * 0}, {}),
    "place beyond": ("buckets", {"place": lambda x: x + 1}, {}),
    "place negative": ("buckets", {"place": lambda x: x - 1}, {}),
    "place twice": ("buckets", {"place": lambda x: x * 0}, {}),
    "place of another dtype": ("buckets", {"place": lambda x: x.float()}, {}),
    "a bucket's rows fewer": ("buckets", {"cores.1": SHORTER}, {}),
    "mean too short": ("frame", {"frame.mean": SHORTER}, {}),
    "mean of one number": ("frame", {"frame.mean": lambda x: x[:1]}, {}),
    "mean of another dtype": ("frame", {"frame.mean": DOUBLE}, {}),
    "rotation not square": ("frame", {"frame.rotation": SHORTER}, {}),
    "rotation of another dtype": ("frame", {"frame.rotation": DOUBLE}, {}),
    "scales missing": ("int8", {"scales.0": DROP}, {}),
    "scales too few": ("int8", {"scales.0": SHORTER}, {}),
    "scales with another axis": ("int8", {"scales.0": DEEPER}, {}),
    "scales of another dtype": ("int8", {"scales.0": lambda x: x.float()}, {}),
    "codes of another dtype": ("int8", {"codes.0": lambda x: x.float()}, {}),
    "more rows announced": ("one bucket", {}, {"num_embeddings": 13}),
    "fewer rows announced": ("one bucket", {}, {"num_embeddings": 11}),
    "no number of rows": ("one bucket", {}, {"num_embeddings": "twelve"}),
    "another width": ("one bucket", {}, {"embedding_dim": 100}),
    "a negative width": ("one bucket", {}, {"embedding_dim": -1}),
    "no width": ("one bucket", {}, {"embedding_dim": lambda x: None}),
    "a width the frame has not": ("frame", {}, {"embedding_dim": 47}),
    "another dtype": ("one bucket", {}, {"dtype": "float16"}),
    "a dtype of integers": ("one bucket", {"cores.0": WHOLE}, {"dtype": "int32"}),
    "an unknown dtype": ("one bucket", {}, {"dtype": "float7"}),
    "no dtype at all": ("one bucket", {}, {"dtype": "nn"}),
    "other modes": ("one bucket", {}, {"shape": [2, 2, 2, 2, 2]}),
    "no modes": ("one bucket", {}, {"shape": []}),
    "modes of text": ("one bucket", {}, {"shape": "222222"}),
    "a mode of zero": ("one bucket", {}, {"shape": [2, 2, 2, 2, 2, 0]}),
    "other ranks": ("one bucket", {}, {"ranks": [[1, 1, 1, 1, 1, 1, 1]]}),
    "ranks of more buckets": ("one bucket", {}, {"ranks": lambda x: x + x}),
    "ranks of no bucket": ("one bucket", {}, {"ranks": []}),
    "ranks of text": ("one bucket", {}, {"ranks": ["a"]}),
    "ranks that are no list": ("one bucket", {}, {"ranks": 3}),
    "int8 announced": ("one bucket", {}, {"core_bits": 8}),
    "no int8 announced": ("int8", {}, {"core_bits": 32}),
    "bits of another kind": ("one bucket", {}, {"core_bits": 4}),
    "a padding row beyond": ("one bucket", {}, {"padding_idx": 12}),
    "a negative padding row": ("one bucket", {}, {"padding_idx": -1}),
    "a core missing": ("ttm", {"cores.0": DROP}, {}),
    "the last core missing": ("ttm", {"cores.1": DROP}, {}),
    "a tensor more in a TT-matrix": ("ttm", {"more": lambda x: torch.zeros(1)}, {}),
    "cores that do not chain": ("ttm", {"cores.0": lambda x: x[..., :-1]}, {}),
    "a core with three axes": ("ttm", {"cores.0": lambda x: x[0]}, {}),
    "cores of two dtypes": ("ttm", {"cores.0": DOUBLE}, {}),
    "a core of integers": ("ttm", {"cores.0": WHOLE}, {}),
    "more rows than the modes hold": ("ttm", {}, {"num_embeddings": 16}),
    "wider than the modes": ("ttm", {}, {"embedding_dim": 51}),
    "a padding row beyond the table": ("ttm", {}, {"padding_idx": 12}),
    "a padding row of text": ("ttm", {}, {"padding_idx": "a"}),
}
SETTINGS = {
    "one bucket": "shape embedding_dim core_bits eps by_row padding_idx sparse trainable num_embeddings ranks dtype",
    "ttm": "num_embeddings embedding_dim padding_idx trainable",
}
HEADERS = [(kind, name) for kind, names in SETTINGS.items() for name in names.split()]


@pytest.mark.parametrize("version", ["1", files.VERSION])
@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_do_not_fit_together(damage, version, path):
    kind, tensors, header = DAMAGE[damage]
    table = KINDS[kind]()
    table.save(path)
    saved = path.read_bytes()
    rewrite(path, version=version)
    type(table).load(path)  # rewriting alone changes nothing
    path.write_bytes(saved)
    rewrite(path, tensors=tensors, header=header, version=version)
    with pytest.raises(ValueError, match="table.safetensors is no .* saved by ttref, or is damaged .*; save it again"):
        type(table).load(path)


@pytest.mark.parametrize("kind, name", HEADERS)
def test_an_incomplete_header(kind, name, path):
    table = KINDS[kind]()
    table.save(path)
    rewrite(path, header={name: DROP})
    with pytest.raises(ValueError, match="is damaged"):
        type(table).load(path)


@kinds
def test_other_metadata(kind, path):
    table = KINDS[kind]()
    for about in (
        {"version": "1"},
        {"version": "4"},
        {"version": DROP},
        {"more": "metadata"},
        {"format": DROP},
        {"format": "ttref.Other"},
        {"header": DROP},
        {"header": "{"},
        {"header": "[]"},
        {"header": "null"},
        {"header": "3"},
        {"header": "{}"},
    ):
        table.save(path)
        rewrite(path, about=about)
        with pytest.raises(ValueError, match="is damaged"):
            type(table).load(path)
    table.save(path)
    rewrite(path, about={"version": "4"})
    with pytest.raises(ValueError, match="has version 4 of the format, and this ttref reads 1, 2, 3"):
        type(table).load(path)
