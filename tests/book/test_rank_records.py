"""What the rank explorer knows, held against `ttref` and the records: sizes, modes, scores, rivals, chapters."""

import json
import math

import pytest
from rank_objects import FORMS, OBJECTS, extension

from book.tools import results
from book.tools.notebooks import ROOT
from ttref import tt_ranks
from ttref.rows.packed import RowLayout

by_object = pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: thing["id"])
by_form = pytest.mark.parametrize(("thing", "form"), FORMS, ids=lambda part: part["id"])


def stored_bytes(thing, form, ranks):
    """By ttref's own functions."""
    modes = form.get("modes") or [m * n for m, n in zip(form["rows"], form["cols"], strict=True)]
    full = tt_ranks(modes, [1, *ranks, 1] if isinstance(ranks, list) else ranks)
    if form["kind"] == "matrix":
        return 4 * thing["copies"] * sum(full[k] * mode * full[k + 1] for k, mode in enumerate(modes))
    numbers = RowLayout(modes, full, form["width"]).numbers
    return form["count"] * (numbers + 2 if form["bits"] == 8 else 4 * numbers)


@by_form
def test_a_record_takes_the_bytes_that_its_study_wrote_down(thing, form):
    assert form["records"]
    for one in form["records"]:
        assert stored_bytes(thing, form, one["ranks"]) == one["bytes"], one


def fits(use, products, size):
    """Rows and columns of a table are padded, those of a layer are not."""
    pairs = zip(products, size, strict=True)
    return all(made >= asked if use == "table" else made == asked for made, asked in pairs)


@pytest.mark.parametrize("products", [(9, 7), (7, 9)], ids=["columns", "rows"])
def test_modes_that_do_not_fit_are_seen(products):
    assert not fits("table", products, (8, 8)) and not fits("layer", products, (8, 8)) and fits("table", (9, 8), (8, 8))


@by_form
def test_modes_fit_the_object(thing, form):
    if form["kind"] == "rows":
        assert math.prod(form["modes"]) >= form["width"]
        assert sorted([form["count"], form["width"]]) == sorted([thing["rows"], thing["cols"]])
        return
    products = math.prod(form["rows"]), math.prod(form["cols"])
    size = thing["rows"], thing["cols"]
    assert fits(thing["use"], products, size)
    assert len(form["rows"]) == len(form["cols"])


@by_object
def test_what_is_measured_is_whole(thing):
    ids = [form["id"] for form in thing["forms"]]
    assert len(set(ids)) == len(ids)
    assert (ROOT / "notebooks" / f"{thing['chapter']}.ipynb").is_file()
    for one in [*thing["rivals"], *(record for form in thing["forms"] for record in form["records"])]:
        assert len(one.get("scores", [])) == len(thing["scores"]), one
        assert "error" in one or any(value is not None for value in one["scores"]), one
        assert one.get("error", 0) >= 0
    assert thing["rivals"]


def test_every_object_stands_beside_its_null():
    for thing in OBJECTS:
        records = [record for form in thing["forms"] for record in form["records"]]
        null = [one for one in records if {"nullBytes", "nullError", "nullScores"} & set(one)]
        assert null, thing["id"]


def test_values_are_those_of_the_records():
    by_id = {thing["id"]: thing for thing in OBJECTS}
    two = by_id["gpt2-positions"]["forms"][0]
    embeddings = results.read("embeddings")
    wanted = embeddings["positions"]["GPT-2"]["real"][3]
    (found,) = (one for one in two["records"] if one["bound"] == wanted["eps"])
    assert found["ranks"] == wanted["two_ranks"] and found["error"] == wanted["two_error"]
    (eight,) = (one for one in by_id["smollm2-tokens"]["forms"][0]["records"] if one["ranks"] == 8)
    point = next(p for p in embeddings["loss"]["points"] if p["key"] == "mps-8")
    assert eight["scores"] == [point["wikitext2_input"], point["wikitext2_tied"]]
    ranks = results.read("toy_classifier")["ranks"]["points"]
    source = by_id["digits"]["forms"][2]
    for one, point in zip(source["records"], [p for p in ranks if p["method"] == "TT as in the source"], strict=True):
        assert (one["ranks"], one["error"], one["nullError"]) == (
            point["rank"],
            point["weight_error"],
            point["null_error"],
        )


def test_the_page_holds_the_records_as_json_that_no_tag_can_end():
    html = extension().embedded()
    data = html.split('id="tt-ranks-records">')[1].removesuffix("</script>")
    assert "<" not in data
    assert [thing["id"] for thing in json.loads(data)] == [thing["id"] for thing in OBJECTS]
    assert len(html) < 200_000


def test_scripts_and_styles_come_on_that_page_alone():
    class App:
        def __init__(self):
            self.added = []

        def add_js_file(self, name):
            self.added.append(name)

        add_css_file = add_js_file

    module = extension()
    for page, expected in ((module.PAGE, True), ("book/intro", False)):
        app = App()
        module._scripts(app, page, "page.html", {}, None)
        assert bool(app.added) == expected
        assert all((ROOT / "book/_static" / name).is_file() for name in app.added)
