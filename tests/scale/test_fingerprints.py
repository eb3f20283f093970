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


class Held:
    """Something that is held twice."""

    def __init__(self, value):
        self.one, self.two = value, value


def closed(value):
    return lambda: (value, value, lambda: value)


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
    log = sys.stdout

    def writing(x):
        return log

    for value in ((k for k in "ab"), {"a": [sys.stdout]}, writing, torch.empty(2, device="meta")):
        with pytest.raises(TypeError, match=f"a {type(value).__name__} .*cannot be told from .* it cannot be pickled"):
            fingerprint(value)
    script = scripted()
    script["helper"] = sys.stdout
    with pytest.raises(TypeError, match="a function forward cannot be told .*it reads the global helper, TypeError"):
        fingerprint(script["forward"])


SCRIPT = """
import torch

factor, unread = 1.0, 1.0
by = {"scale": [torch.ones(2)], "helper": lambda: factor}

def helper(x, unread=0):
    return sum(k * by["scale"][0] for k in [x.unread])

def forward(model, batch):
    return model([helper(batch) for _ in torch.ones(int(factor))], len(batch))

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n * factor != 0 and even(n - 1)
"""


def scripted(**given):
    """The globals of a script, run anew."""
    made = {"__name__": "__main__"}
    exec(SCRIPT, made)
    made.update(given)  # in place: functions read this very dict
    return made


@pytest.mark.parametrize("name", ["forward", "even", "odd"])
def test_a_function_of_a_script_is_known_by_the_globals_that_it_reads(name):
    """Its own, those of functions that it calls, and of code within it; through circles too."""
    before = fingerprint(scripted()[name])
    assert fingerprint(scripted()[name]) == before
    assert fingerprint(scripted(unread=2.0)[name]) == before  # an attribute, and an argument, of the same name
    assert fingerprint(scripted(factor=3.0)[name]) != before
    other = scripted()
    other["by"]["scale"][0] *= 2
    assert (fingerprint(other[name]) == before) == (name != "forward")


def test_circles_of_functions_have_the_same_digits_in_any_order_of_a_set():
    script = scripted()
    orders = [{script[name] for name in names} for names in (("even", "odd"), ("odd", "even"))]
    assert fingerprint(orders[0]) == fingerprint(orders[1]) != fingerprint({script["even"]})

    def recursive(x, k):
        return recursive(x, k - 1) if k else x

    assert fingerprint(recursive) == fingerprint(recursive) != fingerprint(script["even"])


@pytest.mark.parametrize(
    "joined",
    [lambda x: [x, x], lambda x: (x, x), lambda x: frozenset([x, (x,)]), lambda x: {"a": x, "b": x}, Held, closed],
    ids=["list", "tuple", "set", "dict", "object", "function"],
)
def test_what_parts_share_is_hashed_once(joined):
    """Or it would be hashed twice as often with each level, which would not end."""
    value = joined(1)
    for _ in range(60):
        value = joined(value)
    assert fingerprint(value) != fingerprint(joined(value))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_are_known_by_their_numbers():
    dense = torch.diag(torch.arange(1.0, 4.0))
    twice = torch.sparse_coo_tensor([[0, 1, 2, 2], [0, 1, 2, 2]], [1.0, 2.0, 1.0, 2.0], (3, 3))
    assert fingerprint(dense.to_sparse()) == fingerprint(twice)
    others = [dense, 2 * dense.to_sparse(), dense.to_sparse_csr(), torch.eye(3).to_sparse(), dense[:, :2].to_sparse()]
    assert len({fingerprint(one) for one in [twice, *others]}) == 6


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


def test_a_global_of_a_script_that_changes_makes_another_job(tmp_path):
    script = {"__name__": "__main__", "factor": 1.0}
    exec("def forward(model, batch):\n    return model(factor * batch)", script)
    for _ in range(2):
        check(collect_gram(Experts, "q", batches(), tmp_path, forward=script["forward"], **HERE), Experts())
    script["factor"] = 3.0
    with pytest.raises(ValueError, match="holds a job with forward"):
        collect_gram(Experts, "q", batches(), tmp_path, forward=script["forward"], **HERE)


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
