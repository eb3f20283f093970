"""What a release holds: each tensor once, where it came from, what accepted it, its bytes; and what is refused."""

import copy
import hashlib
import json
import os

import pytest
import torch
import yaml
from language_models import t5
from releases import WHY, compressed, dense, output, released, small_dense, small_layers
from safetensors.torch import load_file, save_file
from saved_beside import names
from torch import nn

from ttref import MPSEmbedding, TTLinear, replace_embedding
from ttref.files import digest
from ttref.release import save_release
from ttref.release.manifest import MANIFEST, MODEL, ROLLBACK


class Report:
    """Stands for what an acceptance suite found."""

    data_hash = "d" * 64
    rows = [{"metric": "accuracy", "slice": "all", "dense": 0.9, "compressed": 0.89},
            {"metric": "accuracy", "slice": "short", "dense": 0.8, "compressed": 0.79}]  # fmt: skip

    def __init__(self, accepted=True):
        self.accepted = accepted

    def as_dict(self):
        return {"accepted": self.accepted, "data_hash": self.data_hash, "rows": self.rows, "scores": {"a": [1.0, 0.0]}}

    def card(self):
        return "## Acceptance\n\nIt was tested."


def manifest_of(folder):
    return json.loads((folder / MANIFEST).read_bytes())


def card_of(folder):
    """The metadata of a card, and its text."""
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_model_file_is_the_state_and_opens_everywhere(tmp_path):
    _, small, folder = released(tmp_path / "r")
    state, held = small.state_dict(), load_file(folder / MODEL)
    assert state.keys() == held.keys() and all(torch.equal(state[name], held[name]) for name in held)


def test_every_other_file_is_in_the_manifest_with_its_size_and_hash(tmp_path):
    _, _, folder = released(tmp_path / "r", report=Report(), override=None)
    files = manifest_of(folder)["files"]
    assert sorted([*files, MANIFEST]) == names(folder)
    for name, about in files.items():
        content = (folder / name).read_bytes()
        assert about == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_where_each_layer_came_from(tmp_path):
    model, small, folder = released(tmp_path / "r", seed=7, recipe={"eps": 0.4})
    manifest = manifest_of(folder)
    assert sorted(manifest["layers"]) == ["conv", "hidden", "places", "words"]
    for name, about in manifest["layers"].items():
        weight = getattr(model, name).weight
        assert about["source"]["sha256"] == digest(weight) and about["source"]["shape"] == list(weight.shape)
        assert about["agrees"] in ("bits", "tolerance") and 0 < about["relative_error"] < 1
    assert manifest["layers"]["words"]["method"]["eps"] == 0.4 and manifest["layers"]["words"]["method"]["center"]
    assert manifest["layers"]["hidden"]["method"] == {
        "function": "ttm_svd", "rank": list(small.hidden.ranks),
        "row_shape": list(small.hidden.out_shape), "col_shape": list(small.hidden.in_shape),
    }  # fmt: skip
    assert manifest["seed"] == 7 and manifest["recipe"] == {"eps": 0.4}
    assert manifest["made_with"]["torch"] == torch.__version__


def test_the_same_release_has_the_same_bytes_and_its_name_is_the_hash_of_the_manifest(tmp_path):
    model = dense()
    small = compressed(model)
    found = [save_release(small, tmp_path / name, source=model, override=WHY) for name in "ab"]
    assert found[0] == found[1] == hashlib.sha256((tmp_path / "a" / MANIFEST).read_bytes()).hexdigest()
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_way_back_is_in_the_folder_or_is_the_source(tmp_path):
    model, _, folder = released(tmp_path / "r")
    old = load_file(folder / ROLLBACK)
    assert sorted(old) == [f"{name}.weight" for name in ("conv", "hidden", "places", "words")]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in old.items())
    released(tmp_path / "s", keep_dense=False)
    assert ROLLBACK not in names(tmp_path / "s") and manifest_of(tmp_path / "s")["rollback"] == "source"


def test_bytes_before_and_after(tmp_path):
    model, _, folder = released(tmp_path / "r")
    size = manifest_of(folder)["bytes"]
    state = model.state_dict().values()
    assert size["before"] == sum(tensor.numel() * tensor.element_size() for tensor in state)
    assert size["after"] == (folder / MODEL).stat().st_size and size["before_is"] == "tensors"
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    released(folder, model, source=tmp_path / "model.safetensors")
    assert manifest_of(folder)["bytes"]["before_is"] == "files"


