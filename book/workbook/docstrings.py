"""A real text task of every installation: does a sentence describe a function, an argument or a result?

The sentences are the first ones of functions' docstrings and of the entries of ``Parameters`` and ``Returns`` sections,
from four libraries among the book's requirements with docstrings of one style. Their source files are read as text;
nothing is imported. Sentences that name their class ("function", "parameter", "returned", ...), contain code, or occur
in two classes are left out. The classes differ by grammar more than by topic, so the vectors of a frozen encoder leave
room for training.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["DocstringTask", "Texts", "load_docstring_task"]

PINNED = {"numpy": "2.4.6", "scipy": "1.17.1", "scikit-learn": "1.9.1", "matplotlib": "3.11.2"}
CLASSES = ("function", "argument", "result")
SIZES = {"train": 400, "validation": 130, "test": 330}  # sentences of each class
TASK_SHA256 = "c5bd7741c9c8784df380a014126af00fb75ed044b8bef94f219c6b5b73d63c9d"
PER_FILE = 6  # of each class, so that no split consists of a few long files

_FOLDERS = {"scikit-learn": "sklearn"}
# Tests, vendored code, and files that differ between installations.
_SKIPPED = re.compile(
    r"(^|/)(tests?|testing|_?vendor\w*|externals?|array_api_\w+|distutils|_generated)/"
    r"|(^|/)(conftest|setup|version|_version|__config__)\.py$"
)
_SIGNATURE = re.compile(r"^[ \t]*(?:async )?(class|def) [^\n]*(?:\n[^\n]+)*:[ \t]*\n\s*r?$", re.MULTILINE)
_LAST = re.compile(r"\n(?=[ \t]*(?:@|class |def |async def ))")
_SECTION = re.compile(r"\n[ \t]*([A-Z][A-Za-z ]+)\n[ \t]*-{3,}[ \t]*\n")
_ROLE = re.compile(r":[\w:]+:`(?:([^`<]+?) *<[^`]*>|~?(?:[^`.]*\.)*([^`.]+))`")
_CODE = re.compile(r">>>|::|\.\. |https?:|:math:|\w_|_\w|\w\(|\w\.\w|[a-z][A-Z]")
_SENTENCE = re.compile(r"[A-Z][\w ,;:'\"()/-]*\.")
_GIVEAWAY = re.compile(
    r"\b(class|(sub)?routine|function|method|parameter|argument|return|object|instance)(e?s|ed)?\b", re.IGNORECASE
)
_WORDS = range(5, 21)  # short sentences make short training steps


class Texts(NamedTuple):
    """Sentences `texts`, and the number of the class of each, `labels`, int64 of shape (count,)."""

    texts: list[str]
    labels: torch.Tensor


class DocstringTask(NamedTuple):
    """Sentences for training, for choosing and for one final test, and the names of the `classes`."""

    train: Texts
    validation: Texts
    test: Texts
    classes: tuple[str, ...]


def load_docstring_task() -> DocstringTask:
    """Collect 1,200 sentences for training, 390 for validation and 990 for testing, equally many of three classes.

    The files are dealt to the splits by the hashes of their names, and a file belongs to one split alone, so sentences
    that were copied within a file never stand on both sides. It takes about a second.

    Returns:
        A `DocstringTask`; in each split the classes take turns.

    Raises:
        ModuleNotFoundError: one of the four libraries is not installed; the message holds the install line.
        ValueError: there are too few sentences, because the libraries' sources are not installed.

    Warns:
        UserWarning: the sentences differ from those of the pinned versions, so accuracies will differ from the book's.

    Example:
        >>> task = load_docstring_task()
        >>> len(task.train.texts), task.test.labels.bincount().tolist()
        (1200, [330, 330, 330])
    """
    import torch

    found = _deal(_collect())
    rows = {
        split: [(text, label) for turn in zip(*found[split], strict=True) for label, text in enumerate(turn)]
        for split in SIZES
    }
    listed = "\n".join(f"{split}\t{label}\t{text}" for split, part in rows.items() for text, label in part)
    digest = hashlib.sha256(listed.encode()).hexdigest()
    if digest != TASK_SHA256:
        pins = ", ".join(f"{name} {version}" for name, version in PINNED.items())
        warnings.warn(
            f"the sentences of these installed libraries have sha256 {digest[:12]}…, those of the pinned versions "
            f"({pins}) {TASK_SHA256[:12]}…: accuracies will differ from the book's",
            stacklevel=2,
        )
    made = {
        split: Texts([text for text, _ in part], torch.tensor([label for _, label in part]))
        for split, part in rows.items()
    }
    return DocstringTask(**made, classes=CLASSES)


def _collect() -> list[list[tuple[str, int, str]]]:
    """All sentences of each class, as (file, class, sentence)."""
    rows: dict[str, tuple[str, int, str]] = {}
    labels: dict[str, set[int]] = {}
    for file, path in _files():
        taken = Counter()
        for label, sentence in _sentences(path.read_text(encoding="utf-8")):
            key = re.sub("[^a-z]", "", sentence.lower())
            labels.setdefault(key, set()).add(label)
            if key not in rows and taken[label] < PER_FILE:
                rows[key] = (file, label, sentence)
                taken[label] += 1
    return [[row for key, row in rows.items() if row[1] == label and len(labels[key]) == 1] for label in range(3)]


def _deal(pools: list[list[tuple[str, int, str]]]) -> dict[str, list[list[str]]]:
    """The sentences of each split and class: whole files are assigned to a split until it has enough."""
    total = sum(SIZES.values())
    found = {split: [[] for _ in pools] for split in SIZES}
    for label, pool in enumerate(pools):
        for file, _, sentence in pool:
            place = int(hashlib.sha256(f"split/{file}".encode()).hexdigest(), 16) % total
            for split, size in SIZES.items():
                if 0 <= place < size and len(found[split][label]) < size:
                    found[split][label].append(sentence)
                place -= size
    for split, size in SIZES.items():
        for label, sentences in enumerate(found[split]):
            if len(sentences) < size:
                raise ValueError(
                    f"only {len(sentences)} of {size} sentences for {CLASSES[label]} in {split}: the sources of "
                    f"{', '.join(PINNED)} are not all installed"
                )
    return found


def _files() -> Iterator[tuple[str, Path]]:
    """The source files of the libraries as (name, path), in the order of the hashes of their names."""
    found = {}
    for name in PINNED:
        spec = importlib.util.find_spec(_FOLDERS.get(name, name))
        if spec is None:
            raise ModuleNotFoundError(
                f"the task needs {name}; install with: python -m pip install {name}=={PINNED[name]}"
            )
        root = Path(spec.submodule_search_locations[0])
        for path in root.rglob("*.py"):
            file = f"{name}/{path.relative_to(root).as_posix()}"
            if not _SKIPPED.search(file):
                found[hashlib.sha256(file.encode()).hexdigest()] = file, path
    return (found[key] for key in sorted(found))


def _sentences(source: str) -> Iterator[tuple[int, str]]:
    """(class, sentence) for every plain first sentence of a file's docstrings and of the entries of their sections."""
    pieces = source.split('"""')
    for before, docstring in zip(pieces[::2], pieces[1::2], strict=False):
        signature = _SIGNATURE.search(_LAST.split(before)[-1])
        if signature is None or "property" in before[-400:]:
            continue
        summary, *sections = _SECTION.split(docstring)
        if signature[1] == "def":
            yield from _plain(CLASSES.index("function"), summary)
        for title, body in zip(sections[::2], sections[1::2], strict=True):
            if title in ("Parameters", "Returns"):
                label = CLASSES.index("argument" if title == "Parameters" else "result")
                for entry in _entries(body):
                    yield from _plain(label, entry)


def _entries(body: str) -> Iterator[str]:
    """The descriptions in a section: the lines indented deeper than its first line."""
    lines = body.splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    entry: list[str] = []
    for line in [*lines, ""]:
        if line.strip() and len(line) - len(line.lstrip()) > margin:
            entry.append(line)
        elif entry:
            yield "\n".join(entry)
            entry = []


def _plain(label: int, text: str) -> Iterator[tuple[int, str]]:
    """The first sentence of a text, if it is plain and does not name its class."""
    paragraph = re.split(r"\n\s*\n", text.strip())[0]
    joined = re.sub("[`*]", "", _ROLE.sub(r"\1\2", " ".join(paragraph.split())))
    sentence = re.split(r"(?<=[.]) (?=[A-Z])", joined)[0]
    plain = len(sentence.split()) in _WORDS and _SENTENCE.fullmatch(sentence)
    if plain and not _CODE.search(sentence) and not _GIVEAWAY.search(sentence):
        yield label, sentence
