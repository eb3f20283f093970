"""The first table of the performance page: of each part the one ratio that matters, its rival, and where it loses."""

from __future__ import annotations

from ttref.atomic import replace

from . import page
from .page import short


def picked(record: dict, **wanted: object) -> dict[str, float]:
    """The ratios of the one case with these entries, by contender."""
    (case,) = (case for case in record["cases"] if wanted.items() <= case.items())
    return {row["name"]: row["ratio"] for row in case["rows"]}


def lines(records: dict[str, dict]) -> list[tuple[str, str, str, str]]:
    """What was made fast, how many times as fast, as what, and where it is not."""
    trains, layers, tables = (records[name] for name in ("speed", "layers", "tables"))
    rows = picked(trains, case="TT-SVD, Gaussian rows, 2^10, rank 4")
    matrix = picked(trains, case="ttm_svd, 3072 x 768 as (12, 16, 16) x (8, 8, 12), rank 8")
    wide = {"in_shape": [16, 16, 16], "out_shape": [43, 16, 16]}
    layer = [picked(layers, **wide, rank=8, batch=batch)["nn.Linear"] for batch in (1, 512)]
    slower = picked(layers, in_shape=[16, 16, 16], out_shape=[16, 16, 43], rank=16, batch=16)["torchTT"]
    dense, ours, again = (records["memory"]["cases"][0]["rows"][k] for k in range(3))
    taken = {row["name"]: row["parameters"] + row["training"] for row in (dense, ours, again)}
    one = picked(tables, case="look-up, one train a row, rank 4, 512 ids")
    shared = picked(tables, case="look-up, one TT-matrix, rank 8, 512 ids")
    step, brief = (picked(records["adapters"], kind=kind)["PEFT LoRA, r = 8"] for kind in ("train", "short"))
    exact = picked(records["integers"], case="512 x 512, rank 16, 8 bits, 1,000 vectors")
    plain = {"kind": "layer", "library": "PyTorch", "in_shape": [16, 16, 16], "rank": 8, "batch": 16}
    moved = picked(records["reshapes"], **plain)["copied"]
    turned = picked(records["reshapes"], case="rebuild 768 -> 3,072, rank 8, PyTorch")["copied"]
    return [
        (
            "[Decomposing many rows](#decomposing-many-small-tensors)",
            short(rows["TensorLy, loop"]),
            f"TensorLy's loop ({short(rows['tntorch, batch=True'])}× over tntorch's batch)",
            f"nowhere here; for one matrix it gains {short(matrix['TensorLy'])}×",
        ),
        (
            "[A linear layer, 4,096 to 11,008, rank 8, one vector](#one-linear-layer)",
            short(layer[0]),
            "`nn.Linear`",
            f"{short(layer[1])}× with 512 vectors; torchTT wins one cell by {short(1 / slower)}×; "
            "64 × 64 is slower than dense",
        ),
        (
            "[Memory of a training step](#how-much-memory-a-layer-takes)",
            short(taken[dense["name"]] / taken[again["name"]]),
            "`nn.Linear`, if it recomputes",
            f"without recomputation it takes {short(taken[ours['name']] / taken[dense['name']])}× the memory",
        ),
        (
            "[Looking up 512 ids, one train a row](#token-tables)",
            short(one["rebuild, then index"]),
            "rebuilding the table first",
            f"a dense table is {short(1 / one['nn.Embedding'])}× as fast",
        ),
        (
            "[Looking up 512 ids, one TT-matrix](#token-tables)",
            short(shared["tltorch FactorizedEmbedding"]),
            "tltorch's table",
            f"a dense table is {short(1 / shared['nn.Embedding'])}× as fast",
        ),
        (
            "[A training step with TT-LoRA](#fine-tuning-with-a-train-beside-each-weight)",
            short(step),
            "PEFT's LoRA, r = 8",
            f"on one short text LoRA is {short(1 / brief)}× as fast",
        ),
        (
            "[Exact integers, 8 bits](#integers-exact-to-the-last-bit)",
            short(exact["the same in int64"]),
            f"NumPy's int64 ({short(exact['apytypes'])}× over apytypes)",
            f"a dense layer, products alone, is {short(1 / exact['dense layer, products alone'])}× as fast",
        ),
        (
            "[A product without reshapes](#reshapes-executed-or-not)",
            short(moved),
            "the same with a copy at each core",
            f"rebuilding 768 to 3,072 in PyTorch: {short(turned)}×",
        ),
    ]


def markdown(records: dict[str, dict]) -> str:
    """The table."""
    head = "| What | gain | where it loses |\n| --- | --- | --- |\n"
    rows = lines(records)
    return head + "".join(f"| {what} | **{ratio}×** over {rival} | {loses} |\n" for what, ratio, rival, loses in rows)


def write(records: dict[str, dict]) -> None:
    """Replace the table."""
    replace(page.table("summary"), [markdown(records).encode()])
