"""Adapters in whole models: which layers a name finds, what is frozen, and merging."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from adapters import (
    FLOATS,
    anatomy,
    answers,
    bits,
    scatter_all,
    tiny_bert,
    tiny_classifier,
    tiny_gpt2,
    tiny_llama,
    tokens,
    trained,
)
from strategies import agree
from torch import nn

from ttref import TTLoRALinear, add_tt_lora, merge_tt_lora

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")
MODELS = {
    "bert": (tiny_bert, ["query", "value"]),
    "classifier": (tiny_classifier, ["query", "value", "intermediate.dense"]),
    "llama": (tiny_llama, ["q_proj", "k_proj", "v_proj", "down_proj"]),
    "gpt2": (tiny_gpt2, ["c_attn", "c_proj"]),
}
models = pytest.mark.parametrize("name", MODELS)


def adapters(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoRALinear)}


def added(name="bert", dtype=torch.float32, **options):
    make, targets = MODELS[name]
    torch.manual_seed(1)
    return add_tt_lora(make(dtype=dtype), targets, **{"rank": 2, "alpha": 1.5, **options})


# Which layers, and what is trained


@models
def test_the_named_layers_and_no_others(name):
    make, targets = MODELS[name]
    model, base = make(), make()
    assert add_tt_lora(model, targets, rank=2, alpha=1.5) is model
    expected = {
        known
        for known, module in base.named_modules()
        if any(("." + known).endswith("." + target) for target in targets)
    }
    assert set(adapters(model)) == expected and len(expected) >= 4
    for known, layer in adapters(model).items():
        plain = base.get_submodule(known)
        assert type(layer.base_layer) is type(plain) and torch.equal(layer.base_layer.weight, plain.weight)
        assert (layer.rank, layer.alpha) == (2, 1.5)
    assert trained(model) == {
        f"{known}.delta.cores.{k}" for known, layer in adapters(model).items() for k in range(len(layer.shape))
    }


@models
@pytest.mark.parametrize("dtype", FLOATS[1:3])
@pytest.mark.parametrize("init", ["zero_last", "orthogonal"])
def test_step_zero_is_the_base_model(name, dtype, init):
    make, targets = MODELS[name]
    base = make(dtype=dtype).eval()
    model = add_tt_lora(copy.deepcopy(base), targets, rank=2, alpha=100, init=init)
    assert agree(answers(model), answers(base))


class Names(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.myquery = nn.Linear(6, 6)
        self.query_2 = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(6, 6), "key": nn.Linear(6, 4)}) for _ in range(12)
        )
        self.inner = nn.Sequential(nn.Linear(6, 6))
        self.query_of = nn.ModuleDict({"proj": nn.Linear(6, 6)})


@pytest.mark.parametrize(
    "targets, expected",
    [
        ("query", {"query", *(f"blocks.{k}.query" for k in range(12))}),
        (["query"], {"query", *(f"blocks.{k}.query" for k in range(12))}),
        ("blocks.1.query", {"blocks.1.query"}),
        ("1.query", {"blocks.1.query"}),
        (("1.query", "11.query", "11.key"), {"blocks.1.query", "blocks.11.query", "blocks.11.key"}),
        (["1.query", "query_2", "blocks.1.query"], {"blocks.1.query", "query_2"}),
        ("proj", {"query_of.proj"}),
        ("myquery", {"myquery"}),
        ("0", None),
        ("inner.0", {"inner.0"}),
        ({"key"}, {f"blocks.{k}.key" for k in range(12)}),
    ],
)
def test_the_matching_rule(targets, expected):
    model = Names()
    if expected is None:  # blocks.0 is a ModuleDict
        before = anatomy(model)
        with pytest.raises(TypeError, match="^blocks.0: TT-LoRA adapts nn.Linear and GPT-2's Conv1D, not .*ModuleDict"):
            add_tt_lora(model, targets, rank=1, alpha=1)
        assert anatomy(model) == before
    else:
        add_tt_lora(model, targets, rank=1, alpha=1)
        assert set(adapters(model)) == expected


def test_shapes_by_target():
    """Four query heads to two key and value heads: widths differ, and so must the modes."""
    shapes = {"q_proj": (4, 6, 4, 6), "v_proj": (3, 4, 2, 12)}
    model = add_tt_lora(tiny_llama(), ["q_proj", "k_proj", "v_proj"], rank=2, alpha=1, shape=shapes)
    found = {name.rpartition(".")[2]: layer.shape for name, layer in adapters(model).items()}
    automatic = TTLoRALinear(nn.Linear(24, 12), rank=2, alpha=1).shape
    assert found == {"q_proj": (4, 6, 4, 6), "v_proj": (3, 4, 2, 12), "k_proj": automatic}
    model = add_tt_lora(tiny_llama(), "q_proj", rank=(1, 2, 3, 2, 1), alpha=1, shape=[4, 6, 4, 6])
    assert {layer.ranks for layer in adapters(model).values()} == {(1, 2, 3, 2, 1)}


def test_the_longest_name_decides_on_the_modes():
    shapes = {"query": (24, 24), "1.attention.self.query": (4, 6, 4, 6), "self.query": (2, 12, 24)}
    for order in itertools.permutations(shapes):
        model = add_tt_lora(tiny_bert(), "query", rank=2, alpha=1, shape={key: shapes[key] for key in order})
        assert [layer.shape for layer in adapters(model).values()] == [(2, 12, 24), (4, 6, 4, 6)]


def test_options_reach_every_layer():
    model = added(init="orthogonal", dropout=0.25, rank=3, alpha=-2)
    for layer in adapters(model).values():
        assert (layer.rank, layer.alpha, layer.delta.init, layer.delta.dropout.p) == (3, -2.0, "orthogonal", 0.25)
        assert layer.order == "auto" and not layer.merged


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_stays(training):
    model = added()
    before = tiny_bert().train(training)
    model = add_tt_lora(before, "query", rank=2, alpha=1, dropout=0.5)
    assert {module.training for module in model.modules()} == {training}


def test_modules_to_save_are_trained_in_full():
    model = added("classifier", modules_to_save="classifier")
    cores = {name for name in trained(model) if ".delta.cores." in name}
    assert trained(model) - cores == {"classifier.weight", "classifier.bias"} and len(cores) == 24
    model = added("classifier", modules_to_save=["pooler.dense", "1.output.LayerNorm"])
    assert {name for name in trained(model) if ".delta." not in name} == {
        *(f"bert.pooler.dense.{part}" for part in ("weight", "bias")),
        *(f"bert.encoder.layer.1.output.LayerNorm.{part}" for part in ("weight", "bias")),
    }
    # A module of modules, and what was frozen before.
    base = tiny_classifier().requires_grad_(False)
    model = add_tt_lora(base, "query", rank=2, alpha=1, modules_to_save=("pooler", "classifier"))
    assert {name.partition(".delta")[0] for name in trained(model)} == {
        *adapters(model),
        *(f"bert.pooler.dense.{part}" for part in ("weight", "bias")),
        *(f"classifier.{part}" for part in ("weight", "bias")),
    }


def test_a_second_call_keeps_the_first():
    model = add_tt_lora(tiny_classifier(), "query", rank=2, alpha=1, modules_to_save="classifier")
    scatter_all(model)
    first = adapters(model)
    kept = {name: [bits(core) for core in layer.cores] for name, layer in first.items()}
    before = trained(model)
    add_tt_lora(model, "value", rank=3, alpha=2, modules_to_save="pooler")
    assert {name: layer for name, layer in adapters(model).items() if name in first} == first
    assert kept == {name: [bits(core) for core in layer.cores] for name, layer in first.items()}
    new = {name for name in adapters(model) if name.endswith("value")}
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert trained(model) == before | pooler | {f"{name}.delta.cores.{k}" for name in new for k in range(4)}


@models
def test_training_moves_only_what_is_trained(name):
    saved = {"classifier": "classifier"}.get(name, ())
    model = added(name, modules_to_save=saved).eval()
    before = {key: bits(value) for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        made = model(input_ids=tokens())
        (made.logits if "logits" in made else made.last_hidden_state).square().mean().backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if bits(value) != before[key]}
    assert moved == trained(model)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_of_transformers(name, reentrant):
    """The same gradients, dropout on the adapters' way included: the seed is put back for the second forward."""

    def gradients(model):
        model.train()
        torch.manual_seed(0)
        made = model(input_ids=tokens())
        (made.logits if "logits" in made else made.last_hidden_state).square().mean().backward()
        return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}

    plain = scatter_all(added(name, dropout=0.3))
    checked = copy.deepcopy(plain)
    checked.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    checked.enable_input_require_grads()
    assert checked.is_gradient_checkpointing
    expected, found = gradients(plain), gradients(checked)
    assert found.keys() == expected.keys() == trained(plain)
    for key, gradient in expected.items():
        assert gradient is not None and torch.equal(found[key], gradient), key


