"""TT-LoRA through PEFT: every verb of PEFT's on our tuner, and PEFT's own LoRA as an oracle for ours."""

import copy
import json
import subprocess
import sys
import warnings

import peft
import pytest
import torch
from adapters import (
    ALIGNED,
    FLOATS,
    SHAPES,
    WIDE,
    adapted,
    anatomy,
    answers,
    base_layer,
    bits,
    scatter,
    tiny_bert,
    tiny_classifier,
    tiny_gpt2,
    tiny_llama,
    tokens,
    trained,
    update_of,
    vectors,
)
from peft import LoraConfig, PeftModel, get_peft_model
from strategies import agree, gaussian
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from ttref import TTLoraConfig, TTLoRALinear, add_tt_lora
from ttref.lora.peft import TTLoraLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore:rank .* exceeds what modes"),
    # PEFT cannot look a model up that has no name on the hub.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]
MODELS = {
    "bert": (tiny_bert, ["query", "value"]),
    "llama": (tiny_llama, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (tiny_gpt2, ["c_attn", "c_proj"]),
}
models = pytest.mark.parametrize("name", MODELS)


def config(targets=("query", "value"), **options):
    targets = targets if isinstance(targets, str) else list(targets)
    return TTLoraConfig(**{"rank": 2, "alpha": 1.5, "target_modules": targets, **options})


def fill(model, seed=3, adapter="default"):
    """Gaussian numbers in every core of one adapter."""
    for k, layer in enumerate(layers(model).values()):
        if adapter in layer.ttlora_delta:
            scatter(layer.ttlora_delta[adapter], seed + 100 * k)
    return model


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoraLayer)}


def made(name="bert", dtype=torch.float32, **options):
    make, targets = MODELS[name]
    return fill(get_peft_model(make(dtype=dtype), config(options.pop("targets", targets), **options))).eval()


def weights_of(model):
    return {name: bits(layer.base_layer.weight) for name, layer in layers(model).items()}


def base_of(name="bert", dtype=torch.float32):
    return MODELS[name][0](dtype=dtype).eval()


# Ours, PEFT's and the dense update


@models
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_one_implementation_serves_both(name, dtype):
    """The same cores beside the same weights: add_tt_lora's model and PEFT's give the same bits, backward too."""
    make, targets = MODELS[name]
    ours = add_tt_lora(make(dtype=dtype), targets, rank=2, alpha=1.5).eval()
    theirs = made(name, dtype)
    for layer, (known, twin) in zip(layers(theirs).values(), own_layers(ours).items(), strict=True):
        assert twin.shape == layer.ttlora_delta["default"].shape, known
        with torch.no_grad():
            for core, other in zip(twin.cores, layer.ttlora_delta["default"].cores, strict=True):
                assert core.dtype == other.dtype and core.shape == other.shape
                core.copy_(other)
    assert agree(answers(ours), answers(theirs))
    found = []
    for model in (ours, theirs):
        result = model(input_ids=tokens())
        (result.logits if "logits" in result else result.last_hidden_state).float().square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(found[0]) == len(found[1]) > 0 and all(map(torch.equal, *found))


def own_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoRALinear)}


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", ALIGNED)
def test_an_aligned_train_is_a_lora_of_its_boundary_rank(name, dtype):
    """PEFT's LoRA with our two collapsed factors: equal answers, and gradients equal by the chain rule."""
    layer = adapted(name, dtype=dtype)
    layer.base_layer.requires_grad_(False)
    rank = layer.boundary_rank
    model = nn.Sequential(copy.deepcopy(layer.base_layer))
    lora = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank * layer.alpha, target_modules=["0"]))
    theirs = lora.base_model.model[0]
    left, right = (factor.to(dtype) for factor in factors(layer))
    with torch.no_grad():
        theirs.lora_B["default"].weight.copy_(left)
        theirs.lora_A["default"].weight.copy_(right)
    ours, x = vectors(layer, 6).requires_grad_(), vectors(layer, 6).requires_grad_()
    upstream = gaussian((6, layer.out_features), 2, dtype)
    y, expected = layer(ours), lora(x)
    tolerance = {"rtol": 0, "atol": 2000 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y, expected, **tolerance)
    y.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, x.grad, **tolerance)
    upstreams = theirs.lora_B["default"].weight.grad, theirs.lora_A["default"].weight.grad
    pairs = [(factor, g.double()) for factor, g in zip(factors(layer), upstreams, strict=True) if factor.requires_grad]
    ends, starts = zip(*pairs, strict=True)  # a side without cores is a constant
    chained = torch.autograd.grad(ends, list(layer.cores), starts)
    for core, gradient in zip(layer.cores, chained, strict=True):
        torch.testing.assert_close(core.grad, gradient.to(dtype), **tolerance)


