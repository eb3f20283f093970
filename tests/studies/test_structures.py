"""Layers of four structures at equal compute: what they compute, how they start, what is compared."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from book.tools import results
from studies.structures import study, tasks
from studies.structures.layers import BASE, BlockTensorTrain, Dense, LowRank, TTMatrix, pair
from studies.structures.network import Form, Network

TEXT = Form(length=8, classes=11, words=11)
PICTURE = Form(length=8, classes=5, entries=12)
KINDS = {"dense": Dense, "low rank": lambda i, o: LowRank(i, o, 5)}
KINDS |= {"TT-matrix": lambda i, o: TTMatrix(i, o, 3), "block": lambda i, o: BlockTensorTrain(i, o, 3)}


def weight(layer, ins):
    """The dense matrix that a layer multiplies by."""
    with torch.no_grad():
        return (layer(torch.eye(ins)) - layer(torch.zeros(1, ins))).mT


def test_a_block_tensor_train_with_equal_blocks_is_a_tt_matrix():
    train, block = TTMatrix(35, 24, 3), BlockTensorTrain(35, 24, 3)
    train.start(torch.Generator().manual_seed(0))
    first, last = train.tt.cores  # (1, a, c, s) and (s, b, d, 1)
    a, b, c, d, rank = block.sizes
    with torch.no_grad():
        block.right.copy_(last[..., 0].reshape(rank * b, d).expand(c, -1, -1))
        block.left.copy_(first[0].flatten(1).expand(b, -1, -1))
        block.bias.zero_()
    torch.testing.assert_close(weight(block, 35), weight(train, 35))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_keeps_leading_axes_and_counts_its_products(kind):
    layer = KINDS[kind](36, 64)
    layer.start(torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 36, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ weight(layer, 36).mT + layer.bias)
    assert set(layer.fans) < {name for name, _ in layer.named_parameters()}
    assert layer.rates() == {name: BASE / ins for name, (ins, _) in layer.fans.items()}
    numbers = sum(layer.get_parameter(name).numel() for name in layer.fans)
    assert layer.macs > 5 * numbers if kind == "TT-matrix" else layer.macs == numbers


@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_starts_with_outputs_of_about_one_size(kind):
    layer = KINDS[kind](144, 144)
    layer.start(torch.Generator().manual_seed(0))
    largest = torch.linalg.matrix_norm(weight(layer, 144), 2)
    assert 0.8 < largest < 4  # spectral norms near one, whatever the structure


def test_the_nearest_pair():
    assert [pair(n) for n in (36, 168, 7, 1)] == [(6, 6), (14, 12), (7, 1), (1, 1)]


@pytest.mark.parametrize("form", [TEXT, PICTURE])
def test_a_network_reads_what_its_form_says(form):
    net = Network(form, 16, Dense, seed=3)
    same = Network(form, 16, Dense, seed=3)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), same.parameters(), strict=True))
    x = torch.arange(16).reshape(2, 8) % 11 if form.causal else torch.ones(2, 8, 12)
    scores = net(x)
    assert scores.shape == ((2, 8, 11) if form.causal else (2, 5)) and not scores.any()  # the head starts at zero
    layers = 2 * 12 * 16 * 16
    assert net.macs() == layers + 2 * 2 * 8 * 16 + 16 * (11 if form.causal else 12)


def test_a_character_is_not_told_what_follows_it():
    net = Network(TEXT, 16, Dense, seed=0)
    nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    x = torch.arange(8)[None] % 11
    later = x.clone()
    later[0, 5:] = 0
    torch.testing.assert_close(net(x)[:, :5], net(later)[:, :5])


def test_steps_are_scaled_factor_by_factor():
    net = Network(TEXT, 16, KINDS["block"], seed=0)
    names = {id(held): name for name, held in net.named_parameters()}
    rates = {names[id(group["params"][0])]: group["lr"] for group in net.groups(0.5, scaled=True)}
    assert rates["blocks.0.query.right"] == 0.5 * BASE / 4 and rates["blocks.0.query.left"] == 0.5 * BASE / 12
    assert rates["positions"] == rates["blocks.1.up.bias"] == 0.5 and rates["head.weight"] == 0.5 * BASE / 16
    assert {group["lr"] for group in net.groups(0.5, scaled=False)} == {0.5}
    rates = {names[id(group["params"][0])]: group["lr"] for group in net.groups(0.5, scaled=True, rest=0.1)}
    assert rates["blocks.0.query.right"] == 0.5 * BASE / 4 and rates["head.weight"] == 0.1 * BASE / 16
    assert rates["positions"] == rates["blocks.1.up.bias"] == 0.1


@pytest.mark.parametrize("size", study.DENSE_WIDTHS)
def test_networks_spend_the_same(size):
    form = Form(tasks.LENGTH, 65, words=65)
    target = Network(form, study.DENSE_WIDTHS[size], Dense, 0).macs()
    for arm in study.ARMS.values():
        width = arm.width(form, target)
        assert 0.88 < Network(form, width, arm.maker(width), 0).macs() / target <= study.ALLOWED
        assert width >= study.DENSE_WIDTHS[size]


def test_rates_rise_and_fall():
    rates = [study.rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:11] == [1, pytest.approx(1, abs=1e-3)]
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.1, abs=0.01)


def tiny(form):
    """A task that a network can learn: the next symbol is the one after, a picture's class is its brightest entry."""
    generator = torch.Generator().manual_seed(0)

    def batch():
        if form.causal:
            x = (torch.randint(11, (16, 1), generator=generator) + torch.arange(9)) % 11
            return x[:, :-1], x[:, 1:]
        x = torch.randn(16, 8, 12, generator=generator)
        return x, x[..., :5].mean(1).argmax(1)

    def batches(seed):
        while True:
            yield batch()

    x, y = (torch.cat(part) for part in zip(*(batch() for _ in range(8)), strict=True))
    return tasks.Task(form, batches, lambda model, part: tasks.judged(model, x, y, part))


