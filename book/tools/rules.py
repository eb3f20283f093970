"""The rules for a chapter. CONTRIBUTING.md gives them in words; tests/book applies them to every notebook.

`python -m book.tools.rules notebooks/01_mps_math.ipynb` lists what is wrong with a chapter, rule by rule; without a
name, with all of them.
"""

import ast
import base64
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image

from book.tools import notebooks
from book.tools.execute import IGNORED

ENDING = ["Key takeaways", "Exercises", "What next", "References"]
MIME_TYPES = {"text/plain", "text/html", "text/latex", "text/markdown", "image/png"}
BUDGET_SECONDS = 90
WIDTH = 88  # characters of a line of code or of printed text that a page shows without scrolling
MOST_WORDS = 3300  # aim at 3,000
MOST_TAKEAWAYS, TAKEAWAY_WORDS = 6, 30  # aim at 25 words
NOT_A_LESSON = {"Decide in ten minutes"}  # no exercises and no takeaways: the page is a summary itself
FOLDED = {"hide-input", "hide-cell", "hide-output"}


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """Return the code cells."""
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> set[str]:
    """Return a cell's tags."""
    return set(cell.metadata.get("tags", []))


def prose(cell: NotebookNode) -> str:
    """Return the text of a Markdown cell without its fenced blocks and formulas."""
    return re.sub(r"(?ms)^```.*?^```|\$\$.*?\$\$|\$[^$\n]+\$", "", cell.source)


def headings(nb: NotebookNode) -> list[tuple[int, str, int]]:
    """Return (level, text, cell number) of every heading."""
    return [
        (len(marks), text, number)
        for number, cell in enumerate(nb.cells)
        if cell.cell_type == "markdown"
        for marks, text in re.findall(r"(?m)^(#{1,6}) +(.+?)\s*$", prose(cell))
    ]


def pictures(cell: NotebookNode) -> list[bytes]:
    """Return the PNG files among a cell's outputs."""
    return [base64.b64decode(o.data["image/png"]) for o in cell.outputs if "image/png" in o.get("data", {})]


def title(nb: NotebookNode) -> str:
    """Return the title of a chapter."""
    return nb.cells[0].source.split("\n")[0].removeprefix("# ")


def words(nb: NotebookNode) -> int:
    """Return the number of words between blanks in the Markdown cells."""
    return sum(len(cell.source.split()) for cell in nb.cells if cell.cell_type == "markdown")


def imports(cell: NotebookNode) -> int:
    """Return how many import statements a code cell has."""
    try:
        return sum(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(ast.parse(cell.source)))
    except SyntaxError:
        return 0  # a magic


def executed(nb: NotebookNode) -> Iterator[str]:
    """The notebook ran once, from top to bottom, without an error or a warning."""
    cells = code_cells(nb)
    if len(cells) < 5:
        yield f"{len(cells)} code cells; a chapter has at least five"
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "execution counts are not 1, 2, 3, ...: run make execute"
    for cell in cells:
        if cell.source.rstrip().endswith(";"):
            yield f"cell {cell.id} ends in ';', which nbval does not heed: assign to _ or call plt.show()"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {cell.id} stores an error"
            if output.get("name") == "stderr":
                yield f"cell {cell.id} writes to stderr, which differs between machines"
            if odd := set(output.get("data", {})) - MIME_TYPES:
                yield f"cell {cell.id} stores {', '.join(sorted(odd))}; pictures are PNG, the rest text"


def compared(nb: NotebookNode) -> Iterator[str]:
    """Outputs that nbval does not compare are few, and each gives a reason."""
    cells = code_cells(nb)
    loose = [cell for cell in cells if IGNORED in tags(cell)]
    if len(loose) > len(cells) / 10:
        yield f"{len(loose)} of {len(cells)} code cells ignore their output; at most a tenth may"
    for cell in cells:
        if (IGNORED in tags(cell)) != bool(cell.metadata.get("ignore_reason")):
            yield f"cell {cell.id}: the tag {IGNORED} and the metadata 'ignore_reason' come together"
        if odd := tags(cell) & {"nbval-skip", "nbval-raises-exception", "raises-exception"}:
            yield f"cell {cell.id}: the tag {odd.pop()} would leave it untested"
        if "NBVAL_" in cell.source:
            yield f"cell {cell.id}: use a tag; an NBVAL comment shows in the book"


