"""Every number in prose stands in an output, a record or a quotation, and the tool that says so sees what it is for."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book.tools import notebooks
from book.tools.numbers import main, unmatched

PAGES = [notebooks.ROOT / "README.md", *notebooks.chapters(), *sorted((notebooks.ROOT / "book").glob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages(path):
    assert [" · ".join(found) for found in unmatched(path)] == []


def chapter(folder, prose, *, printed="", code="", table="", marks=None, section="Result"):
    """A notebook with a header, an earlier section that prints 88.8, and one section with an output and the prose."""
    outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
    outputs += [new_output("display_data", data={"text/plain": table, "text/html": "<table></table>"})] if table else []
    cells = [
        new_markdown_cell("# Title", id="header"),
        new_markdown_cell("## Before", id="before"),
        new_code_cell("", id="earlier", outputs=[new_output("stream", name="stdout", text="88.8 and 4321")]),
        new_markdown_cell(f"## {section}", id="heading"),
        new_code_cell(code, id="code", outputs=outputs),
        new_markdown_cell(prose, id="prose", metadata={"numbers": marks or {}}),
    ]
    path = folder / "chapter.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def found(*args, **kwargs):
    return [number for _, number, _ in unmatched(chapter(*args, **kwargs))]


BORNE_OUT = [
    ("The error is 0.4.", "error 0.43"),
    ("It is 3.3× smaller.", "ratio 3.31"),
    ("38 % are kept.", "0.382"),
    ("38 % are kept.", "38.20 %"),
    ("It loses 3 points.", "-2.9"),
    ("It loses three points.", "0.029"),
    ("48,213 numbers", "48213"),
    ("about 48,000 numbers", "48,213"),
    ("124 M numbers, or 124.4 million", "124,439,808"),
    ("a file of 36 kB", "35,712 bytes"),
    ("36 kB to 40 kB", "36.2 and 39.8"),
    ("It takes 1.5 ms.", "1,480 µs"),
    ("from 19.9 to 20.3 dB", "20.31 and 19.94"),
    ("more than 40 times", "44.9"),
    ("almost 45 times", "44.9"),
    ("More than 40 times", "44.9"),
    ("more\nthan 40 times", "44.9"),
    ("38\n% are kept.", "0.382"),
    ("$58\\times$ fewer, and $-0.33 \\pm 0.43$ points", "58.27, -0.330, 0.428"),
    ("a seventh longer", "1.138"),
    ("a twelfth of it", "0.0833"),
    ("an eighth of it", "7.9 times"),
]
LEFT_ALONE = [
    "Two cores, rank 8, and 12 layers.",
    "Gong and others (2023) and the year 2031",
    "384×384, or 64 x 64, or about 1.5 × 10⁻³",
    "a 384 × 384 weight of $64 \\times 64$ blocks, the network 784-512-10, modes (4, 16, 4)",
    "`rank=77` and $x^{77}$ and [this](https://example.org/77) and arXiv 2307.00526v2",
    "GPT-2, SmolLM2-135M, int8, 2⁵³, Python 3.11 and torch 2.13.0",
    'The abstract says "a 77.7% decrease and\n38.40 times".',
    "See Figure 24.",
    "**Run time.** About 77 s on 2 cores.",
    "### 99.9 in a heading",
]
FAULTS = [
    ("It costs 21 to 22 dB.", "20.3 and 19.9", ["21 dB", "22 dB"]),
    ("0.44", "0.43", ["0.44"]),
    ("It is 3.312× smaller.", "ratio 3.31", ["3.312 ×"]),
    ("39 % are kept.", "0.382", ["39 %"]),
    ("It loses two points.", "2.9", ["two points"]),
    ("48,300 numbers", "48,213", ["48,300"]),
    ("125 M numbers", "124,439,808", ["125 M"]),
    ("more than 45 times", "44.9", ["45 times"]),
    ("over 20 dB", "19.9", ["20 dB"]),
    ("an eighth longer", "1.138", ["an eighth longer"]),
    ("a third of it", "0.0833", ["a third of"]),
    ("as 13 others", "12", ["13"]),
    ("The error is 0.2013.", "0.43", ["0.2013"]),
    ("2000 times", "1900", ["2000 times"]),
    ("It costs 7\npoints, and three\npoints.", "5.1", ["7 points", "three points"]),
    ("all of them (48,213)", "47,000", ["48,213"]),
    ("with $a$ 77.7 % $b$", "78.8", ["77.7 %"]),
    ("3.3× 4 layers, 12× 3 layers", "ratio 7.7", ["3.3 ×", "12 ×"]),
    ("58x fewer, and 5.8 x fewer", "ratio 7.7", ["58 x", "5.8 x"]),
    ("88.8 was printed, but elsewhere", "", ["88.8"]),
    ("| a | table by hand |\n| - | - |\n| b | 77.7 |", "", ["77.7"]),
]


@pytest.mark.parametrize("prose, printed", BORNE_OUT)
def test_a_number_within_rounding_is_borne_out(tmp_path, prose, printed):
    assert found(tmp_path, prose, printed=printed) == []
    assert found(tmp_path, prose, table=printed) == []
    assert found(tmp_path, prose) != []


@pytest.mark.parametrize("prose", LEFT_ALONE)
def test_what_is_no_measured_number_is_left_alone(tmp_path, prose):
    assert found(tmp_path, prose) == []


@pytest.mark.parametrize("prose, printed, faults", FAULTS)
def test_a_planted_fault_is_found(tmp_path, prose, printed, faults):
    assert found(tmp_path, prose, printed=printed) == faults


def test_code_bears_out_parameters_but_nothing_measured(tmp_path):
    code = "cut(rank=20, eps=0.1, rows=512)"
    assert found(tmp_path, "Rank 20, 512 rows, an error of 10 %.", code=code) == []
    assert found(tmp_path, "20 times, 20 dB, 20 %", code=code) == ["20 times", "20 dB", "20 %"]


def test_the_whole_chapter_counts_at_its_ends_and_for_counts(tmp_path):
    for section in ("Key takeaways", "Exercises", "What next"):
        assert found(tmp_path, "88.8 was printed above", section=section) == []
    assert found(tmp_path, "4,321 rows, as above") == []
    assert found(tmp_path, "4,321 MB") == ["4,321 MB"]
    assert found(tmp_path, "99.9, but by whom?", section="References") == []


def test_a_subsection_stands_for_itself(tmp_path):
    assert found(tmp_path, "It is 5.5.\n\n### Another\n\nIt is 5.5.", printed="5.5") == ["5.5"]
    assert found(tmp_path, "It is 5.5.\n\n```\n### no heading\n```\n\nIt is 5.5.", printed="5.5") == []


GOOD_MARKS = [
    ("0.8 million", {"0.8": "1024 * 768 / 1e6"}),
    ("38.40×", {"38.40": "quoted: Xu and others"}),
    ("one image is 0.28 points", {"0.28": "100 / 360"}),
    ("88.8 above", {"88.8": "in: Before"}),
    ("88.8 above", {"88.8": "in: *"}),
    ("from 97.0 % to, say, 96.5 %", {"97.0": "given: an example", "96.5": "given: an example"}),
    ("seed 1,000,003", {"1,000,003": "1_000_003 + overview.seed"}),
]
BAD_MARKS = [
    ({"0.8": "1024 * 768 / 1e5"}, "that is 7.86432"),
    ({"0.8": "no_such_record.ratio"}, "NameError"),
    ({"0.8": "overview.no_such_key"}, "KeyError"),
    ({"0.8": "quoted:"}, "nothing after the colon"),
    ({"0.8": "in: Nowhere"}, "no section of that name"),
    ({"0.8": "in: Before"}, "it is not there"),
    ({"0.8": "in no_such_chapter: Before"}, "there is no no_such_chapter.ipynb"),
]


@pytest.mark.parametrize("prose, marks", GOOD_MARKS)
def test_a_mark_bears_out(tmp_path, prose, marks):
    assert found(tmp_path, prose, marks=marks) == []
    assert len(found(tmp_path, prose)) == len(marks)


@pytest.mark.parametrize("marks, problem", BAD_MARKS)
def test_a_mark_is_held_to_its_word(tmp_path, marks, problem):
    ((place, number, message),) = unmatched(chapter(tmp_path, "0.8 million", marks=marks))
    assert (place, number) == ("prose", "0.8")
    assert problem in message


def test_a_mark_without_a_number_is_found(tmp_path):
    (stale,) = unmatched(chapter(tmp_path, "nothing", marks={"0.8": "given: a setting"}))
    assert "not in the text" in stale[2]


def test_pages_use_what_they_include_and_comments(tmp_path):
    (tmp_path / "table.md").write_text("| a | 12.5 |\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\nIt is 77.7.\n\n## One\n\nIt takes 12.5 ms.\n\n```{include} table.md\n```\n\n"
        "## Two\n\n12.5 and 0.8 and 0.9.\n\n<!-- number 0.8 = 4 / 5 -->\n"
    )
    assert [(place, number) for place, number, _ in unmatched(page)] == [
        ("line 1", "77.7"),
        ("line 12", "12.5"),
        ("line 12", "0.9"),
    ]


@pytest.mark.parametrize("prose, code", [("It is 77.7.", 1), ("It is so.", 0)])
def test_the_command_lists_and_fails(tmp_path, monkeypatch, capsys, prose, code):
    monkeypatch.setattr("sys.argv", ["numbers", str(chapter(tmp_path, prose))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert ("prose · 77.7 · It is 77.7." in capsys.readouterr().out) == bool(code)
