"""The ledger of claims: every row has its verdict, its evidence, numbers that hold, and links that land."""

import re
from collections import Counter

import pytest

from book.tools import notebooks, numbers
from book.workbook import audited, claims, ledger

SOURCES, ROWS = claims.load()
BY_ID = {claim.id: claim for claim in ROWS}


@pytest.mark.parametrize("claim", ROWS, ids=lambda claim: claim.id)
def test_a_row_stands(claim):
    assert not claims.problems(claim, SOURCES)


def test_no_two_rows_have_one_id():
    assert not [name for name, count in Counter(claim.id for claim in ROWS).items() if count > 1]


def test_no_claim_and_no_error_is_left_out():
    kinds = {kind: {int(re.sub(r"\D", "", name)) for name in BY_ID if name[0] == kind} for kind in "CXEV"}
    for kind, last in (("C", 37), ("X", 33), ("E", 14), ("V", 26)):
        assert kinds[kind] == set(range(1, last + 1)), kind


def test_every_source_is_used_and_says_what_was_read():
    quoted = {line.partition(" says ")[0] for claim in ROWS for line in claim.evidence if " says " in line}
    assert set(SOURCES) == {claim.source for claim in ROWS} | quoted
    for source in SOURCES.values():
        assert source.read and source.group and source.address.startswith(("https://", "")), source.name


def test_a_sentence_is_quoted_once_for_one_finding():
    pairs = Counter((claim.quote, claim.ours) for claim in ROWS)
    assert not [pair for pair, count in pairs.items() if count > 1]


def test_the_first_screen_counts_what_there_is():
    """In every place that says how many rows or verdicts there are."""
    total = claims.score(SOURCES, ROWS)["all"]
    head = notebooks.read(notebooks.ROOT / "notebooks/11_claims.ipynb").cells[0].source
    answer = head.partition("**Goals.**")[0]
    said = [int(number) for number in re.findall(r"\b\d+\b", re.sub(r"\]\([^)]*\)", "", answer))]
    still = total["not testable here"] + total["unverified"]
    assert said == [total.total(), *(total[v] for v in ("confirmed", "partly", "refuted", "not reproducible")), still]


# What must be seen: a fault planted in a good row, and a word of the complaint.
GOOD = BY_ID["C1"]
FAULTS = {
    "no verdict": ({"verdict": ""}, "is none of"),
    "a verdict of another kind": ({"verdict": "right"}, "is none of"),
    "no evidence": ({"evidence": ()}, "without evidence"),
    "open without what is needed": ({"verdict": "unverified"}, "what would be needed"),
    "another number": ({"evidence": ("768 / train((2,) * 10, 1) = 38.50",)}, "is 38.4, not = 38.50"),
    "a relation that fails": ({"evidence": ("768 / train((2,) * 10, 1) > 39",)}, "not > 39"),
    "a number that nothing bears out": ({"ours": "The ratio is 38.6×."}, "nothing bears out the number 38.6"),
    "a record that is not there": ({"evidence": ('rec("embeddings/loss/points/key=none/ratio") = 1',)}, "0 entries"),
    "a key that is not there": ({"evidence": ('rec("embeddings/gain") = 1',)}, "no key 'gain'"),
    "a result that is not there": ({"evidence": ('rec("nothing/gain") = 1',)}, "no recorded result 'nothing'"),
    "a position that is not there": ({"evidence": ('rec("layers/cases/999/rank") = 1',)}, "no position"),
    "a package that is not there": ({"evidence": ('lacks("nothing_of_it", "TT") = 1',)}, "No module named"),
    "code": ({"evidence": ('__import__("os").getpid() > 0',)}, "holds"),
    "an unknown name": ({"evidence": ("eval('1') = 1",)}, "holds"),
    "evidence of no form": ({"evidence": ("it is so",)}, "is not of the form"),
    "an output that does not show it": ({"evidence": ("11_claims#what-noise-gives shows 77.7",)}, "does not show"),
    "a source that is not there": ({"source": "nobody"}, "no source 'nobody'"),
    "a witness that is not there": ({"evidence": ('nobody says "so"',)}, "no source 'nobody'"),
    "a link to no chapter": ({"where": ("12_more#here",)}, "does not land"),
    "a link to no section": ({"where": ("01_mps_math#here",)}, "does not land"),
    "nothing found": ({"ours": ""}, "is empty"),
}


