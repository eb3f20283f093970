"""Passages: of the running Python, whole and in one order; and of a folder with everything in it that can go wrong."""

import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

from book.workbook import passages
from book.workbook.passages import Passage, passages_of, python_passages


@pytest.fixture(scope="module")
def found():
    return python_passages()


def squeezed(text):
    return "".join(c for c in text if c.isalnum())


def test_every_topic_is_there_and_so_are_modules(found):
    sources = {p.source for p in found}
    topics = pydoc_data.topics.topics
    assert {f"topic:{name}" for name in topics} - sources == {"topic:else"} and topics["if"] == topics["else"]
    assert sources >= {"module:json", "module:itertools", "module:asyncio", "module:re"}
    assert not sources & {"module:this", "module:cgi", "module:_thread"}
    assert {source.partition(":")[0] for source in sources} == {"topic", "module"}


def test_no_word_of_a_topic_is_lost(found):
    for name in ("lambda", "try", "formatstrings", "types"):
        whole = squeezed(pydoc_data.topics.topics[name])
        for passage in (p for p in found if p.source == f"topic:{name}"):
            assert squeezed(passage.text) in whole and squeezed(passage.title.rpartition(" / ")[2]) in whole
    parts = [squeezed(p.text) for p in found if p.source == "topic:lambda"]
    assert sum(map(len, parts)) + len("Lambdas") == len(squeezed(pydoc_data.topics.topics["lambda"]))


def test_what_two_topics_share_is_there_once_and_belongs_to_the_shorter(found):
    texts = [" ".join(p.text.split()) for p in found]
    assert len(texts) - len(set(texts)) <= 2
    (with_statement,) = (p for p in found if p.text.startswith('The "with" statement is used to wrap'))
    assert with_statement.source == "topic:with" and with_statement.title == 'The "with" statement'


def test_passages_have_about_the_promised_size(found):
    sizes = sorted(passages._size(p.text) for p in found)
    assert 900 < len(found) < 1600
    assert sizes[-1] <= passages.SIZE + passages.LEAST
    assert sizes[len(sizes) // 2] > 60
    assert all(p.text.strip() and p.title.strip() for p in found)


def test_the_order_is_one(found):
    names = [p.source for p in found]
    topics = [name for name in names if name.startswith("topic")]
    assert topics == sorted(topics) and names[len(topics) :] == sorted(names[len(topics) :])
    code = (
        "import hashlib; from book.workbook.passages import python_passages as made\n"
        "print(hashlib.sha256(repr(made()).encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(passages.__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(seen) == 1


def test_a_python_without_its_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ModuleNotFoundError, match="no pydoc_data, the text of help.*use passages_of"):
        python_passages()


# A folder of somebody


def test_a_folder_with_everything_in_it(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.md").write_text(
        "Before.\n\n# Tea\n\nPour it.\n\n```\n# no heading\n```\n\n## Cups\n\nWarm.\n"
    )
    (tmp_path / "a.rst").write_text("=====\nTitle\n=====\n\nOne\ntwo.\n\nPart\n----\n\n* three\n* four\n")
    (tmp_path / "code.py").write_text("import os\n\n\ndef f():\n    # a comment\n    return 1\n")
    (tmp_path / "windows.txt").write_bytes("\ufeffcaf\u00e9\r\nau lait".encode())
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "utf16.txt").write_bytes("tea".encode("utf-16"))
    (tmp_path / "huge.txt").write_bytes(b"word " * 200_001)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n----\n ...\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("secret")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "named.txt").mkdir()
    assert passages_of(tmp_path) == [
        Passage("a.rst", "Title", "One two."),
        Passage("a.rst", "Title / Part", "* three\n* four"),
        Passage("code.py", "code.py", "import os\n\ndef f():\n    # a comment\n    return 1"),
        Passage("windows.txt", "windows.txt", "caf\u00e9 au lait"),
        Passage("b/notes.md", "b/notes.md", "Before."),
        Passage("b/notes.md", "Tea", "Pour it.\n\n```\n# no heading\n```"),
        Passage("b/notes.md", "Tea / Cups", "Warm."),
    ]
    told = "Skipped 5 files: 1 binary, 1 larger than 1 MB, 1 not UTF-8, 2 not to be opened.\n"
    assert capsys.readouterr().out == told
    assert passages_of(str(tmp_path)) == passages_of(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path, capsys, monkeypatch):
    (tmp_path / "ours.txt").write_text("ours")
    (tmp_path / "theirs.txt").write_text("theirs")
    read = Path.read_bytes

    def refuse(path):
        if path.name == "theirs.txt":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert [p.source for p in passages_of(tmp_path)] == ["ours.txt"]
    assert capsys.readouterr().out == "Skipped 1 file: 1 not to be opened.\n"


def test_long_paragraphs_are_cut_at_sentences_and_long_words_somewhere(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"Sentence number {k} is here." for k in range(100)))
    (tmp_path / "b.txt").write_text("x" * 5000 + " " + "!?" * 2000)
    (tmp_path / "c.txt").write_text("\n".join(f"    line {k}" for k in range(300)))
    made = passages_of(tmp_path)
    assert all(passages._size(p.text) <= passages.SIZE + passages.LEAST for p in made)
    sentences = [p.text for p in made if p.source == "a.txt"]
    assert len(sentences) > 3 and all(s.startswith("Sentence") and s.endswith("here.") for s in sentences)
    assert " ".join(sentences) == (tmp_path / "a.txt").read_text()
    for name in ("b.txt", "c.txt"):
        joined = "".join(p.text for p in made if p.source == name)
        assert "".join(joined.split()) == "".join((tmp_path / name).read_text().split())


def test_a_method_stays_with_what_it_does(tmp_path):
    filler = "word " * 110
    (tmp_path / "a.txt").write_text(f"{filler}\n\nstr.upper()\n\n   {filler}\n")
    first, second = passages_of(tmp_path)
    assert "upper" not in first.text and second.text.startswith("str.upper()\n\n   word")


def test_a_folder_that_is_too_large_says_where_it_stopped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(passages, "MOST", 2)
    for k in range(4):
        (tmp_path / f"{k}.txt").write_text("some words")
    assert [p.source for p in passages_of(tmp_path)] == ["0.txt", "1.txt"]
    assert capsys.readouterr().out == "Stopped at 2 passages, before 2.txt; choose a smaller folder.\n"


def test_folders_without_a_text_are_errors(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder; give the path of one that holds .md"):
        passages_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no text to search: 0 files end in .md, .py, .rst, .txt, and none"):
        passages_of(tmp_path)
    (tmp_path / "dots.txt").write_text("\n\n----\n")
    (tmp_path / "scan.txt").write_bytes(b"\0")
    with pytest.raises(NotADirectoryError):
        passages_of(tmp_path / "dots.txt")
    with pytest.raises(ValueError, match="has no text to search: 2 files end in"):
        passages_of(tmp_path)