@models
def test_copies_and_pickles(name):
    model = scatter_all(added(name, modules_to_save="classifier" if name == "classifier" else ())).eval()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert agree(answers(again), answers(model)) and trained(again) == trained(model)
        add_tt_lora(again, {"gpt2": "c_fc", "llama": "up_proj"}.get(name, "key"), rank=1, alpha=1)
        assert trained(again) > trained(model)  # a head that is saved along is still known


# Merging


@models
def test_a_merged_model_is_plain_again(name):
    make, targets = MODELS[name]
    base, model = make(), scatter_all(added(name)).eval()
    before, sizes = answers(model), {key: value.shape for key, value in base.state_dict().items()}
    assert merge_tt_lora(model) is model and not adapters(model)
    assert {key: value.shape for key, value in model.state_dict().items()} == sizes
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]
    assert list(dict(model.named_modules())) == list(dict(base.named_modules()))
    torch.testing.assert_close(answers(model), before, rtol=1e-4, atol=1e-4)
    assert not agree(answers(model), answers(base.eval()))
    # Only the targets' weights have changed.
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, base.state_dict()[key])}
    ends = tuple(f"{target}.weight" for target in targets)
    assert changed == {key for key in sizes if key.endswith(ends)}
    # And once more, from the start.
    assert adapters(add_tt_lora(model, targets, rank=1, alpha=1))