@pytest.mark.parametrize("form", [TEXT, PICTURE])
def test_every_arm_learns(form, monkeypatch):
    monkeypatch.setattr(study, "DENSE_WIDTHS", {"small": 36})
    for name in study.ARMS:
        row = study.run(tiny(form), name, "small", 4e-3, 0, part="test", rest=4e-3, steps=60)
        assert row["loss"] < 0.75 * math.log(form.classes), name


def test_rates_are_chosen_on_the_other_half_and_rows_that_are_there_are_not_measured_again(monkeypatch):
    asked, rests = [], set()

    def run(task, name, size, rate, seed, *, part, rest, steps=study.STEPS):
        asked.append((name, size, rate, seed, part))
        rests.add(rest)
        return {"arm": name, "rate": rate, "rest": rest, "loss": abs(rate - (2e-3 if name == "dense" else 8e-3))}

    monkeypatch.setattr(study, "run", run)
    rows = list(study.rested(None, {}))
    assert len(rows) == len(study.RATES) * len(study.RESTS) and rests == set(study.RESTS)
    assert not list(study.rested(None, {row["key"]: row for row in rows}))
    asked.clear(), rests.clear()
    rows = list(study.tuned(None, 0.5, {}))
    assert len(rows) == len(study.ARMS) * len(study.RATES) and {part for *_, part in asked} == {"validation"}
    rates = study.best_rates(rows)
    assert rates["dense"] == 2e-3 and rates["low rank, a quarter"] == 8e-3
    assert not list(study.tuned(None, 0.5, {row["key"]: row for row in rows}))
    asked.clear()
    rows = list(study.compared(None, rates, 0.5, {}))
    assert {part for *_, part in asked} == {"test"} and len(rows) == 9 * len(study.ARMS)
    assert {(name, rate) for name, _, rate, *_ in asked} == set(rates.items()) and rests == {0.5}
    assert not list(study.compared(None, rates, 0.5, {row["key"]: row for row in rows}))


def test_times_that_are_missing_are_measured_beside_all_other_arms(monkeypatch):
    monkeypatch.setattr(study, "DENSE_WIDTHS", {"small": 36})
    monkeypatch.setattr(study, "ROUNDS", 2)
    rows = list(study.timed(tiny(TEXT), {"dense, small": {}}))
    assert [row["arm"] for row in rows] == list(study.ARMS)[1:] and all(row["ms"] > 0 for row in rows)
    assert not list(study.timed(tiny(TEXT), {"dense, small": {}} | {row["key"]: row for row in rows}))


def test_the_record_holds_every_arm_at_its_best_rate_with_the_seeds_that_it_names():
    """A size is recorded whole or not at all, so that every structure stands beside all others."""
    record = results.read("structures")
    if not record:
        pytest.skip("there is no record yet: python -m studies.structures")
    assert record["rates"] == list(study.RATES) and record["steps"] == study.STEPS
    held = [record[name] for name in tasks.TASKS if name in record]
    assert held
    for part in held:
        assert {(row["arm"], row["rate"]) for row in part["tuning"]} == {
            (arm, rate) for arm in study.ARMS for rate in study.RATES
        }
        rates, runs = study.best_rates(part["tuning"]), part["runs"]
        assert {(run["arm"], run["size"], run["seed"]) for run in runs} == {
            (arm, size, seed) for size, seeds in record["seeds"].items() for seed in seeds for arm in study.ARMS
        }
        rest = min(part["rests"], key=lambda row: row["loss"])["rest"]
        assert all((run["rate"], run["rest"]) == (rates[run["arm"]], rest) for run in runs)
        assert {(row["arm"], row["size"]) for row in part["times"]} == {
            (arm, size) for arm in study.ARMS for size in record["seeds"]
        }
        dense = {run["size"]: run["macs"] for run in runs if run["arm"] == "dense"}
        assert all(0.88 < run["macs"] / dense[run["size"]] <= study.ALLOWED for run in runs)


def test_pictures_are_cut_into_patches(tmp_path):
    (tmp_path / "cifar10").mkdir()
    draw = np.random.default_rng(0)
    parts = {
        f"{part}_x": draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for part, n in (("train", 40), ("test", 9))
    }
    np.savez(tmp_path / "cifar10/cifar10_part.npz", **parts, train_y=np.arange(40) % 10, test_y=np.arange(9))
    task = tasks.pictures(tmp_path)
    (x, y), (again, _) = next(task.batches(0)), next(task.batches(0))
    assert x.shape == (tasks.BATCH, 64, 48) and y.shape == (tasks.BATCH,) and torch.equal(x, again)
    assert task.form.length * task.form.entries == 3 * 32 * 32


def test_text_is_split_before_windows_are_drawn(tmp_path):
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_text("ab" * 900 + "cd" * 100, encoding="utf-8")
    task = tasks.characters(tmp_path)
    assert task.form == Form(64, 4, words=4)
    x, y = next(task.batches(0))
    assert torch.equal(x[:, 1:], y[:, :-1]) and set(x.unique().tolist()) == {0, 1}  # of the first nine tenths


def test_every_other_example_judges():
    x = torch.arange(6.0)[:, None]
    y = torch.tensor([0, 1, 0, 0, 0, 1])
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    assert tasks.judged(model, x, y, "validation")["right"] == 1.0
    found = tasks.judged(model, x, y, "test")
    assert found["right"] == pytest.approx(1 / 3)
    assert found["loss"] == pytest.approx(math.log(1 + math.e) - 1 / 3)
