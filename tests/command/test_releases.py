"""From an audit to a release and back, on the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_checkpoints import falling, waves
from transformers import BertConfig, BertModel, BertTokenizer

from ttref.command import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT whose position table is smooth and whose feed-forward matrix has few large singular values."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]))
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 256}
    model = BertModel(BertConfig(vocab_size=7, max_position_embeddings=512, **sizes))
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.copy_(waves())
        model.encoder.layer[0].intermediate.dense.weight.copy_(falling())
    model.save_pretrained(folder)
    return folder


def test_audit_compress_verify_break_and_roll_back(folder, tmp_path, capsys):
    recipe, release, back = (str(tmp_path / name) for name in ("audit.json", "release", "back"))
    assert main(["audit", str(folder), "--json", recipe]) == 0
    assert main(["compress", str(folder), release, "--recipe", recipe, "--override", "a test"]) == 0
    sha256 = capsys.readouterr().out.split()[-1]
    assert main(["verify", release, "--source", str(folder), "--sha256", sha256]) == 0
    assert "erived" in capsys.readouterr().out
    assert main(["verify", release, "--source", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert main(["rollback", release, back, "--sha256", sha256]) == 0
    dense, again = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert dense.keys() == again.keys() and all(torch.equal(dense[name], again[name]) for name in dense)
    file = tmp_path / "release" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert main(["verify", release, "--source", str(folder)]) == 1
    assert main(["rollback", release, str(tmp_path / "other")]) == 3
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "other").exists()


def test_faults_are_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty.json").write_text("[")
    (tmp_path / "other.json").write_text("{}")
    for name in ("empty", "other", "missing"):
        words = [str(folder), str(tmp_path / "release"), "--recipe", str(tmp_path / f"{name}.json"), "--override", "x"]
        assert main(["compress", *words]) == 3
        err = capsys.readouterr().err
        assert err.startswith("ttref: ") and err.count("\n") == 1
    assert main(["verify", str(tmp_path), "--source", str(folder)]) in (1, 3)
    assert not (tmp_path / "release").exists()