def header(nb: NotebookNode) -> Iterator[str]:
    """The first cell states goals, prerequisites and run time."""
    text = nb.cells[0].source
    parts = re.fullmatch(
        r"# .+\n\n(?P<answer>(?:.|\n)+?)\n\n(?:\[Open in Colab\].*\n\n)?\*\*Goals\.\*\* .+\n\n"
        r"(?P<goals>(?:- .+\n(?:  .+\n)*)+)\n\*\*Prerequisites\.\*\* (?:.+\n)+\n\*\*Run time\.\*\* .+\n?",
        text,
    )
    if not parts:
        yield "the first cell is not title, answer, goals, prerequisites, run time (CONTRIBUTING.md shows the form)"
    elif len(re.findall(r"(?m)^- ", parts["goals"])) < 2:
        yield "fewer than two goals"
    seconds = notebooks.RUN_TIME.search(text)
    if not seconds:
        yield "no line '**Run time.** About N s on 2 cores.'"
    elif not 1 <= int(seconds[1]) <= BUDGET_SECONDS:
        yield f"run time {seconds[1]} s; measured by make execute, it lies between 1 and {BUDGET_SECONDS}"


def figures(nb: NotebookNode) -> Iterator[str]:
    """Each picture has a description in words and is readable on a dark page."""
    for cell in code_cells(nb):
        if not pictures(cell):
            continue
        about = cell.metadata.get("mystnb", {})
        if len(about.get("image", {}).get("alt", "")) < 20:
            yield f"cell {cell.id}: a figure needs mystnb.image.alt, a sentence on what it shows"
        if not about.get("figure", {}).get("caption"):
            yield f"cell {cell.id}: a figure needs mystnb.figure.caption"
        for png in pictures(cell):
            image = Image.open(io.BytesIO(png))
            if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:
                yield f"cell {cell.id}: the figure is transparent; save it on an opaque ground"


def structure(nb: NotebookNode) -> Iterator[str]:
    """Headings do not skip a level, the ending is complete, and the text reads the same on Colab."""
    found = headings(nb)
    levels = [level for level, _, _ in found]
    if levels.count(1) != 1 or levels[0] != 1:
        yield "a chapter has one '# ' heading, its title"
    for (before, _, _), (after, text, _) in zip(found, found[1:], strict=False):
        if after > before + 1:
            yield f"heading '{text}' skips a level"
    ending = [text for level, text, _ in found if level == 2][-len(ENDING):]
    if title(nb) not in NOT_A_LESSON and ending != ENDING:
        yield f"the last sections are {', '.join(ENDING)}"
    for cell in nb.cells:
        if cell.cell_type == "markdown" and re.search(r"\{[a-z:-]+\}`|(?m:^(```|:::)\{)", cell.source):
            yield f"cell {cell.id}: a MyST role or directive, which Colab and Lab show raw"


def exercises(nb: NotebookNode) -> Iterator[str]:
    """Three exercises or more, each with a hint, a stub that checks itself, and a folded solution that ran."""
    found = headings(nb)
    starts = [(text, number) for level, text, number in found if level == 3 and text.startswith("Exercise ")]
    if len(starts) < 3 and title(nb) not in NOT_A_LESSON:
        yield f"{len(starts)} exercises; a chapter has at least three"
    for count, (text, start) in enumerate(starts, 1):
        if not re.match(rf"Exercise {count}\b", text):
            yield f"'{text}' should be exercise {count}"
        end = min([number for level, _, number in found if number > start and level <= 3], default=len(nb.cells))
        cells = nb.cells[start:end]
        if not any(re.search(r"(?m)^\*\*Hint\.\*\* ", c.source) for c in cells if c.cell_type == "markdown"):
            yield f"'{text}' has no line starting '**Hint.** '"
        if not any("exercise" in tags(cell) for cell in cells):
            yield f"'{text}' has no code cell tagged exercise"
        solutions = [cell for cell in cells if "solution" in tags(cell)]
        if not solutions:
            yield f"'{text}' has no code cell tagged solution"
        for cell in solutions:
            if "hide-cell" not in tags(cell) or not cell.metadata.get("jupyter", {}).get("source_hidden"):
                yield f"cell {cell.id}: a solution is tagged hide-cell and has jupyter.source_hidden"


