"""States of tables whose ranks differ from row to row: they go into any table of the same sizes, or change nothing."""

import copy
import io
import math
from pathlib import Path

import pytest
import torch
from compressed import embedding, noise, same_state
from interrupts import every_line
from torch import nn
from torch.nn.utils import prune

import ttref
from ttref import MPSEmbedding

PACKAGE = Path(ttref.__file__).parent
W = noise(24, 32)


def made(**options):
    return MPSEmbedding.from_embedding(embedding(W), **options)


def grown(times=3, **options):
    table = MPSEmbedding.from_embedding(embedding(W[: 24 - times]), **options)
    for k in range(times):
        caps = {"row_ranks": [k + 1]} if table.store.by_row else {}
        table.append(W[24 - times + k :][:1], **caps)
    return table


SOURCES = {
    "rank": lambda: made(rank=2),
    "eps": lambda: made(eps=0.5),
    "eps, frame": lambda: made(eps=0.3, center=True, rotate=True),
    "row_ranks": lambda: made(row_ranks=[1, 2, 3, 99] * 6),
    "int8": lambda: made(rank=2, core_bits=8),
    "int8, row_ranks": lambda: made(row_ranks=[1, 2, 99] * 8, core_bits=8, center=True),
    "grown": lambda: grown(rank=2),
    "grown, eps": lambda: grown(eps=0.5),
    "grown, row_ranks": lambda: grown(row_ranks=[2, 2, 3] * 7),
    "grown, int8": lambda: grown(rank=1, core_bits=8),
}
TARGETS = {
    "constructor": lambda: MPSEmbedding(24, 32, 1),
    "rank": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32, 5)), rank=3, center=True),
    "eps": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32, 5)), eps=0.4),
    "row_ranks": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32, 5)), row_ranks=[1, 99] * 12),
    "int8": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32, 5)), rank=2, core_bits=8),
}
sources = pytest.mark.parametrize("source", SOURCES)
targets = pytest.mark.parametrize("target", TARGETS)


def rows(table):
    return table(torch.arange(table.num_embeddings)).detach()


def assert_same(one, other):
    assert same_state(one, other) and repr(one) == repr(other)
    torch.testing.assert_close(rows(one), rows(other))
    assert (one.store.eps, one.store.by_row, one.core_bits) == (other.store.eps, other.store.by_row, other.core_bits)
    assert (one.params, one.nbytes, one.ranks) == (other.params, other.nbytes, other.ranks)


@sources
@targets
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_goes_into_any_table_of_these_sizes(source, target, assign):
    table, fresh = SOURCES[source](), TARGETS[target]()
    state = table.state_dict()
    assert fresh.load_state_dict(copy.deepcopy(state), strict=True, assign=assign) == ([], [])
    assert_same(fresh, table)
    fresh.load_state_dict(state)  # and once more, where names and sizes agree
    assert_same(fresh, table)


@sources
def test_inside_a_model_through_a_file(source):
    def model(table):
        torch.manual_seed(0)
        return nn.ModuleDict({"before": nn.Linear(3, 3), "inner": nn.Sequential(table), "after": nn.Linear(3, 3)})

    whole, fresh, file = model(SOURCES[source]()), model(MPSEmbedding(24, 32, 1)), io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    assert fresh.load_state_dict(torch.load(file, weights_only=True), strict=True) == ([], [])
    assert_same(fresh["inner"][0], whole["inner"][0])


@sources
def test_onto_the_meta_device(source):
    table = SOURCES[source]()
    with torch.device("meta"):
        fresh = MPSEmbedding(24, 32, 1)
    fresh.load_state_dict(table.state_dict(), assign=True)
    assert same_state(fresh, table) and not any(tensor.is_meta for tensor in fresh.state_dict().values())
    if table.core_bits == 32:  # of int8 cores the dtype of the rows stays on its device, as ever
        torch.testing.assert_close(rows(fresh), rows(table))


@pytest.mark.parametrize(
    "options", [{"rank": 2}, {"eps": 0.75}, {"row_ranks": [1, 2] * 12, "center": True}, {"rank": 2, "core_bits": 8}]
)
def test_without_metadata_the_sizes_tell_the_ranks(options):
    """As of a state that went through a file of safetensors."""
    table, fresh = made(**options), MPSEmbedding(24, 32, 1)
    assert not any(bucket.layout.numbers == 32 for bucket in table.store.buckets)
    fresh.load_state_dict(dict(table.state_dict()))
    assert same_state(fresh, table)
    torch.testing.assert_close(rows(fresh), rows(table))


