"""Partial tensorization against the published loop on copies, on all kinds of models; and its report."""

import pytest
import torch
from searches import (
    NAMES,
    Counted,
    accuracy,
    compressed,
    forward_on_copies,
    net,
    replaced,
    restore_on_copies,
    right,
    smaller,
    state,
)
from strategies import gaussian
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from ttref import TTLinear
from ttref.fitting import collect_gram
from ttref.surgery import equivalence_gate, partial_tensorize
from ttref.surgery.candidates import integer, svd, tensor_train, whitened_svd


@pytest.mark.parametrize("reference", ["start", "last"])
@pytest.mark.parametrize("most", [0.0, 0.02, 0.05, 0.3])
@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_forward_is_the_published_loop(eps, most, reference):
    model, metric = net(), Counted(accuracy)
    wanted = forward_on_copies(model, accuracy, NAMES, eps, most + 1e-9, reference == "last")
    report = partial_tensorize(model, metric, layers=NAMES, eps=eps, max_drop=most, reference=reference)
    assert report.names() == compressed(model) == wanted
    tried = [row for row in report.layers if row["metric"] is not None]
    assert metric.calls == report.evaluations == 1 + len(tried)
    assert report.verdict.after == pytest.approx(accuracy(replaced(net(), wanted, eps)))
    assert report.verdict.after == accuracy(model)


@pytest.mark.parametrize("most", [0.0, 0.02, 0.05, 0.3])
@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_restore_puts_back_the_most_harmful_first(eps, most):
    model, metric = net(), Counted(accuracy)
    small, wanted = smaller(model, NAMES, eps), restore_on_copies(model, accuracy, NAMES, eps, most + 1e-9)
    report = partial_tensorize(model, metric, layers=NAMES, eps=eps, max_drop=most, order="restore")
    assert sorted(report.names()) == compressed(model) == sorted(wanted)
    back = sorted((row for row in report.layers if row["put_back"]), key=lambda row: row["put_back"])
    harm = [row["alone"] for row in back]
    assert harm == sorted(harm, reverse=True) and [row["put_back"] for row in back] == list(range(1, len(back) + 1))
    ranked = len(small) if back else 0
    assert metric.calls == 2 + ranked + len(back) - (not wanted)
    assert report.verdict.after == accuracy(model)


def test_a_ranking_is_a_cheaper_metric_or_a_forecast():
    few = Counted(lambda model: right(model)[:100])
    how = {"layers": NAMES, "eps": 0.6, "max_drop": 0.02, "order": "restore"}
    first, metric = net(), Counted(accuracy)
    report = partial_tensorize(first, metric, ranking=few, **how)
    assert few.calls == 4 and metric.calls + few.calls == report.evaluations
    alone = [right(first_replaced)[:100].mean() for first_replaced in (replaced(net(), [name], 0.6) for name in NAMES)]
    start = right(net())[:100].mean()
    assert [row["alone"] for row in report.layers] == pytest.approx([(start - one).item() for one in alone])

    metric = Counted(accuracy)
    forecast = partial_tensorize(net(), metric, ranking={"0": 0.1, "2": 0.3, "4": 0.2}, **how)
    assert [row["name"] for row in sorted(forecast.layers, key=lambda row: -row["alone"])] == ["2", "4", "0"]
    assert next(row["name"] for row in forecast.layers if row["put_back"] == 1) == "2"
    assert metric.calls == forecast.evaluations <= 5


def test_the_equivalence_gate_lets_no_luck_pass():
    """Four drops of at most five points, of which a paired test vouches for fewer."""
    how = {"layers": NAMES, "eps": 0.5, "max_drop": 0.05}
    lucky = partial_tensorize(net(), right, **how)
    sure = partial_tensorize(net(), right, gate="equivalence", **how)
    assert set(sure.names()) <= set(lucky.names()) and len(sure.names()) < 3
    start, accepted = right(net()), []
    for row in sure.layers:
        expected = equivalence_gate(start, right(replaced(net(), [*accepted, row["name"]], 0.5)))
        assert (row["p"], row["harmful"], row["beneficial"]) == (expected.p, expected.harmful, expected.beneficial)
        assert row["decision"].startswith("accepted" if expected.accepted else "rejected: drop")
        accepted += [row["name"]] * expected.accepted
    assert lucky.verdict.p is None and lucky.verdict.harmful is not None  # flips are counted all the same


def test_a_margin_can_be_a_share():
    report = partial_tensorize(net(), accuracy, layers=NAMES, max_drop=0.1, drop_type="relative")
    assert report.verdict.allowed == pytest.approx(0.1 * accuracy(net()))


# Models of all kinds: outputs of the search's model and of a twin that is replaced by hand agree.


def bert():
    config = BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config)


def gpt2():
    config = GPT2Config(
        vocab_size=60, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.norm(self.second(self.first(x).relu())).relu().mean((2, 3)))


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(9, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.blocks, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.blocks(x + self.positions(torch.arange(9))).mean(1))


IDS = torch.arange(40).reshape(4, 10)
MODELS = {
    "BERT": (bert, lambda model: model(IDS).last_hidden_state),
    "GPT-2": (gpt2, lambda model: model(IDS).logits),
    "images": (Images, lambda model: model(gaussian((4, 3, 8, 8), 0, torch.float32))),
    "patches": (Patches, lambda model: model(gaussian((4, 9, 32), 0, torch.float32))),
}


