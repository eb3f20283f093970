"""The map of gains: its rows are computed from records, the rival follows the rule, and the drawing is the rows."""

import ast
import tomllib

import pytest
from matplotlib.figure import Figure
from scipy import stats
from strategies import gaussian

from book.tools.results import RESULTS
from book.workbook import claims, pays, pays_told

ROWS = pays.load()
GIVEN = {row["object"]: row for row in tomllib.loads(pays.FILE.read_text(encoding="utf-8"))["row"]}
RECORDS = {path.stem for path in RESULTS.glob("*.json")}
by_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.object)


def expressions(given):
    """Every expression of a row that gives a number."""
    sides = [given["train"], *given["rivals"], *([given["null"]] if "null" in given else [])]
    for side in sides:
        yield from (text for key, text in side.items() if key not in ("name", "measure"))


@by_row
def test_every_value_is_read_from_a_record(row):
    """An expression names a record, and holds no number but counts and settings."""
    for text in expressions(GIVEN[row.object]):
        tree = ast.parse(text, mode="eval")
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert named & RECORDS, text
        typed = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, (int, float))]
        assert all(isinstance(value, int) and value < 17 for value in typed), text


@by_row
def test_the_section_that_measured_it_exists(row):
    assert claims.section(row.where)


@by_row
def test_gains_are_those_counted_apart(row):
    given = GIVEN[row.object]
    train = {key: float(pays.evaluate(given["train"][key])) for key in ("error", "bytes")}
    rivals = []
    for side in given["rivals"]:
        rivals += (
            pays.evaluate(side["many"])
            if "many" in side
            else [(side["name"], pays.evaluate(side["error"]), pays.evaluate(side["bytes"]))]
        )
    assert len(rivals) == len(row.rivals)
    fair = [(error, name) for name, error, nbytes, *_ in rivals if nbytes <= 1.1 * train["bytes"]]
    error, name = min(fair) if fair else min((nbytes, name, error) for name, error, nbytes, *_ in rivals)[:0:-1]
    assert (row.rival.name, row.gain) == (name, error / train["error"])
    assert row.train.error > 0 and all(rival.error > 0 or rival.bytes > row.train.bytes for rival in row.rivals)
    if "null" in given:
        same = pays.evaluate(given["null"].get("train", given["train"]["error"]))
        assert row.over_null == pays.evaluate(given["null"]["error"]) / same


def test_all_that_was_compressed_has_a_row():
    groups = {row.group for row in ROWS}
    finished = {"tables in order", "tables of names", "finished linear layers", "convolutions"}
    assert groups == finished | {"trained in TT form", "adapters", "indexes and stacks"}
    assert len({row.object for row in ROWS}) == len(ROWS) >= 20
    verdicts = [row.verdict for row in ROWS]
    assert verdicts.count("wins") >= 4 and {*verdicts} == {*pays.LOOKS}


def row(train, rival, null=None):
    return pays.Row(
        "a", "b", "c", "d", pays.Side("train", *train), (pays.Side("rival", *rival),), null and pays.Null(*null)
    )


@pytest.mark.parametrize(
    ("train", "rival", "verdict"),
    [
        ((0.1, 1), (0.2, 1), "wins"),
        ((0.2, 1), (0.1, 1), "loses"),
        ((0.1, 1), (0.104, 1), "level"),
        ((0.104, 1), (0.1, 1), "level"),
        ((0.1, 1, 0.03), (0.15, 1, 0.01), "level"),
        ((0.1, 1, 0.02), (0.15, 1, 0.01), "wins"),
        ((0.1, 1), (0.15, 1, 0.04), "wins"),  # an error of the rival alone is no ground for a doubt
    ],
)
def test_the_verdict_needs_a_twentieth_and_two_standard_errors(train, rival, verdict):
    assert row(train, rival).verdict == verdict


