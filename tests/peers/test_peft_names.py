"""TT-LoRA through PEFT: names of adapters and layers, ties, numbers of other kinds, quantized bases, interrupts."""

import copy
import json
import sys

import numpy as np
import peft
import pytest
import torch
from adapters import anatomy, scatter, tiny_bert, tiny_gpt2, tokens
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from strategies import agree, gaussian
from torch import nn
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

import ttref.lora.peft
import ttref.lora.peft_layer
from ttref.lora.peft import TTLoraConfig, TTLoraLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore:rank .* exceeds what modes"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:Adapter name .* should not be contained"),
]
FILES = {ttref.lora.peft.__file__, ttref.lora.peft_layer.__file__}


def config(*targets, **options):
    return TTLoraConfig(**{"rank": 2, "alpha": 2.0, "init": "paper", "target_modules": list(targets), **options})


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


# Names


@pytest.mark.parametrize("name", ["mine", "default", "base_model", "model", "ttlora_delta", "cores", "0"])
def test_adapters_load_under_any_name(name, tmp_path):
    x = gaussian((3, 16), 0, torch.float32)
    model = get_peft_model(two_layers(), config("0", modules_to_save=["2"]), adapter_name=name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    for other in (name, "other"):
        again = PeftModel.from_pretrained(two_layers(), folder, adapter_name=other)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=1e-6)


def test_a_name_that_modules_cannot_have_is_refused_as_by_peft():
    before = anatomy(model := two_layers())
    with pytest.raises(KeyError, match="module name can"):
        get_peft_model(model, config("0"), adapter_name="a.b")
    assert anatomy(model) == before


def test_a_second_adapter_on_all_linear_layers():
    model = get_peft_model(two_layers(), config(target_modules="all-linear"))
    model.add_adapter("second", config(target_modules="all-linear"))
    layers = [module for module in model.modules() if isinstance(module, TTLoraLayer)]
    assert [sorted(layer.ttlora_delta) for layer in layers] == [["default", "second"]] * 2


@pytest.mark.parametrize("pattern", [r".*\.query", "all-linear"])
def test_layers_are_counted_among_names_only(pattern):
    with pytest.raises(ValueError, match="layers_to_transform counts among layers named in a list"):
        config(target_modules=pattern, layers_to_transform=[1])
    with pytest.raises(ValueError, match="layers_to_transform"):
        config(target_modules=pattern, layers_to_transform=0, layers_pattern="layer")
    model = get_peft_model(tiny_bert(), config("query", layers_to_transform=[1], layers_pattern="layer"))
    assert model.targeted_module_names == ["encoder.layer.1.attention.self.query"]


def test_the_helper_that_stops_casting_of_inputs():
    model = get_peft_model(two_layers(), config("0"))
    x = gaussian((3, 16), 0, torch.float32)
    wanted = model(x)
    with disable_input_dtype_casting(model, True):
        assert agree(model(x), wanted)


def test_adapters_for_each_sample_are_refused():
    """Elsewhere in PEFT they go unheeded, and every sample is answered with the active adapter."""
    model = get_peft_model(two_layers(), config("0"))
    with pytest.raises(ValueError, match="adapter_names must be left out"):
        model(torch.zeros(2, 16), adapter_names=["default", "__base__"])


def test_injected_into_a_model_without_a_wrapper():
    model, x = two_layers(), gaussian((3, 16), 0, torch.float32)
    injected = peft.inject_adapter_in_model(config("0"), copy.deepcopy(model))
    state = peft.get_peft_model_state_dict(injected)
    assert list(state) == [f"0.ttlora_delta.cores.{k}" for k in range(len(state))]
    again = peft.inject_adapter_in_model(config("0"), model)
    peft.set_peft_model_state_dict(again, state)
    torch.testing.assert_close(again(x), injected(x))


# Ties


def masked():
    return BertForMaskedLM(
        BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=36)
    )


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=50, d_model=24, d_kv=12, d_ff=36, num_layers=1, num_heads=2, decoder_start_token_id=0,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


TIED = {
    "bert": (masked, "decoder", "query", "word_embeddings"),
    "gpt2": (tiny_gpt2, "lm_head", "c_attn", "wte"),
    "t5": (t5, "lm_head", "q", "shared"),
}
tied = pytest.mark.parametrize("name", TIED)


