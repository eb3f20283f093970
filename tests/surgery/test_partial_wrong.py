"""What goes wrong in partial tensorization leaves the model as it was, to the bit, and is said."""

import math
import re
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from interrupts import every_line
from searches import NAMES, Counted, accuracy, compressed, net, right, state
from strategies import gaussian
from torch import nn

import ttref.surgery
from ttref import TTLinear
from ttref.surgery import partial_tensorize
from ttref.surgery.candidates import Candidate, integer, whitened_svd


def stop(error):
    def instead(model):
        raise error

    return instead


def spoil(value):
    def instead(model):
        model.train()  # which is undone, too
        return value

    return instead


WRONG = {
    "not a number": (spoil(float("nan")), ValueError, "the metric that evaluate returns is nan"),
    "infinity": (spoil(torch.tensor(-torch.inf)), ValueError, "no finite number"),
    "text": (spoil("0.9"), TypeError, "must be a number, or one score for each example, got '0.9'"),
    "nothing": (spoil(None), TypeError, "got None"),
    "scores": (spoil([0.5, 0.6]), ValueError, "evaluate returned 2 scores, and 1 at the start"),
    "an error": (stop(ZeroDivisionError("mine")), ZeroDivisionError, "mine"),
    "an interrupt": (stop(KeyboardInterrupt("now")), KeyboardInterrupt, "now"),
    "an exit": (stop(SystemExit(1)), SystemExit, "1"),
}


@pytest.mark.parametrize("order", ["forward", "restore"])
@pytest.mark.parametrize("what", WRONG)
def test_a_metric_that_fails_leaves_the_model_to_the_bit(what, order):
    instead, error, says = WRONG[what]
    how = {"layers": NAMES, "eps": 0.6, "max_drop": 0.1, "order": order}
    metric = Counted(accuracy)
    partial_tensorize(net(), metric, **how)
    for at in range(2 if what == "scores" else 1, metric.calls + 1):
        model = net()
        before = state(model)
        with pytest.raises(error, match=re.escape(says)), warnings.catch_warnings():
            warnings.simplefilter("error")
            partial_tensorize(model, Counted(accuracy, at, instead), **how)
        assert state(model) == before


@pytest.mark.parametrize(("order", "rooms"), [("forward", ("searching", "layer_report")), ("restore", ("partial",))])
def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(order, rooms):
    folder = Path(ttref.surgery.__file__).parent
    half = Candidate("half the bytes", lambda layer, gram: nn.Linear(12, 12, dtype=torch.bfloat16))
    before = {}

    def halved(model):
        return [model[k].weight.dtype == torch.bfloat16 for k in (0, 1)]

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.BatchNorm1d(12))
        before[model] = state(model)
        return model

    def search(model):
        def metric(model):
            return 1.0 - 0.1 * halved(model.eval())[0]

        partial_tensorize(model, metric, candidate=half, order=order)

    *interrupted, last = every_line(make, search, tuple(str(folder / f"{name}.py") for name in rooms))
    assert len(interrupted) > 100 and halved(last) == [False, True]
    assert all(state(model) == before[model] for model in interrupted)


def test_one_replacement_at_a_time_beside_those_accepted():
    alive = []

    def build(layer, gram):
        alive.append(weakref.ref(made := TTLinear.from_linear(layer, eps=0.6)))
        return made

    def metric(model):
        assert sum(one() is not None for one in alive) == len(compressed(model))
        return accuracy(model)

    report = partial_tensorize(net(), metric, layers=NAMES, candidate=Candidate("watched", build), max_drop=0.1)
    assert len(alive) == 3 > len(report.names()) > 0


def test_training_mode_is_said_and_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Linear(32, 32))
    x = gaussian((8, 32), 0, torch.float32)
    before = state(model)
    with pytest.warns(
        UserWarning, match=r"in training mode: its BatchNorm1d and Dropout make the metric noisy"
    ) as said:
        report = partial_tensorize(model, lambda model: -model(x).square().mean(), eps=0.9, max_drop=10.0)
    assert len(said) == 1 and said[0].filename == __file__ and len(report.names()) == 2
    assert all(part.training for part in model.modules())
    report.undo()
    assert state(model) == before  # the running statistics too
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = partial_tensorize(model, lambda model: -model.eval()(x).square().mean(), eps=0.9, max_drop=10.0)
    assert all(part.training for part in model.modules())  # the caller's mode
    report.undo()
    assert state(model) == before


