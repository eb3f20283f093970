"""Every train is derived again from its source, every other tensor is the source's; what cannot be is said."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from releases import WHY, compressed, dense, forged, released, small_dense, small_layers
from safetensors.torch import load_file, save_file
from torch import nn

from book.tools.notebooks import ROOT
from ttref import MPSEmbedding, TTConv2d, TTLinear, TTMEmbedding
from ttref.convolving import patches
from ttref.fitting import Gram
from ttref.kernel_modes import RIDGE, SWEEPS
from ttref.release import load_release, save_release, verify
from ttref.release.manifest import ROLLBACK

TABLES = {
    "rank": lambda table: MPSEmbedding.from_embedding(table, rank=2),
    "ranks": lambda table: MPSEmbedding.from_embedding(table, rank=(1, 2, 2, 1), shape=(2, 3, 2)),
    "eps": lambda table: MPSEmbedding.from_embedding(table, eps=0.3),
    "frame": lambda table: MPSEmbedding.from_embedding(table, eps=0.3, center=True, rotate=True),
    "rows": lambda table: MPSEmbedding.from_embedding(table, row_ranks=[1, 2, 99] * 8, center=True),
    "int8": lambda table: MPSEmbedding.from_embedding(table, rank=2, core_bits=8),
    "matrix": lambda table: TTMEmbedding.from_embedding(table, rank=4),
    "padded": lambda table: TTMEmbedding.from_embedding(table, row_shape=(5, 5), col_shape=(4, 4), eps=0.3),
}
LAYERS = {
    "rank": lambda layer: TTLinear.from_linear(layer, rank=3),
    "eps": lambda layer: TTLinear.from_linear(layer, eps=0.3),
    "modes": lambda layer: TTLinear.from_linear(layer, rank=(1, 5, 1), in_shape=(3, 4), out_shape=(12, 1)),
    "exact": lambda layer: TTLinear.from_linear(layer, eps=0),
}


def three_cores(conv):
    """As a search makes them that prefers Tucker's modes."""
    from ttref.fitting import fit_cores

    matrix, shapes = patches(conv.weight.detach(), True), ((12, 1, 1), (1, 9, 1))
    cores = fit_cores(matrix.double(), torch.eye(9).double(), *shapes, rank=4, sweeps=SWEEPS, ridge=RIDGE)
    cores = [core.to(conv.weight.dtype) for core in cores]
    return TTConv2d.from_cores(cores, conv.bias, kernel_size=3, padding=1, taps_first=True).eval()


MODES = {"row_shape": (12, 1), "col_shape": (1, 9), "taps_first": True}
CONVOLUTIONS = {
    "rank": lambda conv: TTConv2d.from_conv(conv, rank=4, **MODES),
    "eps": lambda conv: TTConv2d.from_conv(conv, eps=0.3, row_shape=(4, 3), col_shape=(3, 3)),
    "integers": lambda conv: TTConv2d.from_conv(conv, rank=4, core_bits=4, **MODES),
    "searched": lambda conv: TTConv2d.from_conv(conv, params=80),
    "searched integers": lambda conv: TTConv2d.from_conv(conv, params=80, core_bits=8),
    "three cores": three_cores,
}
KINDS = {"words": TABLES, "hidden": LAYERS, "conv": CONVOLUTIONS}
CASES = {f"{kind} {name}": (kind, make) for kind, made in KINDS.items() for name, make in made.items()}


def status(folder, source, name):
    report = verify(folder, source, progress=False)
    assert report.ok, report.problems
    return next(row for row in report.rows if row["name"] == name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_way_to_make_a_layer_is_found(case, dtype, tmp_path):
    name, make = CASES[case]
    model = dense().to(dtype)
    released(tmp_path / "r", model, layers={name: make(getattr(model, name))})
    row = status(tmp_path / "r", model, name)
    assert row["status"] in ("bits", "tolerance") and row["error"] <= row["allowed"]
    others = [one for one in verify(tmp_path / "r", model, progress=False).rows if one["name"] != name]
    assert {one["status"] for one in others} == {"equal"} and len(others) >= 10


def test_the_method_is_recorded(tmp_path):
    model = dense()
    for make, function in ((three_cores, "fit_cores"), (CONVOLUTIONS["rank"], "ttm_svd")):
        released(tmp_path / "r", model, layers={"conv": make(model.conv)})
        method = json.loads((tmp_path / "r" / "manifest.json").read_bytes())["layers"]["conv"]["method"]
        assert method["function"] == function and method["taps_first"] is True


def test_the_error_of_the_weight_is_that_of_the_dense_twin(tmp_path):
    model, small, folder = released(tmp_path / "r")
    for name in ("words", "places", "conv", "hidden"):
        one, other = getattr(small, name).weight, getattr(model, name).weight
        error = (torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other)).item()
        assert status(folder, model, name)["relative_error"] == pytest.approx(error, rel=1e-4)


