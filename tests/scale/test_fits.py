"""Cores that many processes fit are those that one fits, layer by layer, each in a file that is found again."""

import json
import shutil
import warnings

import pytest
import scale_models
import small_tasks
import torch
from scale_models import Experts, batches
from small_checkpoints import saved, sharded
from small_tasks import DAMAGES, flip
from strategies import gaussian
from torch import nn
from transformers import GPT2LMHeadModel

import ttref
from ttref import TTLinear, swap_layer
from ttref.fitting import Gram, Grams, output_error
from ttref.fitting import collect_gram as one_process
from ttref.scale import fits
from ttref.scale.fits import Fitted, fit_cores
from ttref.scale.grams import collect_gram

HERE = {"engine": "pool", "workers": 1}
LAYERS = ["q", "k", "first", "second"]


@pytest.fixture(autouse=True)
def few_tokens():
    """The tiny models of these tests see few tokens, of which fits warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.fixture(scope="module")
def grams():
    return one_process(Experts(), LAYERS, batches(20))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The model of `Experts` in two shards, with names that begin with that of a whole."""
    state = {f"model.{name}": tensor for name, tensor in Experts().state_dict().items()}
    return sharded(state, tmp_path_factory.mktemp("experts"))


def check(found, model, grams, names, **how):
    """Every layer is the one that `from_linear` makes, to the bit or, where a weight lay otherwise, to rounding."""
    assert list(found) == list(names) and len(found) == len(names)
    for name, row in zip(names, found.rows, strict=True):
        layer = model.get_submodule(name)
        twin = TTLinear.from_linear(layer, gram=grams[name], **how)
        made = found[name]
        assert (made.ranks, made.row_shape, made.col_shape) == (twin.ranks, twin.row_shape, twin.col_shape)
        torch.testing.assert_close(made.weight, twin.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.bias, twin.bias, rtol=0, atol=0)
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.mT
        error = output_error(weight.detach(), made.dense().detach(), grams[name])
        assert row["name"] == name and row["output_error"] == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert row["ranks"] == list(made.ranks) and row["params"] == made.params
        assert type(ttref.load(found.folder / row["file"])) is TTLinear


@pytest.mark.parametrize("how", [{"rank": 2}, {"eps": 0.3}], ids=["rank", "eps"])
def test_the_layers_are_those_of_from_linear(checkpoint, grams, tmp_path, how):
    check(fit_cores(checkpoint, grams, tmp_path / "a", **how, **HERE), Experts(), grams, LAYERS, **how)
    check(fit_cores(Experts, grams, tmp_path / "b", **how, **HERE), Experts(), grams, LAYERS, **how)
    check(Fitted(tmp_path / "a"), Experts(), grams, LAYERS, **how)


def test_layers_and_modes_can_be_chosen(checkpoint, grams, tmp_path):
    modes = {"q": ((6, 1), (2, 3))}
    found = fit_cores(checkpoint, grams, tmp_path, layers=["second", "q"], rank=2, modes=modes, **HERE)
    assert list(found) == ["second", "q"] and (found["q"].row_shape, found["q"].col_shape) == modes["q"]
    twin = TTLinear.from_linear(Experts().q, rank=2, out_shape=(6, 1), in_shape=(2, 3), gram=grams["q"])
    torch.testing.assert_close(found["q"].weight, twin.weight)


def test_two_workers_write_the_same_bytes_as_one(checkpoint, grams, tmp_path):
    for workers in (1, 2):
        fit_cores(checkpoint, grams, tmp_path / str(workers), rank=2, engine="pool", workers=workers)
    one, two = (sorted((tmp_path / name).glob("[!.]*")) for name in "12")
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 5
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_a_layer_may_be_called_as_the_job_calls_its_files(tmp_path):
    """Its file is not that of the Gram matrices, which the next layer is fitted with."""
    state = {f"{name}.weight": gaussian((6, 6), k, torch.float32) for k, name in enumerate(("grams", "other"))}
    path = saved(state, tmp_path / "model")
    few = Grams({name: Gram.from_inputs(gaussian((9, 6), 0, torch.float32)) for name in ("grams", "other")})
    found = fit_cores(path, few, tmp_path / "out", rank=2, **HERE)
    assert [found[name].ranks for name in ("grams", "other")] == [(1, 2, 2, 1)] * 2
    assert sorted(one.name for one in (tmp_path / "out").glob("[!.]*")) == [
        "cores.json",
        "grams.safetensors",
        "other.safetensors",
    ]