class Noisy(nn.Module):
    """Dropout that is no module of its own, and a number that each evaluation in training mode changes."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 2, dropout=0.1, batch_first=True)
        self.mix = nn.Linear(32, 32)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return self.attention(x, x, x, need_weights=False)[0] + self.mix(x)


def test_all_that_a_training_mode_changes_is_put_back_and_hidden_dropout_is_said():
    torch.manual_seed(0)
    model, x = Noisy(), gaussian((2, 4, 32), 0, torch.float32)
    before = state(model)
    with pytest.warns(UserWarning, match="in training mode: its MultiheadAttention makes the metric noisy"):
        report = partial_tensorize(model, lambda model: -model(x).square().mean(), layers="mix", eps=0.9, max_drop=10.0)
    assert report.names() == ["mix"] and model.seen == 0
    report.undo()
    assert state(model) == before
    with pytest.warns(UserWarning, match="MultiheadAttention"), pytest.raises(ValueError, match="nan"):
        partial_tensorize(model, lambda model: math.nan * model(x).sum() if model.seen > 0 else -model(x).sum())
    assert state(model) == before
    model.attention.dropout = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is drawn at random
        partial_tensorize(model, lambda model: -model(x).square().mean(), layers="mix", eps=0.9, max_drop=10.0)


def tied():
    model = net()
    model[2].weight = nn.Parameter(model[4].weight.new_zeros(48, 48))
    model.append(nn.Linear(48, 48))
    model[5].weight = model[2].weight
    return model


def quantized():
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def hooked():
    model = net()
    model[0].register_forward_hook(lambda *_: None)
    return model


class Gram:
    def __init__(self, width):
        self.matrix = torch.eye(width, dtype=torch.float64)


BAD = {
    "no layer": (lambda: nn.Sequential(nn.ReLU()), {}, ValueError, "no layer to replace"),
    "a layer of another kind": (net, {"layers": "1"}, TypeError, "1 cannot be replaced: ReLU is no nn.Linear"),
    "an unknown layer": (net, {"layers": ["7"]}, ValueError, "no module is named '7'"),
    "a layer twice": (net, {"layers": ["0", "0"]}, ValueError, "0 is asked for twice"),
    "a tied layer": (tied, {"layers": ["2"]}, ValueError, "2 shares a parameter with 5"),
    "hooks": (hooked, {"layers": ["0"]}, TypeError, "has forward hooks"),
    "no candidate": (net, {"candidate": "svd"}, TypeError, "candidate must be one of ttref.surgery.candidates"),
    "two sizes": (net, {"candidate": integer(4), "eps": 0.3}, ValueError, "is for the candidate that is left out"),
    "no Gram matrices": (net, {"candidate": whitened_svd(ratio=2)}, ValueError, "needs Gram matrices: grams=collect"),
    "eps": (net, {"eps": 1.5}, ValueError, "must lie in [0, 1), got 1.5"),
    "max_drop": (net, {"max_drop": -1}, ValueError, "max_drop must be a finite number of at least 0"),
    "drop_type": (net, {"drop_type": "points"}, ValueError, "drop_type must be"),
    "order": (net, {"order": "backward"}, ValueError, 'order must be "forward" or "restore"'),
    "gate": (net, {"gate": "luck"}, ValueError, 'gate must be "drop" or "equivalence"'),
    "reference": (net, {"reference": "first"}, ValueError, 'reference must be "start" or "last"'),
    "restore to last": (net, {"order": "restore", "reference": "last"}, ValueError, "compares with the start only"),
    "ranking": (net, {"ranking": accuracy}, ValueError, 'ranking is what order="restore"'),
    "a short ranking": (net, {"ranking": {"0": 1}, "order": "restore"}, ValueError, "ranking has no drop for 2, 4"),
    "alpha": (net, {"alpha": 0.9}, ValueError, "alpha must lie between"),
    "one number": (net, {"gate": "equivalence"}, ValueError, "needs the scores of single examples"),
    "a Gram matrix of nothing": (net, {"grams": {"9": Gram(64)}}, ValueError, "no module is named '9'"),
    "a Gram matrix of another width": (net, {"grams": {"2": Gram(64)}}, ValueError, "64 wide, but the layer has 48"),
    "a list of numbers": (net, {"grams": {"2": [[1.0]]}}, TypeError, "the Gram matrix of 2 is a list"),
    "one Gram matrix": (net, {"grams": Gram(64)}, TypeError, "grams must map names of layers"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    make, how, error, says = BAD[what]
    model, metric = make(), Counted(accuracy)
    before = state(model)
    with pytest.raises(error, match=re.escape(says)):
        partial_tensorize(model, metric, **how)
    assert state(model) == before and metric.calls == (what == "one number")


def test_quantized_layers_are_not_there():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantized()
    with pytest.raises(ValueError, match="no layer to replace"):
        partial_tensorize(model, accuracy)


def test_too_few_examples_to_accept_anything():
    metric = Counted(lambda model: right(model)[:40])
    with pytest.raises(
        ValueError, match="with 40 examples the equivalence gate can accept nothing at a margin of 0.05"
    ):
        partial_tensorize(net(), metric, layers=NAMES, gate="equivalence")
    assert metric.calls == 1