def logits(model):
    more = {"decoder_input_ids": tokens(seed=1)} if "T5" in type(getattr(model, "base_model", model)).__name__ else {}
    more = more or ({"decoder_input_ids": tokens(seed=1)} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        return model(input_ids=tokens(), **more).logits


@tied
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_head_tied_to_the_table_is_refused(name):
    """Merging would add the update to the table as well."""
    make, head, _, table = TIED[name]
    model = make().eval()
    before = anatomy(model)
    for targets in ([head], [TIED[name][2], head], rf".*{head}|{head}"):
        with pytest.raises(ValueError, match=f"{head}: .*shares a parameter with .*{table}.*untie them first by"):
            get_peft_model(model, config(target_modules=targets))
        assert anatomy(model) == before
    with pytest.raises(TypeError, match=f"{table}: TT-LoRA adapts nn.Linear"):
        get_peft_model(model, config(table))
    assert anatomy(model) == before


@tied
def test_a_head_with_a_weight_of_its_own_is_adapted(name):
    make, head, _, table = TIED[name]
    model = make().eval()
    layer = model.get_output_embeddings()
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    kept = model.get_input_embeddings().weight.detach().clone()
    adapted = get_peft_model(model, config(head)).eval()
    wanted = logits(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=1e-4)
    assert torch.equal(merged.get_input_embeddings().weight, kept)


@tied
def test_all_linear_leaves_the_tied_head_and_merging_leaves_the_table(name):
    model = TIED[name][0]().eval()
    kept = model.get_input_embeddings().weight.detach().clone()
    adapted = get_peft_model(model, config(target_modules="all-linear")).eval()
    wanted = logits(adapted)
    assert not any(name.endswith(TIED[name][1]) for name in adapted.targeted_module_names if name in TIED)
    torch.testing.assert_close(logits(adapted.merge_and_unload()), wanted, rtol=0, atol=1e-4)
    assert torch.equal(model.get_input_embeddings().weight, kept)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_ensure_weight_tying_trains_table_and_head_as_one(name, tmp_path):
    make, _, target, table = TIED[name]
    torch.manual_seed(0)
    base = make().eval()
    model = get_peft_model(
        copy.deepcopy(base), config(target, modules_to_save=[table], ensure_weight_tying=True)
    ).eval()
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "ttlora" not in name]
    assert len(trained) == 1 and table in trained[0], "one table, not two"
    with torch.no_grad():
        dict(model.named_parameters())[trained[0]].mul_(1.5)
    by_hand = copy.deepcopy(base)
    by_hand.get_input_embeddings().weight.data.mul_(1.5)
    with model.disable_adapter():
        assert not torch.allclose(logits(model), logits(by_hand))
    again = get_peft_model(by_hand, config(target)).eval()
    for name, layer in [found for found in model.base_model.model.named_modules() if isinstance(found[1], TTLoraLayer)]:
        again.base_model.model.get_submodule(name).load_state_dict(layer.state_dict())
    torch.testing.assert_close(logits(model), logits(again))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)


def test_tables_that_are_tied_to_one_another_are_refused():
    """PEFT would put a head in the place of the second table."""
    before = anatomy(model := t5())
    with pytest.raises(ValueError, match="PEFT ties heads to the table and no tables to one another"):
        get_peft_model(model, config("q", modules_to_save=["shared"], ensure_weight_tying=True))
    assert anatomy(model) == before


@tied
def test_ensure_weight_tying_has_no_meaning_for_adapted_layers(name):
    make, head, _, _ = TIED[name]
    before = anatomy(model := make())
    with pytest.raises(ValueError, match="ensure_weight_tying trains tied modules_to_save as one, and none of"):
        get_peft_model(model, config(head, ensure_weight_tying=True))
    assert anatomy(model) == before


def test_layers_that_share_a_weight_are_refused():
    model = nn.ModuleDict({"a": nn.Linear(12, 12), "b": nn.Linear(12, 12)})
    model["b"].weight = model["a"].weight
    with pytest.raises(ValueError, match="^a: a shares a parameter with b.weight"):
        get_peft_model(model, config("a"))


# Numbers


