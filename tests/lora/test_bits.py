"""Unmerging gives back every bit, wherever and however the weight lies, since it is kept and never computed."""

import numpy as np
import pytest
import torch
from adapters import bits, scatter
from strategies import gaussian
from torch import nn

from ttref import TTLoRALinear, add_tt_lora, save_tt_lora

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def lying(how, weight):
    """The same numbers at another place in memory, or in other steps."""
    rows, columns = weight.shape
    if how == "offset":
        return torch.cat([weight.new_zeros(3), weight.flatten()])[3:].view(rows, columns)
    if how == "strided":
        return weight.new_zeros(rows, 2 * columns)[:, ::2].copy_(weight)
    if how == "transposed":
        return weight.T.contiguous().T
    return torch.cat([weight, weight])[:rows]  # one storage, of which the weight is a part


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["offset", "strided", "transposed", "shared storage"])
@pytest.mark.parametrize("rows", [5, 8, 9])
def test_unmerging_restores_bits_and_place(how, dtype, rows):
    weight = lying(how, (gaussian((rows, 12), 0) * 3).to(dtype))
    base = nn.Linear(12, rows, dtype=dtype)
    base.weight = nn.Parameter(weight)
    place, steps = base.weight.data_ptr(), base.weight.stride()
    layer = scatter(TTLoRALinear(base, rank=3, alpha=1.5))
    before, beside = bits(base.weight), bytes(weight.untyped_storage().tolist())
    for _ in range(3):
        layer.merge()
        assert bits(base.weight) != before and bytes(weight.untyped_storage().tolist()) == beside
        layer.unmerge()
        assert bits(base.weight) == before and (base.weight.data_ptr(), base.weight.stride()) == (place, steps)


def test_numbers_of_other_kinds(tmp_path):
    """NumPy's are taken, and stay out of the file as such."""
    model = nn.Sequential(nn.Linear(16, 16))
    options = {"rank": np.int64(2), "alpha": np.float32(1.5), "dropout": np.float32(0.25)}
    add_tt_lora(model, "0", shape=np.array([4, 4, 4, 4]), **options)
    assert type(model[0].alpha) is float and type(model[0].delta.dropout.p) is float
    assert {type(n) for n in (*model[0].shape, *model[0].ranks)} == {int}
    save_tt_lora(model, tmp_path / "a.safetensors")


def test_a_pattern_is_told_that_it_is_a_name():
    model = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    for pattern in (r".*q_proj", "*_proj", "(q|v)_proj"):
        with pytest.raises(ValueError, match="taken as it stands, not as a pattern.*end in q_proj"):
            add_tt_lora(model, pattern, rank=1, alpha=1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_nothing_that_is_measured_or_merged_loses_digits_under_autocast(kind):
    layer = scatter(TTLoRALinear(nn.Linear(36, 24), rank=3, alpha=1.5))
    update, weight = layer.get_delta_weight(), layer.weight.detach().clone()
    with torch.autocast("cpu", dtype=kind):
        torch.testing.assert_close(layer.get_delta_weight(), update, rtol=0, atol=1e-6)
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-6)
        layer.merge()
        assert layer.base_layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.base_layer.weight, weight, rtol=0, atol=1e-6)


def test_cores_in_half_precision_are_contracted_in_float32():
    layer = scatter(TTLoRALinear(nn.Linear(36, 24), rank=3, alpha=1.5))
    layer.delta.bfloat16()
    found = layer.get_delta_weight()
    layer.delta.float()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer.get_delta_weight(), rtol=2**-8, atol=1e-6)
