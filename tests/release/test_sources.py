"""Dense tensors are found by one prefix for all names, never one under the name of another."""

import copy

import pytest
import torch
from releases import WHY
from torch import nn

from ttref import TTLinear, swap_layer
from ttref.release import rollback, save_release, verify
from ttref.release.sources import Source

NAMES = "encoder.0.weight", "encoder.0.bias", "encoder.1.0.weight"


def tensors(*names):
    return {name: torch.full((1,), float(k)) for k, name in enumerate(names)}


@pytest.mark.parametrize("change", [str, lambda name: f"bert.{name}", lambda name: name.removeprefix("encoder.")])
def test_one_prefix_for_all(change):
    source = Source.of(tensors(*map(change, NAMES), "other.place.bias")).fitted(NAMES[:1], NAMES[1:])
    assert [source.find(name) for name in NAMES] == [change(name) for name in NAMES]
    assert set(NAMES) <= set(source.names())
    assert source.find("place.bias") is None and source.find("0.weight") is None


def test_no_prefix_is_taken_where_two_fit():
    source = Source.of(tensors("a.0.weight", "b.0.weight")).fitted(["0.weight"])
    assert source.find("0.weight") is None
    source = Source.of(tensors("a.0.weight", "b.0.weight", "b.1.weight")).fitted(["0.weight"], ["1.weight"])
    assert source.find("0.weight") == "b.0.weight"


def test_a_source_of_the_replaced_layers_stands_for_no_other(tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16)))
    small = copy.deepcopy(dense)
    old = swap_layer(small, "0", TTLinear.from_linear(small[0], rank=4))
    save_release(small, tmp_path / "r", source={"0": old}, override=WHY)
    assert verify(tmp_path / "r", dense, progress=False).proved
    back = rollback(tmp_path / "r", copy.deepcopy(small))
    assert torch.equal(back[0].weight, dense[0].weight) and torch.equal(back[1][0].weight, dense[1][0].weight)


def test_layers_that_share_a_weight_are_saved(tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    dense[2].weight = dense[0].weight
    small = copy.deepcopy(dense)
    small[2].weight = copy.deepcopy(small[0].weight)
    for name in "02":
        swap_layer(small, name, TTLinear.from_linear(small.get_submodule(name), rank=4))
    save_release(small, tmp_path / "r", source=dense, override=WHY)
    assert verify(tmp_path / "r", dense, progress=False).proved