def test_a_file_that_is_not_smaller_is_called_so(tmp_path):
    """Of small models the header alone takes more than trains save."""
    model = small_dense()
    _, _, folder = released(tmp_path / "r", model, layers={"1": TTLinear.from_linear(model[1], eps=0)})
    assert "**not smaller**" in card_of(folder)[1]


def test_the_card_is_filled_by_code(tmp_path):
    _, _, folder = released(tmp_path / "r", report=Report(), override=None, base_model="some/base")
    metadata, text = card_of(folder)
    manifest = manifest_of(folder)
    assert metadata["base_model"] == "some/base" and metadata["base_model_relation"] == "quantized"
    [result] = metadata["model-index"][0]["results"]
    assert [one["value"] for one in result["metrics"]] == [0.89, 0.9]
    scores = manifest["files"]["acceptance.json"]["sha256"]
    assert scores in result["source"]["name"] and scores in text and result["dataset"]["revision"] == "d" * 64
    assert manifest["files"][MODEL]["sha256"] in text
    assert all(about["source"]["sha256"] in text for about in manifest["layers"].values())
    assert json.loads((folder / "acceptance.json").read_bytes())["scores"] == {"a": [1.0, 0.0]}
    assert manifest["acceptance"]["accepted"] is True and "scores" not in manifest["acceptance"]


def test_the_hub_reads_the_card(tmp_path):
    from huggingface_hub import ModelCard

    _, _, folder = released(tmp_path / "r", report=Report(), override=None, base_model="some/base")
    data = ModelCard.load(folder / "README.md").data
    assert data.base_model == "some/base" and data.eval_results[0].metric_value == 0.89


def test_what_was_not_accepted_needs_a_reason_which_is_recorded(tmp_path):
    for options, says in (
        ({"override": None}, "nothing says that the model is good enough"),
        ({"report": Report(False), "override": None}, "did not accept"),
        ({"report": Report(True), "override": WHY}, "nothing to override"),
        ({"override": " "}, "in words"),
        ({"override": True}, "in words"),
    ):
        with pytest.raises(ValueError, match=says):
            released(tmp_path / "r", **options)
    assert names(tmp_path) == []
    released(tmp_path / "r", report=Report(False), override="a <b>demo</b>, with a | in it")
    manifest, (_, text) = manifest_of(tmp_path / "r"), card_of(tmp_path / "r")
    assert manifest["override"] == "a <b>demo</b>, with a | in it" and manifest["acceptance"]["accepted"] is False
    assert "did not accept" in text and "<b>" not in text.replace("\\<b", "")


def test_other_things_are_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(FileExistsError, match="name a new folder"):
            released(tmp_path / name)
    (tmp_path / "empty").mkdir()
    released(tmp_path / "empty")
    released(tmp_path / "empty", dense(1))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["empty", "file", "mine"]


@pytest.mark.parametrize("other", [{"name": "an extension"}, {"files": []}, [1], None])
def test_a_manifest_of_something_else_is_no_release(other, tmp_path):
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / MANIFEST).write_text("no JSON" if other is None else json.dumps(other))
    (tmp_path / "extension" / "background.js").write_text("years of work")
    with pytest.raises(FileExistsError, match="name a new folder"):
        released(tmp_path / "extension")
    assert names(tmp_path / "extension") == ["background.js", MANIFEST]


@pytest.mark.parametrize("name", [".git", ".gitattributes", "notes.txt"])
def test_a_release_with_other_things_in_it_is_not_replaced(name, tmp_path):
    _, _, folder = released(tmp_path / "r")
    if name == ".git":
        (folder / name).mkdir()
        (folder / name / "HEAD").write_text("ref")
    else:
        (folder / name).write_text("mine")
    with pytest.raises(FileExistsError, match="name a new folder"):
        released(folder, dense(1))
    assert name in names(folder)


def test_a_damaged_or_signed_release_is_replaced(tmp_path):
    model, _, folder = released(tmp_path / "r")
    (folder / MODEL).write_bytes(b"cut off")
    (folder / "model.sig").write_text("of the older one")
    released(folder, model)
    assert "model.sig" not in names(folder) and (folder / MODEL).stat().st_size > 100


