"""The audit that many share is that of one process, row for row, however its tensors are divided."""

import json
from functools import partial

import pytest
import scale_models
import torch
from small_checkpoints import alike, as_gguf, falling, noise, saved, sharded, small_model, waves
from small_tasks import DAMAGES

from ttref.audit import audit as one_process
from ttref.audit import auditing
from ttref.scale import audits, jobs
from ttref.scale.audits import audit

HERE = {"engine": "pool", "workers": 1}


def tied_model():
    """What is in a checkpoint besides: numbers that come again, once with another sign of zero, NaN, a dead matrix."""
    tied = noise(64, 96, 1)
    tied[0, 0] = 0.0
    again = tied.clone()
    again[0, 0] = -0.0
    broken = noise(16, 16, 5)
    broken[3, 4] = float("nan")
    more = {"lm_head.weight": again, "broken.weight": broken, "broken.too.weight": broken.clone()}
    more |= {"dead.weight": torch.zeros(16, 24), "half.weight": tied.bfloat16(), "half.too.weight": again.bfloat16()}
    small = {"wpe.weight": waves(128, 32), "h.0.mlp.fc1.weight": falling(64, 32), "h.0.attn.q_proj.weight": tied}
    return small_model() | small | more


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return sharded(tied_model(), tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def twin(index):
    return one_process(index)


@pytest.mark.parametrize("large", [1, 7000, 1 << 20], ids=["each", "some", "all"])
def test_the_rows_are_those_of_one_process(index, twin, tmp_path, monkeypatch, large):
    monkeypatch.setattr(audits, "LARGE", large)
    found = audit(index, tmp_path, **HERE)
    assert [row["name"] for row in found.rows] == [row["name"] for row in twin.rows]
    assert alike(found.as_dict(), twin.as_dict())
    assert repr(found) == repr(twin)
    assert alike(json.loads((tmp_path / "audit.json").read_text()), json.loads(json.dumps(twin.as_dict())))
    for name, earlier in (("lm_head", "h.0.attn.q_proj"), ("half.too", "half")):
        assert found.row(f"{name}.weight")["reason"] == f"the same numbers as {earlier}.weight: tied, and counted there"
    assert "NaN" in found.row("broken.too.weight")["reason"]


def test_two_workers_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "LARGE", 1)
    path = saved(
        {"a.weight": noise(16, 24), "b.weight": noise(16, 24, 1), "c.weight": noise(16, 24)}, tmp_path / "model"
    )
    found = audit(path, tmp_path / "out", engine="pool", workers=2)
    assert alike(found.as_dict(), one_process(path).as_dict())


@pytest.mark.parametrize(
    "how",
    [{"eps": 0.2}, {"only": "h.*"}, {"sample": True}, {"eps": (0.1, 0.4), "only": "*weight", "sample": True}],
    ids=["eps", "only", "sample", "all"],
)
def test_options_are_those_of_one_process(tmp_path, how):
    many = {f"h.{k}.fc.weight": noise(8, 12, k) for k in range(5)} | {"wte.weight": noise(20, 8, 20)}
    path = saved(many, tmp_path / "model")
    assert alike(audit(path, tmp_path / "out", **how, **HERE).as_dict(), one_process(path, **how).as_dict())


def test_other_checkpoints_are_read_too(tmp_path):
    tensors = {"h.0.fc.weight": falling(64, 32), "h.1.fc.weight": waves(64, 32)}
    packed = as_gguf(tensors, tmp_path / "m.gguf")
    assert alike(audit(packed, tmp_path / "1", **HERE).as_dict(), one_process(packed).as_dict())
    torch.save(tensors, tmp_path / "m.pt")
    twin = one_process(tmp_path / "m.pt", state_dict=True)
    assert alike(audit(tmp_path / "m.pt", tmp_path / "2", state_dict=True, **HERE).as_dict(), twin.as_dict())
    with pytest.raises(ValueError, match="is a pickle"):
        audit(tmp_path / "m.pt", tmp_path / "3", **HERE)


