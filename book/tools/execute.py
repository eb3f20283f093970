"""Refresh the stored outputs of the notebooks: `make execute`, or `make execute NOTEBOOKS="notebooks/a.ipynb ..."`.

Each notebook runs in a fresh kernel, in its own folder, on two cores. The file is rewritten only if something that a
reader or nbval would notice has changed; otherwise it stays byte for byte, run time included.
"""

import base64
import copy
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

from book.tools import notebooks

IGNORED = "nbval-ignore-output"
QUIET = {"TQDM_DISABLE": "1"}  # progress bars do not belong into stored outputs
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def two_cores() -> None:
    """Restrict this process and its kernels to two cores, for which run times are given, if the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def run(nb: nbformat.NotebookNode, folder: Path) -> float:
    """Execute all cells in place in a fresh kernel and strip what differs from run to run; return the seconds it took.

    Raises:
        CellExecutionError: a cell raised; the message shows it.
    """
    os.environ.update(QUIET)
    start = time.perf_counter()
    client = NotebookClient(nb, timeout=600, kernel_name="python3", record_timing=False,
                            coalesce_streams=True, resources={"metadata": {"path": str(folder)}})
    client.execute()
    seconds = time.perf_counter() - start
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
    return seconds


def smaller(png: str) -> str:
    """Return a base64 PNG with an adaptive palette of 256 colors: less than half the bytes, and the same to the eye."""
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    dpi = picture.info.get("dpi", (150, 150))
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True, dpi=dpi)
    return base64.b64encode(out.getvalue()).decode()


def noticeable(nb: nbformat.NotebookNode) -> list:
    """Return what a reader or nbval would notice: everything but the outputs of cells tagged as not compared."""
    seen = []
    for cell in copy.deepcopy(nb.cells):
        shown: dict[str, list] = {}
        if cell.cell_type == "code" and IGNORED not in cell.metadata.get("tags", []):
            for output in cell.outputs:
                if output.output_type == "stream":  # the kernel may cut one text into several pieces
                    shown.setdefault(output.name, [""])[0] += output.text
                else:
                    shown.setdefault("shown", []).append(output.get("data", output))
        seen.append((cell.cell_type, cell.source, cell.metadata, cell.get("execution_count"), shown))
    return [nb.metadata, *seen]


def refresh(path: Path) -> str:
    """Run one notebook and store its outputs if they changed; return a line that says what happened."""
    stored = notebooks.read(path)
    fresh = copy.deepcopy(stored)
    notebooks.dress(fresh, path.name, notebooks.address())
    seconds = run(fresh, path.parent)
    if noticeable(fresh) == noticeable(stored):
        return f"{path.name}: unchanged ({seconds:.0f} s)"
    header = fresh.cells[0]
    header.source, found = notebooks.RUN_TIME.subn(f"**Run time.** About {max(1, round(seconds))} s on 2 cores.",
                                                   header.source)
    if found != 1:
        raise ValueError(f"{path.name}: the header needs one line '**Run time.** About 0 s on 2 cores.'")
    notebooks.write(path, fresh)
    return f"{path.name}: rewritten ({seconds:.0f} s)"


def main(names: list[str]) -> int:
    """Refresh the named notebooks, or all of them; return the exit status."""
    two_cores()
    failed = 0
    for path in [Path(name).resolve() for name in names] or notebooks.chapters():
        try:
            print(refresh(path), flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
            failed += 1
            print(f"{path.name}: left as it was\n{error}", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