def test_from_texts_to_a_model_with_cores(tmp_path):
    folder = scale_models.gpt2(tmp_path / "model")
    names = ["c_attn", "mlp.c_fc", "mlp.c_proj"]  # stored in x out
    grams = collect_gram(folder, names, folder / "texts-0", tmp_path / "grams", **HERE)
    found = fit_cores(folder, tmp_path / "grams", tmp_path / "cores", layers=names, rank=3, **HERE)
    model = GPT2LMHeadModel.from_pretrained(folder)
    assert len(found) == 6
    check(found, model, grams, list(found), rank=3)
    for name, layer in found.items():
        swap_layer(model, name, layer)
    assert model(torch.ones(1, 3, dtype=torch.int64)).logits.isfinite().all()


def test_one_gram_of_a_file_is_read_and_checked(grams, tmp_path):
    path = tmp_path / "grams.safetensors"
    grams.save(path)
    seal = fits._opened_grams(path)[3]
    found = fits._gram(path, seal, "first")
    assert torch.equal(found.matrix, grams["first"].matrix) and found.tokens == grams["first"].tokens
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # of the last matrix
    path.write_bytes(content)
    assert torch.equal(fits._gram(path, seal, "q").matrix, grams["q"].matrix)
    with pytest.raises(ValueError, match="the Gram matrix of second is not what was written"):
        fits._gram(path, seal, "second")


