"""The norm of a layer's outputs: a folder's model is run on texts, and its Gram matrices are those of its layers."""

import json

import pytest
import torch
from small_checkpoints import alike, noise, saved
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from ttref.audit import audit
from ttref.audit.reading import open_checkpoint
from ttref.audit.seen import BATCH, TEXTS, _gguf_names, _layers, roots_of
from ttref.command import main
from ttref.fitting import collect_gram

WORDS = ["the", "cat", "dog", "sees", "a", "small", "house", "and", "runs", "home"]
LINES = ["the cat sees a small dog", "", "a dog runs home", "the house and the small cat"] * 5


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(LINES))
    return path


def tokenizer(folder):
    folder.mkdir(exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    made = BertTokenizer(str(vocabulary))
    made.save_pretrained(folder)
    return made


def bert(kind, folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = kind(BertConfig(vocab_size=15, max_position_embeddings=32, **sizes)).eval()
    model.save_pretrained(folder)
    return model


def gpt2(folder):
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=15, n_positions=32, n_embd=16, n_layer=1, n_head=2, **ends)).eval()
    model.save_pretrained(folder)
    return model


MODELS = {
    "bert": (lambda folder: bert(BertModel, folder), "encoder.layer.0.attention.self.query", "encoder.layer.0"),
    "bert with a head": (lambda folder: bert(BertForMaskedLM, folder), "bert.encoder.layer.0.output.dense", "bert"),
    "gpt2": (gpt2, "transformer.h.0.mlp.c_proj", "transformer.h.0"),
}


@pytest.mark.parametrize("name", MODELS)
def test_gram_matrices_are_those_of_the_layers(tmp_path, texts, name):
    make, layer, block = MODELS[name]
    made, model = tokenizer(tmp_path), make(tmp_path)
    held = open_checkpoint(tmp_path)
    roots = roots_of(held, texts, [entry for entry in held.entries if entry.axes > 1], progress=False)
    said = [line for line in LINES if line]
    batches = [
        dict(made(said[start : start + BATCH], padding=True, truncation=True, max_length=128, return_tensors="pt"))
        for start in range(0, len(said), BATCH)
    ]
    gram = collect_gram(model, [layer], batches, progress=False)[layer].matrix
    [entry] = [entry for entry in roots if f"{layer}.weight".endswith(entry)]
    torch.testing.assert_close(roots[entry] @ roots[entry], gram, rtol=1e-5, atol=1e-5 * gram.max().item())
    assert not any("embeddings" in entry or "wte" in entry for entry in roots)


def test_layers_of_a_llama_have_their_names_in_gguf():
    sizes = {"vocab_size": 15, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    names = _gguf_names(model, layers)
    assert len(names) == len(layers) == 15
    assert _layers(["blk.1.ffn_down.weight", "blk.0.attn_output.weight", "token_embd.weight"], names) == {
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj",
        "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj",
    }


def test_a_weight_does_not_take_the_layer_of_another_whose_name_ends_alike():
    called = {name: name for name in ("body.head", "body.fc", "head")}
    assert _layers(["head.weight", "body.head.weight", "body.fc.weight"], called) == {
        f"{name}.weight": name for name in called
    }
    assert _layers(["fc.weight", "dense.head.weight", "head.weight"], called) == {
        "fc.weight": "body.fc",
        "head.weight": "body.head",
    }


def test_rows_have_both_norms(tmp_path, texts):
    tokenizer(tmp_path)
    bert(BertModel, tmp_path)
    found = audit(tmp_path, data=texts)
    row = found.row("encoder.layer.0.intermediate.dense.weight")
    assert row["seen"]["verdict"] in ("tt", "svd", "quantize", "leave") and row["seen"]["svd"] != row["svd"]
    assert row["svd"] == audit(tmp_path).row(row["name"])["svd"]
    assert "seen" not in found.row("embeddings.word_embeddings.weight")
    assert "By the error of the outputs on the texts, of 7 layers" in found.summary
    assert max(map(len, str(found).splitlines())) <= 88
    found.page(tmp_path / "audit.html")
    assert "By the outputs, " in (tmp_path / "audit.html").read_text()


def test_inputs_that_vary_in_few_directions_make_factors_pay(tmp_path):
    """Every text is the same word, so what a layer sees has few directions and its outputs need few ranks."""
    tokenizer(tmp_path)
    bert(BertModel, tmp_path)
    (tmp_path / "one.txt").write_text("cat\n" * 8)
    row = audit(tmp_path, data=tmp_path / "one.txt", only="*intermediate*").rows[0]
    assert row["seen"]["svd"][1] > 2 * row["svd"][1]


def test_only_so_many_texts_are_read(tmp_path, texts):
    tokenizer(tmp_path)
    bert(BertModel, tmp_path)
    (tmp_path / "many.txt").write_text("cat\n" * TEXTS + "dog runs\n" * 10)
    (tmp_path / "few.txt").write_text("cat\n" * TEXTS)
    many, few = (audit(tmp_path, data=tmp_path / name, only="*query*").rows for name in ("many.txt", "few.txt"))
    assert alike(many, few)


def test_what_cannot_be_run_is_one_line(tmp_path, texts, capsys):
    path = saved({"w.weight": noise(16, 16)}, tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for given, data, says in [
        (path, texts, "name the folder"),
        (tmp_path, texts, "transformers cannot run"),
        (tmp_path, tmp_path / "empty.txt", "holds no text"),
        (tmp_path, tmp_path / "bytes.txt", "no text in UTF-8"),
    ]:
        assert main(["audit", str(given), "--data", str(data)]) == 3
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


@pytest.mark.parametrize("named", [["pipeline"], [7], ["AutoConfig"], ["NoSuchModel"], [["BertModel"]], {"a": 1}, 7])
def test_an_architecture_that_is_no_model_is_one_line(tmp_path, texts, capsys, named):
    tokenizer(tmp_path)
    bert(BertModel, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": named}))
    capsys.readouterr()  # the bars of transformers
    assert main(["audit", str(tmp_path), "--data", str(texts)]) == 3
    err = capsys.readouterr().err
    assert "no model of transformers" in err and err.count("\n") == 1


@pytest.mark.parametrize("change", [{"hidden_act": 3}, {"vocab_size": -1}, {"hidden_size": "wide"}])
def test_a_configuration_that_makes_no_model_is_one_line(tmp_path, texts, capsys, change):
    tokenizer(tmp_path)
    bert(BertModel, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capsys.readouterr()  # the bars of transformers
    assert main(["audit", str(tmp_path), "--data", str(texts)]) == 3
    err = capsys.readouterr().err
    assert "transformers cannot run" in err and err.count("\n") == 1


@pytest.mark.parametrize("error, code", [(MemoryError, 3), (ModuleNotFoundError, 4)])
def test_what_is_no_fault_of_a_checkpoint_is_not_said_of_it(tmp_path, texts, capsys, monkeypatch, error, code):
    def from_pretrained(*_, **__):
        raise error("of this machine")

    tokenizer(tmp_path)
    bert(BertModel, tmp_path)
    monkeypatch.setattr(BertModel, "from_pretrained", from_pretrained)
    capsys.readouterr()  # the bars of transformers
    assert main(["audit", str(tmp_path), "--data", str(texts)]) == code
    err = capsys.readouterr().err
    assert "of this machine" in err and "transformers cannot run" not in err and err.count("\n") == 1
