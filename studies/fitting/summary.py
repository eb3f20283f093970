"""What the rows say together: means, counts, and how far the fit goes below TT-SVD and whitened SVD."""

from __future__ import annotations

from statistics import fmean

from ..orders import tau

METHODS = ("svd", "whitened", "tt_svd", "tt_svd_balanced", "balanced", "shared", "searched")
NEARLY = 0.999  # the same factors from two algorithms differ by less
SWEPT = ("vit", "vit_noise", "vit_shuffled", "minilm", "minilm_searched")


def at_ratio(rows: list[dict], end: str = "") -> dict:
    """Matrices at one ratio: mean errors, those where trains are below whitened SVD, shares of TT-SVD's error."""
    found: dict = {"ratio": rows[0]["ratio"], "matrices": len(rows)}
    there = [method for method in METHODS if method + end in rows[0]]
    found |= {method: fmean(row[method + end] for row in rows) for method in there}
    for method in ("balanced", "shared", "searched"):
        if method in there:
            found[f"{method}_below_whitened"] = sum(row[method + end] < NEARLY * row["whitened" + end] for row in rows)
            found[f"{method}_of_tt_svd_balanced"] = most(rows, method + end, "tt_svd_balanced" + end)
    if "searched" in there:
        found["searched_of_tt_svd"] = most(rows, "searched" + end, "tt_svd" + end)
        found["chose_plain_factors"] = sum(plain(row["modes"]) for row in rows)
    return found


def most(rows: list[dict], method: str, other: str) -> list[float]:
    """Least, mean and largest quotient of two methods' errors."""
    shares = [row[method] / row[other] for row in rows]
    return [min(shares), fmean(shares), max(shares)]


def plain(modes: str) -> bool:
    """True for ``128x1 1x64``: two plain factors, a train that is a matrix product."""
    pairs = modes.split()
    return len(pairs) == 2 and pairs[0].endswith("x1") and pairs[1].startswith("1x")


def by_ratio(rows: list[dict]) -> list[dict]:
    """:func:`at_ratio` for each ratio; a second time where there are texts of the same source."""
    found = []
    for ratio in sorted({row["ratio"] for row in rows}):
        at = [row for row in rows if row["ratio"] == ratio]
        found.append(at_ratio(at) | ({"same": at_ratio(at, "_same")} if "svd_same" in at[0] else {}))
    return found


def separating(rows: list[dict]) -> dict:
    """Kendall's tau of the shared projection's gain over whitened SVD with what might decide it."""
    gains = [row["shared"] / row["whitened"] for row in rows]
    reasons = {
        "inputs_rank": [row["inputs_rank"] for row in rows],
        "inputs_rank_of_width": [row["inputs_rank"] / row["width"] for row in rows],
        "outputs_rank_of_inputs_rank": [row["outputs_rank"] / row["inputs_rank"] for row in rows],
        "width": [row["width"] for row in rows],
        "whitened": [row["whitened"] for row in rows],
    }
    return {name: tau(values, gains) for name, values in reasons.items()}


def summary(sections: dict[str, list[dict]]) -> dict:
    """The summary of the sections that there are."""
    found: dict = {name: by_ratio(sections[name]) for name in SWEPT if sections.get(name)}
    for name in ("vit_integers", "minilm_integers"):
        if rows := sections.get(name):
            found[name] = {column: fmean(row[column] for row in rows) for column in rows[0] if column != "layer"}
    if rows := sections.get("spectra"):
        found["spectra"] = {"all": separating(rows)}
        for model in sorted({row["model"] for row in rows}):
            found["spectra"][model] = separating([row for row in rows if row["model"] == model])
    return found