def test_an_interrupted_job_goes_on_and_ends_with_the_same_bytes(checkpoint, grams, tmp_path, monkeypatch):
    fit_cores(checkpoint, grams, tmp_path / "whole", rank=2, **HERE)
    calls, made = [], TTLinear.from_linear

    def stopped(*given, **how):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return made(*given, **how)

    monkeypatch.setattr(TTLinear, "from_linear", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit_cores(checkpoint, grams, tmp_path / "cut", rank=2, **HERE)
    with pytest.raises(FileNotFoundError, match="fit_cores writes it at its end"):
        Fitted(tmp_path / "cut")
    fit_cores(checkpoint, grams, tmp_path / "cut", rank=2, **HERE)
    assert len(calls) == 3 + 2
    for path in (tmp_path / "whole").glob("[!.]*"):
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()


def test_layers_that_fail_are_named_and_the_others_are_kept(grams, tmp_path, monkeypatch):
    state = Experts().state_dict()
    state["k.weight"][2, 3] = float("nan")
    state["first.weight"] = gaussian((6, 8), 0, torch.float32)
    path = saved(state, tmp_path / "model")
    told = r"2 of 4 layers failed \(k: ValueError: .*NaN.*; first: ValueError: gram is 6 x 6, but .* width 8"
    with pytest.raises(RuntimeError, match=told):
        fit_cores(path, grams, tmp_path / "out", rank=2, **HERE)
    assert not (tmp_path / "out" / "cores.json").exists()
    assert TTLinear.load(tmp_path / "out" / "q.safetensors").ranks
    with pytest.raises(RuntimeError, match="1 of 4 layers failed .q: .*modes"):
        fit_cores(Experts, grams, tmp_path / "modes", rank=2, modes={"q": ((2, 2), (2, 3))}, **HERE)


def test_inputs_that_do_not_span_are_told_by_the_driver(checkpoint, tmp_path):
    few = Grams({"q": Gram.from_inputs(gaussian((3, 6), 0, torch.float32))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"q: the inputs behind gram do not span .*3 tokens"):
            fit_cores(checkpoint, few, tmp_path, rank=2, **HERE)
        with pytest.raises(UserWarning, match="q: the inputs"):  # and again by a run that has nothing left to do
            fit_cores(checkpoint, few, tmp_path, rank=2, **HERE)


def test_wrong_arguments(checkpoint, grams, tmp_path):
    def refused(error, told, source=checkpoint, given=grams, rank=2, **how):
        with pytest.raises(error, match=told):
            fit_cores(source, given, tmp_path / "out", rank=rank, **how, **HERE)
        assert not (tmp_path / "out").exists()

    refused(ValueError, "exactly one of rank and eps", eps=0.1)
    refused(ValueError, "no Gram matrix is of a layer 'value'.*there are q, k", layers="value")
    refused(ValueError, "layers is empty", layers=[])
    refused(ValueError, "modes names 'v', which is none of the 4", modes={"v": ((2, 3), (3, 2))})
    refused(TypeError, "or a function that makes it, not a Experts", source=Experts())
    refused(ValueError, "has no weight of lost", given=Grams({**grams, "lost": grams["q"]}))
    refused(FileNotFoundError, "no file of Gram matrices", given=tmp_path / "gone")
    other = tmp_path / "other.safetensors"
    grams["q"].save(other)
    refused(ValueError, "holds no Gram matrices", given=other)
    cut = tmp_path / "cut.safetensors"
    grams.save(cut)
    cut.write_bytes(cut.read_bytes()[:-9])
    refused(ValueError, "cut.safetensors is no .* truncated", given=cut)
    folder = tmp_path / "model"
    shutil.copytree(checkpoint.parent, folder)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    refused(ValueError, "00001-of-00002.safetensors is no .* truncated", source=folder)


def test_another_jobs_folder_is_refused_and_stays(checkpoint, grams, tmp_path):
    collect_gram(Experts, "q", batches(), tmp_path / "grams", **HERE)
    with pytest.raises(ValueError, match="holds a job with job 'collect_gram'"):
        fit_cores(checkpoint, tmp_path / "grams", tmp_path / "grams", rank=2, **HERE)
    with pytest.raises(ValueError, match="is where the source lies"):
        fit_cores(checkpoint, grams, checkpoint.parent, rank=2, **HERE)
    fit_cores(checkpoint, grams, tmp_path / "out", layers="q", rank=2, **HERE)
    others = Grams({name: Gram(2 * gram.matrix, gram.tokens) for name, gram in grams.items()})
    for told, given, how in (("rank", grams, {"rank": 3}), ("grams", others, {"rank": 2})):
        with pytest.raises(ValueError, match=f"holds a job with {told}"):
            fit_cores(checkpoint, given, tmp_path / "out", layers="q", **how, **HERE)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_lost_or_damaged_is_made_again(grams, tmp_path, monkeypatch, damage):
    """And no other; a layer called as another one's second attempt is none of it."""
    names, made, calls = ["q", "q-2"], TTLinear.from_linear, []
    weights = {f"{name}.weight": gaussian((6, 6), k, torch.float32) for k, name in enumerate(names)}
    path, given = saved(weights, tmp_path / "model"), Grams(dict.fromkeys(names, grams["q"]))
    fit_cores(path, given, tmp_path / "out", rank=2, **HERE)
    before = small_tasks.hashes(tmp_path / "out")
    monkeypatch.setattr(TTLinear, "from_linear", lambda *given, **how: (calls.append(1), made(*given, **how))[1])
    for k in (1, 2):
        damage(tmp_path / "out" / "q.safetensors")
        for _ in range(2):
            found = fit_cores(path, given, tmp_path / "out", rank=2, **HERE)
            assert list(found) == names and len(calls) == k
        assert small_tasks.hashes(tmp_path / "out") == before


def test_the_list_is_gone_while_a_file_is_made_again(checkpoint, grams, tmp_path, monkeypatch):
    fit_cores(checkpoint, grams, tmp_path, rank=2, **HERE)
    flip(tmp_path / "q.safetensors")
    monkeypatch.setattr(TTLinear, "from_linear", None)
    with pytest.raises(RuntimeError, match="1 of 4 layers failed .q: TypeError"):
        fit_cores(checkpoint, grams, tmp_path, rank=2, **HERE)
    with pytest.raises(FileNotFoundError, match="cores.json: fit_cores writes it at its end"):
        Fitted(tmp_path)


@pytest.mark.parametrize("given", ["file", "object"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gram_matrices_that_are_written_while_the_job_runs(checkpoint, grams, tmp_path, monkeypatch, given, when):
    """Before a layer reads its own, or between the first look and the last: no layer is fitted to others."""
    fit_cores(checkpoint, grams, tmp_path / "whole", rank=2, **HERE)
    file = tmp_path / "grams.safetensors"
    grams.save(file)
    others = Grams({name: Gram(2 * gram.matrix, gram.tokens) for name, gram in grams.items()})
    path = file if given == "file" else tmp_path / "out" / ".job" / "grams.safetensors"
    opened, calls = fits.open_safetensors, []

    def meddled(name):
        calls.append(name)
        if name == path and calls.count(path) == {"before": 2, "after": 3}[when]:
            others.save(path)
        return opened(name)

    monkeypatch.setattr(fits, "open_safetensors", meddled)
    with pytest.raises(RuntimeError, match="4 of 4 layers failed .*grams.safetensors was written while the job ran"):
        fit_cores(checkpoint, file if given == "file" else grams, tmp_path / "out", rank=2, **HERE)
    monkeypatch.undo()
    grams.save(file)
    fit_cores(checkpoint, file if given == "file" else grams, tmp_path / "out", rank=2, **HERE)
    one, other = (small_tasks.hashes(tmp_path / name) for name in ("whole", "out"))
    one.pop("cores.json"), other.pop("cores.json")  # which hold the settings
    assert one == other


@pytest.mark.parametrize("damage", DAMAGES)
def test_gram_matrices_that_an_interrupted_job_left_damaged(checkpoint, grams, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fits, "done", lambda *given, **how: (_ for _ in ()).throw(KeyboardInterrupt))
        fit_cores(checkpoint, grams, tmp_path, rank=2, **HERE)
    damage(tmp_path / ".job" / "grams.safetensors")
    assert len(fit_cores(checkpoint, grams, tmp_path, rank=2, **HERE)) == 4


def test_a_wrong_engine_and_another_version_are_refused_and_leave_nothing(checkpoint, grams, tmp_path, monkeypatch):
    how = {"rank": 2, "layers": "q"}
    with pytest.raises(ValueError, match="engine is one of pool, ray, not 'dask'"):
        fit_cores(checkpoint, grams, tmp_path / "out", **how, engine="dask")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        fit_cores(checkpoint, grams, tmp_path / "out", **how, workers=0)
    assert not (tmp_path / "out").exists()
    fit_cores(checkpoint, grams, tmp_path / "out", **how, **HERE)
    monkeypatch.setattr(fits, "VERSION", 2)
    with pytest.raises(ValueError, match="holds a job with version 1, and this one has 2"):
        fit_cores(checkpoint, grams, tmp_path / "out", **how, **HERE)


def test_damaged_results_are_refused(checkpoint, grams, tmp_path):
    found = fit_cores(checkpoint, grams, tmp_path, rank=2, **HERE)
    shutil.copy(tmp_path / "q.safetensors", tmp_path / "k.safetensors")  # a good file in the wrong place
    with pytest.raises(ValueError, match="k.safetensors is not what was written for k"):
        found["k"]
    assert found["q"].ranks
    index = json.loads((tmp_path / "cores.json").read_text())
    for content in ("{", "[]", json.dumps(index | {"version": 2}), json.dumps({"version": 1})):
        (tmp_path / "cores.json").write_text(content)
        with pytest.raises(ValueError, match="cores.json is no list of fitted layers, or is damaged"):
            Fitted(tmp_path)
