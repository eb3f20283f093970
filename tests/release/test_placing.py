"""Compressed layers of any model: described together, put in place without numbers, taken out as dense ones."""

import copy

import pytest
import torch
from compressed import same_state
from quantized import answer, bart, built, gpt2
from strategies import agree, gaussian
from torch import nn

from ttref import MPSEmbedding, TiedHead, TTLinear, TTLoRALinear, swap_layer
from ttref.embeddings.head import ScaledTable
from ttref.release.placing import Placing, describe_model

X = gaussian((5, 12), 0, torch.float32)


class Doubled(TTLinear):
    def forward(self, x):
        return 2 * super().forward(x)


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 3))).eval()


def compressed():
    model = dense()
    for name in ("0", "2.1"):
        swap_layer(model, name, TTLinear.from_linear(model.get_submodule(name), rank=2))
    return model


def test_layers_are_put_in_place_and_get_their_numbers():
    model, plain = compressed(), dense()
    described = describe_model(model)
    assert [*described] == ["0", "2.1"]
    placing = Placing(plain, described)
    assert placing.names == ["0", "2.1"] and not placing.untied and plain[0].cores[0].is_meta
    assert not plain[0].training and plain[2][0].weight.device.type == "cpu"
    plain.load_state_dict(model.state_dict(), assign=True)
    placing.complete(plain)
    assert describe_model(plain) == described and agree(plain(X), model(X))


def test_the_model_stands_as_it_was_for_a_while():
    plain = dense()
    before, twin = plain[0], str(plain)
    placing = Placing(plain, describe_model(compressed()))
    placed = plain[0]
    with pytest.raises(KeyboardInterrupt), placing.undone(plain) as layers:
        assert layers == [before, plain[2][1]] and plain[0] is before and str(plain) == twin
        raise KeyboardInterrupt
    assert plain[0] is placed


def test_only_what_is_still_compressed_becomes_dense():
    model, plain = compressed(), dense()
    placing = Placing(plain, describe_model(model))
    plain.load_state_dict(model.state_dict(), assign=True)
    placing.complete(plain)
    plain[0] = kept = nn.Linear(12, 20)
    placing.undo(plain)
    assert plain[0] is kept and type(plain[2][1]) is nn.Linear
    assert torch.equal(plain[2][1].weight, model[2][1].weight) and torch.equal(plain[2][1].bias, model[2][1].bias)


def test_a_shared_table_is_one_module_before_and_after():
    torch.manual_seed(0)
    model = bart(scaled=True).eval()
    described = describe_model(model)
    [first, *others] = [name for name, spec in described.items() if spec["kind"] in ("ScaledTable", "Shared")]
    assert [described[name] for name in others] == [{"kind": "Shared", "with": first}] * 2
    plain = type(model)(copy.deepcopy(model.config)).eval()
    placing = Placing(plain, described)
    assert f"{others[0]}.table.store.place" not in plain.state_dict()  # its numbers have one name
    missing = plain.load_state_dict(model.state_dict(), assign=True, strict=False)
    assert not missing.missing_keys
    placing.complete(plain)
    assert all(plain.get_submodule(name) is plain.get_submodule(first) for name in others)
    assert same_state(plain, model) and agree(answer(plain), answer(model))
    placing.undo(plain)
    weights = {id(plain.get_submodule(name).weight) for name in (first, *others, "lm_head")}
    assert len(weights) == 1 and agree(answer(plain), answer(model))


def test_the_biases_of_a_head_stay_shared_with_those_of_others():
    model = built("BERT, masked words")
    plain = type(model)(copy.deepcopy(model.config)).eval()
    placing = Placing(plain, describe_model(model))
    plain.load_state_dict(model.state_dict(), assign=True)
    placing.complete(plain)
    plain.tie_weights()
    placing.undo(plain)
    predictions = plain.cls.predictions
    assert predictions.decoder.bias is predictions.bias
    assert predictions.decoder.weight is plain.get_input_embeddings().weight and agree(answer(plain), answer(model))


