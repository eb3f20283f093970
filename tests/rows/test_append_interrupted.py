"""Growing a table is one step: whatever interrupts it, the table is as before or has all new rows."""

import copy
import linecache
import pickle
import sys
import threading
from pathlib import Path

import pytest
import torch
from compressed import embedding, every, noise, same_state, smooth
from torch.nn.utils import prune

import ttref
from ttref import MPSEmbedding
from ttref.embeddings.mps import TURN

PACKAGE = Path(ttref.__file__).parent
ROOMS = tuple(str(PACKAGE / room) for room in ("embeddings", "rows"))
CAPS = [1, 2, 4, 1]
KINDS = {
    "plain": {"rank": 2},
    "eps": {"eps": 0.3},
    "row_ranks": {"row_ranks": CAPS * 3},
    "frame": {"rank": 2, "center": True, "rotate": True},
    "int8": {"row_ranks": CAPS * 3, "core_bits": 8},
}


def made(kind, padding_idx=None):
    return MPSEmbedding.from_embedding(embedding(smooth(12, 16), padding_idx=padding_idx), **KINDS[kind])


def caps(kind, count):
    return {"row_ranks": (CAPS * count)[:count]} if "row_ranks" in KINDS[kind] else {}


class Interrupt:
    """KeyboardInterrupt at the n-th line that a module of the tables executes."""

    def __init__(self, line):
        self.left = line

    def __enter__(self):
        sys.settrace(self.call)

    def __exit__(self, *_):
        sys.settrace(None)

    def call(self, frame, event, argument):
        return self.line if frame.f_code.co_filename.startswith(ROOMS) else None

    def line(self, frame, event, argument):
        # A signal arrives after a call, never between the last line of a with block and its exit, where tracing stops
        # once more: an exception there would keep the lock forever.
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not (source == "with TURN:" and TURN._is_owned()):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.line


@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_at_any_line_leaves_a_whole_table(kind, padding_idx):
    table, rows = made(kind, padding_idx), noise(4, 16, 1)
    whole = copy.deepcopy(table)
    whole.append(rows, **caps(kind, 4))
    line, outcomes = 0, set()
    while True:
        line += 1
        tried = copy.deepcopy(table)
        try:
            with Interrupt(line):
                tried.append(rows, **caps(kind, 4))
        except KeyboardInterrupt:
            assert not TURN._is_owned()
            grown = tried.num_embeddings == 16
            outcomes.add(grown)
            assert same_state(tried, whole if grown else table)
            assert tried.padding_idx == padding_idx and len(tried.store) == tried.num_embeddings
            assert tried.append(rows[:1], **caps(kind, 1)).tolist() == [16 if grown else 12]
            continue
        break
    assert outcomes == {False, True} and line > 20


def test_memory_that_gives_out_in_the_second_bucket(monkeypatch):
    table, rows = made("row_ranks"), noise(4, 16, 1)
    before, grown, calls = copy.deepcopy(table), ttref.rows.buckets.Bucket.grown, []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("not enough memory")
        return grown(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ttref.rows.buckets.Bucket, "grown", failing)
        with pytest.raises(RuntimeError, match="not enough memory"):
            table.append(rows, row_ranks=CAPS)
    assert same_state(table, before)
    assert table.append(rows, row_ranks=CAPS).tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_threads_that_append_take_turns(kind):
    table, found, torn = made(kind), {}, []
    rows = [torch.full((2, 16), float(k + 1)) for k in range(16)]
    old, done = table(torch.arange(12)).detach(), threading.Event()

    def add(mine):
        for k in mine:
            found[k] = table.append(rows[k], **caps(kind, 2))

    def look():
        while not done.is_set():
            with torch.no_grad():
                torn.append(not torch.allclose(table(torch.arange(12)), old, atol=1e-5))

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=add, args=(range(k, 16, 4),)) for k in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not any(torn)
    assert sorted(int(i) for ids in found.values() for i in ids) == list(range(12, 44))
    for k, ids in found.items():
        assert torch.allclose(table(ids), rows[k], rtol=0.02)


def test_a_copied_and_a_pickled_table_go_on_growing():
    table = made("plain")
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert other.append(noise(2, 16)).tolist() == [12, 13]
    assert table.num_embeddings == 12


def test_pieces_that_do_not_merge_stay_the_parameters_an_optimizer_has():
    table = made("plain")
    first = next(table.parameters())
    table.append(noise(2, 16))
    assert next(table.parameters()) is first and len(list(table.parameters())) == 2


def test_a_pruned_piece_keeps_its_mask():
    table = made("plain")
    prune.l1_unstructured(table.store.buckets[0].pieces[0], "cores", amount=0.5)
    pruned = table(every(table)).detach()
    assert not torch.allclose(pruned, made("plain")(torch.arange(12)))
    table.append(noise(20, 16))
    assert torch.allclose(table(torch.arange(12)), pruned, atol=1e-6)
