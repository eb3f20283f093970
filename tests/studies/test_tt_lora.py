"""A small slice of the TT-LoRA study, run again and compared with what is recorded; and its rules, on tiny data."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from book.tools.results import RESULTS
from book.workbook.finetuning import trainable_parameters
from book.workbook.sources import LoadedModel
from studies.tt_lora import arms as tt_lora_arms
from studies.tt_lora import glue as tt_lora_glue
from studies.tt_lora import llama as tt_lora_llama
from studies.tt_lora import study as tt_lora
from studies.tt_lora import tasks as tt_lora_tasks
from studies.tt_lora.arms import Arm, build, run, run_trial
from studies.tt_lora.glue import metrics
from studies.tt_lora.tasks import Task

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "tt_lora.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def small():
    """The docstring task with a few sentences."""
    task = tt_lora_tasks.docstrings()
    return Task(
        task.name,
        task.classes,
        {split: ids[:48] for split, ids in task.ids.items()},
        {split: labels[:48] for split, labels in task.labels.items()},
    )


def points(section):
    return [point for group in section["points"].values() for point in group]


def default(recorded):
    rate = recorded["rates"]["chosen"]["ttlora"]
    return next(point for point in points(recorded["grid"]) if point["key"] == Arm("ttlora", 4, lr=rate).key)


# --- the record ------------------------------------------------------------------------------------------------------


def test_the_learning_rate_is_the_best_on_validation(recorded):
    for method, rate in recorded["rates"]["chosen"].items():
        tried = recorded["rates"]["points"][method]
        best = max(point["validation"] for point in tried if "validation" in point)
        assert next(point["validation"] for point in tried if point["lr"] == rate) == best


def test_means_follow_from_the_runs(recorded):
    for section in ("rates", "grid", "ablations"):
        for point in points(recorded[section]):
            good = [each for each in point["runs"] if "failed" not in each]
            assert [each["seed"] for each in point["runs"]] == list(range(len(point["runs"])))
            if good:
                assert point["test"] == pytest.approx(sum(each["test"] for each in good) / len(good), abs=1e-4)


def test_no_update_has_a_larger_rank_than_its_bond(recorded):
    """Straddling modes may: in (32, 18, 16, 16) a step of the second mode is 256 entries, two thirds of a row."""
    for point in [*points(recorded["grid"]), *points(recorded["ablations"])]:
        if point["method"] in ("lora", "ttlora") and "update" in point and point["shape"] != "straddling":
            assert point["update"]["rank_max"] <= point["rank"]
    (straddling,) = [point for point in points(recorded["ablations"]) if point["shape"] == "straddling"]
    assert straddling["update"]["rank_max"] > straddling["rank"]


def test_the_counts_are_those_of_the_models(recorded):
    for point in points(recorded["grid"]):
        if point["method"] == "ttlora":
            found = trainable_parameters(build(arm_of(point), 3, 0))
            assert (found["adapter"], found["head"]) == (point["adapter_params"], point["head_params"])
    (matched,) = [point for point in points(recorded["grid"]) if point["layers"] is not None]
    assert matched["adapter_params"] == default(recorded)["adapter_params"] == 6144


def arm_of(point):
    names = Arm.__dataclass_fields__
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in point.items()}
    return Arm(**{name: values[name] for name in names})


def test_the_mixed_metric_is_the_mean_of_two(recorded):
    for name, task in recorded["glue"].items():
        own = {"mrpc": "f1", "cola": "matthews"}.get(name, "accuracy")
        for point in task["points"]:
            for each in (point["test"], *(one["test"] for one in point["runs"])):
                assert each["mixed"] == pytest.approx((each[own] + each["accuracy"]) / 2, abs=1e-4)


# --- slices, run again -----------------------------------------------------------------------------------------------


def test_the_head_alone_comes_out_again(recorded):
    arm = Arm("head", lr=recorded["rates"]["chosen"]["head"])
    (expected,) = [point["runs"][0] for point in points(recorded["grid"]) if point["key"] == arm.key]
    found = run(arm, tt_lora_tasks.docstrings(), 0, splits=("validation",))[0]
    assert found["losses"] == pytest.approx(expected["losses"], abs=0.01)
    assert found["validation"] == pytest.approx(expected["validation"], abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "ttlora"])
def test_the_first_run_of_an_adapter_comes_out_again(recorded, method):
    rate = recorded["rates"]["chosen"][method]
    arm = Arm(method, {"lora": 8, "ttlora": 4}[method], lr=rate)
    (expected,) = [point["runs"][0] for point in points(recorded["grid"]) if point["key"] == arm.key]
    found = run(arm, tt_lora_tasks.docstrings(), 0)[0]
    assert found["losses"] == pytest.approx(expected["losses"], abs=0.05)
    assert found["test"] == pytest.approx(expected["test"], abs=0.03)  # another BLAS ends 76 steps elsewhere
    assert found["update"]["rank_max"] == expected["update"]["rank_max"]


@needs_data
def test_glue_is_split_as_it_was(recorded):
    for name in recorded["glue"]:
        task = tt_lora_tasks.load_glue(name, Path(DATA))
        expected = recorded["glue"][name]
        for split, labels in task.labels.items():
            assert len(labels) == expected[split] == getattr(tt_lora_tasks.GLUE[name], split)
        assert tt_lora_glue.described(task)["majority"] == pytest.approx(expected["majority"])
        rows = [tuple(ids.tolist()) for split in task.ids.values() for ids in split]
        assert len(set(rows)) > 0.97 * len(rows)  # cut off after some tokens, a few pairs become equal


@needs_data
def test_the_head_of_cola_comes_out_again(recorded):
    arm = Arm("head", lr=recorded["rates"]["chosen"]["head"])
    (expected,) = [point["runs"][0] for point in recorded["glue"]["cola"]["points"] if point["method"] == "head"]
    found = tt_lora_glue.measured(arm, tt_lora_tasks.load_glue("cola", Path(DATA)), 0)
    assert found["test"]["accuracy"] == pytest.approx(expected["test"]["accuracy"], abs=0.01)


# --- the rules -------------------------------------------------------------------------------------------------------


def test_a_trial_from_plain_values(small, monkeypatch):
    monkeypatch.setattr(tt_lora_arms, "docstrings", lambda: small)
    seen = []
    config = {"shape": [8, 6, 8, 8, 6, 8], "rank": 2, "alpha": 1.0, "lr": 5e-3, "epochs": 2, "train": 32, "seed": 1}
    found = run_trial(config, seen.append, splits=("validation", "test"))
    assert [values["epoch"] for values in seen] == [1, 2] and len(found["losses"]) == 2
    for split in ("validation", "test"):
        assert seen[-1][split] == pytest.approx(found[split], abs=1e-6)
        assert sum(seen[-1]["right"][split]) / 48 == pytest.approx(found[split], abs=1e-6)
    assert found["update"]["rank_max"] <= 2
    assert run_trial(config)["losses"] == found["losses"]  # equal seeds, equal runs


def test_a_trial_that_diverges_or_does_not_fit(small, monkeypatch):
    monkeypatch.setattr(tt_lora_arms, "docstrings", lambda: small)
    with pytest.raises(FloatingPointError):
        run_trial({"rank": 2, "alpha": 1.0, "lr": 1e20, "epochs": 1, "train": 48})
    with pytest.raises(ValueError, match="shape"):
        run_trial({"shape": [7, 7], "rank": 2, "alpha": 1.0, "lr": 1e-3})


def test_what_each_arm_trains():
    for arm, adapter, head in (
        (Arm("head"), 0, 1155),
        (Arm("lora", 8), 73_728, 1155),
        (Arm("lora", 1, layers=(2, 3, 4, 5)), 6144, 1155),
        (Arm("ttlora", 4), 6144, 1155),
        (Arm("ttlora", 4, head="frozen"), 6144, 0),
        (Arm("lora", 8, head="frozen"), 73_728, 0),
        (Arm("ttlora", 4, shape="coarse"), 36_864, 1155),
        (Arm("top"), 3_548_928, 1155),
    ):
        assert trainable_parameters(build(arm, 3, 0)) == {"adapter": adapter, "head": head}, arm.key
    with pytest.raises(ValueError, match="unknown method"):
        build(Arm("ttlora8"), 3, 0)


def test_keys_tell_arms_apart():
    arms = [*tt_lora.RATES]
    for groups in (tt_lora.grid_arms, tt_lora.ablation_arms):
        made = groups({"ttlora": 5e-3, "lora": 2e-3, "head": 1e-2, "top": 1e-3, "full": 1e-4})
        arms += [arm for group in made.values() for arm in group]
    assert len({arm.key for arm in arms}) == len(set(arms))


def test_a_stopped_study_goes_on_where_it_was(small, monkeypatch):
    """Runs that are recorded are not run again, whichever section they were made for."""
    made = []

    def one(arm, task, seed):
        made.append((arm.key, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        return {"seed": seed, "failed": "not really run"}

    monkeypatch.setattr(tt_lora, "one", one)
    kept = {}
    groups = {"rank": [Arm("ttlora", 2), Arm("ttlora", 4)]}

    def keep(found):
        kept.update(found)

    with pytest.raises(KeyboardInterrupt):
        tt_lora.measure(groups, small, {}, lambda points: keep({"grid": {"points": points}}), lambda arm: (0, 1))
    again = tt_lora.measure(groups, small, tt_lora.known_runs(kept), lambda points: None, lambda arm: (0, 1))
    assert made[2:] == [(Arm("ttlora", 4).key, 0)] * 2 + [(Arm("ttlora", 4).key, 1)]
    assert [point["failed"] for point in again["rank"]] == [2, 2]


def test_metrics():
    labels = torch.tensor([1, 1, 1, 0])
    assert metrics("sst2", torch.tensor([1, 1, 1, 1]), labels) == {"accuracy": 0.75, "mixed": 0.75}
    assert metrics("cola", torch.tensor([1, 1, 1, 1]), labels) == {"accuracy": 0.75, "matthews": 0, "mixed": 0.375}
    found = metrics("mrpc", torch.tensor([1, 1, 1, 1]), labels)
    assert (found["f1"], found["mixed"]) == pytest.approx((6 / 7, (0.75 + 6 / 7) / 2), abs=1e-5)


def test_the_smoke_run_on_a_tiny_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
    lm = LoadedModel(LlamaForCausalLM(config).eval(), None, "tiny", "random")
    ids = torch.randint(0, 40, (4, 12))
    found = tt_lora_llama.tt_lora(lm, ids, ids.flip(0), steps=3)
    assert found["start_is_the_base_model"] and found["merged_minus_apart_max"] < 1e-4
    assert found["loss_after"]["trained"] < found["loss_before"]["trained"] and len(found["step_losses"]) == 3
    assert found["adapter_file_bytes"] > 4 * found["adapter_params"]
