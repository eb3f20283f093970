"""What one replaced layer costs a model: measured and predicted, and the model is afterwards what it was."""

import json
import math
import warnings
import weakref

import pytest
import torch
from interrupts import every_line
from scipy import stats
from strategies import gaussian
from surgery_models import Tied
from torch import nn

from ttref.fitting import Gram, collect_gram, output_error
from ttref.surgery import candidates, sensitivity
from ttref.surgery import sensing as room
from ttref.surgery.finding import matrix_of
from ttref.surgery.sensed import Sensitivity, kendall
from ttref.surgery.sensing import metric_of, tried

X = gaussian((40, 12), 0, torch.float32)
CHEAP = [candidates.svd(rank=2), candidates.svd(rank=6), candidates.integer(3)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10)).eval()


WANTED = net()(X).detach() + 0.1 * gaussian((40, 10), 1, torch.float32)


def loss(model):
    return (model(X) - WANTED).square().mean()


@torch.no_grad()
def evaluate(model):
    return -loss(model).item()


def state(model):
    parts = [(name, id(part), part.training) for name, part in model.named_modules(remove_duplicate=False)]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    grads = [(name, None if x.grad is None else x.grad.tolist()) for name, x in model.named_parameters()]
    return parts, grads, [(name, id(x), x.requires_grad, x.tolist()) for name, x in tensors]


def test_exact_is_the_metric_of_a_copy_with_that_layer_replaced():
    model = net()
    before = state(model)
    table = sensitivity(model, evaluate, candidates=CHEAP)
    assert state(model) == before
    assert [(row["layer"], row["candidate"]) for row in table.rows] == [
        (layer, one.name) for layer in ("0", "2", "4") for one in CHEAP
    ]
    by_name = {one.name: one for one in CHEAP}
    assert table.metric == evaluate(model) and table.evaluations == {"exact": 10}
    for row in table.rows:
        other = net()
        made = by_name[row["candidate"]].make(other[int(row["layer"])])
        other[int(row["layer"])] = made
        assert math.isclose(row["metric"], evaluate(other), rel_tol=1e-5)
        assert row["drop"] == table.metric - row["metric"] and row["gradient"] is row["output"] is None
        assert (row["params"], row["nbytes"]) == (made.params, made.nbytes)
        assert row["dense_params"] == matrix_of(net()[int(row["layer"])]).numel() == row["dense_nbytes"] / 4
    assert set(table.seconds) == {"decomposition", "evaluation", "prediction"}


def test_the_gradient_predicts_the_change_of_the_loss_to_first_order():
    """Layers that are hardly moved: the loss changes by the prediction."""
    model = net()

    def nudged(layer, gram):
        made = nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
        with torch.no_grad():
            made.weight.copy_(layer.weight + 1e-5 * gaussian(layer.weight.shape, 5, torch.float64))
            made.bias.copy_(layer.bias)
        return made

    table = sensitivity(
        model.double(),
        lambda model: -(model(X.double()) - WANTED).square().mean().item(),
        candidates=[candidates.Candidate("nudged", nudged)],
        method=["gradient", "exact"],
        loss=lambda model: (model(X.double()) - WANTED).square().mean(),
    )
    assert table.methods == ("exact", "gradient") and table.evaluations == {"exact": 4, "gradient": 1}
    for row in table.rows:
        assert math.isclose(row["gradient"], abs(row["drop"]), rel_tol=0.01)


def test_output_is_the_output_error_and_needs_no_evaluation():
    model = net()
    grams = collect_gram(model, ["0", "2", "4"], [X])
    table = sensitivity(model, None, candidates=CHEAP, grams=grams, method="output")
    assert table.evaluations == {"output": 0} and table.metric is None
    for row in table.rows:
        layer = model[int(row["layer"])]
        [made] = [one.make(layer) for one in CHEAP if one.name == row["candidate"]]
        assert row["output"] == output_error(layer.weight.detach(), matrix_of(made), grams[row["layer"]])
        assert row["drop"] is None
    assert table.ranked("int3")[0] == min(("0", "2", "4"), key=lambda name: _of(table, name, "int3")["output"])


def _of(table, layer, candidate):
    return next(row for row in table.rows if (row["layer"], row["candidate"]) == (layer, candidate))


