"""Adapters that a model cannot have: what is refused, or fails half-way, changes nothing."""

import pytest
import torch
from adapters import anatomy, tiny_bert, tiny_gpt2, tiny_llama, trained
from torch import nn

from ttref import TTLoRALinear, add_tt_lora, merge_tt_lora

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(20, 12), nn.Linear(12, 12)
        self.head, self.twice = nn.Linear(12, 20, bias=False), nn.ModuleDict({"a": nn.Linear(12, 12)})
        self.head.weight = self.embed.weight
        self.twice["b"] = self.twice["a"]


def holding(layer):
    """The layer to refuse comes last, after one that could be adapted."""
    return nn.ModuleDict({"first": nn.Linear(12, 12), "bad": layer})


def with_weight(weight):
    layer = nn.Linear(12, 12)
    layer.weight = weight
    return layer


def dynamic():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(12, 12)), {nn.Linear})
    return model[0]


def complex_weight():
    return with_weight(nn.Parameter(torch.zeros(12, 12, dtype=torch.complex64)))


def of_peft(kind):
    def make():
        import peft

        config = {
            "lora": peft.LoraConfig(r=2, target_modules=["0"]),
            "ia3": peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
        }
        return peft.get_peft_model(nn.Sequential(nn.Linear(12, 12)), config[kind]).base_model.model[0]

    return make


BAD_LAYERS = {
    "embedding": (lambda: nn.Embedding(12, 12), "not torch.nn.modules.sparse.Embedding"),
    "convolution": (lambda: nn.Conv1d(12, 12, 1), "not torch.nn.modules.conv.Conv1d"),
    "bilinear": (lambda: nn.Bilinear(3, 4, 12), "TT-LoRA adapts"),
    "norm": (lambda: nn.LayerNorm(12), "TT-LoRA adapts"),
    "adapted": (lambda: TTLoRALinear(nn.Linear(12, 12), rank=1, alpha=1), "already adapted .a TTLoRALinear."),
    "PEFT's LoRA": (of_peft("lora"), "already adapted"),
    "PEFT's IA3": (of_peft("ia3"), "already adapted"),
    "dynamically quantized": (dynamic, "not torch.*quantized.*Linear"),
    "complex": (complex_weight, "complex64"),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(12, 12)), "is parametrized"),
    "weight norm of old": (lambda: torch.nn.utils.weight_norm(nn.Linear(12, 12)), "its weight is a Tensor"),
    "pruned": (lambda: torch.nn.utils.prune.random_unstructured(nn.Linear(12, 12), "weight", 0.5), "is a Tensor"),
    "lazy": (lambda: nn.LazyLinear(12), "UninitializedParameter"),
}


# What is refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", BAD_LAYERS)
def test_layers_that_cannot_be_adapted(bad):
    import torch.nn.utils.prune  # noqa: F401

    make, message = BAD_LAYERS[bad]
    model = holding(make())
    before = anatomy(model) if bad not in ("lazy", "dynamically quantized") else None
    types = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match=f"^bad: .*{message}"):
        add_tt_lora(model, ["first", "bad"], rank=1, alpha=1)
    assert [type(module) for module in model.modules()] == types
    assert before is None or anatomy(model) == before
    assert model["first"].weight.requires_grad
    if bad != "adapted":
        with pytest.raises(TypeError, match=message):
            TTLoRALinear(model["bad"], rank=1, alpha=1)