def width(nb: NotebookNode) -> Iterator[str]:
    """Code and printed text fit on a page without scrolling."""
    for cell in code_cells(nb):
        seen = [output.get("data", {}) | output for output in cell.outputs]
        shown = "\n".join(o.get("text", o.get("text/plain", "")) for o in seen if "text/html" not in o)
        for what, text in (("of code", cell.source), ("printed", shown)):
            if long := [line for line in text.split("\n") if len(line) > WIDTH]:
                yield f"cell {cell.id}: {len(long)} lines {what} above {WIDTH} characters, first: {long[0].strip()}"


def folded(nb: NotebookNode) -> Iterator[str]:
    """What draws, shows a table or sets things up is folded, under a label that says what is inside."""
    for cell in code_cells(nb):
        table = "tables." in cell.source and any("text/html" in o.get("data", {}) for o in cell.outputs)
        what = (
            "sets things up" if cell.id in ("bootstrap", "setup") or imports(cell) > 3 else
            "draws a figure" if pictures(cell) else
            "shows a table" if table else ""
        )  # fmt: skip
        if what and not tags(cell) & FOLDED and "exercise" not in tags(cell):
            yield f"cell {cell.id} {what}: tag it hide-input (bootstrap and solutions: hide-cell)"
        label = cell.metadata.get("mystnb", {}).get("code_prompt_show", "")
        if tags(cell) & FOLDED and not re.fullmatch("Show .{5,}", label):
            yield f"cell {cell.id} is folded: mystnb.code_prompt_show says what is inside, as in 'Show the plot's code'"


def short(nb: NotebookNode) -> Iterator[str]:
    """A chapter can be read in a quarter of an hour, and its takeaways at a glance."""
    if words(nb) > MOST_WORDS:
        yield f"{words(nb):,} words of Markdown; at most {MOST_WORDS:,}, better 3,000"
    text = "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    section = re.search(r"(?ms)^## Key takeaways$(.*?)(?=^## |\Z)", text)
    points = re.split(r"(?m)^[-*] +", section[1])[1:] if section else []
    if len(points) > MOST_TAKEAWAYS:
        yield f"{len(points)} takeaways; at most {MOST_TAKEAWAYS}"
    for point in points:
        if len(point.split()) > TAKEAWAY_WORDS:
            yield f"a takeaway of {len(point.split())} words, '{point[:40]} ...'; at most {TAKEAWAY_WORDS}, better 25"


RULES = [executed, compared, header, figures, structure, exercises, width, folded, short]


def problems(nb: NotebookNode) -> list[str]:
    """Return everything that is wrong with a notebook, one sentence each."""
    return [problem for rule in RULES for problem in rule(nb)]


def main(paths: list[Path]) -> int:
    """Print what is wrong with each of the notebooks, rule by rule; return 1 if anything is."""
    wrong = 0
    for path in paths:
        nb = notebooks.read(path)
        found = {rule.__name__: list(rule(nb)) for rule in RULES}
        wrong += any(found.values())
        print(f"{path.name}: {words(nb):,} words, {sum(map(len, found.values())) or 'no'} problems")
        for name, sentences in found.items():
            print("".join(f"  {name}: {sentence}\n" for sentence in sentences), end="")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or notebooks.chapters()))