@pytest.mark.parametrize(
    "model, options, error, says",
    [
        (lambda: dense(), {}, ValueError, "no compressed layers inside"),
        (lambda: TTLinear(12, 12, 2), {}, ValueError, "no compressed layers inside"),
        (lambda: "a model", {}, TypeError, "must be an nn.Module"),
        (lambda: compressed(dense()), {"source": 3}, TypeError, "source must be the dense model"),
        (lambda: compressed(dense()), {"source": {}}, ValueError, "the source has no .*weight"),
        (lambda: compressed(dense()), {"source": compressed(dense())}, ValueError, "the source has no .*weight"),
        (lambda: compressed(dense()), {"source": "nowhere"}, FileNotFoundError, "nowhere"),
        (lambda: compressed(dense()), {"recipe": 3}, TypeError, "recipe must be a dict"),
        (lambda: compressed(dense()), {"base_model": 3}, TypeError, "base_model must be the name"),
        (lambda: compressed(dense()), {"report": {"accepted": True}}, TypeError, "what AcceptanceSuite.*run returned"),
        (lambda: compressed(dense()), {"seed": 0.5}, TypeError, "seed must be an integer"),
        (lambda: compressed(dense()).to("meta"), {}, ValueError, "meta device"),
    ],
)
def test_what_is_refused_leaves_nothing(model, options, error, says, tmp_path):
    with pytest.raises(error, match=says):
        save_release(model(), tmp_path / "r", **{"source": dense(), "override": WHY, **options})
    assert names(tmp_path) == []


def test_a_source_of_another_shape_is_refused(tmp_path):
    model = dense()
    small = compressed(model)
    model.hidden = nn.Linear(9, 12)
    with pytest.raises(ValueError, match=r"the source has \(12, 9\) for hidden.weight"):
        save_release(small, tmp_path / "r", source=model, override=WHY)


def test_an_error_on_the_way_leaves_the_older_release(tmp_path):
    model, _, folder = released(tmp_path / "r")
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    class Broken:
        def save_pretrained(self, folder):
            (folder / "vocab.txt").write_text("half")
            raise OSError("no more room")

    class Nested:
        def save_pretrained(self, folder):
            (folder / "inner").mkdir()

    for tokenizer, error in ((Broken(), OSError), (Nested(), ValueError)):
        with pytest.raises(error):
            released(folder, dense(1), tokenizer=tokenizer)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before and names(tmp_path) == ["r"]


def test_tied_tensors_are_stored_once_and_both_readers_are_served(tmp_path):
    model = small_dense()
    model.add_module("4", nn.Linear(8, 8, bias=False))
    model.add_module("5", nn.Linear(8, 8, bias=False))
    model[5].weight = model[4].weight
    _, small, folder = released(tmp_path / "r", model, layers=small_layers(model))
    from safetensors import safe_open
    from safetensors.torch import load_model

    with safe_open(folder / MODEL, "pt") as file:
        assert "5.weight" not in file.keys() and file.metadata()["5.weight"] == "4.weight"  # noqa: SIM118
    assert manifest_of(folder)["ties"] == {"5.weight": "4.weight"}
    again = copy.deepcopy(small)
    nn.init.zeros_(again[4].weight)
    assert load_model(again, folder / MODEL) == (set(), []) and torch.equal(again[5].weight, model[4].weight)


def test_a_table_in_several_places_is_stored_once(tmp_path):
    model = t5()
    small = copy.deepcopy(model)
    table = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach())
    replace_embedding(small, MPSEmbedding.from_embedding(table, rank=2), head="tied")
    save_release(small, tmp_path / "r", source=model, override=WHY)
    held = [name for name in load_file(tmp_path / "r" / MODEL) if "buckets" in name]
    assert len(held) == 1 and sorted(manifest_of(tmp_path / "r")["layers"]) == ["shared"]


def test_the_model_is_only_read(tmp_path):
    model = dense()
    small = compressed(model)
    before, state = output(small), {name: tensor.clone() for name, tensor in small.state_dict().items()}
    save_release(small, tmp_path / "r", source=model, override=WHY)
    assert torch.equal(output(small), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in small.state_dict().items())


def test_no_path_of_the_machine_is_written(tmp_path):
    model = dense()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    _, _, folder = released(tmp_path / "r", model, source=tmp_path / "model.safetensors")
    for name in names(folder):
        assert os.fsencode(str(tmp_path)) not in (folder / name).read_bytes()
