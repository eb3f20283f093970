"""Token tables and position tables: tensor trains against the other methods of compression.

Loss of a language model, distance to the bounds of information theory, sentence vectors of a float32 encoder, healing,
position tables, GPT-2's matrices, growth. ``python -m studies.embeddings`` measures the points that the record lacks
and keeps the others, so a run that was stopped continues; ``python -m studies.embeddings loss growth`` does so for
these sections alone. To measure again, remove ``book/results/embeddings.json``, or a section from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from book.tools import results
from book.workbook import sources

from . import data, healing
from .encoder import LENGTH, Encoder
from .lists import by_frequency, coded, coded_by_frequency, shared, trains, weighted
from .loss import Scorer, Texts, front
from .methods import Method
from .tables import bounds, growth, position_table, row_trains

WHOLE_ROWS = (4096, 8192, 16384, 24576)


def scorer(folder: Path, windows: int = data.WINDOWS, pairs: int = data.PAIRS) -> tuple[Scorer, sources.LoadedModel]:
    """The language model and the texts it is scored on."""
    lm = sources.load_language_model()
    texts = Texts(
        {
            "wikitext2": data.windows(lm.tokenizer, data.wikitext(folder)[1], count=windows),
            "mrpc": [data.token_ids(lm.tokenizer, text) for text in data.mrpc(folder, pairs)],
        }
    )
    return Scorer(lm.model, texts), lm


def every_method(table: Tensor, orders: dict[str, Tensor]) -> list[Method]:
    """All methods for one table."""
    rows, width = table.shape
    coarse = coded_by_frequency(orders, WHOLE_ROWS[2:])
    adaptive = by_frequency(orders, width, WHOLE_ROWS)
    return [*trains(width), *shared(rows, width), *coded(), *coarse, *adaptive]


def loss(folder: Path, keep: Callable[[dict], None], recorded: dict) -> dict:
    """Loss rise of every method, for the look-up alone and for the tied head, and the Pareto fronts."""
    scored, lm = scorer(folder)
    before = {point["key"]: point for point in recorded.get("points", []) if recorded["model"] == lm.name}
    orders = data.frequency_orders(data.token_counts(lm.tokenizer, len(scored.table), folder))
    methods = every_method(scored.table, orders)
    values = {
        "model": lm.name,
        "note": lm.note,
        "rows": len(scored.table),
        "width": scored.table.shape[1],
        "scored_tokens": scored.texts.counts(),
        "dense_nats": scored.dense_losses(),
        "points": [],
    }
    columns = [f"{text}_{head}" for text in scored.texts.batches for head in ("input", "tied")]
    for point in missing(methods, before, scored.measure):
        values["points"].append(point)
        values["pareto"] = [front(values["points"], column) for column in columns]
        if point["key"] not in before:
            keep({"loss": values})
    return {"loss": values}


def missing(methods: list[Method], before: dict[str, dict], measure: Callable[[Method], dict]) -> Iterator[dict]:
    """One point for each method, in order: recorded or measured now."""
    for method in methods:
        yield before.get(method.key) or measure(method)


def encoder(folder: Path, keep: Callable[[dict], None], recorded: dict) -> dict:
    """Sentence vectors and retrieval with MiniLM, whose table was never quantized."""
    judge = Encoder(folder)
    before = {point["key"]: point for point in recorded.get("points", [])}
    counts = data.token_counts(judge.tokenizer, len(judge.table), folder)
    orders = data.frequency_orders(counts)
    methods = [method for method in every_method(judge.table, orders) if method.key in ENCODER_KEYS]
    methods += weighted(counts.double() + 1, *judge.table.shape)  # a token that was not seen counts as one
    values = {
        "model": judge.name,
        "note": judge.note,
        "sentences": {name: len(texts) for name, texts in judge.texts.items()},
        "medlars_tokens_read": LENGTH,
        "dense_map": recorded.get("dense_map") or judge.retrieval(),
        "points": [],
    }

    def measure(method: Method) -> dict:
        # A point added later may come from another machine than the record's other points.
        when = {"date": datetime.now(UTC).date().isoformat(), "processor": results.processor()}
        return judge.measure(method, retrieval=method.key in RETRIEVAL_KEYS) | {"measured": when}

    for point in missing(methods, before, measure):
        values["points"].append(point)
        measured = [point | {"distance": 1 - point["wikitext2_cosine"]} for point in values["points"]]
        values["pareto"] = [front(measured, "distance")]
        if point["key"] not in before:
            keep({"encoder": values})
    return {"encoder": values}


def rate(folder: Path, keep: Callable[[dict], None], recorded: dict) -> dict:
    """Bounds for both token tables, and trains on noise; the points of the methods are in ``loss`` and ``encoder``."""
    if recorded:
        return {"rate": recorded}
    loaded = (sources.load_language_model(), sources.load_encoder())
    return {"rate": {lm.name: bounds(lm.model.get_input_embeddings().weight.detach()) for lm in loaded}}


def heal(folder: Path, keep: Callable[[dict], None], recorded: dict) -> dict:
    """Trains and SVD trained in the same way."""
    healed = {"encoder": recorded.get("encoder") or healing.encoder(folder)}
    keep({"healing": healed})
    scored, lm = scorer(folder)
    found = recorded.get("language_model")
    healed["language_model"] = found or healing.language_model(folder, scored, lm.tokenizer)
    return {"healing": healed}


def positions(folder: Path, keep: Callable[[dict], None], recorded: dict) -> dict:
    """Position tables."""
    if recorded:
        return {"positions": recorded}
    return {"positions": {name: position_table(table) for name, table in data.position_tables(folder).items()}}


def gpt2(folder: Path, keep: Callable[[dict], None], recorded: dict) -> dict:
    """A train for each row of the matrices of GPT-2 that are at hand."""
    if recorded:
        return {"gpt2": recorded}
    return {"gpt2": {name: row_trains(matrix) for name, matrix in data.gpt2_matrices(folder).items()}}


def growing(folder: Path, keep: Callable[[dict], None], recorded: dict) -> dict:
    """Appended rows."""
    if recorded:
        return {"growth": recorded}
    return {"growth": growth(sources.load_language_model().model.get_input_embeddings().weight.detach())}


SECTIONS = {
    "positions": positions,
    "gpt2": gpt2,
    "rate": rate,
    "growth": growing,
    "loss": loss,
    "encoder": encoder,
    "healing": heal,
}
ENCODER_KEYS = {
    *("int4-best", "int3-best", "int3-group-best"),
    *("int8", "int4", "int3", "int2", "int4-group", "int3-group", "pq-48", "svd-3", "svd-9", "svd-int8-8"),
    *("tt-codes-2", "tt-codes-1", "tt-row-codes-4", "tt-row-codes-3", "tt-row-codes-2", "pca-codes-3", "pca-codes-2"),
    *("row-codes-4", "row-codes-3", "row-codes-2", "row-codes-1", "ttm-3", "ttm-9", "mps-1", "mps-2"),
    *("mps-4", "mps-square-4"),
    *("mps-rotated-int8-2", "mps-rotated-int8-4", "adaptive-counted-16384-1", "int8-counted-16384-mean-row"),
    *("int4-counted-16384-mean-row", "int4-counted-16384-mps-rank-1", "tt-codes-counted-16384"),
    *("rows-codes-counted-16384",),
}
RETRIEVAL_KEYS = {
    *("int4", "pq-48", "svd-9", "mps-2", "mps-rotated-int8-4", "tt-row-codes-2", "row-codes-2"),
    *("clusters-2000-int8", "int8-counted-2048-mean-row"),
}


def main(*names: str) -> None:
    """Run some sections, or all, and record them."""
    folder = sources.data_folder()
    if folder is None:
        return

    def recorded() -> dict:
        before = results.read("embeddings")
        return {name: before[name] for name in (*SECTIONS, "seconds") if name in before}

    def keep(found: dict) -> Path:
        values = recorded() | found
        return results.write(
            "embeddings",
            values,
            models=[
                values.get("loss", {}).get("model", "SmolLM2-135M-Instruct"),
                "all-MiniLM-L6-v2",
                "GPT-2 (wpe, attention outputs of six blocks)",
            ],
            data=["WikiText-2 valid", "MRPC train", "SST-2 train (counts only)", "scikit-learn prose", "MEDLARS"],
            command="python -m studies.embeddings",
        )

    for name in names or SECTIONS:
        start = time.perf_counter()
        print(f"-- {name}", flush=True)
        found = SECTIONS[name](folder, keep, recorded().get(name, {}))
        spent = recorded().get("seconds", {})
        seconds = spent | {name: spent.get(name, 0) + round(time.perf_counter() - start)}
        print(keep(found | {"seconds": seconds}), flush=True)
