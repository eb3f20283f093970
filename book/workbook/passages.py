"""Passages to search in: the reference of the Python that runs, or a folder of the reader's own text files.

Nothing is shipped. The reference is what ``help()`` shows, `pydoc_data.topics`, and the docstrings of the standard
library's modules, whose files are read as text and not imported. So the text is that of the Python that runs, and other
releases have somewhat other passages.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Passage", "passages_of", "python_passages"]

SIZE, LEAST, LEAD = 125, 40, 25  # in words: a passage; the smallest rest that stands alone; a line before its text
ENDINGS = (".md", ".py", ".rst", ".txt")
HUGE = 1_000_000  # bytes: a table or a dump, not a text that somebody wrote
MOST = 2_000  # passages of a folder: an encoder needs minutes for them
# Modules in C, which have no file to read; each of them is in every build.
_COMPILED = ("array", "binascii", "cmath", "errno", "gc", "itertools", "marshal", "math", "sys", "time", "zlib")
# What Python 3.12 and 3.13 removed, and what is there for fun.
_LEFT_OUT = {
    *("aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr", "imp"),
    *("lib2to3", "mailcap", "msilib", "nntplib", "pipes", "smtpd", "sndhdr", "sunau", "telnetlib", "uu", "xdrlib"),
    *("antigravity", "this"),
}
# A long word counts as several, as it does for a tokenizer.
_WORD = re.compile(r"[^\W_]{1,8}|_|([^\w\s])\1*")
_SENTENCE = re.compile(r"(?<=\n)|(?<=[\w)\"”’][.!?] )(?=[A-Z\"“(])")
_RULE = re.compile(r"([*=\-~^\"#+])\1{2,}\s*")
_NO_PROSE = re.compile(r"\s|[+|@#>*-]|```|(def|class|import|from) |.* -- |.*\S {3,}\S")
_GRID = re.compile(r"\s*[+|][-=+|:\s]*|=+(\s+=+)+\s*")  # the lines between the rows of a table
_FENCE = re.compile(r"\s*(```|~~~)")


class Passage(NamedTuple):
    """A piece of text.

    Attributes:
        source: Where it is from, such as ``topic:with``, ``module:json`` or the path of a file in its folder.
        title: The headings that it stands under.
        text: The text itself.
    """

    source: str
    title: str
    text: str

    def __str__(self) -> str:
        """Title and text, as an encoder and a language model are to read them."""
        return f"{self.title}\n{self.text}"


def python_passages() -> list[Passage]:
    """Cut the reference of the running Python into passages of about 100 to 160 tokens, fewer in short sections.

    Topics come first, then modules, both in the order of their names. Where a long topic repeats a short one
    ("compound" holds all of "with"), the passages belong to the short one. Modules that Python 3.12 and 3.13 removed
    are left out.

    Returns:
        About a thousand passages; the same ones in every run of one Python.

    Raises:
        ModuleNotFoundError: This Python has no `pydoc_data`, as some minimal installations.

    Cost:
        About a second.

    Example:
        >>> found = python_passages()
        >>> any(p.source == "topic:with" and "context manager" in p.text for p in found)
        True
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "this Python has no pydoc_data, the text of help(); install the full standard library, or use passages_of"
        ) from error
    seen: set[str] = set()
    found: dict[str, list[Passage]] = {}
    # "if" and "else" have one text; it belongs to the name that stands in its heading.
    for name in sorted(topics, key=lambda name: (len(topics[name]), name not in topics[name].split("\n")[0], name)):
        found[name] = [
            passage
            for title, body in _sections(topics[name])
            if (key := " ".join(body.split())) not in seen and not seen.add(key)
            for passage in _cut(f"topic:{name}", title, body)
        ]
    made = [passage for name in sorted(found) for passage in found[name]]
    for name, text in _module_docstrings():
        for heading, body in _sections(text):
            title = f"The module {name}" + (f" / {heading}" if heading else "")
            made += _cut(f"module:{name}", title, body)
    return made


