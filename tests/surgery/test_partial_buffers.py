"""Buffers that evaluations in training mode change are put back, of any kind, and the undoing goes through."""

import warnings
from pathlib import Path

import pytest
import torch
from interrupts import every_line
from searches import state
from strategies import gaussian
from torch import nn

import ttref.surgery
from ttref import TTLinear
from ttref.surgery import partial_tensorize, sensitivity

X = gaussian((4, 32), 0, torch.float32)
HOW = {"layers": "mix", "eps": 0.9, "max_drop": 99.0, "progress": False}


class Counting(nn.Module):
    """A layer, a buffer of a kind, and what the forward pass does to it."""

    def __init__(self, buffer, step):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.step = nn.Linear(32, 32), step
        self.register_buffer("seen", buffer)

    def forward(self, x):
        if self.training:
            self.step(self)
        return self.mix(x)


def in_inference(make):
    with torch.inference_mode():
        return make()


def nothing(model):
    pass


def add(model):
    with torch.inference_mode(model.seen.is_inference()), torch.no_grad():
        model.seen += 1


def reassign(model):
    model.seen = model.seen + 1


def grow(model):
    model.seen = torch.cat([model.seen, model.seen])


def resize(model):
    model.seen.resize_(7).fill_(5.0)


def of_view():
    base = torch.ones(1)
    return base.expand(4)


KINDS = {
    "an ordinary one": lambda: torch.zeros(3),
    "a number": lambda: torch.zeros(()),
    "integers": lambda: torch.zeros(3, dtype=torch.int64),
    "NaN": lambda: torch.full((3,), torch.nan),
    "expanded": of_view,
    "a view": lambda: torch.zeros(6)[::2],
    "made in inference mode": lambda: in_inference(lambda: torch.zeros(3)),
    "with gradients": lambda: torch.ones(3, requires_grad=True),
    "sparse": lambda: torch.eye(3).to_sparse(),
}
CASES = [(kind, step) for kind in KINDS for step in (nothing, add, reassign)]
# PyTorch itself adds nothing in place to an expanded tensor, nor a number to a sparse one.
CASES = [case for case in CASES if case != ("expanded", add) and (case[0] != "sparse" or case[1] is nothing)]
CASES += [("an ordinary one", grow), ("made in inference mode", grow)]


def metric(model):
    return -model(X).square().mean().item()


def held(model):
    """The buffer itself and its numbers."""
    numbers = model.seen.detach().to_dense() if model.seen.is_sparse else model.seen.detach()
    return id(model.seen), list(numbers.shape), [repr(x) for x in numbers.flatten().tolist()]


@pytest.mark.parametrize("order", ["forward", "restore"])
@pytest.mark.parametrize(("kind", "step"), CASES)
def test_buffers_are_afterwards_what_they_were(kind, step, order):
    model = Counting(KINDS[kind](), step).train()
    before, dense, version = held(model), model.mix, None if model.seen.is_inference() else model.seen._version
    report = partial_tensorize(model, metric, order=order, **HOW)
    assert report.names() == ["mix"] and held(model) == before
    if step is nothing:
        assert version is None or model.seen._version == version, "what nobody changed is not written to"
    metric(model)  # somebody uses the model before the undoing
    report.undo()
    assert model.mix is dense


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_buffers_are_put_back_where_the_search_fails(kind, step):
    model = Counting(KINDS[kind](), step).train()
    before, dense = held(model), model.mix

    def fails(model):
        value = metric(model)
        return value if model.mix is dense else float("nan")

    with pytest.raises(ValueError, match="nan"):
        partial_tensorize(model, fails, **HOW)
    assert held(model) == before and model.mix is dense


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_sensitivity_puts_buffers_back_too(kind, step):
    model = Counting(KINDS[kind](), step).train()
    before, dense = held(model), model.mix
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the model is in training mode
        found = sensitivity(model, metric, layers="mix", progress=False)
    assert len(found.rows) > 1 and held(model) == before and model.mix is dense


def test_a_tensor_that_was_resized_is_replaced_by_its_numbers():
    """It cannot be written to as it was: a copy of the old numbers stands in its place."""
    model = Counting(torch.arange(3.0), resize).train()
    report = partial_tensorize(model, metric, **HOW)
    assert report.names() == ["mix"] and model.seen.tolist() == [0, 1, 2]
    report.undo()
    assert isinstance(model.mix, nn.Linear)


def test_a_view_comes_back_with_what_it_is_a_view_of():
    def count(model):
        model.base += 1

    model = Counting(None, count).train()
    base = torch.zeros(1)
    model.register_buffer("seen", base.expand(4))  # before its base, and it cannot be written to
    model.register_buffer("base", base)
    seen = model.seen
    report = partial_tensorize(model, metric, **HOW)
    assert model.seen is seen and model.base is base and seen.tolist() == [0, 0, 0, 0]
    report.undo()


def test_a_buffer_of_the_layer_that_is_replaced():
    model = Counting(None, nothing).train()
    model.mix.register_buffer("seen", torch.zeros(3))

    def counted(model):
        if not isinstance(model.mix, TTLinear):
            model.mix.seen += 1
        return metric(model)

    before = state(model)
    partial_tensorize(model, counted, **HOW).undo()
    assert state(model) == before


def test_what_is_trained_after_the_search_stays_trained():
    """The undoing puts layers back, not numbers that the search left as they were."""
    model = Counting(torch.zeros(3), add).train()
    report = partial_tensorize(model, metric, **HOW)
    metric(model)
    report.undo()
    assert model.seen.tolist() == [1, 1, 1]


@pytest.mark.parametrize("step", [add, reassign])
def test_an_interrupt_while_buffers_are_put_back(step):
    before = {}

    def make():
        model = Counting(torch.zeros(3), step).train()
        before[model] = held(model), model.mix
        return model

    rooms = (str(Path(ttref.surgery.__file__).parent / "buffers.py"),)
    *interrupted, last = every_line(make, lambda model: partial_tensorize(model, metric, **HOW), rooms)
    assert len(interrupted) > 10 and isinstance(last.mix, TTLinear)
    assert all((held(model), model.mix) == before[model] for model in interrupted)