def test_a_table_has_frequencies_and_candidates_get_the_gram_matrix():
    model = nn.ModuleDict({"table": nn.Embedding(30, 12), "up": nn.Linear(12, 12)}).eval()
    grams = {"table": torch.arange(30.0), "up": Gram.from_inputs(X)}
    ways = [candidates.integer(4), candidates.whitened_svd(rank=3)]
    table = sensitivity(model, None, candidates=ways, grams=grams, method="output")
    assert [(row["layer"], row["candidate"]) for row in table.rows] == [
        ("table", "int4"),
        ("up", "int4"),
        ("up", "whitened SVD rank 3"),
    ]
    weight, made = model["table"].weight.detach(), ways[0].make(model["table"]).weight
    counts = torch.arange(30.0).sqrt().unsqueeze(1)
    wanted = ((weight - made) * counts).norm() / (weight * counts).norm()
    assert math.isclose(table.rows[0]["output"], wanted.item(), rel_tol=1e-5)
    assert table.skipped == [
        {"layer": "table", "candidate": "whitened SVD rank 3", "reason": "a table cannot be replaced in this way"}
    ]
    alone = sensitivity(model, None, candidates=ways, grams={"up": grams["up"]}, method="output")
    assert alone.rows[0]["output"] is None and "needs the Gram matrix" in alone.skipped[0]["reason"]


def test_frozen_weights_have_a_gradient_here_and_none_afterwards():
    model = net().requires_grad_(False)
    model[0].weight.requires_grad_().grad = torch.ones(16, 12)
    before = state(model)
    table = sensitivity(model, None, candidates=CHEAP, method="gradient", loss=loss)
    assert state(model) == before and all(row["gradient"] > 0 for row in table.rows)
    with torch.no_grad():
        again = sensitivity(model, None, candidates=CHEAP, method="gradient", loss=loss)
    assert [row["gradient"] for row in again.rows] == [row["gradient"] for row in table.rows]


def failing(kind, at):
    """A metric that goes wrong at its ``at``-th call, after it has done things to the model."""
    calls = iter(range(100))

    def metric(model):
        if next(calls) == at:
            model.train()
            model[2].register_forward_hook(lambda *_: None)
            if isinstance(kind, type):
                raise kind
            return kind
        return evaluate(model)

    return metric


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize(
    "kind, error, says",
    [
        (math.nan, ValueError, "the metric is nan with"),
        (math.inf, ValueError, "the metric is inf with"),
        ("good", TypeError, "evaluate must return a number, .* got 'good'"),
        (None, TypeError, "got None of"),
        (torch.ones(2, 2), TypeError, r"got a tensor \(2, 2\)"),
        (torch.ones(0), TypeError, "got a tensor"),
        (ZeroDivisionError, ZeroDivisionError, None),
        (KeyboardInterrupt, KeyboardInterrupt, None),
    ],
)
def test_whatever_the_metric_does_the_model_is_as_it_was(kind, error, says, at):
    model = net()
    before, hooks = state(model), dict(model[2]._forward_hooks)
    with pytest.raises(error, match=says) as caught:
        sensitivity(model, failing(kind, at), candidates=CHEAP)
    assert state(model) == before and dict(model[2]._forward_hooks) == hooks
    if says:
        place = {0: "the model as it is", 1: "0 replaced by SVD rank 2", 5: "2 replaced by SVD rank 6"}[at]
        assert place in str(caught.value)


def test_an_interrupt_at_any_line_leaves_the_model_as_it_was():
    befores = {}

    def make():
        model = net()
        befores[model] = state(model)
        return model

    def work(model):
        tried(model, {"2": candidates.integer(3).make(model[2])}, evaluate)

    for model in every_line(make, work, room.__file__):
        assert state(model) == befores[model]


def test_statistics_of_a_model_in_training_mode_are_put_back_and_it_is_warned():
    model = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Dropout(0.1))
    before = state(model)
    with pytest.warns(UserWarning, match="training mode, in which dropout makes the metric noisy"):
        sensitivity(model, lambda model: model(X).mean().item(), candidates=CHEAP)
    assert state(model) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sensitivity(net(), evaluate, candidates=CHEAP[:1])


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (dict(method="guess"), ValueError, "method must be one or several of exact, gradient, output"),
        (dict(method=[]), ValueError, "method must be"),
        (dict(method="gradient"), ValueError, "method 'gradient' needs loss"),
        (dict(method="output"), ValueError, "method 'output' needs grams"),
        (dict(method="gradient", loss=3), TypeError, "loss must be a function"),
        (dict(method="gradient", loss=evaluate), TypeError, "loss must return a tensor of one number with a gradient"),
        (
            dict(method="gradient", loss=lambda m: loss(m) * math.nan),
            ValueError,
            "the loss of the model as it is is nan",
        ),
        (dict(grams=[1]), TypeError, "grams must map"),
        (dict(candidates=[]), ValueError, "candidates is empty"),
        (dict(candidates=["svd"]), TypeError, "candidates must be made by"),
        (dict(candidates=[CHEAP[0], CHEAP[0]]), ValueError, "two candidates are called 'SVD rank 2'"),
        (dict(candidates=[candidates.svd(ratio=100)]), ValueError, "no candidate fits any layer: SVD 100x: rank 1"),
        (dict(layers="nothing"), ValueError, "no module is named"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, says):
    model = net()
    before = state(model)
    with pytest.raises(error, match=says):
        sensitivity(model, evaluate, **{"candidates": CHEAP, **arguments})
    assert state(model) == before


