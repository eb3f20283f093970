"""The way back: every dense weight bit for bit, in the model that runs, in a fresh one, and as a folder."""

import copy

import pytest
import torch
from language_models import IDS as TOKENS
from language_models import gpt2, llama, t5
from releases import WHY, compressed, copied, dense, forged, output, released, same_state
from safetensors.torch import load_file, save_file
from saved_beside import names
from torch import nn

from ttref import MPSEmbedding, TTConv2d, TTLinear, replace_embedding, swap_layer
from ttref.release import load_release, loading, rollback, save_release, verify
from ttref.release.manifest import MODEL, ROLLBACK


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return released(tmp_path_factory.mktemp("release") / "r")


def bit_for_bit(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def test_the_running_model_is_dense_again(release):
    model, _, folder = release
    for target in (compressed(model), load_release(folder, dense(4)), dense(4), Meta()):
        assert rollback(folder, target) is target
        assert bit_for_bit(target, model) and torch.equal(output(target), output(model))
    assert target.words.padding_idx == 0 and not target.training


def Meta():
    from releases import Net

    with torch.device("meta"):
        return Net().eval()


def test_a_folder_holds_the_dense_model(release, tmp_path):
    model, _, folder = release
    assert rollback(folder, tmp_path / "dense") == tmp_path / "dense"
    assert names(tmp_path / "dense") == [MODEL] and names(tmp_path) == ["dense"]
    held = load_file(tmp_path / "dense" / MODEL)
    assert held.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in held.items())
    assert verify(folder, tmp_path / "dense", progress=False).proved


def test_zeros_of_both_signs_and_extremes_come_back(tmp_path):
    model = dense()
    with torch.no_grad():
        model.hidden.weight[0, :4] = torch.tensor([-0.0, 1e-45, -3e38, 1e-38])
    _, small, folder = released(tmp_path / "r", model, layers={"hidden": TTLinear.from_linear(model.hidden, rank=3)})
    assert bit_for_bit(rollback(folder, small), model)


def test_what_was_trained_beside_the_layers_comes_back_too(tmp_path):
    model = dense()
    small = compressed(model)
    with torch.no_grad():
        small.out.weight.add_(1)
        small.hidden.bias.add_(1)
    save_release(small, tmp_path / "r", source=model, override=WHY)
    assert bit_for_bit(rollback(tmp_path / "r", small), model)


@pytest.mark.parametrize("make", [gpt2, llama, t5], ids=["gpt2", "llama", "t5"])
@pytest.mark.parametrize("head", ["tied", "dense"])
@pytest.mark.filterwarnings("ignore:the head keeps its dense matrix")
def test_transformers_models_with_tied_heads(make, head, tmp_path):
    model = make().eval()
    small = copy.deepcopy(model)
    table = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach())
    replace_embedding(small, MPSEmbedding.from_embedding(table, rank=2), head=head)
    given = {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS} if make is t5 else {})
    save_release(small, tmp_path / "r", source=model, override=WHY)
    model.save_pretrained(tmp_path / "source")  # as it is on the Hub, without the tied head
    for source in (model, tmp_path / "source"):
        assert verify(tmp_path / "r", source, progress=False).proved
    rollback(tmp_path / "r", tmp_path / "dense")
    again = type(model).from_pretrained(tmp_path / "dense")
    loaded = load_release(tmp_path / "r")
    with torch.no_grad():
        expected = model(**given).logits
        for target in (small, loaded, make().eval()):
            rollback(tmp_path / "r", target)
            assert torch.equal(target(**given).logits, expected) and bit_for_bit(target, model)
        assert torch.equal(again(**given).logits, expected) and bit_for_bit(again, model)
    for target in (loaded, rollback(tmp_path / "r", load_release(tmp_path / "r", make().eval()))):
        target.save_pretrained(tmp_path / "saved")
        assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_that_is_changed_after_the_check_is_not_copied(name, tmp_path, monkeypatch):
    model = gpt2()
    small = copy.deepcopy(model)
    swap_layer(small, "transformer.h.0.mlp.c_fc", TTLinear.from_linear(small.transformer.h[0].mlp.c_fc, rank=2))
    save_release(small, tmp_path / "r", source=model, override=WHY)

    def checked_then_changed(folder, manifest, damages=loading.damages):
        found = damages(folder, manifest)
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        return found

    monkeypatch.setattr(loading, "damages", checked_then_changed)
    with pytest.raises(ValueError, match=f"{name} is not what was written"):
        rollback(tmp_path / "r", tmp_path / "dense")
    assert names(tmp_path) == ["r"]