def test_layers_without_their_data_are_checked_by_hash_alone_and_said_so(tmp_path):
    model = dense()
    seen = Gram.from_inputs(torch.randn(50, 12) * torch.logspace(0, -2, 12))
    trained = TTLinear.from_linear(model.out, rank=3)
    with torch.no_grad():
        trained.cores[0].add_(0.1)
    fitted = TTLinear.from_linear(model.hidden, rank=3, gram=seen)
    released(tmp_path / "r", model, layers={"hidden": fitted, "out": trained})
    report = verify(tmp_path / "r", model, progress=False)
    assert report.ok and not report.proved and report.names("by hash") == ["hidden", "out"]
    assert "not everything can be derived" in report.summary and "by its hash alone" in str(report)


def test_tensors_that_were_trained_and_new_ones_are_named(tmp_path):
    model = dense()
    small = compressed(model)
    with torch.no_grad():
        small.out.weight.add_(0.5)
    small.extra = nn.Linear(2, 2)
    save_release(small, tmp_path / "r", source=model, override=WHY)
    report = verify(tmp_path / "r", model, progress=False)
    assert report.ok and not report.proved
    assert report.names("changed") == ["out.weight"]
    assert report.names("not in the source") == ["extra.bias", "extra.weight"]


class Scaling(nn.Embedding):
    """A look-up that multiplies its rows, as BART's."""

    embed_scale = 3.0


def test_the_factor_of_a_look_up_is_that_of_the_source_or_not_proved(tmp_path):
    model = small_dense()
    save_file(model.state_dict(), tmp_path / "model.safetensors")

    def times(factor):
        def change(tensors, manifest):
            for name in [name for name in tensors if name.startswith("0.")]:
                tensors[f"0.table.{name[2:]}"] = tensors.pop(name)
            about = manifest["layers"]["0"]
            about["spec"] = {"kind": "ScaledTable", "table": about["spec"], "scale": factor, "dtype": None}

        return change

    released(tmp_path / "r", model, layers=small_layers(model))
    forged(tmp_path / "r", times(50.0))
    report = verify(tmp_path / "r", model, progress=False)
    assert report.problems == ["0: it multiplies rows by 50, and the source by 1"]
    report = verify(tmp_path / "r", tmp_path / "model.safetensors", progress=False)
    assert report.ok and not report.proved and report.names("by hash") == ["0"]
    model[0].__class__ = Scaling
    assert not verify(tmp_path / "r", model, progress=False).ok
    released(tmp_path / "s", small_dense(), layers=small_layers(model))
    assert verify(tmp_path / "s", model, progress=False).problems == ["0: it multiplies rows by 1, and the source by 3"]
    forged(tmp_path / "s", times(3.0))
    assert verify(tmp_path / "s", model, progress=False).proved


def test_what_the_release_has_no_more_is_noticed(tmp_path):
    """Also where somebody leaves it out and gives new hashes."""
    model = small_dense()

    def no_bias(tensors, manifest):
        del tensors["1.bias"]
        manifest["layers"]["1"]["spec"]["bias"] = None

    def no_layer(tensors, manifest):
        del tensors["3.weight"], tensors["3.bias"]

    for change, names in ((no_bias, ["1.bias"]), (no_layer, ["3.weight", "3.bias"])):
        released(tmp_path / "r", model, layers=small_layers(model))
        forged(tmp_path / "r", change)
        report = verify(tmp_path / "r", model, progress=False)
        assert not report.ok and report.names("differs") == names
        assert all(any(problem.startswith(name) for problem in report.problems) for name in names)