def factors(layer):
    """(out, r) and (r, in) without ttref: by einsum from both ends to the boundary."""
    from adapters import padded_width

    exact = torch.Size(layer.shape).numel() == layer.out_features * layer.in_features
    rows = layer.out_features if exact else padded_width(layer.out_features)
    cores = [core.double() for core in layer.cores]
    split = next(k for k in range(len(cores) + 1) if torch.Size(layer.shape[:k]).numel() == rows)
    left, right = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for core in cores[:split]:
        left = torch.einsum("mr,rnq->mnq", left, core).flatten(0, 1)
    for core in reversed(cores[split:]):
        right = torch.einsum("rnq,qm->rnm", core, right).flatten(1)
    return left[: layer.out_features], right[:, : layer.in_features]


@pytest.mark.parametrize("init", ["zero_last", "orthogonal"])
def test_the_start_is_as_large_as_that_of_lora(init):
    """Mean square 1 / (3 in): that of PEFT's A, so that learning rates carry over; alpha is lora_alpha / r there."""
    torch.manual_seed(0)
    lora = get_peft_model(nn.Sequential(nn.Linear(768, 768)), LoraConfig(r=8, lora_alpha=16, target_modules=["0"]))
    theirs = lora.base_model.model[0].lora_A["default"].weight.detach()
    assert float(theirs.square().mean()) * 3 * 768 == pytest.approx(1, rel=0.05)
    assert lora.base_model.model[0].scaling["default"] == 2
    squares = []
    for _ in range(40):
        layer = TTLoRALinear(nn.Linear(768, 768, device="meta"), rank=8, alpha=2, shape=(768, 768), init=init)
        layer.delta.to_empty(device="cpu").reset_parameters()
        squares.append(float(layer.cores[0].detach().square().mean()))
    assert sum(squares) / 40 * 3 * 768 == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_delta_is_the_dense_update(shape, kind):
    out, ins, modes = SHAPES[shape]
    model = get_peft_model(
        nn.Sequential(base_layer(out, ins, kind=kind, dtype=torch.float64)),
        config(["0"], rank=3, shape=None if modes is None else list(modes)),
        autocast_adapter_dtype=False,
    )
    fill(model)
    layer = model.base_model.model[0]
    reference = adapted(shape, kind=kind, dtype=torch.float64, seed=3)
    expected = update_of(reference).detach()
    expected = expected if kind == "linear" else expected.T
    torch.testing.assert_close(layer.get_delta_weight("default"), expected, rtol=0, atol=1e-12)
    x = gaussian((4, ins), 1)
    dense = x @ (expected if kind == "conv1d" else expected.T)
    torch.testing.assert_close(model(x), layer.base_layer(x) + dense, rtol=0, atol=1e-11)


# A new adapter


@models
@pytest.mark.parametrize("dtype", FLOATS[1:3])
def test_a_fresh_adapter_is_the_base_model(name, dtype):
    make, targets = MODELS[name]
    model = get_peft_model(make(dtype=dtype), config(targets)).eval()
    assert agree(answers(model), answers(base_of(name, dtype)))
    assert trained(model) and all("ttlora_delta.default.cores" in key for key in trained(model))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {layer.base_layer.weight.dtype for layer in layers(model).values()} == {dtype}


