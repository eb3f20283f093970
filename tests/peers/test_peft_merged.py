"""TT-LoRA through PEFT: adapters switched off, merged, and beside each other."""

import warnings

import pytest
import torch
from adapters import FLOATS, answers, base_layer, bits, trained
from peft import get_peft_model
from peft_models import (
    MODELS,
    base_of,
    config,
    fill,
    layers,
    made,
    models,
    own_layers,
    two_adapters,
    weights_of,
)
from strategies import agree, gaussian
from torch import nn

from ttref import add_tt_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:rank .* exceeds what modes"),
    # PEFT cannot look a model up that has no name on the hub.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]


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