def test_the_gain_over_the_null_is_at_the_size_of_the_null():
    assert row((0.1, 1), (0.2, 1), ("noise", 0.6, 0.3)).over_null == pytest.approx(2)
    assert row((0.1, 1), (0.2, 1)).over_null is None


def test_a_rival_of_the_size_is_there_wherever_one_was_tried():
    """A rival of at most a tenth more is found in every row; an adapter is compared in numbers, all of float32."""
    assert [one.object for one in ROWS if one.rival.bytes > 1.1 * one.train.bytes] == []
    (adapter,) = (one for one in ROWS if one.group == "adapters")
    assert adapter.rival.name == "LoRA, r = 1, four of six blocks" and adapter.rival.bytes == adapter.train.bytes


def test_standard_errors_are_known_for_both_sides_or_none():
    assert [one.object for one in ROWS if bool(one.train.se) != bool(one.rival.se)] == []
    assert sum(bool(one.train.se) for one in ROWS) == 10


def test_a_null_that_is_measured_otherwise_says_so():
    """Where the train of the null is another, both errors are of one kind, and the row says which."""
    for one in ROWS:
        if one.null:
            assert bool(one.null.measure) == (one.null.train != one.train.error), one.object
    nulls = [(one.null.error, one.null.train) for one in ROWS if one.null]
    assert len(set(nulls)) == len(nulls)  # no null stands twice


def test_the_number_format_of_a_finished_layer_is_named():
    formats = ("bfloat16", "float32", "int")
    for one in ROWS:
        if one.group == "finished linear layers":
            assert all(any(word in side.name for word in formats) for side in (one.train, *one.rivals)), one.object


def test_only_one_row_may_fit():
    assert pays.one([{"a": 1}, {"a": 2}], a=2) == {"a": 2}
    with pytest.raises(KeyError, match="2 rows"):
        pays.one([{"a": 1}, {"a": 1}], a=1)
    with pytest.raises(KeyError, match="0 rows"):
        pays.one([], a=1)


def test_what_no_record_has_is_an_error():
    with pytest.raises(NameError):
        pays.evaluate("nothing.here")
    with pytest.raises(NameError):
        pays.evaluate("open('x')")


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_correlation_is_scipys(seed):
    x, y = gaussian((20,), seed).tolist(), gaussian((20,), seed + 50).round(decimals=1).tolist()
    tau, chance = pays.rank_correlation(x, y)
    assert tau == pytest.approx(stats.kendalltau(x, y).statistic)
    assert chance == pytest.approx(2 * (2 * (2 * 20 + 5) / (9 * 20 * 19)) ** 0.5)


def test_lists_without_an_order_have_no_correlation():
    assert pays.rank_correlation([1, 1, 1], [1, 2, 3])[0] == 0
    with pytest.raises(ValueError, match="got 2 and 2"):
        pays.rank_correlation([1, 2], [1, 2])
    with pytest.raises(ValueError, match="got 3 and 4"):
        pays.rank_correlation([1, 2, 3], [1, 2, 3, 4])


def test_the_map_shows_every_row_and_every_null():
    ax = Figure().subplots()
    pays.draw_map(ax, ROWS)
    marks = [line for line in ax.lines if line.get_linestyle() == "None"]
    crosses = [line.get_xdata()[0] for line in marks if line.get_marker() == "x"]
    assert crosses == [one.over_null for one in ROWS if one.over_null]
    shown = [(line.get_xdata()[0], line.get_marker()) for line in marks if line.get_marker() != "x"]
    assert shown == [(one.gain, pays.LOOKS[one.verdict][1]) for one in ROWS]
    assert {text.get_text() for text in ax.texts} == {one.group for one in ROWS}


def test_the_map_compares_null_and_rival():
    told = pays_told.by_map(ROWS)
    pairs = [(one.over_null, one.gain) for one in ROWS if one.over_null]
    assert told.tau == pytest.approx(stats.kendalltau(*zip(*pairs, strict=True)).statistic)
    assert told.count == len(pairs)
