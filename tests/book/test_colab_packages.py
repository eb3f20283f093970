"""A chapter finds on Colab what it imports: Colab has it, the bootstrap cell brings it, or the chapter asks first."""

import ast
import sys

import pytest

from book.tools import notebooks, rules

# What the chapters import and Colab's machines bring along.
ON_COLAB = {
    "IPython",
    "PIL",
    "cycler",
    "filelock",
    "huggingface_hub",
    "matplotlib",
    "mlxtend",
    "numpy",
    "opt_einsum",
    "peft",
    "psutil",
    "safetensors",
    "scipy",
    "sklearn",
    "threadpoolctl",
    "torch",
    "tqdm",
    "transformers",
}
OURS = {"ttref", "book"}
WORKBOOK = sorted((notebooks.ROOT / "book/workbook").rglob("*.py"))


def brought() -> set[str]:
    """The modules that the bootstrap cell installs on Colab."""
    tree = ast.parse(notebooks.BOOTSTRAP.read_text(encoding="utf-8"))
    (found,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COLAB_LACKS"
    )
    return set(ast.literal_eval(found))


def imported(code: str) -> set[str]:
    """The packages that code imports whatever it finds: not below an `if`, nor in a function that may not be called."""
    found, waiting = set(), list(ast.parse(code).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.With | ast.For | ast.While):
            waiting += node.body
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", notebooks.chapters(), ids=lambda path: path.stem)
def test_a_chapter_imports_what_colab_has(path):
    wanted = set().union(*(imported(cell.source) for cell in rules.code_cells(notebooks.read(path))))
    missing = wanted - ON_COLAB - brought() - OURS
    assert not missing, f"Colab lacks {missing}: put them into COLAB_LACKS (book/tools/bootstrap.py), or ask first"


def test_what_the_chapters_share_imports_what_colab_has():
    wanted = set().union(*(imported(path.read_text(encoding="utf-8")) for path in WORKBOOK))
    assert wanted and not wanted - ON_COLAB - brought() - OURS


@pytest.mark.parametrize(
    "code, found",
    [
        ("import torchtt.nn, os", {"torchtt"}),
        ("from torchtt import TT", {"torchtt"}),
        ("with x:\n    import torchtt", {"torchtt"}),
        ("if find_spec('torchtt'):\n    import torchtt", set()),
        ("def f():\n    import torchtt", set()),
    ],
)
def test_an_import_is_seen_where_it_would_fail(code, found):
    assert imported(code) == found
