"""The explorer's arithmetic in a browser beside Python's: ranks, sizes, plans and their peaks, rows that are read.

Who changes what a product or a row costs in `ttref` changes `book/_static/train_costs.js` or `row_costs.js`, too.
"""

import itertools
import math
import weakref

import pytest
import torch
from rank_objects import FORMS, extension
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from book.tools.notebooks import ROOT
from book.workbook import pays
from ttref import MPSEmbedding, TTMEmbedding, tt_ranks
from ttref.costs import cost
from ttref.plans import ORDERS, cheapest
from ttref.rows.packed import RowLayout

SCRIPTS = [(ROOT / "book/_static" / name).read_text(encoding="utf-8") for name in extension().SCRIPTS[:3]]
MATRICES = [
    ((8, 8), (8, 8)), ((12, 16, 16), (8, 8, 12)), ((16, 16, 43), (16, 16, 16)), ((2, 3, 2), (3, 2, 5)), ((64,), (48,)),
    ((4, 16, 1, 1), (1, 1, 4, 16)), ((1, 1, 32), (16, 4, 1)), ((86, 128), (64, 64)), ((2,) * 8, (2,) * 8),
    ((64, 16, 1), (1, 1, 768)), ((32, 32, 48), (8, 8, 9)), ((28, 28), (16, 32)), ((256, 256, 1), (1, 1, 4096)),
]  # fmt: skip
CASES = [(*modes, rank, batch) for modes, rank, batch in itertools.product(MATRICES, (1, 3, 8, 64), (1, 7, 512, 20000))]
ROWS = [
    ((2,) * 10, 768),
    ((2,) * 10, 576),
    ((4,) * 5, 576),
    ((24, 24), 576),
    ((2, 2, 2, 2, 2, 2, 3, 3), 576),
    ((7,), 5),
]


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page()
    for script in SCRIPTS:
        page.add_script_tag(content=script)
    yield page
    page.close()


def cores(rows, cols, rank):
    ranks = tt_ranks([m * n for m, n in zip(rows, cols, strict=True)], rank)
    return tuple(zip(ranks[:-1], rows, cols, ranks[1:], strict=True))


def figures(plan):
    return [plan.order, plan.macs, plan.bytes, plan.temporary, plan.chunk, plan.cut, plan.block, plan.forward]


FIGURES = "p => [p.order, p.macs, p.bytes, p.temporary, p.chunk, p.cut, p.block, p.forward]"


def test_every_order_costs_what_it_costs_in_python(page):
    given = [(cores(rows, cols, rank), batch) for rows, cols, rank, batch in CASES]
    code = f"cases => cases.map(([c, b]) => TrainCosts.ORDERS.map(o => TrainCosts.cost(o, c, b)).map({FIGURES}))"
    for (shapes, batch), found in zip(given, page.evaluate(code, given), strict=True):
        assert found == [figures(cost(order, shapes, batch)) for order in ORDERS], (shapes, batch)


def test_the_same_order_is_chosen(page):
    code = f"cases => cases.map(([r, c, k, b]) => TrainCosts.cheapest(TrainCosts.coresOf(r, c, k), b)).map({FIGURES})"
    chosen = set()
    for (rows, cols, rank, batch), found in zip(CASES, page.evaluate(code, CASES), strict=True):
        assert found == figures(cheapest(cores(rows, cols, rank), batch)), (rows, cols, rank, batch)
        chosen.add(found[0])
    assert chosen == set(ORDERS)


def test_rows_are_packed_as_in_python(page):
    given = [(modes, rank, width) for modes, width in ROWS for rank in (1, 2, 3, 4, 6, 8, 12, 16, 40)]
    code = "cases => cases.map(([m, r, w]) => RowCosts.rowLayout(m, r, w))"
    for (modes, rank, width), found in zip(given, page.evaluate(code, given), strict=True):
        layout = RowLayout(modes, rank, width)
        assert (found["numbers"], found["dense"]) == (layout.numbers, layout.dense)
        if not layout.dense:
            assert [(r, n, q) for r, _, n, q in found["cores"]] == layout.cores


class Alive(TorchDispatchMode):
    """The most bytes of new storages that were alive at once."""

    def __init__(self, table):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in table.state_dict().values())

    def forget(self, nbytes):
        self.now -= nbytes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for storage in [x.untyped_storage() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]:
            if storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.forget, storage.nbytes())
        return made


def check_reading(table, found):
    """Multiply-adds and peak of one row that torch reads; beside the row's numbers there are up to 96 bytes of ids."""
    row = torch.tensor([table.num_embeddings - 1])
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        table(row)
    assert found["macs"] == counted.get_total_flops() / 2
    with Alive(table) as alive, torch.no_grad():
        table(row)
    assert 4 * found["peak"] <= alive.most <= 4 * found["peak"] + 96


@pytest.mark.parametrize(("modes", "width"), ROWS[:5])
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_a_row_takes_the_operations_and_the_memory_that_torch_takes(page, modes, width, rank):
    table = MPSEmbedding(30, width, rank, shape=modes)
    found = page.evaluate("([m, r, w]) => RowCosts.rowLayout(m, r, w)", [modes, rank, width])
    check_reading(table, found["reading"])


@pytest.mark.parametrize(("rows", "cols"), [m for m in MATRICES if len(m[0]) > 1 and math.prod(m[0]) < 50000])
def test_a_row_of_a_matrix_takes_the_operations_and_the_memory_that_torch_takes(page, rows, cols):
    table = TTMEmbedding(rows, cols, 5)
    width = math.prod(cols)
    found = page.evaluate("([r, c, w]) => RowCosts.readRow(TrainCosts.coresOf(r, c, 5), w)", [rows, cols, width])
    check_reading(table, found)


def test_a_form_stores_the_bytes_that_were_recorded(page):
    code = """([object, form]) => form.records.map(one => {
      const found = RankState.stored(object, form, one.ranks);
      return [found.bytes, RankState.recordOf(object, form, found.ranks).ranks];
    })"""
    for thing, form in FORMS:
        found = page.evaluate(code, [thing, form])
        assert found == [[one["bytes"], one["ranks"]] for one in form["records"]], (thing["id"], form["id"])


def test_the_rival_of_each_row_is_chosen_by_the_rule_of_the_map(page):
    """Of at most a tenth more bytes the one that errs least on that measure; where none fits there is none."""
    assert page.evaluate("RankState.SLACK") == pays.SLACK
    for thing in {thing["id"]: thing for thing, _ in FORMS}.values():
        signs = {k: -1 if one["better"] == "higher" else 1 for k, one in enumerate(thing["scores"])} | {-1: 1}
        sizes = {one["bytes"] / slack for one in thing["rivals"] for slack in (1, 1.05, pays.SLACK + 0.01)}
        for (measure, sign), nbytes in itertools.product(signs.items(), [0, 5000, 10**5, 10**7, *sizes]):
            given = [thing, nbytes, measure]
            found = page.evaluate("([object, bytes, measure]) => RankState.bestWithin(object, bytes, measure)", given)
            known = [(one.get("error") if measure < 0 else one["scores"][measure], one) for one in thing["rivals"]]
            sides = [pays.Side(one["name"], sign * value, one["bytes"]) for value, one in known if value is not None]
            if not any(side.bytes <= pays.SLACK * nbytes for side in sides):
                assert found is None, (thing["id"], measure, nbytes)
                continue
            value = found["error"] if measure < 0 else found["scores"][measure]
            assert sign * value == pays.rival_of(pays.Side("train", 0, nbytes), sides).error
            assert found["bytes"] <= pays.SLACK * nbytes, (thing["id"], measure, nbytes)