def test_training_moves_the_cores_alone():
    model = get_peft_model(tiny_bert(), config())
    before = {key: bits(value) for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses, wanted = [], gaussian((3, 7, 24), 0, torch.float32)
    for _ in range(5):
        optimizer.zero_grad()
        loss = (model(input_ids=tokens()).last_hidden_state - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    moved = {key for key, value in model.state_dict().items() if bits(value) != before[key]}
    assert moved == trained(model)
    count, _ = model.get_nb_trainable_parameters()
    assert count == sum(layer.ttlora_delta["default"].params for layer in layers(model).values())


def test_the_options_reach_every_layer():
    model = get_peft_model(
        tiny_llama(),
        config(
            ["q_proj", "v_proj"],
            rank=[1, 2, 3, 2, 1],
            alpha=-3,
            init="orthogonal",
            dropout=0.25,
            shape={"q_proj": [4, 6, 4, 6], "v_proj": [3, 4, 2, 12]},
        ),
    )
    for name, layer in layers(model).items():
        delta = layer.ttlora_delta["default"]
        assert delta.shape == ((4, 6, 4, 6) if name.endswith("q_proj") else (3, 4, 2, 12))
        assert (delta.ranks, delta.alpha, delta.init, delta.dropout.p) == ((1, 2, 3, 2, 1), -3, "orthogonal", 0.25)
    paper = get_peft_model(tiny_bert(), config(init="paper")).eval()
    assert not agree(answers(paper), answers(base_of()))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"targets": ["query"]}, {"0.attention.self.query", "1.attention.self.query"}),
        ({"targets": r".*layer\.1\.attention\.self\.(query|key)"}, {"1.attention.self.query", "1.attention.self.key"}),
        ({"targets": ["query"], "layers_to_transform": 1}, {"1.attention.self.query"}),
        (
            {"targets": ["query"], "layers_to_transform": [0, 1], "layers_pattern": "layer"},
            {"0.attention.self.query", "1.attention.self.query"},
        ),
        (
            {"targets": ["query", "key"], "exclude_modules": ["key"]},
            {"0.attention.self.query", "1.attention.self.query"},
        ),
        (
            {"targets": ["query"], "exclude_modules": r".*layer\.0\..*"},
            {"1.attention.self.query"},
        ),
        (
            {"targets": "all-linear", "exclude_modules": ["pooler.dense"]},
            {
                f"{k}.{name}"
                for k in (0, 1)
                for name in (
                    *(f"attention.self.{part}" for part in ("query", "key", "value")),
                    "attention.output.dense",
                    "intermediate.dense",
                    "output.dense",
                )
            },
        ),
    ],
)
def test_which_modules_are_adapted(options, expected):
    model = made(**options)
    assert {name.partition("encoder.layer.")[2] for name in layers(model)} == expected


def test_all_linear_of_a_language_model_leaves_the_head():
    found = {name.rpartition(".")[2] for name in layers(made("llama", targets="all-linear"))}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_modules_to_save(tmp_path):
    model = get_peft_model(tiny_classifier(), config(modules_to_save=["classifier"]))
    assert {key.partition(".default")[2] for key in trained(model) if "ttlora" not in key} == {".weight", ".bias"}
    fill(model).eval()
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_classifier(), tmp_path).eval()
    assert agree(answers(again), answers(model))
    assert not agree(answers(again), answers(tiny_classifier().eval()))
    assert torch.equal(
        again.base_model.model.classifier.modules_to_save["default"].weight,
        model.base_model.model.classifier.modules_to_save["default"].weight,
    )


def test_a_sequence_classifier_saves_its_head_by_itself(tmp_path):
    """PEFT's own rule for this task type holds for our method, too."""
    model = fill(get_peft_model(tiny_classifier(), config(task_type="SEQ_CLS"))).eval()
    assert any("classifier" in key for key in trained(model))
    model.save_pretrained(tmp_path)
    assert agree(answers(PeftModel.from_pretrained(tiny_classifier(), tmp_path).eval()), answers(model))