def test_no_metric_is_refused_where_it_is_needed():
    with pytest.raises(ValueError, match="method 'exact' needs evaluate"):
        sensitivity(net(), None)
    with pytest.raises(ValueError, match="no layer to replace"):
        sensitivity(nn.Sequential(nn.ReLU()), evaluate)


def test_only_one_replacement_exists_at_a_time():
    alive = []

    def build(layer, gram):
        assert not [one for one in alive if one() is not None]
        made = candidates.integer(4).make(layer)
        alive.append(weakref.ref(made))
        return made

    table = sensitivity(
        net(),
        evaluate,
        candidates=[candidates.Candidate(name, build) for name in "ab"],
        method=["exact", "gradient"],
        loss=loss,
    )
    assert len(alive) == len(table.rows) == 6


def test_tied_layers_are_left_out_and_named():
    ids = torch.arange(20)
    table = sensitivity(Tied().eval(), lambda m: m.head(m.body(m.embed(ids))).std().item(), candidates=CHEAP)
    assert table.layers == ["body"] and {one["layer"] for one in table.skipped} == {"embed", "head"}
    assert all(one["candidate"] is None and "shares a parameter" in one["reason"] for one in table.skipped)


def test_scores_of_examples_are_averaged():
    assert metric_of([1.0, 2.0], "") == metric_of(torch.tensor([1.0, 2.0]), "") == metric_of(1.5, "") == 1.5
    assert metric_of(torch.tensor(2, requires_grad=False), "") == 2.0


@pytest.mark.parametrize("seed", range(4))
def test_tau_is_that_of_scipy(seed):
    x, y = (gaussian((30,), seed + k, torch.float64).mul(1 + seed).round(decimals=seed % 2).tolist() for k in (0, 9))
    assert math.isclose(kendall(x, y), stats.kendalltau(x, y).statistic, rel_tol=1e-12)
    assert kendall(x, x) == pytest.approx(1) and kendall(x, [-v for v in x]) == pytest.approx(-1)
    assert math.isnan(kendall([1.0, 1.0], [1.0, 2.0]))


@pytest.fixture(scope="module")
def table():
    model = net()
    return sensitivity(
        model,
        evaluate,
        candidates=CHEAP,
        grams=collect_gram(model, ["0", "2"], [X]),
        method=("exact", "gradient", "output"),
        loss=loss,
    )


def test_agreement_is_over_rows_that_have_both(table):
    rows = [row for row in table.rows if row["output"] is not None]
    assert len(rows) == 6
    wanted = stats.kendalltau([row["drop"] for row in rows], [row["output"] for row in rows]).statistic
    assert math.isclose(table.kendall("exact", "output"), wanted)
    one = [row for row in table.rows if row["candidate"] == "int3"]
    wanted = stats.kendalltau([row["drop"] for row in one], [row["gradient"] for row in one]).statistic
    assert math.isclose(table.kendall("exact", "gradient", "int3"), wanted)
    assert table.ranked("int3", "gradient") == [row["layer"] for row in sorted(one, key=lambda row: row["gradient"])]
    for work, says in (
        (lambda: table.kendall("exact", "other"), "the table has exact, gradient, output, not 'other'"),
        (lambda: table.kendall(candidate="int9"), "no candidate 'int9'"),
        (lambda: table.ranked("int9"), "the table has SVD rank 2"),
    ):
        with pytest.raises(ValueError, match=says):
            work()


def test_it_prints_and_is_a_table_in_a_notebook(table):
    text = repr(table)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 88 and "10 drop, 1 gradient, 0 output" in " ".join(lines)
    [head] = [line for line in lines if line.startswith("layer")]
    assert [part for part in head.split("  ") if part][-1].strip().endswith("int3")
    shown = [line for line in lines if line.startswith("2 ")]
    assert len(shown) == 1 and f"{_of(table, '2', 'SVD rank 2')['drop']:.4f}" in shown[0]
    page = table._repr_html_()
    assert page.count("<tr>") == 4 and 'role="region"' in page and "Kendall" in page


def test_a_file_holds_everything(table, tmp_path):
    table.save(tmp_path / "table.json")
    loaded = Sensitivity.load(tmp_path / "table.json")
    assert loaded.as_dict() == table.as_dict() and repr(loaded) == repr(table)
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == table.rows
    damaged = [
        {"rows": []},
        *(
            table.as_dict() | part
            for part in ({"rows": 3}, {"rows": [{}]}, {"methods": ["luck"]}, {"methods": []}, {"seconds": [1]})
        ),
    ]
    for content in damaged:
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="other.json is no file of a Sensitivity"):
            Sensitivity.load(tmp_path / "other.json")