def built(kind):
    torch.manual_seed(0)
    make, output = MODELS[kind]
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2 and min(weight.shape) > 8:  # of low rank, or nothing would be smaller
                u, s, v = torch.linalg.svd(weight, full_matrices=False)
                weight.copy_(u[:, :4] * s[:4] @ v[:4])
        target = output(model)

    @torch.no_grad()
    def metric(model):
        return -(output(model) - target).square().flatten(1).mean(1)

    return model, metric, output


@pytest.mark.parametrize("order", ["forward", "restore"])
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_all_kinds(kind, order):
    model, metric, output = built(kind)
    dense = sum(x.numel() for x in model.parameters())
    before = state(model)
    candidate = integer(4) if kind == "images" else svd(eps=0.2)
    report = partial_tensorize(model, metric, candidate=candidate, max_drop=0.02, order=order)
    assert 2 <= len(report.names())
    twin, _, _ = built(kind)
    for name in report.names():
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, candidate.make(twin.get_submodule(name)))
    with torch.no_grad():
        torch.testing.assert_close(output(model), output(twin), rtol=1e-4, atol=1e-5)
    assert not model.training and report.params_before == dense
    if kind != "images":  # integers are marked, and stored as floats
        assert report.params_after == sum(x.numel() for x in model.parameters()) < dense
    report.undo()
    assert state(model) == before


def test_fitted_replacements_get_the_gram_matrix_of_their_layer():
    """By whole name or by its end; a layer without one is skipped and said."""
    model, x = nn.ModuleDict({"net": net()}), gaussian((200, 64), 0, torch.float32).abs()
    grams = collect_gram(model["net"], NAMES[:2], [x], progress=False)
    how = {"candidate": whitened_svd(ratio=2), "layers": [f"net.{name}" for name in NAMES]}
    report = partial_tensorize(model, lambda model: 1.0, grams=grams, **how)
    assert report.names() == ["net.0", "net.2"]
    assert "it needs the Gram matrix of the layer's inputs" in report.layers[2]["decision"]
    for name in NAMES[:2]:
        expected = how["candidate"].make(net().get_submodule(name), grams[name])
        for found, core in zip(model["net"].get_submodule(name).cores, expected.cores, strict=True):
            torch.testing.assert_close(found, core)


def test_tables_come_first_and_what_is_tied_is_named():
    model, metric, _ = built("BERT")
    report = partial_tensorize(model, metric, max_drop=10.0)
    names = [row["name"] for row in report.layers]
    assert names[:2] == ["embeddings.word_embeddings", "embeddings.position_embeddings"]
    assert names[2:4] == ["encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.key"]
    model, metric, _ = built("GPT-2")
    report = partial_tensorize(model, metric, max_drop=10.0)
    decision = {row["name"]: row["decision"] for row in report.layers}
    assert "shares a parameter with lm_head" in decision["transformer.wte"]
    assert {type(part).__name__ for name, part in model.named_modules() if name in report.names()} <= {
        "TTLinear",
        "TTMEmbedding",
    }


def test_what_would_grow_is_skipped_and_said():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)).eval()
    before = state(model)
    metric = Counted(lambda model: 1.0)
    report = partial_tensorize(model, metric, eps=0.01)
    assert {row["decision"] for row in report.layers} == {"skipped: the replacement would be no smaller"}
    assert report.layers[0]["params_after"] >= 144 and metric.calls == 1 and state(model) == before
    assert "Skipped, the replacement would be no smaller: 0, 1" in repr(report)
    report = partial_tensorize(model, lambda model: 1.0, candidate=tensor_train(ratio=1000))
    assert "skipped: rank 1 already takes" in report.layers[0]["decision"]


def test_undone_once():
    model = net()
    before = state(model)
    report = partial_tensorize(model, accuracy, layers=NAMES, max_drop=1.0)
    assert report.model is model and compressed(model) == NAMES
    report.undo()
    assert state(model) == before
    with pytest.raises(RuntimeError, match="undone already"):
        report.undo()


@pytest.mark.parametrize("order", ["forward", "restore"])
def test_the_report(order):
    how = {"layers": NAMES, "eps": 0.5, "gate": "equivalence", "order": order}
    report = partial_tensorize(net(), right, **how)
    text = repr(report)
    assert max(map(len, text.splitlines())) <= 88 and "of 3 layers tried were accepted" in text
    head = next(line for line in text.splitlines() if line.startswith("layer"))
    back = ["alone", "back"] if order == "restore" else []
    columns = ["layer", "shape", "rank", "smaller", *back, "metric", "drop", "flips", "p", "decision"]
    assert head.split() == columns
    page = report._repr_html_()
    assert page.count("<tr>") == 4 and 'aria-label="Table: each layer' in page
    assert report.seconds > 0 and all(row["seconds"] > 0 for row in report.layers)
    for row in report.layers:
        train = TTLinear.from_linear(net().get_submodule(row["name"]), eps=0.5)
        assert (row["params_after"], tuple(row["ranks"])) == (train.params, train.ranks)
        assert row["modes"] == [list(pair) for pair in train.modes]
        assert row["params_before"] == train.in_features * train.out_features == row["nbytes_before"] // 4
    with pytest.raises(ValueError, match='decision must be "accepted"'):
        report.names("lost")


def test_long_names_fit_into_the_text():
    for name in ("encoder_layer_0_attention_output_dense", "a_name_" * 15):
        model = nn.ModuleDict({name: nn.Linear(32, 32)}).eval()
        text = repr(partial_tensorize(model, lambda model: 1.0, eps=0.9))
        assert max(map(len, text.splitlines())) <= 88
        assert any(word.removeprefix("…") in name for word in text.split() if len(word) > 37)
        assert ("…" in text) is (len(name) > 60)