def test_a_layer_of_gpt2_is_turned_as_it_was(tmp_path):
    model = gpt2()
    small = copy.deepcopy(model)
    for name in ("transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_fc"):  # a square one, and a wide one
        swap_layer(small, name, TTLinear.from_linear(small.get_submodule(name), rank=2))
    save_release(small, tmp_path / "r", source=model, override=WHY)
    assert verify(tmp_path / "r", model, progress=False).names("equal")[-1] == "config.json"
    assert verify(tmp_path / "r", model, progress=False).proved
    assert bit_for_bit(rollback(tmp_path / "r", small), model)
    assert type(small.get_submodule(name)).__name__ == "Conv1D"


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_layer_in_two_places_is_one_layer_again(kind, tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(12, 12) if kind == "linear" else nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())
    small = copy.deepcopy(model)
    if kind == "linear":
        short = TTLinear.from_linear(layer, rank=2)
    else:
        short = TTConv2d.from_conv(layer, rank=2, row_shape=(4, 1), col_shape=(9, 4), taps_first=True)
    small[0] = small[2] = short
    save_release(small, tmp_path / "r", source=model, override=WHY)
    for target in (small, load_release(tmp_path / "r", copy.deepcopy(model)), copy.deepcopy(model)):
        assert bit_for_bit(rollback(tmp_path / "r", target), model) and target[0] is target[2]
    rollback(tmp_path / "r", tmp_path / "dense")
    assert load_file(tmp_path / "dense" / MODEL).keys() == {"0.weight", "0.bias"}


def test_without_dense_tensors_the_source_is_needed_and_checked(tmp_path):
    model, small, folder = released(tmp_path / "r", keep_dense=False)
    with pytest.raises(ValueError, match="was saved with keep_dense=False: give the dense model as the source"):
        rollback(folder, small)
    with pytest.raises(ValueError, match="weight in the source is not the tensor that was replaced"):
        rollback(folder, small, source=dense(1))
    assert same_state(small, compressed(model))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert bit_for_bit(rollback(folder, small, source=tmp_path / "model.safetensors"), model)


def test_what_is_refused_changes_nothing(release, tmp_path):
    model, _, folder = release
    small = compressed(model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty"):
        rollback(folder, tmp_path / "full")
    with pytest.raises(TypeError, match="target must be a model or the path"):
        rollback(folder, 3)
    with pytest.raises(ValueError, match="is the release of a Net, and this model is a Linear"):
        rollback(folder, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="this is another release"):
        rollback(folder, small, sha256="0" * 64)
    other = compressed(model)
    other.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="it has more.weight, which the release has not"):
        rollback(folder, other)
    assert same_state(small, compressed(model)) and type(other.hidden).__name__ == "TTLinear"
    damaged = copied(folder, tmp_path / "copy")

    def change(tensors, manifest):
        tensors["hidden.weight"][0, 0] += 1

    forged(damaged, change, ROLLBACK)
    with pytest.raises(ValueError, match="hidden.weight in rollback.safetensors is not the tensor that was replaced"):
        rollback(damaged, tmp_path / "dense")
    assert names(tmp_path) == ["copy", "full"]


def test_a_bias_that_a_layer_lost_comes_back(tmp_path):
    model = nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Linear(36, 24)).eval()
    small = copy.deepcopy(model)
    swap_layer(small, "0", TTLinear.from_cores(list(TTLinear.from_linear(model[0], rank=4).cores), bias=None))
    save_release(small, tmp_path / "r", source=model, override=WHY)
    assert bit_for_bit(rollback(tmp_path / "r", small), model)
    rollback(tmp_path / "r", tmp_path / "dense")
    assert torch.equal(load_file(tmp_path / "dense" / MODEL)["0.bias"], model[0].bias)


def test_a_source_whose_names_begin_otherwise_is_a_source_for_the_way_back(tmp_path):
    model = nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Linear(36, 24)).eval()
    small = copy.deepcopy(model)
    swap_layer(small, "0", TTLinear.from_linear(model[0], rank=4))
    save_file({f"inner.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "dense.safetensors")
    save_release(small, tmp_path / "r", source=tmp_path / "dense.safetensors", override=WHY, keep_dense=False)
    assert bit_for_bit(rollback(tmp_path / "r", small, source=tmp_path / "dense.safetensors"), model)
