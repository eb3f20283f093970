"""TT-LoRA through PEFT: PEFT's own LoRA as an oracle for ours, new adapters, and what else PEFT does with them."""

import copy

import peft
import pytest
import torch
from adapters import (
    ALIGNED,
    FLOATS,
    SHAPES,
    WIDE,
    adapted,
    answers,
    base_layer,
    bits,
    tiny_bert,
    tiny_classifier,
    tokens,
    trained,
    update_of,
    vectors,
)
from peft import LoraConfig, PeftModel, get_peft_model
from peft_models import MODELS, base_of, config, fill, layers, made, models, own_layers, two_adapters, weights_of
from strategies import agree, gaussian
from torch import nn

from ttref import TTLoRALinear, add_tt_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:rank .* exceeds what modes"),
    # PEFT cannot look a model up that has no name on the hub.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]


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