def test_what_cannot_be_described_is_named():
    model = nn.Sequential(TTLoRALinear(nn.Linear(8, 8), rank=2, alpha=1))
    with pytest.raises(ValueError, match="0 has an adapter around it; merge it first, or save it beside"):
        describe_model(model)
    with pytest.raises(TypeError, match="1: a Doubled cannot be described"):
        describe_model(nn.Sequential(nn.ReLU(), Doubled((2, 2), (2, 2), 2)))
    table = MPSEmbedding.from_embedding(nn.Embedding(9, 8), rank=1)
    with pytest.raises(ValueError, match="0 scores with a table that no look-up of the model holds"):
        describe_model(nn.Sequential(TiedHead(table)))
    with pytest.raises(ValueError, match="0: this TTLinear holds other tensors"):
        layer = TTLinear((2, 2), (2, 2), 2)
        nn.utils.parametrize.register_parametrization(layer.cores, "0", nn.Identity())
        describe_model(nn.Sequential(layer))


def test_a_model_stays_as_it_was_if_one_layer_does_not_fit():
    described = describe_model(compressed())
    for wrong in ({"2.7": described["0"]}, {"2.1": described["0"]}, {"1": described["0"]}, {"2.1": {"kind": "?"}}):
        plain = dense()
        before = [*plain.modules()]
        with pytest.raises(ValueError):
            Placing(plain, described | wrong)
        assert [*plain.modules()] == before


def test_a_factor_of_rows_must_be_that_of_the_look_up():
    """A forger could scale the rows of a table that nothing scales, or scale them by more."""
    plain = nn.Sequential(nn.Embedding(9, 8))
    table = MPSEmbedding.from_embedding(plain[0], rank=1)
    described = describe_model(nn.Sequential(ScaledTable(table, 2.0)))
    with pytest.raises(
        ValueError, match="0 does not scale its rows in this model, and is described with a factor of 2"
    ):
        Placing(plain, described)
    for own in (2.0, torch.tensor(2.0), torch.tensor(2.01)):
        plain = nn.Sequential(nn.Embedding(9, 8))
        plain[0].embed_scale = own
        Placing(plain, described)
    for own in (50.0, torch.tensor(-2.0), torch.tensor(0.0)):
        plain = nn.Sequential(nn.Embedding(9, 8))
        plain[0].embed_scale = own
        with pytest.raises(ValueError, match="0 scales its rows by .* in this model, and is described with 2"):
            Placing(plain, described)


class OnMeta(nn.Sequential):
    """Its look-up has a factor of three, which is not set before numbers come, as those of transformers."""

    def __init__(self):
        super().__init__(nn.Embedding(9, 8, device="meta"))
        self[0].register_buffer("embed_scale", torch.tensor(3.0, device="meta"), persistent=False)

    def _init_weights(self, module):
        nn.init.constant_(module.embed_scale, 3.0)


def test_a_factor_on_the_meta_device_is_the_one_that_the_model_would_set():
    table = MPSEmbedding.from_embedding(nn.Embedding(9, 8), rank=1)
    described = [describe_model(nn.Sequential(ScaledTable(table, scale))) for scale in (3.0, 2.0)]
    Placing(OnMeta(), described[0])
    model = OnMeta()
    with pytest.raises(ValueError, match="0 scales its rows by 3.0 in this model, and is described with 2.0"):
        Placing(model, described[1])
    assert model[0].embed_scale.is_meta
    model._init_weights = lambda module: None
    for plain in (model, nn.Sequential(model[0])):
        with pytest.raises(ValueError, match="the factor of 0 is on the meta device, and nothing tells it: make"):
            Placing(plain, described[0])


def test_names_of_the_base_model_are_found_with_and_without_its_prefix():
    torch.manual_seed(0)
    model = gpt2().eval()
    described = describe_model(model)
    base = type(model.transformer)(copy.deepcopy(model.config))
    with pytest.raises(ValueError, match="and a GPT2Model has no such module"):
        Placing(base, described)
    placing = Placing(base, described, same=False)
    assert placing.names == [name.removeprefix("transformer.") for name in described if name != "lm_head"]
    around = type(model)(copy.deepcopy(model.config))
    placing = Placing(around, describe_model(model.transformer), same=False)
    assert placing.names == [name for name in described if name != "lm_head"]
    assert placing.untied == {"lm_head.weight"}
    with pytest.raises(ValueError, match="described as 'transformer.h.9', and a GPT2Model has no such module"):
        Placing(type(base)(base.config), {"transformer.h.9": described["transformer.wpe"]}, same=False)