def failing():
    """Model, arguments, error, message."""
    bert = lambda **more: {"rank": 2, "alpha": 1, "target_modules": "query", **more}  # noqa: E731
    yield tiny_bert, bert(target_modules="nothing"), ValueError, "no module is named 'nothing'.*query, key, value, den"
    yield tiny_bert, bert(target_modules=["query", "que"]), ValueError, "no module is named 'que'"
    yield tiny_bert, bert(target_modules="QUERY"), ValueError, "no module is named 'QUERY'"
    yield tiny_bert, bert(target_modules=".query"), ValueError, "no module"
    yield tiny_bert, bert(target_modules="quer."), ValueError, "no module"
    yield tiny_bert, bert(target_modules=[]), ValueError, "target_modules is empty"
    yield tiny_bert, bert(target_modules=""), (TypeError, ValueError), "target_modules"
    yield tiny_bert, bert(target_modules=None), TypeError, "target_modules must be a module name or several, got None"
    yield tiny_bert, bert(target_modules=3), TypeError, "target_modules must be a module name or several, got 3"
    yield tiny_bert, bert(modules_to_save=None), TypeError, "modules_to_save must be a module name or several, got None"
    yield tiny_bert, bert(shape={"uery": (4, 6, 4, 6)}), ValueError, "shape gives modes for 'uery'"
    yield tiny_bert, bert(target_modules=["query", 3]), TypeError, "target_modules must be .* got 3"
    yield tiny_bert, bert(target_modules=["query", None]), TypeError, "target_modules must be"
    yield tiny_bert, bert(target_modules=["query", "encoder"]), TypeError, "^encoder: TT-LoRA adapts"
    yield tiny_bert, bert(modules_to_save="nothing"), ValueError, "no module is named 'nothing'"
    yield tiny_bert, bert(modules_to_save="query"), ValueError, "is to be saved in full, but .*query"
    yield tiny_bert, bert(modules_to_save="encoder"), ValueError, "encoder is to be saved in full, but .*query"
    yield tiny_bert, bert(modules_to_save=[3]), TypeError, "modules_to_save must be"
    yield tiny_bert, bert(shape={"value": (4, 6, 4, 6)}), ValueError, "shape gives modes for 'value', but no layer"
    yield tiny_bert, bert(shape=(4, 6, 4, 5)), ValueError, r"^encoder.layer.0.attention.self.query: .*multiplies to 480"
    yield (
        tiny_bert,
        bert(target_modules=["query", "intermediate.dense"], shape=(4, 6, 4, 6)),
        ValueError,
        ("^encoder.layer.0.intermediate.dense: .*multiplies to 576, but a 36 x 24"),
    )
    yield (
        tiny_bert,
        bert(target_modules=["query", "1.output.dense"], shape={"1.output.dense": (2, 3)}),
        ValueError,
        ("layer.1.output.dense: "),
    )
    yield tiny_bert, bert(rank=0), ValueError, "query: rank must be"
    yield tiny_bert, bert(rank="4"), TypeError, "query: "
    yield tiny_bert, bert(rank=(1, 2, 1)), ValueError, "query: rank has 3 entries"
    yield tiny_bert, bert(alpha=0), ValueError, "query: alpha"
    yield tiny_bert, bert(alpha="1"), TypeError, "query: alpha"
    yield tiny_bert, bert(init="ones"), ValueError, "query: init must be"
    yield tiny_bert, bert(dropout=2), ValueError, "query: dropout"
    yield tiny_llama, bert(target_modules=["q_proj", "v_proj"], shape=(4, 6, 4, 6)), ValueError, "v_proj: .*288 entries"
    yield tiny_gpt2, bert(target_modules=["c_attn", "lm_head"]), ValueError, "lm_head shares a parameter with .*wte"
    yield tiny_gpt2, bert(target_modules="c_attn", modules_to_save="lm_head"), ValueError, "lm_head .*shares a param"
    yield Tied, bert(target_modules=["body", "head"]), ValueError, "head shares a parameter with embed.weight"
    yield Tied, bert(target_modules=["body", "twice.a"]), ValueError, "twice.a shares a parameter with twice.b"
    yield Tied, bert(target_modules="body", modules_to_save="embed"), ValueError, "embed .*shares a parameter with head"
    attention = lambda: nn.TransformerEncoderLayer(12, 2, 24)  # noqa: E731
    yield (
        attention,
        bert(target_modules=["linear1", "out_proj"]),
        TypeError,
        ("^self_attn.out_proj: nn.MultiheadAttention reads"),
    )


@pytest.mark.parametrize("frozen", [None, "half"])
@pytest.mark.parametrize("make, arguments, error, message", [pytest.param(*case) for case in failing()])
def test_whatever_fails_leaves_the_model_as_it_was(make, arguments, error, message, frozen):
    model = make()
    if frozen:
        for k, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(k % 2 == 0)
    arguments = dict(arguments)
    before = anatomy(model)
    with pytest.raises(error, match=message):
        add_tt_lora(model, arguments.pop("target_modules"), **arguments)
    assert anatomy(model) == before


def test_a_layer_inside_what_is_saved_in_full():
    """Now and in a later call alike: two ways to train one weight."""
    model = nn.ModuleDict({"head": nn.Sequential(nn.Linear(6, 6)), "query": nn.Linear(6, 6)})
    add_tt_lora(model, "query", rank=1, alpha=1, modules_to_save="head")
    before = anatomy(model)
    with pytest.raises(ValueError, match="head is to be saved in full, but head.0 in it is adapted"):
        add_tt_lora(model, "head.0", rank=1, alpha=1)
    assert anatomy(model) == before


def test_no_linear_layers_at_all():
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
    with pytest.raises(ValueError, match="the innermost modules here end in 0, 1"):
        add_tt_lora(model, "query", rank=1, alpha=1)
    with pytest.raises(ValueError, match="has no TT-LoRA layers"):
        merge_tt_lora(model)


class Breaks(nn.Module):
    """Something nobody foresaw, at the third layer that is put in or once everything is frozen."""

    def __init__(self, where):
        super().__init__()
        self.where, self.calls = where, 0
        self.one, self.two, self.three, self.head = (nn.Linear(6, 6) for _ in range(4))
        self.two.requires_grad_(False)

    def __setattr__(self, name, value):
        if isinstance(value, TTLoRALinear) and self.where == name:
            raise KeyboardInterrupt
        super().__setattr__(name, value)

    def requires_grad_(self, requires_grad=True):
        super().requires_grad_(requires_grad)
        if self.where == "frozen":
            raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("where", ["one", "three", "frozen"])
def test_an_interruption_in_the_middle(where):
    model = Breaks(where)
    before = anatomy(model)
    with pytest.raises(KeyboardInterrupt):
        add_tt_lora(model, ["one", "two", "three"], rank=2, alpha=1, modules_to_save="head")
    assert anatomy(model) == before
    model.where = None
    add_tt_lora(model, ["one", "two", "three"], rank=2, alpha=1)
    assert all(".delta." in name for name in trained(model)), "nothing remembers the head"