# Saved and loaded


@models
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("dtype", FLOATS[1:3])
def test_the_round_trip(name, dtype, low, tmp_path):
    model = made(name, dtype, init="orthogonal", dropout=0.25)
    if low:  # PEFT then takes adapters through the dtype of the base: LoRA's lose these digits, too
        with torch.no_grad():
            for layer in layers(model).values():
                for core in layer.ttlora_delta["default"].cores:
                    core.copy_(core.to(dtype))
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (about["peft_type"], about["rank"], about["alpha"], about["init"]) == ("TTLORA", 2, 1.5, "orthogonal")
    again = PeftModel.from_pretrained(base_of(name, dtype), tmp_path, low_cpu_mem_usage=low).eval()
    assert agree(answers(again), answers(model)) and not trained(again)
    assert type(again.peft_config["default"]) is TTLoraConfig
    for one, other in zip(layers(model).values(), layers(again).values(), strict=True):
        assert repr(one.ttlora_delta) == repr(other.ttlora_delta)
        assert all(map(torch.equal, one.ttlora_delta["default"].cores, other.ttlora_delta["default"].cores))
    further = PeftModel.from_pretrained(base_of(name, dtype), tmp_path, is_trainable=True)
    assert trained(further) == trained(model) != set()
    other = tmp_path / "again"
    again.save_pretrained(other)
    assert (other / "adapter_config.json").read_text() == (tmp_path / "adapter_config.json").read_text()
    ours, theirs = (folder / "adapter_model.safetensors" for folder in (tmp_path, other))
    assert {key: bits(x) for key, x in load(ours).items()} == {key: bits(x) for key, x in load(theirs).items()}
    assert all("default" not in key for key in load(ours))
    assert ours.stat().st_size < sum(x.nbytes for x in load(ours).values()) + 200 * len(load(ours)) + 200


def load(path):
    import safetensors.torch

    return safetensors.torch.load_file(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": [4, 6, 4, 6]},
        {"shape": {"query": [8, 9, 8], "1.attention.self.value": [24, 24]}},
        {"rank": [1, 2, 3, 2, 1], "shape": [4, 6, 4, 6]},
        {"target_modules": r".*\.(query|value)"},
        {"layers_to_transform": [1], "layers_pattern": ["layer"]},
        {"exclude_modules": ["value"]},
    ],
)
def test_every_field_of_the_configuration_comes_back(options, tmp_path):
    settings = config(**options)
    model = fill(get_peft_model(tiny_bert(), settings)).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_of(), tmp_path).eval()
    assert agree(answers(again), answers(model))
    was, now = model.peft_config["default"].to_dict(), again.peft_config["default"].to_dict()
    for key in was.keys() - {"inference_mode", "auto_mapping"}:  # PEFT's own, which it sets on saving
        assert now[key] == was[key], key


@pytest.fixture
def stored(tmp_path):
    """A base model in a folder, and an adapter that names it."""
    tiny_classifier().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = fill(get_peft_model(base, config(modules_to_save=["classifier"], task_type="SEQ_CLS"))).eval()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, model


def test_auto_peft_models(stored):
    folder, model = stored
    again = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder / "adapter", num_labels=3).eval()
    assert agree(answers(again), answers(model))
    features = fill(get_peft_model(AutoModel.from_pretrained(folder / "base"), config(task_type="FEATURE_EXTRACTION")))
    features.eval().save_pretrained(folder / "features")
    again = peft.AutoPeftModelForFeatureExtraction.from_pretrained(folder / "features").eval()
    assert agree(answers(again), answers(features))


def test_transformers_loads_and_adds_adapters(tmp_path):
    made().save_pretrained(tmp_path)
    model = base_of()
    before = answers(model)
    model.load_adapter(str(tmp_path))
    assert agree(answers(model), answers(made()))
    model.disable_adapters()
    assert agree(answers(model), before)
    model.enable_adapters()
    assert agree(answers(model), answers(made()))
    other = base_of()
    other.add_adapter(config())
    assert agree(answers(other), before) and len(layers(other)) == 4
    fill(other)
    assert agree(answers(other), answers(made()))
    other.add_adapter(config(rank=1), adapter_name="second")
    other.set_adapter("second")
    assert agree(answers(other), before)
    assert other.active_adapters() == ["second"]


