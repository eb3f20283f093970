"""Every chapter keeps the rules of book/tools/rules.py, and the rules see what they are for."""

import base64
import copy
import io
import re

import nbformat
import pytest
import yaml
from PIL import Image

from book.tools import notebooks, rules

CHAPTERS = notebooks.chapters()
by_name = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def test_the_toc_lists_every_notebook():
    toc = yaml.safe_load((notebooks.ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    assert CHAPTERS
    assert sorted(name for name in listed if name.startswith("notebooks/")) == [f"notebooks/{p.stem}" for p in CHAPTERS]


@by_name
def test_rules(path):
    nb = notebooks.read(path)
    nbformat.validate(nb)
    assert not rules.problems(nb)
    assert path.stat().st_size < 1_000_000
    assert nb.metadata.kernelspec.name == "python3"


@by_name
def test_badges_and_bootstrap_cell_are_the_ones_that_belong_here(path):
    nb = notebooks.read(path)
    dressed = copy.deepcopy(nb)
    notebooks.dress(dressed, path.name, notebooks.address())
    assert dressed == nb, "run make address or make execute: the badge row or the bootstrap cell is not the house's"
    assert nb.cells[1].outputs == []


def test_figure_names_are_unique():
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for path in CHAPTERS
        for cell in rules.code_cells(notebooks.read(path))
        if "name" in cell.metadata.get("mystnb", {}).get("figure", {})
    ]
    assert len(names) == len(set(names))


def cell_with(nb, tag):
    return next(cell for cell in nb.cells if tag in rules.tags(cell))


def plant_count(nb):
    rules.code_cells(nb)[-1].execution_count = None


def plant_semicolon(nb):
    rules.code_cells(nb)[2].source += ";"


def plant_error(nb):
    rules.code_cells(nb)[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]


def plant_stderr(nb):
    rules.code_cells(nb)[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text="careful")]


def plant_svg(nb):
    rules.code_cells(nb)[2].outputs = [nbformat.v4.new_output("display_data", data={"image/svg+xml": "<svg/>"})]


def plant_silent_ignore(nb):
    rules.code_cells(nb)[2].metadata["tags"] = ["nbval-ignore-output"]


def plant_many_ignored(nb):
    for cell in rules.code_cells(nb)[::3]:
        cell.metadata.update(tags=["nbval-ignore-output"], ignore_reason="a timing")


def plant_skip(nb):
    rules.code_cells(nb)[2].metadata["tags"] = ["nbval-skip"]


def plant_goal(nb):
    before, goals, after = re.split(r"(?s)(?<=\*\*Goals\.\*\* )(.+?)(?=\n\*\*Prerequisites)", nb.cells[0].source)
    nb.cells[0].source = before + "\n- ".join(goals.split("\n- ")[:2]) + "\n" + after


def plant_run_time(nb):
    nb.cells[0].source = notebooks.RUN_TIME.sub("**Run time.** About 400 s on 2 cores.", nb.cells[0].source)


def plant_no_run_time(nb):
    nb.cells[0].source = notebooks.RUN_TIME.sub("**Run time.** Short.", nb.cells[0].source)


def plant_bare_figure(nb):
    next(cell for cell in rules.code_cells(nb) if rules.pictures(cell)).metadata.pop("mystnb")


def plant_transparent_figure(nb):
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "PNG")
    cell = next(cell for cell in rules.code_cells(nb) if rules.pictures(cell))
    shown = next(output for output in cell.outputs if "image/png" in output.get("data", {}))
    shown.data["image/png"] = base64.b64encode(clear.getvalue()).decode()


def plant_skipped_level(nb):
    nb.cells.insert(2, nbformat.v4.new_markdown_cell("#### Deep"))


def plant_role(nb):
    nb.cells.insert(2, nbformat.v4.new_markdown_cell("See {cite}`x`."))


def plant_no_ending(nb):
    nb.cells.append(nbformat.v4.new_markdown_cell("## More"))


def plant_no_hint(nb):
    for cell in nb.cells:
        cell.source = cell.source.replace("**Hint.**", "Hint:")


