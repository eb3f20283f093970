"""Modules saved along with adapters: what of their state the file can give back, and what it cannot."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from ttref import add_tt_lora, load_tt_lora, save_tt_lora


class Counts(nn.Linear):
    """A head with a state of its own besides its numbers."""

    def __init__(self, held):
        super().__init__(6, 2)
        self.held = held

    def get_extra_state(self):
        return self.held

    def set_extra_state(self, state):
        self.held = state


class Renamed(nn.Linear):
    """A head that writes into its state what it does not hold."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}norm"] = self.weight.norm()


def make(head):
    torch.manual_seed(0)
    return nn.ModuleDict({"query": nn.Linear(6, 6), "head": head})


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "head, key",
    [
        (lambda: Counts({"seen": 3}), "_extra_state"),
        (lambda: Counts(torch.ones(3)), "_extra_state"),
        (lambda: Renamed(6, 2), "norm"),
    ],
    ids=["no tensor", "a tensor", "made in passing"],
)
def test_a_state_that_would_be_lost_is_refused(head, key, inside, tmp_path):
    along = nn.Sequential(head()) if inside else head()
    model = add_tt_lora(make(along), "query", rank=2, alpha=1, modules_to_save="head")
    with pytest.raises(ValueError, match=f"head cannot be saved along: {'0.' * inside}{key} in its state"):
        save_tt_lora(model, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_such_a_state_in_the_base_is_none_of_the_files_business(tmp_path):
    head = make(Counts({"seen": 3}))
    save_tt_lora(add_tt_lora(head, "query", rank=2, alpha=1), tmp_path / "a.safetensors")
    assert load_tt_lora(make(Counts({"seen": 4})), tmp_path / "a.safetensors")["head"].held == {"seen": 4}


def heads():
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
    pruned = nn.Linear(6, 2)
    prune.random_unstructured(pruned, "weight", 0.5)
    shared = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    shared[1].weight = shared[0].weight
    return {
        "buffers": nn.BatchNorm1d(6),
        "nothing": nn.Dropout(),
        "none": Counts(None),
        "parametrized": parametrized,
        "pruned": pruned,
        "shared inside": shared,
        "compiled": torch.compile(nn.Linear(6, 2), backend="eager"),
        "in parallel": nn.DataParallel(nn.Linear(6, 2)),
    }


@pytest.mark.parametrize("name", heads())
def test_parameters_and_buffers_of_every_kind_are_saved_along(name, tmp_path):
    model = add_tt_lora(make(heads()[name]), "query", rank=2, alpha=1, modules_to_save="head")
    with torch.no_grad():
        for tensor in {id(x): x for x in (*model["head"].parameters(), *model["head"].buffers())}.values():
            tensor.copy_(torch.ones_like(tensor))
    save_tt_lora(model, tmp_path / "a.safetensors")
    base = load_tt_lora(make(heads()[name]), tmp_path / "a.safetensors")
    state = base["head"].state_dict()
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in state.values() if tensor is not None)
