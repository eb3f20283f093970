"""One spelling everywhere: American, as in torch, NumPy and the names of ttref."""

import json
import re

from book.tools.notebooks import ROOT

PLACES = "ttref", "book", "notebooks", "studies", "benchmarks", "README.md", "CONTRIBUTING.md"
FILES = sorted(
    path
    for name in PLACES
    for path in (ROOT / name, *(ROOT / name).rglob("*"))
    if path.suffix in (".py", ".md", ".ipynb", ".css", ".yml")
    and "results" not in path.parts
    and path.name != "references.md"  # titles of others
)
RECORDED = {"same_neighbour", "standardised"}  # in files of recorded results
WORDS = {
    "behaviour": "behavior",
    "colour": "color",
    "favour": "favor",
    "neighbour": "neighbor",
    "centre": "center",
    "centring": "centering",
    "grey": "gray",
    "labelled": "labeled",
    "modelled": "modeled",
    "modelling": "modeling",
    "judgement": "judgment",
    "licence": "license",
    "artefact": "artifact",
    "catalogue": "catalog",
    "analysed": "analyzed",
    "analysing": "analyzing",
}
VERBS = """character discret emphas factor final general initial local maxim memor minim normal optim organ orthogonal
    parameter parametr priorit quant random real recogn regular serial special standard summar symmetr synchron tensor
    util vector visual""".split()
BRITISH = re.compile(
    rf"{'|'.join(WORDS)}|(?:{'|'.join(VERBS)})is(?=(?:e|ed|es|er|ers|ing|ation|ations)(?!(?-i:[a-z])))", re.I
)


def american(word):
    return WORDS.get(word.lower()) or f"{word[:-1]}z"


def lines(path):
    """Lines of a file; of a notebook, those of its sources, captions and alternative texts above the references."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text.splitlines()
    found = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if source.startswith("## References"):
            break
        found += source.splitlines() + re.findall(r'"[^"]*"', json.dumps(cell["metadata"].get("mystnb", {})))
    return found


def british(line):
    line = re.sub("|".join(RECORDED), "", line)
    line = re.sub(r"also spelled \*\w+\*", "", line)  # for readers who search for it
    return [f"{found.group()} -> {american(found.group())}" for found in BRITISH.finditer(line)]


def test_spelling_is_american():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {word}"
        for path in FILES
        for number, line in enumerate(lines(path), 1)
        for word in british(line)
    ]
    assert FILES and not wrong, "\n".join(wrong)


def test_what_is_british_is_seen():
    seen = british(
        "Neighbouring greyscale artefacts: NormaliseColour, a reparametrisation; the quantiser's same_neighbour."
    )
    assert [
        word.rpartition(" ")[2] for word in seen
    ] == "neighbor gray artifact Normaliz color parametriz quantiz".split()
    assert not british(
        "analyses, emphasis, an organism, promises, precise noise, optimists, parameters, a license, realism"
    )
