"""The cases of audits: the floor counts what must be computed, the parts are all of it, a peak is of the process."""

import json
import subprocess
import sys

import pytest
from small_checkpoints import noise, saved, small_model, waves

from benchmarks import audits
from ttref.audit import audit
from ttref.audit.forms import forms_of


def test_the_floor_counts_half_a_gram_matrix_and_its_eigenvalues_for_each_cut(tmp_path):
    """Of 56 x 67 the trains are SVD, cut between rows and columns, and rows in blocks, which has one more cut."""
    assert [form.cuts() for form in forms_of(56, 67)] == [[(56, 1)], [(7, 1), (56, 1)]]
    [row] = audit(saved({"w": noise(56, 67)}, tmp_path)).rows
    assert audits.flops(row) == {
        "gram: SVD": 56 * 56 * 67,
        "gram: other modes": 7 * 7 * (8 * 67),
        "gram: nulls": 3 * (56 * 56 * 67 + 7 * 7 * (8 * 67)),
        "eigenvalues": pytest.approx(4 * 4 / 3 * (56**3 + 7**3)),
    }


def test_the_draws_that_a_verdict_took_are_counted(tmp_path):
    [row] = audit(saved({"w": waves()}, tmp_path), eps=(0.1, 0.3)).rows
    found = audits.flops(row)
    assert row["draws"] == 19 and found["gram: other modes"] > 0
    assert found["gram: nulls"] == 19 * (found["gram: SVD"] + found["gram: other modes"])


def test_a_tensor_that_is_not_looked_at_costs_its_bytes_alone():
    limits = {"flops_per_s": 1e9, "bytes_per_s": 100.0}
    found = audits.least([{"looked": False, "nbytes": 300}], limits, 1e9)
    assert found["floor_s"] == found["expected_s"] == 3 and not any(found["flops"].values())


def test_the_parts_make_up_the_whole(tmp_path):
    found = audits.parts(saved(small_model(), tmp_path))
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) >= 0
    assert set(found) == {
        *("reading", "integers", "the rest", "nulls: drawing", "nulls: cuts"),
        *("the matrix: SVD", "the matrix: other modes"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read where Linux tells it")
def test_a_peak_is_that_of_the_new_process_and_not_of_the_one_that_started_it(tmp_path):
    path = saved({"w": noise(61, 67)}, tmp_path)
    held = bytearray(800 << 20)  # more than an audit takes
    command = [sys.executable, "-c", audits.PROGRAM, str(path), "whole", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=audits.ROOT)
    told = json.loads(done.stdout)
    assert 0 < told["start_bytes"] <= told["peak_bytes"] < len(held)


def test_a_sample_is_off_by_the_last_digit_shown_at_least():
    """Its errors are rounded, as what they are the errors of is: none at all would be too good to be true."""
    sums = {"trains": [1.3], "svd": [1.2], "followed": [7.92]}
    errors = {"trains_error": [0.04], "svd_error": [0.0], "followed_error": [0.0]}
    said = audits._of_sample({"eps": [0.3], "totals": sums}, {"eps": [0.3], "totals": sums | errors})
    assert "trains 1.30 ± 0.04" in said and "all verdicts 7.92 ± 0.01" in said and "0.00" not in said
