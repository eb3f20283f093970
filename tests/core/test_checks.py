"""Every check passes what is right, and for what is wrong names the argument and the remedy in an error of one type."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from ttref import checks
from ttref.checks import (
    check_batch_dims,
    check_bond,
    check_caps,
    check_codes,
    check_float,
    check_input,
    check_listed,
    check_matrix,
    check_matrix_train,
    check_modes,
    check_number,
    check_pair,
    check_rank_or_eps,
    check_real,
    check_train,
    paired_modes,
    several,
    whole,
)

CORES = [torch.ones(1, 2, 3), torch.ones(3, 4, 1)]
MATRICES = [torch.ones(1, 2, 5, 3), torch.ones(3, 4, 1, 1)]


def batched(*shape):
    return [torch.ones(*shape, 1, 2, 1)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (whole("n", 3, least=3), 3),
        (whole("n", np.int8(-3)), -3),
        (whole("n", np.array(3)), 3),
        (whole("n", torch.tensor(3)), 3),
        (several((1, 2)), True),
        (several(np.ones(2)), True),
        (several(torch.ones(2)), True),
        (several(range(2)), True),
        (several(3), False),
        (several("33"), False),
        (several(np.array(3)), False),
        (several(torch.tensor(3)), False),
        (check_modes("shape", [2, np.int64(3)]), (2, 3)),
        (check_modes("shape", torch.tensor([2, 3])), (2, 3)),
        (paired_modes((2, 3), [4, 5]), (8, 15)),
        (check_batch_dims(torch.ones(2, 3), np.int64(1)), 1),
        (check_batch_dims(torch.ones(()), 0), 0),
        (check_train(CORES), ((), (1, 3, 1), (2, 4))),
        (check_train(nn.ParameterList(CORES)), ((), (1, 3, 1), (2, 4))),
        (check_train(tuple(batched(7, 5))), ((7, 5), (1, 1), (2,))),
        (check_matrix_train(MATRICES), ((2, 4), (5, 1), (1, 3, 1))),
        (check_caps(np.array([2, 1]), 2), [2, 1]),
        (check_caps(torch.tensor([2, 1]), 2), [2, 1]),
        (check_caps((2, 1), 2), [2, 1]),
        (check_codes(np.int8(4), None, 6, least=2), (4, 6)),
        (check_codes(8, torch.tensor(3), 6, least=1), (8, 3)),
    ],
)
def test_what_is_right_comes_back_in_plain_python(found, expected):
    def types(value):
        return [types(item) for item in value] if isinstance(value, tuple | list) else type(value)

    assert found == expected and types(found) == types(expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_real("x", -math.inf),
        lambda: check_number("x", 0),
        lambda: check_number("x", np.float32(1.5), positive=True),
        lambda: check_number("x", Fraction(1, 3), positive=True),
        lambda: check_rank_or_eps(3, None),
        lambda: check_rank_or_eps(None, 0),
        lambda: check_rank_or_eps(None, np.float64(0.99)),
        lambda: check_float("x", torch.tensor([math.nan], dtype=torch.bfloat16)),
        lambda: check_input("x", torch.full((2,), 3e38)),  # the sum overflows, the entries do not
        lambda: check_matrix("w", torch.ones(1, 2)),
        lambda: check_bond(torch.tensor(1), 2),
        lambda: check_listed(nn.ParameterList()),
        lambda: check_pair(batched(3), batched()),
        lambda: check_pair(batched(3, 1), batched(4)),
    ],
)
def test_what_is_right_passes(call):
    assert call() is None


INTEGERS = [
    (lambda: whole("n", 2.0), TypeError, "n must be an integer, got 2.0 of type float"),
    (lambda: whole("n", True), TypeError, "n must be an integer, got True of type bool"),
    (lambda: whole("n", np.array(True)), TypeError, "n must be an integer, got array(True)"),
    (lambda: whole("n", torch.tensor(True)), TypeError, "n must be an integer, got tensor(True)"),
    (lambda: whole("n", torch.tensor([3])), TypeError, "n must be an integer, got tensor([3])"),
    (lambda: whole("n", "3"), TypeError, "n must be an integer, got '3' of type str"),
    (lambda: whole("n", 2, least=3), ValueError, "n must be at least 3, got 2"),
    (lambda: check_codes(1, None, 6, least=2), ValueError, "bits must be at least 2, got 1"),
    (lambda: check_codes(9, None, 6, least=1), ValueError, "bits must lie between 1 and 8, got 9"),
    (lambda: check_codes(4, 4, 6, least=2), ValueError, "group 4 does not divide the 6 entries of a row; choose a"),
    (lambda: check_codes(4, 0, 6, least=2), ValueError, "group must be at least 1, got 0"),
    (lambda: check_modes("shape", 4), TypeError, "shape must be a sequence of modes such as (2, 2, 3), got 4"),
    (lambda: check_modes("shape", "22"), TypeError, "shape must be a sequence of modes"),
    (lambda: check_modes("shape", ()), ValueError, "shape is empty; a tensor train needs at least one mode"),
    (lambda: check_modes("shape", (2, 0)), ValueError, "shape[1] must be at least 1, got 0"),
    (lambda: check_modes("shape", (2, 1.5)), TypeError, "shape[1] must be an integer, got 1.5"),
    (lambda: paired_modes((2, 3), (4,)), ValueError, "2 modes and col_shape (4,) has 1; they need equally many"),
    (lambda: paired_modes((2, 0), (4, 4)), ValueError, "row_shape[1] must be at least 1, got 0"),
    (lambda: check_caps(3, 2), TypeError, "row_ranks must be 2 caps, one for each row, got 3; rank takes one"),
    (lambda: check_caps(np.array(3), 2), TypeError, "row_ranks must be 2 caps"),
    (lambda: check_caps([3], 2), ValueError, "row_ranks has 1 caps, but there are 2 rows"),
    (lambda: check_caps([3, 0], 2), ValueError, "row_ranks[1] must be at least 1, got 0"),
    (lambda: check_caps(torch.tensor([3.0, 1.0]), 2), TypeError, "row_ranks[0] must be an integer, got 3.0"),
    (lambda: check_batch_dims(torch.ones(2), -1), ValueError, "batch_dims must be at least 0, got -1"),
    (lambda: check_batch_dims(torch.ones(2), 1), ValueError, "batch_dims is 1, but x has 1 axes and at least one"),
    (lambda: check_bond(0, 3), IndexError, "bond must lie between 1 and 2, got 0; bond k has k of the 3 modes"),
    (lambda: check_bond(3, 3), IndexError, "bond must lie between 1 and 2, got 3"),
    (lambda: check_bond(1, 1), IndexError, "1 modes have no bond between them; give the tensor at least two"),
    (lambda: check_bond(1.0, 3), TypeError, "bond must be an integer, got 1.0"),
]
NUMBERS = [
    (lambda: check_real("x", "1"), TypeError, "x must be a number, got '1' of type str"),
    (lambda: check_number("x", "1"), TypeError, "x must be a number, got '1' of type str"),
    (lambda: check_number("x", True), TypeError, "x must be a number, got True of type bool"),
    (lambda: check_number("x", np.bool_(True)), TypeError, "x must be a number, got"),
    (lambda: check_number("x", 1j), TypeError, "x must be a number, got 1j of type complex"),
    (lambda: check_number("x", -1e-9), ValueError, "x must be a finite number of at least 0, got -1e-09"),
    (lambda: check_number("x", math.inf), ValueError, "x must be a finite number of at least 0, got inf"),
    (lambda: check_number("x", math.nan), ValueError, "x must be a finite number of at least 0, got nan"),
    (lambda: check_number("x", 0, positive=True), ValueError, "x must be a finite number above 0, got 0"),
    (lambda: check_rank_or_eps(None, None), ValueError, "exactly one of rank and eps, got neither: rank=8 caps"),
    (lambda: check_rank_or_eps(3, 0.1), ValueError, "got both: a cap on the rank would void the guarantee of eps"),
    (lambda: check_rank_or_eps(None, "0.1"), TypeError, "eps must be a number, got '0.1' of type str"),
    (lambda: check_rank_or_eps(None, True), TypeError, "eps must be a number, got True"),
    (lambda: check_rank_or_eps(None, 1), ValueError, "eps is the relative Frobenius error allowed and must lie"),
    (lambda: check_rank_or_eps(None, math.nan), ValueError, "must lie in [0, 1), got nan"),
]
TENSORS = [
    (lambda: check_float("x", np.ones(2)), TypeError, "x must be a torch.Tensor, got ndarray; torch.as_tensor"),
    (lambda: check_float("x", torch.ones(2).cfloat()), TypeError, "complex tensors are not supported; decompose"),
    (lambda: check_float("x", torch.ones(2).int()), TypeError, "is needed; x.float() converts it"),
    (lambda: check_float("x", torch.ones(2, dtype=torch.float8_e5m2)), TypeError, "x is torch.float8_e5m2, but"),
    (lambda: check_input("x", torch.ones(2).int()), TypeError, "is needed; x.float() converts it"),
    (lambda: check_input("x", torch.ones(2, 0)), ValueError, "x has no entries: its shape is (2, 0), and every"),
    (
        lambda: check_input("x", torch.tensor([[1.0, 2.0], [math.inf, math.nan]])),
        ValueError,
        "x has 2 entries that are NaN or Inf, the first at index (1, 0); a decomposition would spread them over every "
        "core, so clean or drop them first",
    ),
    (lambda: check_matrix("w", torch.ones(2, 2).int()), TypeError, "is needed; w.float() converts it"),
    (lambda: check_matrix("w", torch.ones(4)), ValueError, "w must be a matrix (m, n), got shape (4,); reshape it"),
    (lambda: check_matrix("w", torch.ones(0, 4)), ValueError, "w has no entries"),
]
TRAINS = [
    (lambda: check_listed(iter(CORES)), TypeError, "cores must be a list of cores, got list_iterator"),
    (lambda: check_listed(CORES[0], "a"), TypeError, "a must be a list of cores, got Tensor"),
    (lambda: check_train([]), ValueError, "cores is empty; a train has at least one core"),
    (lambda: check_train([np.ones((1, 2, 1))]), TypeError, "cores[0] must be a torch.Tensor, got ndarray"),
    (lambda: check_train([torch.ones(2, 2)]), ValueError, "cores[0] has shape (2, 2); a core is (*batch, r_left"),
    (lambda: check_train([torch.ones(1, 0, 1)]), ValueError, "cores[0] has no entries: its shape is (1, 0, 1)"),
    (lambda: check_train(batched(2) + batched(3)), ValueError, "cores[1] has batch axes (3,), cores[0] has (2,)"),
    (lambda: check_train([CORES[0], CORES[1].double()]), TypeError, "cores[0] is torch.float32; convert them to"),
    (lambda: check_train(CORES[:1] * 2), ValueError, "rank 3 but cores[1] begins with rank 1: bond 1 does not"),
    (lambda: check_train(CORES[1:]), ValueError, "end ranks of cores must be 1, got 3 on the left and 1 on the"),
    (lambda: check_matrix_train([]), ValueError, "cores is empty; a train has at least one core"),
    (lambda: check_matrix_train(CORES), ValueError, "cores[0] has shape (1, 2, 3); a TT-matrix core is (r_left, m"),
    (lambda: check_matrix_train(MATRICES[1:]), ValueError, "the end ranks of cores must be 1, got 3 on the left"),
    (lambda: check_pair(CORES[:1], CORES), ValueError, "the end ranks of a must be 1"),
    (lambda: check_pair(batched() * 2, batched()), ValueError, "a has 2 cores and b has 1; trains to combine need"),
    (lambda: check_pair(CORES, CORES[:1] + [torch.ones(3, 5, 1)]), ValueError, "core 1 of a has mode 4 but core 1"),
    (lambda: check_pair(CORES, [core.double() for core in CORES]), TypeError, "torch.float64; convert one of them"),
    (lambda: check_pair(batched(2), batched(3)), ValueError, "(2,) of a and (3,) of b do not broadcast; make them"),
]


@pytest.mark.parametrize(("call", "error", "message"), INTEGERS + NUMBERS + TENSORS + TRAINS)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)) as raised:
        call()
    assert raised.type is error


def test_every_check_is_tried():
    tried = {name for case in INTEGERS + NUMBERS + TENSORS + TRAINS for name in case[0].__code__.co_names}
    defined = {name for name, value in vars(checks).items() if getattr(value, "__module__", "") == checks.__name__}
    assert defined - tried == {"several"}  # which answers and never raises
