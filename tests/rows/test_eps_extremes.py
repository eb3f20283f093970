"""What eps promises of each row, and what int8 cores can hold, out to the ends of every dtype."""

import pytest
import torch
from compressed import FLOATS, embedding, every, row_norms, smooth

from ttref import MPSEmbedding


@pytest.mark.parametrize("frame", [{}, {"center": True}, {"rotate": True}, {"center": True, "rotate": True}])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1, 0.5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_each_row_is_within_eps(dtype, eps, frame):
    w = smooth(40, 30, dtype=dtype)
    w[3] = 0
    w[5] = 0
    w[5, 7] = 0.1
    table = MPSEmbedding.from_embedding(embedding(w), eps=eps, **frame)
    unit = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for ids in (every(table), every(table).flip(0)[:7], torch.tensor([3, 5])):
        error = row_norms(table(ids).double() - w[ids].double())
        assert (error <= (eps + 10 * 5 * unit) * row_norms(w[ids])).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-300, 1e200])
def test_rows_whose_squares_leave_float64(scale):
    w = smooth(30, 16, dtype=torch.float64)
    table = MPSEmbedding.from_embedding(embedding(w * scale), eps=1e-3)
    error = row_norms(table(every(table)) / scale - w)
    assert (error <= 1.0001e-3 * row_norms(w)).all()


@pytest.mark.parametrize("scale", [1e39, 1e42, 1e-42, 1e-100])
def test_int8_cores_refuse_what_their_scales_cannot_hold(scale):
    w = smooth(20, 16, dtype=torch.float64).clamp(-1, 1)
    w[4] *= scale
    with pytest.raises(ValueError, match=r"row 4|too large for a bfloat16 scale"):
        MPSEmbedding.from_embedding(embedding(w), rank=2, core_bits=8)


@pytest.mark.parametrize("scale", [1e37, 1e-35, 1.0])
def test_int8_cores_of_rows_they_can_hold(scale):
    w = smooth(20, 16, dtype=torch.float64, rough=0) * scale
    table = MPSEmbedding.from_embedding(embedding(w), rank=2, core_bits=8)
    assert (row_norms((table(every(table)) - w) / scale) <= 0.05 * row_norms(w / scale)).all()
