"""What the integer train accepts: the messages for bad input, other kinds of numbers, and that NumPy is enough."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from integer_trains import (
    REAL,
    made,
)

import ttref
from ttref.fixedpoint import AccumulatorOverflow, FixedPointFormat, FormatError, QuantizedTT

F = FixedPointFormat


ONE = np.ones((1, 1, 1, 1), dtype=np.int64)
BYTE = F(8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: QuantizedTT((ONE * 0.5,), (BYTE,), (BYTE, BYTE)), TypeError, "core 0 must be integers that fit int64"),
        (lambda: QuantizedTT((), (), (BYTE,)), ValueError, "a train has at least one core"),
        (lambda: QuantizedTT((ONE,), (), (BYTE, BYTE)), FormatError, "1 cores need 1 core formats and 2 stage formats"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE,)), FormatError, "got 1 and 1"),
        (lambda: QuantizedTT((ONE * 300,), (BYTE,), (BYTE, BYTE)), FormatError, "core 0 holds 300 to 300, outside of"),
        (lambda: QuantizedTT((ONE[None], ONE), (BYTE,) * 2, (BYTE,) * 3), ValueError, "the cores' batch axes differ"),
        (lambda: QuantizedTT((ONE,), ("fixed<8,8>",), (BYTE, BYTE)), TypeError, "FixedPointFormat.parse reads text"),
        (
            lambda: QuantizedTT((ONE, ONE), (F(32, 1),) * 2, (BYTE, F(32, 1), BYTE)),
            AccumulatorOverflow,
            "stage 1 (core 0) needs an accumulator of 64 bits, and 62 is the limit: ap_fixed<32,1,AP_TRN,AP_WRAP> "
            "times ap_fixed<32,1,AP_TRN,AP_WRAP>, 1 terms",
        ),
        (
            lambda: QuantizedTT((ONE,), (F(32, 1),), (F(31, 1), BYTE)),
            AccumulatorOverflow,
            "stage 0 (core 0) needs an accumulator of 63 bits, and 62 is the limit",
        ),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec([1, 2]), ValueError, "xq has shape (2,), but the"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec(1), ValueError, "xq has shape (), but the train"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec([0.5]), TypeError, "xq must be integers that fit"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec([[128]]), ValueError, "xq holds 128 to 128, outs"),
        (lambda: made(), ValueError, "give exactly one of calibration (a sample of inputs) and x_max"),
        (lambda: made(x_max=1, calibration=np.ones((1, 4))), ValueError, "give exactly one of"),
        (lambda: made(x_max=1, gauge="left"), ValueError, "gauge is 'canonical' or 'as given', got 'left'"),
        (lambda: made(x_max=np.nan), ValueError, "x_max must be a finite number of at least 0, got nan"),
        (lambda: made(x_max=-1), ValueError, "x_max must be a finite number of at least 0, got -1"),
        (lambda: made(calibration=np.ones((3, 5))), ValueError, "calibration must be finite numbers (N, 4), got shape"),
        (lambda: made(calibration=np.full((3, 4), np.nan)), ValueError, "calibration must be finite numbers (N, 4)"),
        (lambda: made(calibration=np.zeros((0, 4))), ValueError, "calibration must be finite numbers (N, 4)"),
        (lambda: made(x_max=1, act_width=[8, 8]), ValueError, "act_width needs one number or 3 of them, got 2"),
        (lambda: made(x_max=1, weight_width=[8] * 3), ValueError, "weight_width needs one number or 2 of them, got 3"),
        (lambda: made(x_max=1, weight_width=8.0), TypeError, "weight_width must be an integer"),
        (lambda: made(x_max=1, weight_width=True), TypeError, "weight_width must be an integer"),
        (lambda: made(x_max=1, weight_width=33), FormatError, "width must be 1 to 32 bits, got 33"),
        (lambda: made(x_max=1, rounding="CEIL"), FormatError, "unknown rounding mode 'CEIL'"),
        (lambda: made(x_max=1, act_width=32, weight_width=32), AccumulatorOverflow, "needs an accumulator of 65 bits"),
        (
            lambda: QuantizedTT.from_float([REAL[0] * np.inf, REAL[1]], weight_width=8, act_width=8, x_max=1),
            ValueError,
            "core 0 holds NaN or infinity",
        ),
        (
            lambda: QuantizedTT.from_float([REAL[0], REAL[1] * 1j], weight_width=8, act_width=8, x_max=1),
            TypeError,
            "core 1 is an array of complex128",
        ),
        (
            lambda: QuantizedTT.from_float(REAL[:1], weight_width=8, act_width=8, x_max=1),
            ValueError,
            "end ranks must be 1, got 1 at core 0 and 2 at core 0",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value), str(caught.value)


def test_lists_torch_tensors_and_numpy_widths():
    torch = pytest.importorskip("torch")
    expected = made(calibration=np.ones((1, 4)))
    sames = [
        made(calibration=[[1.0] * 4], weight_width=np.array([8, 8]), act_width=np.int8(8)),
        made(calibration=torch.ones(1, 4), weight_width=(8, 8)),
        *(
            QuantizedTT.from_float(cores, weight_width=8, act_width=8, calibration=np.ones((1, 4)))
            for cores in ([core.tolist() for core in REAL], [torch.tensor(core) for core in REAL])
        ),
    ]
    for same in sames:
        assert same.stage_formats == expected.stage_formats and same.core_formats == expected.core_formats
        assert all((a == b).all() for a, b in zip(same.cores, expected.cores, strict=True))


# --- what it needs ---------------------------------------------------------------------------------------------------


def test_numpy_is_all_it_needs():
    code = """
import sys
sys.modules["torch"] = None
import ttref.fixedpoint as fp
import numpy as np
from ttref.fixedpoint import accuracy, gauge, hardware
cores = [np.ones((1, 2, 2, 2)), np.ones((2, 2, 2, 1))]
qtt = fp.QuantizedTT.from_float(cores, weight_width=8, act_width=8, x_max=1.0)
x = np.eye(4)
assert fp.error_bound(cores, qtt, x).shape == (4, 4) and fp.error_bound_prior(cores, qtt, 1.0) > 0
assert fp.predicted_sqnr_db(cores, qtt, x) > 10 and fp.sqnr_db(x @ np.full((4, 4), 2.0), qtt.matvec_float(x)) > 10
assert fp.macs(qtt.stages) == 32
heavy = [name for name in ("amaranth", "torch", "scipy") if sys.modules.get(name)]
assert not heavy, heavy
assert set(fp.__all__) <= set(dir(fp))
try:
    fp.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(ttref.__file__).parents[1], timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search("module 'ttref.fixedpoint' has no attribute 'nothing'", done.stdout)
