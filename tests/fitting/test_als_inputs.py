"""What fits take and refuse: dtypes, layouts, degenerate shapes, and arguments that do not fit."""

import pytest
import torch
from gramians import inputs, lost
from strategies import gaussian, random_matrix_train

from ttref.fitting import Gram, fit_cores, output_error
from ttref.matrices import ttm_svd, ttm_to_matrix

WEIGHT, GRAM = gaussian((6, 8), 0), inputs(8)
SPLIT = (2, 3), (4, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cores_have_the_dtype_of_the_weight(dtype):
    weight = WEIGHT.to(dtype)
    cores = fit_cores(weight, GRAM, *SPLIT, rank=3)
    assert {core.dtype for core in cores} == {dtype}
    plain = ttm_svd(weight, *SPLIT, rank=3)
    assert lost(weight, cores, GRAM) <= lost(weight, plain, GRAM) * (1 + 1e-9)
    exact = lost(weight, fit_cores(weight.double(), GRAM, *SPLIT, rank=3), GRAM)
    assert (
        lost(weight, cores, GRAM) ** 0.5
        <= exact**0.5 + 10 * torch.finfo(dtype).eps * lost(weight * 0, plain, GRAM) ** 0.5
    )


def test_layouts_scales_and_dtypes_of_the_inputs_do_not_matter():
    expected = lost(WEIGHT, fit_cores(WEIGHT, GRAM, *SPLIT, rank=2), GRAM)
    strided = torch.empty(8, 12, dtype=torch.float64)[:, ::2].copy_(WEIGHT.T).T
    for weight, gram in [(strided, GRAM.T), (WEIGHT, GRAM * 1e-12), (WEIGHT, GRAM * 1e12), (WEIGHT, GRAM.float())]:
        assert lost(WEIGHT, fit_cores(weight, gram, *SPLIT, rank=2), GRAM) == pytest.approx(expected, rel=1e-3)


def test_nothing_that_is_given_changes():
    weight, gram, start = WEIGHT.clone(), GRAM.clone(), ttm_svd(WEIGHT, *SPLIT, rank=2)
    kept = [core.clone() for core in start]
    fit_cores(weight, gram, *SPLIT, rank=2, start=start)
    assert torch.equal(weight, WEIGHT) and torch.equal(gram, GRAM)
    assert all(torch.equal(*both) for both in zip(start, kept, strict=True))


def test_a_start_is_improved_and_its_ranks_stay():
    start = random_matrix_train([(2, 4), (3, 2)], 0, ranks=(2,))
    cores = fit_cores(WEIGHT, GRAM, *SPLIT, rank=5, start=start)
    assert [core.shape for core in cores] == [core.shape for core in start]
    assert lost(WEIGHT, cores, GRAM) < lost(WEIGHT, start, GRAM)
    same = fit_cores(WEIGHT, GRAM, *SPLIT, rank=5, start=start, sweeps=0)
    assert lost(WEIGHT, same, GRAM) == pytest.approx(lost(WEIGHT, start, GRAM))


def test_a_rank_above_what_the_modes_allow_is_clipped():
    cores = fit_cores(WEIGHT, GRAM, *SPLIT, rank=100)
    assert cores[0].shape[3] == 6
    assert output_error(WEIGHT, ttm_to_matrix(cores), GRAM) < 1e-9


@pytest.mark.parametrize(
    ("rows", "cols"), [((1, 1), (2, 4)), ((6,), (1,)), ((2, 3), (1, 1)), ((1,), (8,)), ((1, 1, 1), (2, 2, 2))]
)
def test_one_row_one_column_one_core(rows, cols):
    weight = WEIGHT[: torch.Size(rows).numel(), : torch.Size(cols).numel()]
    gram = GRAM[: weight.shape[1], : weight.shape[1]]
    cores = fit_cores(weight, gram, rows, cols, rank=1)
    assert [core.shape[1:3] for core in cores] == list(zip(rows, cols, strict=True))
    assert output_error(weight, ttm_to_matrix(cores), gram) <= 1


def test_a_zero_weight_has_zero_cores():
    cores = fit_cores(torch.zeros(6, 8), GRAM, *SPLIT, rank=2)
    assert not ttm_to_matrix(cores).any()
    assert output_error(torch.zeros(6, 8), torch.zeros(6, 8), GRAM) == 0


def test_the_output_error_is_that_of_the_outputs():
    x, approximation = gaussian((50, 8), 4), gaussian((6, 8), 5)
    expected = ((WEIGHT - approximation) @ x.T).norm() / (WEIGHT @ x.T).norm()
    assert output_error(WEIGHT, approximation, Gram.from_inputs(x)) == pytest.approx(expected.item())
    assert output_error(WEIGHT, approximation, GRAM.diagonal()) == pytest.approx(
        output_error(WEIGHT, approximation, GRAM.diagonal().diag())
    )
    assert output_error(torch.zeros(6, 8), approximation, GRAM) == float("inf")


def changed(entry, value):
    made = GRAM.clone()
    made[entry] = value
    return made


STRANGE = random_matrix_train([(3, 2), (2, 4)], 0, ranks=(2,))
LONG = random_matrix_train([(2, 4), (3, 2)], 0, ranks=(4,))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"gram": inputs(9)}, ValueError, "9 x 9.*width 8.*another layer"),
        ({"gram": GRAM[:, :4]}, ValueError, "square"),
        ({"gram": torch.ones(7)}, ValueError, "7 weights, but weight has 8 columns"),
        ({"gram": changed((0, 1), 1e6)}, ValueError, "not symmetric"),
        ({"gram": GRAM - 0.5 * GRAM.trace() * torch.eye(8)}, ValueError, "negative eigenvalue"),
        ({"gram": changed((2, 2), float("nan"))}, ValueError, "gram has 1 entries that are NaN"),
        ({"gram": torch.zeros(8, 8)}, ValueError, "gram is zero"),
        ({"gram": torch.zeros(8)}, ValueError, "gram is zero"),
        ({"gram": torch.tensor([1.0, -1] + [1] * 6)}, ValueError, r"gram\[1\] is -1; a weight is at least 0"),
        ({"gram": GRAM.long()}, TypeError, "gram is torch.int64"),
        ({"gram": "identity"}, TypeError, "gram must be"),
        ({"held_out": inputs(9)}, ValueError, "held_out is 9 x 9"),
        ({"weight": WEIGHT * float("inf")}, ValueError, "weight has .* NaN or Inf"),
        ({"weight": WEIGHT[0]}, ValueError, "weight must be a matrix"),
        ({"weight": WEIGHT[:, :7]}, ValueError, r"weight has shape \(6, 7\).*6 x 8 matrix"),
        ({"weight": WEIGHT.cfloat()}, TypeError, "complex"),
        ({"rank": None}, ValueError, "exactly one of rank and eps, got neither"),
        ({"eps": 0.1}, ValueError, "got both"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": None, "eps": 0.1, "start": STRANGE}, ValueError, "eps finds ranks and start by itself"),
        ({"rank": None, "eps": 0.1, "held_out": GRAM}, ValueError, "eps finds ranks and start by itself"),
        ({"sweeps": -1}, ValueError, "sweeps must be at least 0"),
        ({"sweeps": 1.5}, TypeError, "sweeps must be an integer"),
        ({"ridge": -1.0}, ValueError, "ridge must be a finite number of at least 0"),
        ({"ridge": "big"}, TypeError, "ridge must be a number"),
        ({"start": "random"}, ValueError, 'start must be "svd" or a list of cores'),
        ({"start": STRANGE}, ValueError, r"start has modes \(3, 2\) x \(2, 4\)"),
        ({"start": LONG}, ValueError, "above the cap"),
        ({"start": [LONG[0] * float("nan"), LONG[1]], "rank": 4}, ValueError, r"start\[0\] has"),
    ],
)
def test_bad_input(how, error, message):
    given = {"weight": WEIGHT, "gram": GRAM, "rank": 2} | how
    with pytest.raises(error, match=message):
        fit_cores(given.pop("weight"), given.pop("gram"), *SPLIT, **given)


def test_shapes_that_differ_have_no_error():
    with pytest.raises(ValueError, match=r"approximation has shape \(8, 6\), weight \(6, 8\)"):
        output_error(WEIGHT, WEIGHT.T, GRAM)