def test_after_merging_the_head_stays_trainable():
    model = merge_tt_lora(added("classifier", modules_to_save="classifier"))
    assert trained(model) == {"classifier.weight", "classifier.bias"}
    plain = tiny_classifier()
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        assert set(vars(one)) == set(vars(other))
    # A later adapter starts afresh: the head is frozen unless named again.
    add_tt_lora(model, "query", rank=2, alpha=1)
    assert all(".delta.cores." in name for name in trained(model))


def test_a_second_call_that_fails_leaves_the_first():
    model = added("classifier", modules_to_save="classifier")
    before = anatomy(model)
    for targets, options, message in [
        ("query", {}, "query: it is already adapted"),
        (["key", "query"], {}, "already adapted"),
        (["key", "pooler"], {}, "pooler: "),
        ("classifier", {}, "classifier is to be saved in full, but classifier in it is adapted"),
        ("key", {"modules_to_save": "attention"}, "attention is to be saved in full"),
        ("base_layer", {}, "no module is named 'base_layer'"),
        ("cores", {}, "no module is named 'cores'"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            add_tt_lora(model, targets, rank=2, alpha=1, **options)
        assert anatomy(model) == before


def test_merging_that_fails_leaves_the_model_as_it_was():
    model = scatter_all(added("classifier", modules_to_save="classifier"))
    last = list(adapters(model).values())[-1]
    with torch.no_grad():
        last.cores[0].fill_(math.nan)
    before = anatomy(model)
    with pytest.raises(ValueError, match="bert.encoder.layer.1.intermediate.dense: .*NaN or infinite"):
        merge_tt_lora(model)
    assert anatomy(model) == before


def test_on_the_meta_device():
    """A model of any size, planned before its numbers are there."""
    with torch.device("meta"):
        model = tiny_llama()
    add_tt_lora(model, ["q_proj", "v_proj"], rank=2, alpha=1)
    assert all(p.is_meta for p in model.parameters())
    assert sum(layer.params for layer in adapters(model).values()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
