"""Rounding to integers: codes within their range, scales that clip nothing; codes packed bit to bit come back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, seeds

from ttref import codes as rooms
from ttref import quantize_integer
from ttref.codes import pack_bits, packed_size, to_codes, unpack_bits

values = st.tuples(
    st.integers(1, 5), st.integers(1, 9), seeds, st.integers(-30, 30), st.sampled_from([torch.float32, torch.float64])
)


def drawn(example):
    count, n, seed, exponent, dtype = example
    return (gaussian((count, n), seed) * 10.0**exponent).to(dtype)


@given(values, st.integers(2, 8))
def test_codes_lie_on_the_grid_and_scales_clip_nothing(example, bits):
    x = drawn(example)
    x[0] = 0
    codes, scales = to_codes(x, bits)
    top = 2 ** (bits - 1) - 1
    assert codes.dtype == torch.int8 and codes.shape == x.shape
    assert scales.dtype == torch.bfloat16 and scales.shape == (len(x), 1)
    assert codes.abs().max() <= top
    assert scales[0] == 0 and not codes[0].any()
    largest = x.double().abs().amax(1, keepdim=True)
    wide = scales.double()
    assert (wide * top >= largest * (1 - 2**-23)).all()  # rounded up: no entry lies beyond the grid
    assert (wide * top <= largest * (1 + 2**-7) * (1 + 2**-23)).all()  # by one bfloat16 at most
    # The nearest point of the grid, up to the rounding of a quotient.
    assert ((wide * codes - x).abs() <= wide * (0.5 + 1e-4)).all()


@given(seeds, st.integers(2, 8), st.integers(-20, 20))
def test_values_on_the_grid_are_kept_exactly(seed, bits, exponent):
    top = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(-top, top + 1, (4, 7), generator=generator)
    grid[:, 3] = top
    x = grid.float() * 2.0**exponent
    codes, scales = to_codes(x, bits)
    assert torch.equal(codes.long(), grid)
    assert torch.equal(codes.float() * scales.float(), x)


def test_one_scale_for_each_slice_of_the_last_axis():
    x = gaussian((2, 3, 4), 0)
    codes, scales = to_codes(x, 8)
    assert codes.shape == (2, 3, 4) and scales.shape == (2, 3, 1)
    flat, flat_scales = to_codes(x.reshape(6, 4), 8)
    assert torch.equal(codes.reshape(6, 4), flat) and torch.equal(scales.reshape(6, 1), flat_scales)


def test_the_baseline_rounds_in_the_same_way():
    x = gaussian((5, 6), 0, torch.float32)
    codes, scales = to_codes(x, 5)
    assert torch.equal(quantize_integer(x, 5).approximation, codes.float() * scales.float())


def test_the_scale_is_rounded_up_and_never_to_the_next_but_one():
    x = torch.tensor([[127.0], [128.0], [129.0]])
    assert to_codes(x, 8)[1].squeeze(1).tolist() == [1.0, 1 + 2**-6, 1 + 3 * 2**-7]


def test_no_values():
    codes, scales = to_codes(torch.zeros(0, 4), 8)
    assert codes.shape == (0, 4) and scales.shape == (0, 1)


def test_what_no_scale_can_carry_is_refused():
    with pytest.raises(ValueError, match="magnitude 1e[+]300, too large for a bfloat16 scale; rescale"):
        to_codes(torch.tensor([[1.0, -1e300]], dtype=torch.float64), 8)
    largest = torch.tensor([[torch.finfo(torch.float32).max]])
    assert to_codes(largest, 8)[1].isfinite().all()


@given(st.integers(1, 32), st.booleans(), st.integers(0, 100), seeds)
def test_packed_codes_come_back(bits, signed, count, seed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high, (count,), generator=generator)
    codes[:1], codes[1:2] = low, high - 1
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (packed_size(count, bits),) == ((count * bits + 7) // 8,)
    assert torch.equal(unpack_bits(packed, bits, count, signed=signed), codes)
    number = sum((code % 2**bits) << bits * k for k, code in enumerate(codes.tolist()))  # one long integer
    assert bytes(packed.tolist()) == number.to_bytes(len(packed), "little")


def test_codes_are_packed_a_part_at_a_time(monkeypatch):
    codes = torch.arange(1000) % 32
    packed = pack_bits(codes, 5)
    monkeypatch.setattr(rooms, "AT_ONCE", 16)
    assert torch.equal(pack_bits(codes, 5), packed)
    assert torch.equal(unpack_bits(packed, 5, 1000, signed=False), codes)


def test_packed_codes_of_another_size_are_refused():
    for packed in (torch.zeros(4, dtype=torch.uint8), torch.zeros(5), torch.zeros(5, 1, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="8 codes of 5 bits are packed as"):
            unpack_bits(packed, 5, 8, signed=True)