def test_sizes_that_tell_nothing_are_refused():
    """Rows of 24 numbers at rank 2, or as they are."""
    table = MPSEmbedding.from_embedding(embedding(noise(6, 24)), rank=2)
    assert table.params == 6 * 24
    fresh = MPSEmbedding(6, 24, 1)
    before = copy.deepcopy(fresh)
    with pytest.raises(RuntimeError, match="bucket 0 has 24 numbers a row, which 2 layouts of modes .* have"):
        fresh.load_state_dict(dict(table.state_dict()))
    assert same_state(fresh, before)
    fresh.load_state_dict(table.state_dict())
    torch.testing.assert_close(fresh(torch.arange(6)), table(torch.arange(6)))


def test_what_the_table_has_does_not_settle_which_sizes_are_meant():
    """A table of rank 2 has as many numbers a row as the dense rows that the state holds, in other pieces."""
    dense, fresh = MPSEmbedding.from_embedding(embedding(noise(6, 24)), rank=24), MPSEmbedding(5, 24, 2)
    assert dense.store.buckets[0].layout.dense and not fresh.store.buckets[0].layout.dense
    fresh.append(noise(1, 24))
    with pytest.raises(RuntimeError, match="bucket 0 has 24 numbers a row, which 2 layouts of modes .* have"):
        fresh.load_state_dict(dict(dense.state_dict()))


def test_ranks_that_store_the_same_cores_are_not_told_apart():
    """Modes (2, 2, 2, 2) at rank 2 and at rank 3 store one core of 2 x 4 x 2."""
    table, fresh = MPSEmbedding.from_embedding(embedding(noise(6, 12)), rank=2), MPSEmbedding(6, 12, 1)
    fresh.load_state_dict(dict(table.state_dict()))
    torch.testing.assert_close(fresh(torch.arange(6)), table(torch.arange(6)))


@pytest.mark.parametrize("target", [{"rank": 1}, {"rank": 2}, {"rank": 2, "center": True}])
@pytest.mark.parametrize("lost", ["mean", "rotation"])
def test_a_state_without_its_frame_is_refused(target, lost):
    """Its rows would be other ones."""
    state, fresh = made(rank=2, center=True, rotate=True).state_dict(), made(**target)
    before = copy.deepcopy(fresh)
    del state[f"store.frame.{lost}"]
    with pytest.raises(RuntimeError, match=f"it lacks its {lost}.*nothing was loaded"):
        fresh.load_state_dict(state)
    assert_same(fresh, before)


@pytest.mark.parametrize("eps", ["much", -1, math.nan, True])
def test_a_bound_that_is_none_is_refused(eps):
    """Later rows would have to follow it."""
    state, fresh = made(eps=0.5).state_dict(), MPSEmbedding(24, 32, 1)
    state._metadata[""]["rows"]["eps"] = eps
    with pytest.raises(RuntimeError, match="eps.*nothing was loaded"):
        fresh.load_state_dict(state)
    assert fresh.store.eps is None


def test_keys_and_counts_are_those_of_tensors():
    table = SOURCES["grown, row_ranks"]()
    state = table.state_dict()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert table.params == sum(tensor.numel() for tensor in state.values())


def test_parameters_stay_where_names_and_sizes_agree():
    table, other = made(row_ranks=[1, 2, 3, 99] * 6), made(row_ranks=[1, 2, 3, 99] * 6)
    before = list(other.parameters())
    other.load_state_dict(table.state_dict())
    assert all(one is two for one, two in zip(before, other.parameters(), strict=True))


def test_what_was_loaded_goes_on():
    """It is trained, frozen as the table was, appended to, saved."""
    table, fresh = SOURCES["grown, eps"](), MPSEmbedding(24, 32, 1)
    fresh.eval().load_state_dict(table.state_dict())
    assert not fresh.store.training and all(p.requires_grad for p in fresh.parameters())
    fresh(torch.arange(24)).sum().backward()
    assert all(p.grad is not None for p in fresh.parameters())
    more = noise(2, 32, 9)
    for one in (fresh, table):
        assert one.append(more).tolist() == [24, 25]
    assert same_state(fresh, table)
    frozen = MPSEmbedding(24, 32, 1).requires_grad_(False)
    frozen.load_state_dict(SOURCES["eps"]().state_dict())
    assert not any(p.requires_grad for p in frozen.parameters())


def test_the_dtype_is_the_table_s_unless_tensors_are_assigned():
    table = made(eps=0.3, center=True)
    for assign, dtype in ((False, torch.float64), (True, torch.float32)):
        fresh = MPSEmbedding(24, 32, 1, dtype=torch.float64)
        fresh.load_state_dict(table.state_dict(), assign=assign)
        assert fresh.dtype == dtype == fresh.store.frame.mean.dtype
        torch.testing.assert_close(rows(fresh), rows(table).to(dtype))


