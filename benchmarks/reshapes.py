"""The cost of reshapes, and einsum on a train: the cases of ``copies`` and of ``einsums``, on one thread."""

from __future__ import annotations

from itertools import chain

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from . import copies, einsums, page
from .measure import machine, run

RESULT, MODELS = "reshapes", ["Gaussian layers"]
PACKAGES = ("torch", "numpy", "opt_einsum", "cotengra")
ROUNDS = 5


def measure(limits: dict) -> dict:
    """One case after the other, on one thread, with the limits of the machine on one thread."""
    torch.set_num_threads(1)
    alone = machine()
    cases = tqdm(chain(copies.cases(), einsums.cases()), desc="reshapes", disable=None)
    with torch.no_grad(), threadpool_limits(1):
        found = [run(case, alone, ROUNDS, 1) | extra for case, extra in cases]
    torch.set_num_threads(limits["threads"])
    return {"machine": alone, "cases": found}


def markdown(record: dict) -> str:
    """A line for each contraction with and without copies, then a table of the libraries that choose the order."""
    pairs = [case for case in record["cases"] if case["rows"][0]["name"] == "no copy"]
    orders = [case for case in record["cases"] if case not in pairs]
    lines = [
        page.measured(record),
        "",
        "| contraction | copied takes | no copy | fastest to slowest | copied | fastest to slowest |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in pairs:
        one, other = (" | ".join(page.spread(row)) for row in case["rows"][:2])
        lines.append(f"| {page.readable(case['case'])} | {case['rows'][1]['ratio']:.2f}× | {one} | {other} |")
    return page.folded(record, "\n".join(lines) + "\n" + page.times(orders))


def write(record: dict) -> None:
    """Rewrite the table of the performance page; the chapter draws its figure from the same record."""
    page.write(RESULT, markdown(record))
