"""Gram matrices that many share: those of one process, whoever summed which part, and what goes wrong named by part."""

import errno
import json
import os
import shutil
from functools import partial

import numpy as np
import pytest
import scale_models
import small_tasks
import torch
from scale_models import LINES, Experts, Indexed, batches
from small_tasks import DAMAGES
from torch import nn
from transformers import AutoTokenizer, GPT2LMHeadModel

import ttref
from ttref.fitting import collect_gram as one_process
from ttref.scale import batches as reading
from ttref.scale import grams as scaled
from ttref.scale.grams import collect_gram

LAYERS = ["q", "k", "first", "second"]
HERE = {"engine": "pool", "workers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return scale_models.gpt2(tmp_path_factory.mktemp("gpt2") / "model")


def same(one, other):
    """The same layers, tokens and shared matrices, and the same sums to rounding."""
    assert list(one) == list(other)
    for name in one:
        assert one[name].tokens == other[name].tokens
        torch.testing.assert_close(one[name].matrix, other[name].matrix, rtol=1e-9, atol=1e-9)
        assert [one[name] is gram for gram in one.values()] == [other[name] is gram for gram in other.values()]


@pytest.mark.parametrize("parts", [1, 3, 99])
@pytest.mark.parametrize("given", [batches(), Indexed()], ids=["list", "indexed"])
def test_the_sums_are_those_of_one_process(tmp_path, given, parts):
    found = collect_gram(Experts, LAYERS, given, tmp_path, parts=parts, **HERE)
    same(found, one_process(Experts(), LAYERS, batches()))
    assert found["q"] is found["k"] and found["first"].tokens == 12  # of two batches, in parts of their own
    same(ttref.load(tmp_path / "grams.safetensors"), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".job", "grams.json", "grams.safetensors"]


def test_two_workers_sum_the_same_bits_as_one(tmp_path):
    files = []
    for workers in (1, 2):
        job = {"parts": 4, "engine": "pool", "workers": workers}
        collect_gram(Experts, LAYERS, batches(), tmp_path / str(workers), **job)
        files.append((tmp_path / str(workers) / "grams.safetensors").read_bytes())
    assert files[0] == files[1]


def test_a_worker_that_is_killed_changes_no_bit(tmp_path):
    """Its part is summed by another one."""
    forward = partial(scale_models.dying, marks=str(tmp_path))
    for workers in (2, 1):
        job = {"parts": 4, "engine": "pool", "workers": workers, "forward": forward}
        collect_gram(Experts, LAYERS, batches(), tmp_path / str(workers), **job)
    assert (tmp_path / "died").exists()
    one, two = (small_tasks.hashes(tmp_path / name) for name in "12")
    assert one == two and len(one) == 2


def test_mask_and_forward_are_those_of_one_process(tmp_path):
    how = {"mask": scale_models.first_token, "forward": scale_models.twice}
    found = collect_gram(Experts, "q", batches(), tmp_path, **how, **HERE)
    same(found, one_process(Experts(), "q", batches(), **how))
    assert found["q"].tokens == 4 * 7


def test_a_model_is_made_once_in_a_process(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(scale_models.Experts, "__init__", lambda self: (made.append(1), nn.Module.__init__(self))[0])
    with pytest.raises(RuntimeError, match="7 of 7 parts failed"):
        collect_gram(Experts, "q", batches(), tmp_path, **HERE)
    assert len(made) == 1


def tokenized(folder, lines):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    lines = [line for line in lines if line.strip()]
    return [
        dict(tokenizer(lines[k : k + 4], padding=True, truncation=True, max_length=9, return_tensors="pt"))
        for k in range(0, len(lines), 4)
    ]


@pytest.mark.parametrize(("parts", "least"), [(2, 1 << 16), (3, 1 << 16), (40, 20)], ids=["grouped", "whole", "cut"])
def test_texts_are_read_once_each_wherever_files_are_cut(folder, tmp_path, monkeypatch, parts, least):
    monkeypatch.setattr(reading, "LEAST", least)
    files = [folder / f"texts-{k}" for k in range(3)]
    how = {"batch_size": 4, "max_tokens": 9, "parts": parts}
    found = collect_gram(folder, ["c_attn", "mlp.c_proj"], files, tmp_path, **how, **HERE)
    lines = LINES + LINES[1:] + LINES[2:]
    twin = one_process(GPT2LMHeadModel.from_pretrained(folder), ["c_attn", "mlp.c_proj"], tokenized(folder, lines))
    assert list(found) == list(twin)
    for name in found:
        assert found[name].tokens == twin[name].tokens
        torch.testing.assert_close(found[name].matrix, twin[name].matrix, rtol=1e-4, atol=1e-4)  # float32 activations
    count = len(json.loads((tmp_path / "grams.json").read_text())["parts"])
    assert count == {2: 2, 3: 3}.get(parts, count) and (parts < 40 or count > 30)


@pytest.mark.parametrize("kind", ["uint16", "int32", "uint64"])
@pytest.mark.parametrize("order", "CF")
def test_tokens_are_rows_of_integers(folder, tmp_path, kind, order):
    rows = np.arange(50, dtype=kind).reshape(10, 5)
    np.save(tmp_path / "rows.npy", np.asarray(rows, order=order))
    found = collect_gram(folder, "c_attn", tmp_path / "rows.npy", tmp_path / "out", batch_size=3, parts=2, **HERE)
    ids = torch.from_numpy(rows.astype("int64"))
    twin = one_process(GPT2LMHeadModel.from_pretrained(folder), "c_attn", [{"input_ids": ids}])
    for name in twin:
        assert found[name].tokens == 50
        torch.testing.assert_close(found[name].matrix, twin[name].matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_interrupted_job_goes_on_and_ends_with_the_same_bits(tmp_path, monkeypatch, where):
    collect_gram(Experts, LAYERS, batches(), tmp_path / "whole", **HERE)
    calls, write = [], scaled.write

    def stopped(*given):
        calls.append(1)
        if len(calls) == 4 and where == "before":
            raise KeyboardInterrupt
        write(*given)
        if len(calls) == 4:  # the sums are written, and nobody knows
            raise KeyboardInterrupt

    monkeypatch.setattr(scaled, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        collect_gram(Experts, LAYERS, batches(), tmp_path / "cut", **HERE)
    assert not (tmp_path / "cut" / "grams.safetensors").exists()
    collect_gram(Experts, LAYERS, batches(), tmp_path / "cut", **HERE)
    assert len(calls) == 4 + 4  # the three that had ended are not summed again
    one, other = ((tmp_path / name / "grams.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other
    collect_gram(Experts, LAYERS, batches(), tmp_path / "cut", **HERE)
    assert len(calls) == 8


def test_a_disk_that_is_full_fails_what_it_has_no_room_for(tmp_path, monkeypatch):
    write, full = scaled.write, [True]

    def written(path, *given):
        if full and len(list(path.parent.iterdir())) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *given)

    monkeypatch.setattr(scaled, "write", written)
    with pytest.raises(RuntimeError, match="5 of 7 parts failed .*No space left on device"):
        collect_gram(Experts, LAYERS, batches(), tmp_path, **HERE)
    assert not (tmp_path / "grams.safetensors").exists()
    full.clear()
    same(collect_gram(Experts, LAYERS, batches(), tmp_path, **HERE), one_process(Experts(), LAYERS, batches()))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_is_lost_or_damaged_is_summed_again(tmp_path, monkeypatch, damage):
    collect_gram(Experts, "q", batches(), tmp_path / "whole", **HERE)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scaled, "_added", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        collect_gram(Experts, "q", batches(), tmp_path / "out", **HERE)
    damage(next((tmp_path / "out" / ".job" / "parts").iterdir()))
    calls, seen_by = [], scaled.seen_by
    monkeypatch.setattr(scaled, "seen_by", lambda *given: calls.append(1) or seen_by(*given))
    collect_gram(Experts, "q", batches(), tmp_path / "out", **HERE)
    assert len(calls) == 1
    assert small_tasks.hashes(tmp_path / "out") == small_tasks.hashes(tmp_path / "whole")


@pytest.mark.parametrize("name", ["grams.safetensors", "grams.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_result_that_is_lost_or_damaged_is_made_again(tmp_path, damage, name):
    collect_gram(Experts, LAYERS, batches(), tmp_path, **HERE)
    before = small_tasks.hashes(tmp_path)
    for _ in range(2):
        damage(tmp_path / name)
        same(collect_gram(Experts, LAYERS, batches(), tmp_path, **HERE), one_process(Experts(), LAYERS, batches()))
        assert small_tasks.hashes(tmp_path) == before
    assert not (tmp_path / ".job" / "parts").exists()


def test_another_result_in_its_place_is_none(tmp_path):
    """It is whole, and of other batches."""
    for k, given in enumerate([batches(7), batches(6)]):
        collect_gram(Experts, LAYERS, given, tmp_path / str(k), **HERE)
    before = small_tasks.hashes(tmp_path / "0")
    shutil.copy(tmp_path / "1" / "grams.safetensors", tmp_path / "0")
    same(collect_gram(Experts, LAYERS, batches(), tmp_path / "0", **HERE), one_process(Experts(), LAYERS, batches()))
    assert small_tasks.hashes(tmp_path / "0") == before


def test_a_wrong_engine_and_another_version_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    for how, told in (({"engine": "dask"}, "engine is one of pool, ray, not"), ({"workers": 0}, "workers must be")):
        with pytest.raises(ValueError, match=told):
            collect_gram(Experts, "q", batches(), tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    collect_gram(Experts, "q", batches(), tmp_path / "out", **HERE)
    with pytest.raises(ValueError, match="engine is one of pool, ray, not"):
        collect_gram(Experts, "q", batches(), tmp_path / "out", engine="dask")
    monkeypatch.setattr(scaled, "VERSION", 2)
    with pytest.raises(ValueError, match="holds a job with version 1, and this one has 2"):
        collect_gram(Experts, "q", batches(), tmp_path / "out", **HERE)


def test_the_folder_is_the_jobs_until_its_end(tmp_path, monkeypatch):
    """While the parts are added too; and a user's own files of any name stay."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.txt").write_text("mine")
    added = scaled._added

    def meanwhile(*given):
        with pytest.raises(BlockingIOError, match="another run works on this folder now"):
            collect_gram(Experts, "q", batches(), tmp_path, **HERE)
        return added(*given)

    monkeypatch.setattr(scaled, "_added", meanwhile)
    same(collect_gram(Experts, "q", batches(), tmp_path, **HERE), one_process(Experts(), "q", batches()))
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["mine.txt"]
    assert not (tmp_path / ".job" / "parts").exists()


def test_a_batch_with_nan_is_named_and_the_others_are_kept(tmp_path, monkeypatch):
    given = batches()
    given[4][1, 2, 3] = float("nan")
    with pytest.raises(
        RuntimeError, match=r"1 of 4 parts failed \(batches 3 to 4 .*batch 4: ValueError: the inputs of q hold NaN"
    ):
        collect_gram(Experts, LAYERS, given, tmp_path, parts=4, **HERE)
    assert not (tmp_path / "grams.safetensors").exists()
    calls, seen_by = [], scaled.seen_by
    monkeypatch.setattr(scaled, "seen_by", lambda *given: calls.append(1) or seen_by(*given))
    same(collect_gram(Experts, LAYERS, batches(), tmp_path, parts=4, **HERE), one_process(Experts(), LAYERS, batches()))
    assert len(calls) == 1  # the mended part


def test_a_file_that_is_mended_is_read_again_alone(folder, tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    for file in files:
        file.write_text("\n".join(LINES), encoding="utf-8")
    files[1].write_bytes(b"a dog\n\xff\xfe runs\n")
    with pytest.raises(RuntimeError, match=r"1 of 2 parts failed \(00001 b.txt .*no text in UTF-8.*from byte 6 on"):
        collect_gram(folder, "c_attn", files, tmp_path / "out", **HERE)
    files[1].write_text("a dog runs\n")
    calls, seen_by = [], scaled.seen_by
    monkeypatch.setattr(scaled, "seen_by", lambda *given: calls.append(1) or seen_by(*given))
    collect_gram(folder, "c_attn", files, tmp_path / "out", **HERE)
    assert len(calls) == 1
    files[1].write_text("a dog sleeps\n")
    with pytest.raises(ValueError, match="holds the result for other batches, or for files as they were"):
        collect_gram(folder, "c_attn", files, tmp_path / "out", **HERE)


def test_files_written_while_they_are_read_are_named(folder, tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("\n".join(LINES), encoding="utf-8")
    seen_by = scaled.seen_by

    def meddled(*given):
        file.write_text("another text\n")
        return seen_by(*given)

    monkeypatch.setattr(scaled, "seen_by", meddled)
    with pytest.raises(RuntimeError, match="a.txt has changed since the job was planned: it had .* bytes and has 13"):
        collect_gram(folder, "c_attn", file, tmp_path / "out", **HERE)


def test_a_file_of_tokens_that_is_cut_short_ends_its_part_and_not_the_process(folder, tmp_path):
    """Of a file that is mapped, what is gone is read as zeros, or kills the process."""
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((10, 5), dtype=np.int64))

    def forward(model, batch):
        os.truncate(path, 300)

    with pytest.raises(RuntimeError, match="rows 0 to 2: ValueError: .*rows.npy ended while it was read"):
        collect_gram(folder, "c_attn", path, tmp_path / "out", forward=forward, batch_size=3, parts=1, **HERE)


@pytest.mark.parametrize(
    ("source", "layers", "error", "told"),
    [
        (Experts, "value", RuntimeError, "no module is named 'value'.*innermost modules here end in q, k"),
        (Experts, ["q", "never"], ValueError, "never was never called"),
        (Experts, [], ValueError, "layers is empty"),
        (scale_models.no_model, "q", RuntimeError, "no_model made no model: TypeError: it returned a str"),
        (scale_models.no_memory, "q", RuntimeError, "no_memory made no model: MemoryError"),
        (Experts(), "q", TypeError, "or a function that makes it, not a Experts"),
        ("no/such/folder", "q", FileNotFoundError, "there is no folder .*no.such.folder"),
    ],
)
def test_models_and_layers_that_are_not_there(tmp_path, source, layers, error, told):
    with pytest.raises(error, match=told):
        collect_gram(source, layers, batches(2), tmp_path / "out", **HERE)
    assert not (tmp_path / "out" / "grams.safetensors").exists()


def test_a_folder_that_transformers_cannot_read_is_named(folder, tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="model.safetensors is no safetensors or GGUF file, or is truncated"):
        collect_gram(broken, "c_attn", folder / "texts-0", tmp_path / "out", **HERE)


def test_batches_that_cannot_be_shared(folder, tmp_path):
    def refused(error, told, given, source=folder):
        with pytest.raises(error, match=told):
            collect_gram(source, "c_attn", given, tmp_path / "out", **HERE)
        assert not (tmp_path / "out").exists()

    refused(TypeError, "must have a length and be indexed.*a generator", (batch for batch in batches()))
    refused(TypeError, "got one Tensor", batches()[0])
    refused(TypeError, "got one dict", {"input_ids": torch.ones(1, 2)})
    refused(ValueError, "there are no batches", [])
    refused(FileNotFoundError, "there is no file .*gone", [tmp_path / "gone"])
    empty = tmp_path / "empty.txt"
    empty.touch()
    refused(ValueError, "empty.txt is empty; leave it out", empty)
    refused(ValueError, "texts need the tokenizer of a folder", folder / "texts-0", Experts)
    np.save(tmp_path / "floats.npy", np.ones((2, 3)))
    refused(TypeError, r"floats.npy is float64; tokens are integers: save it with", tmp_path / "floats.npy")
    np.save(tmp_path / "none.npy", np.ones((0, 3), dtype=np.int64))
    refused(ValueError, r"none.npy has shape \(0, 3\): it holds no tokens", tmp_path / "none.npy")
    np.save(tmp_path / "cut.npy", np.ones((200, 3), dtype=np.int64))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-99])
    refused(ValueError, "cut.npy is truncated: it has 4829 bytes, and shape .* needs 4928", tmp_path / "cut.npy")
    with pytest.raises(ValueError, match="is where the source lies"):
        collect_gram(folder, "c_attn", folder / "texts-0", folder, **HERE)
    assert not (folder / ".job").exists()


def test_a_file_of_blank_lines_holds_no_text(folder, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n\n")
    with pytest.raises(RuntimeError, match="blank.txt holds no text"):
        collect_gram(folder, "c_attn", tmp_path / "blank.txt", tmp_path / "out", **HERE)


def test_an_error_without_a_text_keeps_its_kind(tmp_path):
    def forward(model, batch):
        raise MemoryError

    with pytest.raises(RuntimeError, match="RuntimeError: batch 0: MemoryError[;)]"):
        collect_gram(Experts, "q", batches(), tmp_path, forward=forward, **HERE)


def test_functions_that_cannot_be_sent_to_other_processes(tmp_path):
    with pytest.raises(TypeError, match="must be a function of a module"):
        collect_gram(Experts, "q", batches(), tmp_path, mask=lambda batch: None, engine="pool", workers=2)


def test_another_jobs_folder_is_refused_and_stays(tmp_path):
    collect_gram(Experts, "q", batches(), tmp_path, **HERE)
    before = (tmp_path / "grams.safetensors").read_bytes()
    for told, how in (
        ("layers", {"layers": "k"}),
        ("mask", {"mask": scale_models.first_token}),
        ("parts", {"parts": 2}),
    ):
        with pytest.raises(ValueError, match=f"holds a job with {told}"):
            collect_gram(Experts, how.pop("layers", "q"), batches(), tmp_path, **how, **HERE)
    with pytest.raises(ValueError, match="holds the result for other batches"):
        collect_gram(Experts, "q", batches(6), tmp_path, **HERE)
    for source in (nn.Identity, partial(Experts, "large"), partial(Experts, size=3)):
        with pytest.raises(ValueError, match="holds a job with source"):
            collect_gram(source, "q", batches(), tmp_path, **HERE)
    assert (tmp_path / "grams.safetensors").read_bytes() == before
