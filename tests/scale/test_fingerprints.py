"""What jobs are told from others by: all that a function, a mask or a batch holds, the same in every process."""

import os
import subprocess
import sys
from collections import OrderedDict, UserDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scale_models
import torch
from scale_models import Experts, Weighted, batches
from torch import nn

import ttref
from ttref.fitting import collect_gram as one_process
from ttref.scale.fingerprints import fingerprint
from ttref.scale.grams import collect_gram

HERE = {"engine": "pool", "workers": 1}


def eye(factor):
    layer = nn.Linear(6, 6, bias=False)
    layer.weight.data = factor * torch.eye(6)
    return layer


def values():
    """Values that are made anew by each call, all different."""
    one, rows = torch.arange(6.0), np.arange(6.0)
    yield from (1, 1.0, True, None, "1", b"1", [1], (1,), {"a": 1}, {1}, frozenset([1]), Path("1"), slice(1))
    yield from (one, one.double(), one.view(2, 3), nn.Parameter(one + 1), one.to(torch.int64), -one, one[:0])
    yield from (rows, rows.astype("float32"), rows.reshape(2, 3), -rows, np.array([{"a": 1}, None]))
    yield from (UserDict(a=1), OrderedDict(a=1), {"a": one}, [one, one], (one, [rows]))
    yield from (print, eye, Experts, Experts(), eye(1.0), eye(2.0).double(), eye(2.0).train(False))
    yield from (partial(eye, 1), partial(eye, factor=1), partial(eye, 2), partial(partial(eye, 1), 1))
    yield from (lambda: 1, lambda: 2, lambda: one, lambda: rows, lambda x=1: x, lambda *, x=1: x, lambda: lambda: 1)
    yield from (one.add_, rows.sum, eye(1.0).forward, eye(2.0).forward)
    cyclic = [1]
    cyclic.append(cyclic)
    yield cyclic


def test_values_that_are_alike_and_no_others_have_the_same_digits():
    first, again = ([fingerprint(value) for value in values()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)


def test_memory_order_and_sharing_make_no_difference():
    one, rows = torch.arange(6.0).view(2, 3), np.arange(6.0).reshape(2, 3)
    assert fingerprint(one) == fingerprint(one.mT.contiguous().mT) == fingerprint(torch.stack([one, -one])[0])
    assert fingerprint(rows) == fingerprint(np.asfortranarray(rows))
    assert fingerprint([one, one]) == fingerprint([one, one.clone()])
    assert fingerprint({f"{k}" for k in range(9)}) == fingerprint({f"{k}" for k in reversed(range(9))})


TOLD = """
from functools import partial

import scale_models

from ttref.scale.fingerprints import fingerprint

held = partial(scale_models.Weighted, scale_models.Experts())
print(fingerprint([held, {f"{k}" for k in range(9)}]))
"""


def test_digits_are_the_same_in_every_process():
    """Where hashes of strings differ, and with them the order of sets."""
    held = partial(Weighted, Experts())
    folders = [str(Path(scale_models.__file__).parent), str(Path(ttref.__file__).parents[1])]
    found = subprocess.run(
        [sys.executable, "-c", TOLD],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == fingerprint([held, {f"{k}" for k in range(9)}])


def test_what_cannot_be_told_from_others():
    def recursive(x):
        return recursive(x)

    for value in ((k for k in "ab"), {"a": [sys.stdout]}, recursive, torch.empty(2, device="meta")):
        with pytest.raises(TypeError, match=f"a {type(value).__name__} .*cannot be told from .* it cannot be pickled"):
            fingerprint(value)


def check(found, model):
    """The sums of one process."""
    twin = one_process(model, "q", batches())
    assert found["q"].tokens == twin["q"].tokens
    torch.testing.assert_close(found["q"].matrix, twin["q"].matrix, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "made",
    [lambda k: [k] * 6, lambda k: torch.full((6,), k), lambda k: np.full(6, k, "float32"), eye],
    ids=["list", "tensor", "array", "module"],
)
def test_a_function_is_known_by_all_that_it_holds(tmp_path, made):
    """A resume takes no result of another weight; the same weight, made anew, is the same job."""
    for _ in range(2):
        found = collect_gram(partial(Weighted, made(1.0)), "q", batches(), tmp_path, **HERE)
        check(found, Weighted(1.0))
    with pytest.raises(ValueError, match="holds a job with source"):
        collect_gram(partial(Weighted, weight=made(3.0)), "q", batches(), tmp_path, **HERE)
    with pytest.raises(ValueError, match="holds a job with source"):
        collect_gram(partial(Weighted, made(3.0)), "q", batches(), tmp_path, **HERE)


def test_masks_and_lambdas_are_known_by_all_that_they_hold(tmp_path):
    def mask(by):
        return partial(scale_models.scaled, by={"by": [by]})

    for _ in range(2):
        collect_gram(Experts, "q", batches(), tmp_path / "mask", mask=mask(1), **HERE)
        collect_gram(Experts, "q", batches(), tmp_path / "lambda", forward=lambda m, x: m(2 * x), **HERE)
    with pytest.raises(ValueError, match="holds a job with mask"):
        collect_gram(Experts, "q", batches(), tmp_path / "mask", mask=mask(0), **HERE)
    for k in (3, 4):
        with pytest.raises(ValueError, match="holds a job with forward"):
            collect_gram(Experts, "q", batches(), tmp_path / "lambda", forward=lambda m, x, k=k: m(k * x), **HERE)
    with pytest.raises(TypeError, match="a partial cannot be told .* cannot be pickled .*; use functions of a module"):
        collect_gram(partial(Weighted, (k for k in "ab")), "q", batches(), tmp_path / "no", **HERE)
    with pytest.raises(TypeError, match=r"a list cannot be told from others, .*generator.*\)$"):
        collect_gram(Experts, "q", [(k for k in "ab")], tmp_path / "no", **HERE)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("made", [np.asarray, scale_models.Batch], ids=["array", "object"])
def test_batches_are_known_by_all_that_they_hold(tmp_path, made):
    def given(factor):
        return [made(factor * batch.numpy()) for batch in batches()]

    how = {"forward": scale_models.unpacked, **HERE}
    for _ in range(2):
        check(collect_gram(Experts, "q", given(1), tmp_path, **how), Experts())
    with pytest.raises(ValueError, match="holds the result for other batches"):
        collect_gram(Experts, "q", given(3), tmp_path, **how)