@pytest.mark.parametrize(("change", "complaint"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_seen(change, complaint):
    assert any(complaint in problem for problem in claims.problems(GOOD._replace(**change), SOURCES))


def test_an_entry_that_is_not_the_only_one_is_refused():
    with pytest.raises(KeyError, match="entries with method=ttlora, there must be one"):
        claims.rec("tt_lora/grid/points/trained/method=ttlora/test")


def test_a_path_reaches_entries_of_lists_and_of_mappings():
    assert claims.rec("toy_classifier/seeds/summary/0/draws") == 48
    assert len(claims.rec("partial_tensorization/taus/*/drop/depth")) == 10
    assert claims.rec("layers/cases/8/rows/name=ttref; threads=1/ratio") == 1


@pytest.mark.parametrize(
    ("expression", "value"), [("-2 * 3 + 1", -5), ("7 % 4 - 2**3 / 4", 1), ("len((1, 2))", 2), ("[3, 4]", (3, 4))]
)
def test_arithmetic(expression, value):
    assert claims.evaluate(expression) == value


def test_a_row_without_a_field_is_refused(tmp_path):
    file = tmp_path / "claims.toml"
    file.write_text('[sources.a]\nname = "a"\ngroup = "a"\nread = "a"\n[[claim]]\nid = "1"\n', encoding="utf-8")
    with pytest.raises(TypeError, match="verdict"):
        claims.load(file)


def test_text_and_page_say_the_same():
    shown = ledger.Ledger(SOURCES, [GOOD, BY_ID["E3e"]])
    text, page = repr(shown), shown._repr_html_()
    assert max(map(len, text.splitlines())) <= 88
    for claim in (GOOD, BY_ID["E3e"]):
        assert claim.id in text and f'id="claim-{claim.id.lower()}" data-verdict="{claim.verdict}"' in page
    assert page.count("<details") == page.count("</details>") == 2
    assert "Needed: such a machine" in page
    assert '<a class="landing" href="11_claims.ipynb#what-the-ratios-divide">Claims, audited, What the ratios' in page


def test_what_is_quoted_is_not_read_as_markup():
    page = ledger.Ledger(SOURCES, [GOOD._replace(quote="<1% & `x`", ours="a < b")])._repr_html_()
    assert "“&lt;1% &amp; <code>x</code>”" in page and "a &lt; b" in page


def test_sizes_are_those_of_the_public_configurations():
    """Against transformers' classes in the chapter; here against the records of a study that built BERT."""
    bert = claims.rec("partial_tensorization/arithmetic/bert_base")
    assert audited.numbers_of("BERT-base") == bert["params"]
    assert audited.numbers_of("BERT-base, embeddings") == bert["embeddings"]
    assert audited.numbers_of("ViT-B/16") == claims.rec("partial_tensorization/arithmetic/vit_base/params")
    assert audited.gpt2(48, 1600) == 1_557_611_200


@pytest.mark.parametrize("shape", [shape for shapes in audited.SHAPES.values() for shape in shapes])
def test_published_shapes_multiply_to_their_matrix(shape):
    (size,) = (size for size, shapes in audited.SHAPES.items() if shape in shapes)
    assert claims.evaluate(f"prod({shape})") == size[0] * size[1]


def test_numbers_of_a_section_are_found_where_they_are_printed():
    title, part = claims.section("11_claims#one-pair-of-accuracies")
    assert title == "Claims, audited" and 540 in part.outputs
    assert numbers.borne_out("2.96", "×", "", part)