def test_a_missing_registration_is_loud(tmp_path):
    """A process that does not import the bridge stops; it does not go on without the adapter."""
    made().save_pretrained(tmp_path)
    tiny_bert().save_pretrained(tmp_path / "base")
    program = (
        "import sys; from transformers import AutoModel; from peft import PeftModel\n"
        "base = AutoModel.from_pretrained(sys.argv[1])\n"
        "{}PeftModel.from_pretrained(base, sys.argv[2]); print('loaded')"
    )
    run = lambda text: subprocess.run(  # noqa: E731
        [sys.executable, "-c", text, str(tmp_path / "base"), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    without = run(program.format(""))
    assert without.returncode != 0 and "KeyError" in without.stderr and "TTLORA" in without.stderr
    assert "loaded" not in without.stdout


# Switched off, merged, second adapters


@models
def test_disabling(name):
    model = made(name)
    own = answers(model)
    with model.disable_adapter():
        assert agree(answers(model), answers(base_of(name)))
    assert agree(answers(model), own) and not torch.equal(own, answers(base_of(name)))
    # Merged: the adapter comes out of the weights again, bit for bit.
    model.merge_adapter()
    with model.disable_adapter():
        assert agree(answers(model), answers(base_of(name)))
    assert not any(layer.merged for layer in layers(model).values())
    assert agree(answers(model), own)


@models
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_merge_and_unmerge(name, dtype):
    model = made(name, dtype)
    before, own = weights_of(model), answers(model)
    for _ in range(3):
        model.merge_adapter()
        assert all(layer.merged and layer.merged_adapters == ["default"] for layer in layers(model).values())
        torch.testing.assert_close(answers(model).float(), own.float(), rtol=0, atol=60 * torch.finfo(dtype).eps)
        assert all(weight != before[key] for key, weight in weights_of(model).items())
        model.unmerge_adapter()
        assert weights_of(model) == before and agree(answers(model), own)


@models
@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unload(name, safe):
    model, ours = made(name), add_tt_lora(base_of(name), MODELS[name][1], rank=2, alpha=1.5)
    own = answers(model)
    expected = {
        key: layer.get_delta_weight("default") + layer.base_layer.weight for key, layer in layers(model).items()
    }
    plain = model.merge_and_unload(safe_merge=safe)
    assert type(plain) is type(base_of(name)) and not layers(plain)
    assert plain.state_dict().keys() == base_of(name).state_dict().keys()
    for key, weight in expected.items():
        torch.testing.assert_close(plain.get_submodule(key.removeprefix("base_model.model.")).weight, weight)
    torch.testing.assert_close(answers(plain), own, rtol=1e-4, atol=1e-4)
    assert own_layers(ours).keys() == {key.removeprefix("base_model.model.") for key in expected}
    unloaded = made(name).unload()
    assert agree(answers(unloaded), answers(base_of(name)))


def test_safe_merge_refuses_nan():
    model = made()
    layer = list(layers(model).values())[2]
    with torch.no_grad():
        layer.ttlora_delta["default"].cores[0].fill_(torch.nan)
    before = bits(layer.base_layer.weight)
    with pytest.raises(ValueError, match="default.*NaN or infinite weights; nothing was merged"):
        layer.merge(safe_merge=True)
    assert not layer.merged and bits(layer.base_layer.weight) == before
    with pytest.raises(ValueError, match="NaN"):
        model.merge_and_unload(safe_merge=True)
    layer.merge()
    assert layer.base_layer.weight.isnan().any()
    layer.unmerge()
    assert bits(layer.base_layer.weight) == before


def test_merging_twice_and_unmerging_nothing():
    model = made()
    before = weights_of(model)
    layer = next(iter(layers(model).values()))
    with pytest.warns(UserWarning, match="not merged"):
        layer.unmerge()
    model.merge_adapter()
    merged = weights_of(model)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert weights_of(model) == merged
    model.unmerge_adapter()
    assert weights_of(model) == before


def two_adapters(tmp_path, name="bert"):
    """A second adapter of other ranks and modes, read from disk."""
    other = fill(get_peft_model(MODELS[name][0](), config(MODELS[name][1], rank=3, alpha=-0.5)), seed=40).eval()
    other.save_pretrained(tmp_path)
    model = made(name)
    model.load_adapter(tmp_path, adapter_name="second")
    return model.eval(), other


@models
def test_a_second_adapter(name, tmp_path):
    model, other = two_adapters(tmp_path, name)
    first, second = answers(made(name)), answers(other)
    assert agree(answers(model), first)
    assert {key for key in trained(model)} == {key for key in trained(made(name))}
    model.set_adapter("second")
    assert agree(answers(model), second)
    assert trained(model) and all(".second." in key for key in trained(model))
    model.set_adapter("default")
    assert agree(answers(model), first) and all(".default." in key for key in trained(model))


def test_two_active_adapters_add_up(tmp_path):
    model, _ = two_adapters(tmp_path)
    before = weights_of(model)
    model.base_model.set_adapter(["default", "second"])
    layer = next(iter(layers(model).values()))
    x = gaussian((5, 24), 0, torch.float32)
    dense = x @ (layer.get_delta_weight("default") + layer.get_delta_weight("second")).T
    torch.testing.assert_close(layer(x), layer.base_layer(x) + dense, rtol=1e-4, atol=1e-4)
    both = answers(model)
    expected = layer.base_layer.weight + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    model.merge_adapter()
    torch.testing.assert_close(layer.base_layer.weight, expected)
    torch.testing.assert_close(answers(model), both, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert weights_of(model) == before and agree(answers(model), both)


@pytest.mark.parametrize("batch", [1, 40, 4000])
@pytest.mark.parametrize("training", [False, True])
def test_two_active_adapters_in_every_form(batch, training):
    """Aligned and straddling side by side, in batches where one, the other or both would rather be dense."""
    base = base_layer(24, 24, dtype=torch.float64)
    model = get_peft_model(nn.Sequential(base), config(["0"], rank=9, shape=[4, 6, 4, 6]), autocast_adapter_dtype=False)
    model.add_adapter("second", config(["0"], rank=2, shape=[8, 9, 8]), autocast_adapter_dtype=False)
    fill(fill(model), 40, "second")
    model.base_model.set_adapter(["default", "second"])
    layer = model.base_model.model[0]
    x = gaussian((batch, 24), 0)
    update = sum(layer.get_delta_weight(adapter) for adapter in ("default", "second"))
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update.T, rtol=0, atol=1e-10)


def test_merging_one_after_the_other(tmp_path):
    """One kept weight for any number of merges: a single unmerge brings the base back."""
    model, _ = two_adapters(tmp_path)
    before = weights_of(model)
    layer = next(iter(layers(model).values()))
    expected = layer.base_layer.weight + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging second"):
        model.merge_adapter(["second"])
    assert layer.merged_adapters == ["default", "second"]
    torch.testing.assert_close(layer.base_layer.weight, expected)
    model.unmerge_adapter()
    assert weights_of(model) == before and layer.merged_adapters == []


def test_merging_the_one_that_is_not_active(tmp_path):
    model, other = two_adapters(tmp_path)
    plain = model.merge_and_unload(adapter_names=["second"])
    torch.testing.assert_close(answers(plain), answers(other), rtol=1e-4, atol=1e-4)


def test_an_adapter_is_added_and_deleted():
    model = made()
    first = answers(model)
    model.add_adapter("second", config(["query"], rank=1))
    assert agree(answers(model), first)
    assert {key for key in trained(model)} == trained(made()), "a second adapter is frozen until it is active"
    model.set_adapter("second")
    assert agree(answers(model), answers(base_of()))
    fill(model, 7, "second")
    assert not agree(answers(model), answers(base_of()))
    model.set_adapter("default")
    model.delete_adapter("second")
    assert agree(answers(model), first) and "second" not in model.peft_config
    assert all(list(layer.ttlora_delta) == ["default"] for layer in layers(model).values())
    model.add_adapter("second", config(["query"], rank=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.delete_adapter("default")
    assert agree(answers(model), answers(base_of()))


def test_a_second_adapter_on_other_layers():
    """Where it is the first on a layer, too, it is frozen until active."""
    model = made()
    before, own = trained(model), answers(model)
    model.add_adapter("second", config(["key"]))
    assert trained(model) == before and agree(answers(model), own)
    model.set_adapter("second")
    assert len(trained(model)) == 8 and all(".self.key." in key and ".second." in key for key in trained(model))
    assert agree(answers(model), answers(base_of()))


@pytest.mark.parametrize("target", ["query", "key"])
@pytest.mark.parametrize("training", [True, False])
def test_an_adapter_starts_in_the_mode_of_its_layer(training, target):
    """On a layer that has one already, and on one that has none."""
    model = made().train(training)
    model.add_adapter("second", config([target], dropout=0.5))
    assert {module.training for module in model.modules()} == {training}


def test_no_merged_adapter_is_deleted():
    """Its numbers are in the weights; PEFT says so instead of losing track."""
    model = made()
    model.add_adapter("second", config())
    model.merge_adapter(["default"])
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("default")


# What else PEFT can do with it


def test_the_status(tmp_path):
    model, _ = two_adapters(tmp_path)
    for status in model.get_layer_status():
        assert status.module_type == "TTLoraLinear" and status.enabled and status.active_adapters == ["default"]
        assert status.requires_grad == {"default": True, "second": False}
        assert status.available_adapters == ["default", "second"] and status.merged_adapters == []
        assert status.devices == {"default": ["cpu"], "second": ["cpu"]}
    status = model.get_model_status()
    assert (status.adapter_model_type, status.num_adapter_layers, status.enabled) == ("TTLoraModel", 4, True)
    assert status.peft_types == {"default": "TTLORA", "second": "TTLORA"}
    assert status.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("merged", [False, True])
def test_copies(merged):
    model = made()
    before = weights_of(model)
    if merged:
        model.merge_adapter()
    again = copy.deepcopy(model)
    assert agree(answers(again), answers(model)) and trained(again) == trained(model)
    if merged:
        again.unmerge_adapter()
        assert weights_of(again) == before != weights_of(model)
    fill(again, 50)
    assert not agree(answers(again), answers(model))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    plain = made(dropout=0.3)
    checked = copy.deepcopy(plain)
    checked.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    checked.enable_input_require_grads()
    found = []
    for model in (plain, checked):
        model.train()
        torch.manual_seed(0)
        model(input_ids=tokens()).last_hidden_state.square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(found[0]) == len(trained(plain)) and all(map(torch.equal, *found))


@models
def test_an_aligned_adapter_becomes_plain_lora(name):
    """Its matrix rank is at most the bond's, so that a LoRA of that rank holds it exactly."""
    model = made(name)
    settings, state = peft.convert_to_lora(model, rank=2)
    lora = get_peft_model(base_of(name), settings).eval()
    result = peft.set_peft_model_state_dict(lora, state)
    assert not result.unexpected_keys
    torch.testing.assert_close(answers(lora), answers(model), rtol=1e-3, atol=1e-3)
    assert not agree(answers(lora), answers(base_of(name)))


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_bases(autocast):
    """As PEFT does: adapters in float32 beside a base in half precision, or in its dtype where that is switched off."""
    for dtype in (torch.bfloat16, torch.float16):
        model = get_peft_model(tiny_bert(dtype=dtype), config(), autocast_adapter_dtype=autocast)
        fill(model).eval()
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32 if autocast else dtype}
        layer = next(iter(layers(model).values()))
        x = gaussian((5, 24), 0, dtype)
        update = layer.get_delta_weight("default").double()
        expected = layer.base_layer(x).double() + x.double() @ update.T
        assert layer(x).dtype == dtype
        scale = float((x.double().abs() @ update.abs().T).max()) + float(expected.abs().max())
        torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps * scale)
        answers(model)


def test_a_regular_layer_of_lora_beside_it_is_refused():
    with pytest.raises(ValueError, match="TTLORA"):
        get_peft_model(tiny_bert(), config(), mixed=True)
    model = made()
    with pytest.raises(ValueError):
        model.add_adapter("lora", LoraConfig(target_modules=["key"]))


def test_names_are_a_set_and_a_pattern_is_a_string():
    """As in PEFT's own configurations, which write sets in order."""
    settings = config(["value", "query"], exclude_modules=["key"])
    assert settings.target_modules == {"value", "query"} and settings.exclude_modules == {"key"}
    assert config(r".*\.query").target_modules == r".*\.query"


def test_bad_configurations():
    for options, error, message in [
        ({"bias": "all"}, ValueError, "bias must be 'none', got 'all'"),
        ({"layers_pattern": "layer"}, ValueError, "give both"),
    ]:
        with pytest.raises(error, match=message):
            config(**options)
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(tiny_bert(), TTLoraConfig(rank=2, alpha=1))
    for options, error, message in [
        ({"targets": ["nothing"]}, ValueError, "not found"),
        ({"shape": {"uery": [4, 6, 4, 6]}}, ValueError, "shape gives modes for 'uery'"),
        ({"targets": ["query", "pooler.activation"]}, TypeError, "^pooler.activation: TT-LoRA adapts"),
        ({"targets": ["word_embeddings"]}, TypeError, "embeddings.word_embeddings: TT-LoRA adapts nn.Linear"),
        ({"shape": [4, 6, 4, 5]}, ValueError, "encoder.layer.0.attention.self.query: shape .* multiplies to 480"),
        ({"rank": 0}, ValueError, "query: rank must be"),
        ({"alpha": 0}, ValueError, "query: alpha"),
        ({"init": "ones"}, ValueError, "query: init must be"),
        ({"dropout": 2}, ValueError, "query: dropout"),
    ]:
        model = tiny_bert()
        before = anatomy(model)
        with pytest.raises(error, match=message):
            get_peft_model(model, config(**{"targets": ["query"], **options}))
        assert anatomy(model) == before


def test_a_second_adapter_that_does_not_fit_leaves_the_first():
    model = made()
    before, own = anatomy(model), answers(model)
    for options, error in [
        ({"targets": ["query", "key", "pooler.activation"]}, TypeError),
        ({"targets": ["query"], "shape": [4, 6, 4, 5]}, ValueError),
        ({"targets": ["key"], "shape": {"query": [4, 6, 4, 6], "uery": [4, 6]}}, ValueError),
    ]:
        with pytest.raises(error):
            model.add_adapter("second", config(**options))
        assert anatomy(model) == before and agree(answers(model), own)
        assert list(model.peft_config) == ["default"]


def test_code_that_reads_the_weight_sees_the_update():
    """As T5 does, past forward: the sum of what is active, or the base."""
    model = made()
    layer = next(iter(layers(model).values()))
    base = layer.base_layer.weight.detach().clone()
    expected = base + layer.get_delta_weight("default")
    torch.testing.assert_close(layer.weight, expected)
    assert layer.bias is layer.base_layer.bias
    with model.disable_adapter():
        assert torch.equal(layer.weight, base)
    model.merge_adapter()
    assert layer.weight is layer.base_layer.weight
    torch.testing.assert_close(layer.weight, expected)


def test_layers_that_are_adapted():
    with pytest.raises(TypeError, match="query: it is already adapted .a TTLoRALinear."):
        get_peft_model(add_tt_lora(tiny_bert(), "query", rank=1, alpha=1), config(["query"]))
    with pytest.raises(TypeError, match="already adapted"):
        add_tt_lora(made(), "query", rank=1, alpha=1)