def test_numbers_of_other_kinds_are_plain_ones_in_the_file(tmp_path):
    options = {
        "rank": np.int64(2),
        "alpha": np.float32(1.5),
        "shape": {"0": np.array([4, 4, 4, 4])},
        "dropout": np.float64(0.25),
        "layers_to_transform": np.array([0, 1]),
    }
    made = config("0", **options)
    plain = {"rank": 2, "alpha": 1.5, "shape": {"0": [4, 4, 4, 4]}, "dropout": 0.25, "layers_to_transform": [0, 1]}
    for name, value in plain.items():
        assert getattr(made, name) == value and type(getattr(made, name)) is type(value), name
    assert config("0", rank=np.array([1, 2, 2, 2, 1])).rank == [1, 2, 2, 2, 1]
    assert config("0", alpha=torch.tensor(1.5)).alpha == 1.5 and config("0", rank=(1, 2, 1)).rank == [1, 2, 1]
    made.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {name: held[name] for name in plain} == plain
    options.pop("layers_to_transform")
    get_peft_model(two_layers(), config("0", **options)).save_pretrained(tmp_path)
    again = TTLoraConfig.from_pretrained(tmp_path)
    assert again.shape == plain["shape"] and again.alpha == 1.5


# Quantized bases


class Int8Linear(nn.Linear):
    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.scale = layer.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((layer.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


@pytest.mark.parametrize("batch", [1, 7, 3000])
def test_beside_a_quantized_base(batch, tmp_path):
    def base():
        model = two_layers()
        model[0] = Int8Linear(model[0])
        return model

    model, x = get_peft_model(base(), config("0")), gaussian((batch, 16), 0, torch.float32)
    layer = model.base_model.model[0]
    wanted = layer.base_layer(x) + x @ layer.get_delta_weight("default").T
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5)
    assert layer.ttlora_delta["default"].cores[0].dtype == torch.float32 and layer.weight is layer.base_layer.weight
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(TypeError, match="quantized, so the update cannot be added"):
            merge()
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(x), model(x))


# Interrupts


def interrupted(function, nth):
    """Run it with an interrupt at the nth line of the bridge; whether it came that far."""
    seen = 0

    def local(frame, event, argument):
        nonlocal seen
        seen += event == "line"
        if event == "line" and seen == nth:
            raise KeyboardInterrupt
        return local

    sys.settrace(lambda frame, event, _: local if frame.f_code.co_filename in FILES else None)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("verb", ["merge", "unmerge", "get_peft_model"])
def test_an_interrupt_at_any_line_leaves_before_or_after(verb):
    x = gaussian((3, 16), 0, torch.float32)
    for nth in range(1, 1000):
        model = two_layers()
        if verb == "get_peft_model":
            before = anatomy(model)
            if not interrupted(lambda model=model: get_peft_model(model, config("0", "2")), nth):
                break
            assert anatomy(model) == before or isinstance(model[2], TTLoraLayer)
            continue
        model = get_peft_model(model, config("0"))
        layer = model.base_model.model[0]
        scatter(layer.ttlora_delta["default"])
        base, wanted = layer.base_layer.weight.detach().clone(), model(x)
        if verb == "unmerge":
            layer.merge()
        came = interrupted(getattr(layer, verb), nth)
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-5)
        assert torch.equal(layer.base_layer.weight, base) is not layer.merged
        assert layer.merged_adapters == (["default"] if layer.merged else [])
        if layer.merged:
            layer.unmerge()
        assert torch.equal(layer.base_layer.weight, base)
        if not came:
            break
    assert 5 < nth < 999


def test_an_interrupt_at_any_line_of_a_second_adapter_leaves_the_first():
    complete = 0
    for nth in range(1, 1000):
        model = get_peft_model(two_layers(), config("0", modules_to_save=["2"]))
        before = anatomy(model)
        if not interrupted(lambda model=model: model.add_adapter("b", config("0", modules_to_save=["2"])), nth):
            break
        if anatomy(model) != before:  # all but the name, which PEFT takes off its list after errors alone
            layer, head = model.base_model.model[0], model.base_model.model[2]
            assert list(layer.ttlora_delta) == list(head.modules_to_save) == ["default", "b"]
            complete += 1
    assert 50 < nth < 999 and complete <= 1