def plant_open_solution(nb):
    cell_with(nb, "solution").metadata["tags"] = ["solution"]


def plant_no_stub(nb):
    cell_with(nb, "exercise").metadata["tags"] = []


def plant_long_code(nb):
    rules.code_cells(nb)[2].source += "\n#" + 88 * "x"


def plant_long_print(nb):
    rules.code_cells(nb)[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text="ok\n" + 89 * "x")]


def plant_open_figure(nb):
    next(cell for cell in rules.code_cells(nb) if rules.pictures(cell)).metadata["tags"] = []


def plant_open_table(nb):
    cell = rules.code_cells(nb)[2]
    cell.source = "tables.show(rows, columns)"
    cell.metadata = nbformat.from_dict({})
    cell.outputs = [nbformat.v4.new_output("display_data", data={"text/html": "<table/>", "text/plain": 89 * "x"})]


def plant_open_imports(nb):
    cell = rules.code_cells(nb)[2]
    cell.source = "import a, b\nimport c\nfrom d import e\nfrom f import (\n    g)"
    cell.metadata = nbformat.from_dict({})


def plant_nameless_fold(nb):
    cell_with(nb, "solution").metadata["mystnb"] = {}


def plant_words(nb):
    nb.cells[-1].source += " word" * rules.MOST_WORDS


def takeaways(nb, text):
    cell = next(cell for cell in nb.cells if "## Key takeaways" in cell.source)
    cell.source = f"## Key takeaways\n\n{text}"


def plant_takeaways(nb):
    takeaways(nb, "- one\n" * 7)


def plant_long_takeaway(nb):
    takeaways(nb, "- short\n- " + "word " * 20 + "\n  " + "word " * 11)


FAULTS = {
    plant_count: "execution counts",
    plant_semicolon: "ends in ';'",
    plant_error: "stores an error",
    plant_stderr: "writes to stderr",
    plant_svg: "image/svg+xml",
    plant_silent_ignore: "come together",
    plant_many_ignored: "at most a tenth",
    plant_skip: "untested",
    plant_goal: "fewer than two goals",
    plant_run_time: "run time 400 s",
    plant_no_run_time: "no line '**Run time.**",
    plant_bare_figure: "mystnb.image.alt",
    plant_transparent_figure: "transparent",
    plant_skipped_level: "skips a level",
    plant_role: "MyST role",
    plant_no_ending: "the last sections",
    plant_no_hint: "no line starting '**Hint.** '",
    plant_open_solution: "a solution is tagged hide-cell",
    plant_no_stub: "tagged exercise",
    plant_long_code: "1 lines of code above 88",
    plant_long_print: "1 lines printed above 88",
    plant_open_figure: "draws a figure",
    plant_open_table: "shows a table",
    plant_open_imports: "sets things up",
    plant_nameless_fold: "says what is inside",
    plant_words: "words of Markdown",
    plant_takeaways: "7 takeaways",
    plant_long_takeaway: "a takeaway of 31 words",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_seen(plant):
    nb = notebooks.read(notebooks.ROOT / "notebooks/01_mps_math.ipynb")
    before = rules.problems(nb)
    plant(nb)
    assert any(FAULTS[plant] in problem for problem in rules.problems(nb) if problem not in before)


def test_a_table_is_not_measured_by_its_text_and_an_open_stub_is_no_fault():
    nb = notebooks.read(notebooks.ROOT / "notebooks/01_mps_math.ipynb")
    before = rules.problems(nb)
    plant_open_table(nb)
    rules.code_cells(nb)[2].metadata["tags"] = ["exercise"]
    assert set(rules.problems(nb)) <= set(before)


def test_the_rules_are_listed_chapter_by_chapter(capsys):
    path = notebooks.ROOT / "notebooks/01_mps_math.ipynb"
    status = rules.main([path])
    said = capsys.readouterr().out
    assert said.startswith("01_mps_math.ipynb: ") and "problems" in said
    assert status == bool(rules.problems(notebooks.read(path)))