def passages_of(folder: str | os.PathLike[str]) -> list[Passage]:
    r"""Cut the text files of a folder, and of the folders in it, into passages of about 100 to 160 tokens.

    Read are files that end in .md, .py, .rst or .txt. Hidden files and folders are left out. Files that are not UTF-8,
    binary, larger than 1 MB or not to be opened are skipped, and one printed line says how many. After 2,000 passages
    it stops, and says so.

    Args:
        folder: The folder.

    Returns:
        Passages in the order of the files' paths; the source of each is the path of its file inside of the folder.

    Raises:
        NotADirectoryError: There is no such folder.
        ValueError: It has no file with a text in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "tea.md").write_text("# Tea\n\nPour at 80 degrees.")
        ...     _ = Path(folder, "scan.txt").write_bytes(b"\x00\x01")
        ...     passages_of(folder)
        Skipped 1 file: 1 binary.
        [Passage(source='tea.md', title='Tea', text='Pour at 80 degrees.')]
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder; give the path of one that holds {', '.join(ENDINGS)} files")
    found, skipped, files = [], Counter(), 0
    for path in _text_files(root):
        if len(found) >= MOST:
            print(f"Stopped at {len(found):,} passages, before {path.relative_to(root)}; choose a smaller folder.")
            break
        files += 1
        text = _text_of(path, skipped)
        name = path.relative_to(root).as_posix()
        for title, body in _sections(text, marks=path.suffix.lower() == ".md"):
            found += _cut(name, title or name, body)
    if skipped:
        count = skipped.total()
        reasons = ", ".join(f"{number} {why}" for why, number in sorted(skipped.items()))
        print(f"Skipped {count} file{'s' * (count > 1)}: {reasons}.")
    if not found:
        raise ValueError(f"{root} has no text to search: {files} files end in {', '.join(ENDINGS)}, and none has words")
    return found


def _module_docstrings() -> Iterator[tuple[str, str]]:
    """(name, docstring) of the public modules of the standard library, by name; packages count as one module."""
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        if name.startswith("_"):
            continue
        if name in _COMPILED:
            text = importlib.import_module(name).__doc__
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of modules that are to be removed
                try:
                    spec = importlib.util.find_spec(name)
                except (ImportError, ValueError):  # of another system
                    continue
            if spec is None or not (spec.origin or "").endswith(".py"):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        if text:
            yield name, text


def _text_files(root: Path) -> Iterator[Path]:
    """The files to read, folder by folder in the order of their names; links to folders are not followed."""
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Path(place, name)


def _text_of(path: Path, skipped: Counter[str]) -> str:
    """The text of a file; empty, and counted, if it is none."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            why = "not to be opened"
        elif path.stat().st_size > HUGE:
            why = "larger than 1 MB"
        else:
            data = path.read_bytes()
            if b"\0" not in data:
                return data.decode("utf-8-sig")
            why = "binary"
    except UnicodeDecodeError:
        why = "not UTF-8"
    except OSError:
        why = "not to be opened"
    skipped[why] += 1
    return ""


def _sections(text: str, *, marks: bool = False) -> Iterator[tuple[str, str]]:
    """(headings, body) of each section; a heading is underlined, or begins with # if ``marks``."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").split("\n")
    first, heading, body, fenced = "", "", [], False

    def section() -> Iterator[tuple[str, str]]:
        joined = "\n".join(body).strip("\n")
        if any(map(str.isalnum, joined)):
            yield first if heading in ("", first) else f"{first} / {heading}", joined

    k = 0
    while k < len(lines):
        line, under = lines[k], lines[k + 1] if k + 1 < len(lines) else ""
        fenced ^= bool(_FENCE.match(line)) and marks
        marked = marks and not fenced and re.match(r"#{1,6}\s+(.*\w.*)", line)
        ruled = _RULE.fullmatch(under) and len(under.strip()) >= len(line.strip()) and re.match(r"\S.*\w", line)
        if marked or (ruled and not fenced):
            yield from section()
            heading, body = (marked[1].strip("# ") if marked else line.strip()), []
            first = first or heading
            k += 1 if marked else 2
        else:
            if not _RULE.fullmatch(line) and not _GRID.fullmatch(line):
                body.append(re.sub(r"(?<=\S)\s{2,}", "  ", line) if line.lstrip().startswith("|") else line)
            k += 1
    yield from section()


def _cut(source: str, title: str, body: str) -> list[Passage]:
    """Passages of a section: its paragraphs, put together up to the size, and cut where one alone is larger."""
    made: list[list[str]] = []
    for paragraph in re.split(r"\n[ \t]*\n", body):
        # The lines of prose are joined; those of code and of lists are not.
        lines = paragraph.strip("\n").split("\n")
        plain = not any(_NO_PROSE.match(line) for line in lines)
        for piece in _pieces(" ".join(lines) if plain else "\n".join(line.rstrip() for line in lines)):
            if made and _size(*made[-1], piece) <= SIZE:
                made[-1].append(piece)
            elif _WORD.search(piece):
                # A short line stays with the text below it that is set in deeper: a method and what it does.
                leads = made and len(made[-1]) > 1 and _margin(piece) > _margin(made[-1][-1])
                made.append([made[-1].pop(), piece] if leads and _size(made[-1][-1]) <= LEAD else [piece])
    if len(made) > 1 and _size(*made[-1]) < LEAST:
        made[-2:] = [made[-2] + made[-1]]
    return [Passage(source, title, "\n\n".join(pieces)) for pieces in made]


def _pieces(text: str) -> Iterator[str]:
    """A paragraph whole if it is not too large, else its lines and sentences, and words where these are too large."""
    if _size(text) <= SIZE:
        yield text
        return
    parts = [part for part in _SENTENCE.split(text) if part]
    parts = [word for part in parts for word in ([part] if _size(part) <= SIZE else re.findall(r"\S{1,100}\s*", part))]
    piece = ""
    for part in parts:
        if piece and _size(piece, part) > SIZE:
            yield piece.rstrip()
            piece = ""
        piece += part
    yield piece.rstrip()


def _margin(text: str) -> int:
    """How far the first line is set in."""
    return len(text) - len(text.lstrip(" "))


def _size(*texts: str) -> int:
    """About how many tokens texts are, in words and signs."""
    return sum(len(_WORD.findall(text)) for text in texts)
