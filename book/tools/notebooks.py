"""The notebooks as files: their paths, badge rows and bootstrap cells, reading and writing."""

import os
import re
import tomllib
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "_config.yml"
BOOTSTRAP = Path(__file__).with_name("bootstrap.py")

FOLDED = {
    "jupyter": {"source_hidden": True},
    "mystnb": {"code_prompt_show": "Show the setup that makes the book importable"},
    "tags": ["hide-cell"],
}
BADGES = re.compile(r"^\[Open in Colab\]\(.*\)\n\n", re.MULTILINE)
RUN_TIME = re.compile(r"^\*\*Run time\.\*\* About (\d+) s on 2 cores\.$", re.MULTILINE)


def chapters() -> list[Path]:
    """Return the notebooks of the book, in the order of their names."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def address() -> str:
    """Return the public address of the repository from `_config.yml`; empty while there is none."""
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["repository"]["url"] or ""


def revision() -> str:
    """Return the repository's tag of this version, so that a notebook fetches the `ttref` it was written for."""
    return "v" + tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def bootstrap_source(url: str) -> str:
    """Return the text of the bootstrap cell for a repository at `url`."""
    text = BOOTSTRAP.read_text(encoding="utf-8").rstrip("\n")
    tag = revision() if url else ""
    return text.replace('REPOSITORY, REVISION = "", ""', f'REPOSITORY, REVISION = "{url}", "{tag}"')


def badge_row(name: str, url: str) -> str:
    """Return the line of links above the goals of notebook `name`; empty without an address.

    The links are words, not pictures: a badge picture would be fetched from outside each time the page is opened.
    """
    if not url:
        return ""
    path = f"blob/{revision()}/notebooks/{name}"
    colab = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    binder = url.replace("https://github.com/", "https://mybinder.org/v2/gh/")
    raw = url.replace("https://github.com/", "https://raw.githubusercontent.com/")
    return (
        f"[Open in Colab]({colab}/{path}) · [Open in Binder]({binder}/{revision()}?labpath=notebooks/{name}) · "
        f"[View on GitHub]({url}/{path}) · [Download]({raw}/{revision()}/notebooks/{name})\n\n"
    )


def dress(nb: nbformat.NotebookNode, name: str, url: str) -> None:
    """Write the badge row and the folded bootstrap cell for `url` into the notebook `name`.

    Raises:
        ValueError: the first two cells are not the header and the bootstrap cell.
    """
    header, bootstrap = (nb.cells + [{}, {}])[:2]
    if header.get("id") != "header" or "\n**Goals.** " not in header.get("source", ""):
        raise ValueError(f"{name}: cell 0 needs the id 'header' and a line starting '**Goals.** ' (CONTRIBUTING.md)")
    if bootstrap.get("id") != "bootstrap" or bootstrap.get("cell_type") != "code":
        raise ValueError(f"{name}: cell 1 needs to be a code cell with the id 'bootstrap' (CONTRIBUTING.md)")
    bare = BADGES.sub("", header.source)
    header.source = bare.replace("\n**Goals.** ", f"\n{badge_row(name, url)}**Goals.** ", 1)
    bootstrap.source = bootstrap_source(url)
    bootstrap.metadata = nbformat.from_dict(FOLDED)


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook."""
    return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)


def write(path: Path, nb: nbformat.NotebookNode) -> bool:
    """Write a notebook in one step if its text differs from the file's; return True if it did."""
    text = nbformat.writes(nb) + "\n"
    if path.read_text(encoding="utf-8") == text:
        return False
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return True