def test_texts_are_run_once_and_give_the_same_verdicts(tmp_path, monkeypatch):
    folder = scale_models.gpt2(tmp_path / "model")
    texts = folder / "texts-0"
    found = audit(folder, tmp_path / "out", data=texts, **HERE)
    twin = one_process(folder, data=texts)
    assert sum("seen" in row for row in found.rows) == 8 and alike(found.as_dict(), twin.as_dict())
    monkeypatch.setattr(audits, "roots_of", None)
    assert audit(folder, tmp_path / "out", data=texts, **HERE).as_dict() == found.as_dict()
    other = tmp_path / "other.txt"
    other.write_text("a dog\n")
    with pytest.raises(ValueError, match="holds a job with data"):
        audit(folder, tmp_path / "out", data=other, **HERE)
    with pytest.raises(FileNotFoundError, match="no file of texts"):
        audit(folder, tmp_path / "new", data=tmp_path / "gone.txt", **HERE)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_root_that_is_lost_or_damaged_is_made_again(tmp_path, monkeypatch, damage):
    folder = scale_models.gpt2(tmp_path / "model")
    how = {"data": folder / "texts-0", "only": "*.mlp.*", **HERE}
    audit(folder, tmp_path / "whole", **how)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping(patch, 1, KeyboardInterrupt)
        audit(folder, tmp_path / "out", **how)
    damage(next((tmp_path / "out" / ".job" / "seen").iterdir()))
    calls, roots_of = [], audits.roots_of
    monkeypatch.setattr(audits, "roots_of", lambda *given: calls.append(1) or roots_of(*given))
    for _ in range(2):
        audit(folder, tmp_path / "out", **how)
    assert len(calls) == 1
    one, other = ((tmp_path / name / "audit.json").read_bytes() for name in ("whole", "out"))
    assert one == other
    for path in (tmp_path / "whole" / ".job" / "seen").iterdir():
        assert (tmp_path / "out" / ".job" / "seen" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("which", ["texts", "config.json"])
def test_texts_and_models_that_are_written_while_they_are_read(tmp_path, monkeypatch, which):
    folder, texts = scale_models.gpt2(tmp_path / "model"), tmp_path / "texts"
    texts.write_text("a dog\n")
    path = texts if which == "texts" else folder / which

    def roots_of(*given):
        path.write_text(path.read_text() + "\n")
        return {}

    monkeypatch.setattr(audits, "roots_of", roots_of)
    with pytest.raises(RuntimeError, match=f"runs of the model failed .*{which} (has changed|of .* was written)"):
        audit(folder, tmp_path / "out", data=texts, **HERE)


@pytest.mark.skipif(jobs.fcntl is None, reason="this system has no such locks")
def test_the_folder_is_the_jobs_until_its_end(tmp_path, monkeypatch):
    """While the report is saved too; and a user's own files of any name stay."""
    path = saved({"fc.weight": noise(16, 24)}, tmp_path / "model")
    (tmp_path / "out" / "seen").mkdir(parents=True)
    save = audits.Audit.save

    def meanwhile(*given):
        with pytest.raises(BlockingIOError, match="another run works on this folder now"):
            audit(path, tmp_path / "out", **HERE)
        return save(*given)

    monkeypatch.setattr(audits.Audit, "save", meanwhile)
    audit(path, tmp_path / "out", **HERE)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [".job", "audit.json", "seen"]
    assert not list((tmp_path / "out" / "seen").iterdir())


def stopping(monkeypatch, at, error):
    """Let the row of one tensor raise an error; returns the names looked at."""
    names = []

    def row_of(entry, *given):
        names.append(entry.name)
        if len(names) == at:
            raise error
        return auditing.row_of(entry, *given)

    monkeypatch.setattr(audits, "row_of", row_of)
    return names


def test_an_interrupted_audit_goes_on_with_what_is_left(index, twin, tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "LARGE", 1)
    names = stopping(monkeypatch, 4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        audit(index, tmp_path, **HERE)
    assert not (tmp_path / "audit.json").exists()
    assert alike(audit(index, tmp_path, **HERE).as_dict(), twin.as_dict())
    assert len(names) == len(twin.rows) + 1 and names[3] == names[4]


def test_a_tensor_that_fails_is_named_and_the_others_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "LARGE", 1)
    path = saved({f"h.{k}.fc.weight": noise(16, 24, k) for k in range(3)}, tmp_path / "model")
    names = stopping(monkeypatch, 2, MemoryError("no room"))
    with pytest.raises(RuntimeError, match=r"1 of 3 tasks failed \(00001 h.1.fc.weight: MemoryError: no room\)"):
        audit(path, tmp_path / "out", **HERE)
    assert not (tmp_path / "out" / "audit.json").exists()
    assert alike(audit(path, tmp_path / "out", **HERE).as_dict(), one_process(path).as_dict())
    assert names == ["h.0.fc.weight", "h.1.fc.weight", "h.2.fc.weight", "h.1.fc.weight"]


def test_checkpoints_that_are_damaged_or_change(tmp_path, monkeypatch):
    index = sharded(small_model(), tmp_path / "model")
    shard = index.with_name("model-00002-of-00002.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="00002-of-00002.safetensors is no .* truncated or damaged"):
        audit(index, tmp_path / "out", **HERE)
    assert not (tmp_path / "out").exists()
    shard.write_bytes(whole)
    saving, row_of = partial(saved, {"fc.weight": noise(16, 24)}, tmp_path / "model", shard.name), auditing.row_of
    monkeypatch.setattr(audits, "row_of", lambda *given: saving() and row_of(*given))
    with pytest.raises(RuntimeError, match="00002-of-00002.safetensors of .* was written while the job ran"):
        audit(index, tmp_path / "out", **HERE)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="lists model-00002-of-00002.safetensors"):
        audit(index, tmp_path / "out", **HERE)


def test_wrong_arguments_and_another_jobs_folder(tmp_path, monkeypatch):
    path = saved({"fc.weight": noise(16, 24)}, tmp_path / "model")
    with pytest.raises(ValueError, match="eps is a relative error"):
        audit(path, tmp_path / "out", eps=2.0, **HERE)
    with pytest.raises(ValueError, match="no name matches"):
        audit(path, tmp_path / "out", only="*attention*", **HERE)
    with pytest.raises(ValueError, match="is where the source lies"):
        audit(path, tmp_path / "model", **HERE)
    for how, told in (({"engine": "dask"}, "engine is one of pool, ray, not"), ({"workers": 0}, "workers must be")):
        with pytest.raises(ValueError, match=told):
            audit(path, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    audit(path, tmp_path / "out", eps=0.2, **HERE)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="a job with version 1, and this one has 2"):
        patch.setattr(audits, "VERSION", 2)
        audit(path, tmp_path / "out", eps=0.2, **HERE)
    before = (tmp_path / "out" / "audit.json").read_bytes()
    with pytest.raises(ValueError, match="holds a job with eps"):
        audit(path, tmp_path / "out", eps=0.3, **HERE)
    saved({"fc.weight": noise(16, 24, 1)}, tmp_path / "model")
    with pytest.raises(ValueError, match="holds a job with files"):
        audit(path, tmp_path / "out", eps=0.2, **HERE)
    assert (tmp_path / "out" / "audit.json").read_bytes() == before