def test_the_state_is_copied_or_shared_as_torch_does():
    table = made(eps=0.5)
    for assign in (False, True):
        fresh, state = MPSEmbedding(24, 32, 1), copy.deepcopy(table.state_dict())
        fresh.load_state_dict(state, assign=assign)
        name = "store.buckets.0.pieces.0.cores"
        assert (state[name].data_ptr() == fresh.state_dict()[name].data_ptr()) == assign


DAMAGE = {
    "other sizes": lambda state: made(eps=0.5, shape=(4, 8)).state_dict(),
    "fewer rows": lambda state: MPSEmbedding.from_embedding(embedding(W[:20]), eps=0.5).state_dict(),
    "another width": lambda state: MPSEmbedding.from_embedding(embedding(noise(24, 33)), eps=0.5).state_dict(),
    "no index": lambda state: {name: x for name, x in state.items() if "place" not in name},
    "a bucket less": lambda state: {name: x for name, x in state.items() if "buckets.1" not in name},
    "a tensor more": lambda state: {**state, "store.more": torch.ones(1)},
    "another name": lambda state: {name.replace("buckets.0", "basket.0"): x for name, x in state.items()},
    "rows twice": lambda state: {name: x * 0 if "place" in name else x for name, x in state.items()},
    "rows that are not there": lambda state: {name: x + 9 if "bucket" == name[-6:] else x for name, x in state.items()},
    "numbers less": lambda state: {name: x[:, :-1] if name.endswith("cores") else x for name, x in state.items()},
    "flat": lambda state: {name: x.flatten() for name, x in state.items()},
    "no tensors": lambda state: dict.fromkeys(state, 3),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("target", ["constructor", "alike"])
def test_another_state_changes_nothing(damage, strict, target):
    """Neither numbers nor parameters, and the message says why."""
    table = made(row_ranks=[1, 2, 3, 99] * 6)
    fresh = MPSEmbedding(24, 32, 1) if target == "constructor" else made(row_ranks=[1, 2, 3, 99] * 6, center=False)
    before, parameters = copy.deepcopy(fresh), list(fresh.parameters())
    with pytest.raises(RuntimeError, match="this is a table of 24 rows of 32 with modes .* nothing was loaded into it"):
        fresh.load_state_dict(DAMAGE[damage](table.state_dict()), strict=strict)
    assert_same(fresh, before)
    assert all(one is two for one, two in zip(parameters, fresh.parameters(), strict=True))


@pytest.mark.parametrize("lost", ["place", "buckets.1.pieces.0.cores"])
def test_what_a_state_lacks_is_named(lost):
    state = made(row_ranks=[1, 2, 3, 99] * 6).state_dict()
    del state[f"store.{lost}"]
    with pytest.raises(RuntimeError, match=rf"\(it lacks {lost}\); nothing was loaded"):
        MPSEmbedding(24, 32, 1).load_state_dict(state)


def test_a_model_without_the_table_s_numbers():
    """What torch says of keys that are missing, or of other modules, is not this table's to say."""
    model = nn.ModuleDict({"table": MPSEmbedding(24, 32, 1), "other": nn.Linear(2, 2)})
    before = copy.deepcopy(model["table"])
    found = model.load_state_dict(nn.ModuleDict({"other": nn.Linear(2, 2)}).state_dict(), strict=False)
    assert found.missing_keys == ["table.store.buckets.0.pieces.0.cores"] and same_state(model["table"], before)
    wrong = model.state_dict() | {"other.weight": torch.ones(3, 3)}
    with pytest.raises(RuntimeError, match="size mismatch for other.weight"):
        model.load_state_dict(wrong)


def test_a_pruned_table_is_left_to_torch():
    """A mask goes with its own state, and is not lost to another."""
    table = made(rank=2)
    prune.l1_unstructured(table.store.buckets[0].pieces[0], "cores", amount=0.5)
    other = made(rank=2)
    prune.l1_unstructured(other.store.buckets[0].pieces[0], "cores", amount=0.25)
    other.load_state_dict(table.state_dict())
    torch.testing.assert_close(rows(other), rows(table))
    with pytest.raises(RuntimeError, match="Missing key.*cores_orig"):
        other.load_state_dict(made(rank=2).state_dict())
    torch.testing.assert_close(rows(other), rows(table))


def test_an_interrupt_leaves_the_old_store_or_the_new_one():
    """At any line of the package: later rows follow the bound of those that are there."""
    source, old = made(eps=0.5, center=True), MPSEmbedding(24, 32, 1)
    state, outcomes = source.state_dict(), set()
    for fresh in every_line(lambda: copy.deepcopy(old), lambda table: table.load_state_dict(state), str(PACKAGE)):
        new = fresh.store.eps is not None
        outcomes.add(new)
        assert_same(fresh, source if new else old)
    assert outcomes == {False, True}