def test_what_the_model_lost_is_recorded_and_not_proved(tmp_path):
    model = small_dense()
    model.extra = nn.Linear(2, 2)
    small = compressed(model, **{"1": TTLinear.from_cores(list(TTLinear.from_linear(model[1], rank=3).cores), None)})
    del small.extra
    save_release(small, tmp_path / "r", source=model, override=WHY)
    report = verify(tmp_path / "r", model, progress=False)
    assert report.ok and not report.proved
    assert report.names("changed") == ["1.bias"] and report.names("left out") == ["extra.weight", "extra.bias"]
    assert torch.equal(load_file(tmp_path / "r" / ROLLBACK)["1.bias"], model[1].bias)
    assert "`extra.bias`" in (tmp_path / "r" / "README.md").read_text(encoding="utf-8")


def test_the_source_may_be_given_in_any_form(tmp_path):
    model, _, folder = released(tmp_path / "r")
    state = model.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    save_file({f"encoder.{name}": tensor for name, tensor in state.items()}, tmp_path / "longer.safetensors")
    for source in (model, state, tmp_path / "model.safetensors", str(tmp_path / "longer.safetensors")):
        assert verify(folder, source, progress=False).proved


def test_modules_that_were_replaced_are_a_source_for_saving(tmp_path):
    model = dense()
    small = compressed(model, hidden=TTLinear.from_linear(model.hidden, rank=3))
    save_release(small, tmp_path / "r", source={"hidden": model.hidden}, override=WHY)
    assert verify(tmp_path / "r", model, progress=False).proved


@pytest.mark.parametrize("name", ["words", "places", "conv", "hidden", "out"])
def test_another_source_is_found_out(name, tmp_path):
    model, _, folder = released(tmp_path / "r")
    other = copy.deepcopy(model)
    with torch.no_grad():
        tensor = getattr(other, name).weight
        tensor.view(-1)[3] = torch.nextafter(tensor.view(-1)[3], torch.tensor(9.0))
    report = verify(folder, other, progress=False)
    assert not report.ok and any(name in problem for problem in report.problems)
    del other._modules[name]
    report = verify(folder, other, progress=False)
    assert not report.proved


def test_on_another_processor_the_trains_agree_within_the_tolerance(tmp_path):
    """Without vector instructions and with another order of sums, as other processors have them."""
    model, _, folder = released(tmp_path / "r")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    code = (
        "import sys; from ttref.release import verify; report = verify(*sys.argv[1:], progress=False);"
        "print(report); assert report.proved; print([row['status'] for row in report.rows])"
    )
    settings = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_report_can_be_read_and_stored(tmp_path):
    model, _, folder = released(tmp_path / "r")
    report = verify(folder, model, progress=False)
    assert json.loads(json.dumps(report.as_dict()))["proved"] is True
    assert report.summary.startswith("Verified: ") and "hidden" in str(report) and len(report.sha256) == 64
    assert all(len(line) <= 88 for line in repr(report).splitlines())
    page = report._repr_html_()
    assert page.count("<tr>") == 5 and "derived again, bit for bit" in page.replace("to rounding", "bit for bit")


def test_a_name_cannot_give_a_terminal_orders(tmp_path):
    """That of a tensor in a manifest that somebody wrote."""
    model, _, folder = released(tmp_path / "r")
    forged(folder, lambda tensors, _: tensors.update({"evil\x1b[2J\u202e": torch.ones(1)}))
    report = verify(folder, model, progress=False)
    assert report.names("not in the source") and "evil" in str(report)
    assert all(one.isprintable() for one in str(report).replace("\n", ""))


@pytest.mark.skipif(os.name == "nt", reason="this system refuses such names")
def test_nor_can_the_name_of_a_file(tmp_path):
    model, _, folder = released(tmp_path / "r")
    (folder / "evil\x1b[2J\n").touch()
    with pytest.raises(ValueError, match=r"evil\\x1b\[2J\\n is not in the manifest") as error:
        load_release(folder, dense(1))
    assert str(error.value).isprintable()
    assert all(one.isprintable() for one in str(verify(folder, model, progress=False)).replace("\n", ""))
