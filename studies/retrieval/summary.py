"""What follows from the rows: means over the collections, who is on the front, and which bars are met."""

from __future__ import annotations

from statistics import fmean

from book.workbook.figures import pareto_frontier

ID = 4  # bytes of a document's id, for all alike
MANY = 100_000  # documents, among whom shared tables are divided in a second account
NINETY_SIX, FULL, PLAIN = "TTIndex 192 x 4 bit", "TTIndex 384 x 4 bit", "FAISS PQ192x4fs"
BYTES = {"codes": "document", "everything": "everything", f"everything at {MANY:,}": "everything_of_many"}
FASTER = {  # than the fastest dense search at batches of 1, 32 and 256
    "int8": (("TTIndex 192 x 8 bit", "TTIndex 192 x 8 bit, scanned by FAISS"), (3.5, 5.0, 5.0)),
    "4 bit through FAISS": (("TTIndex 192 x 4 bit, scanned by FAISS",), (6.0, 5.0, 4.5)),
    "4 bit through turbovec": (("turbovec 4 bit, 192 coordinates",), (6.0, 5.0, 4.5)),
}


def billed(document: float, shared: int, count: int) -> dict[str, float]:
    """Bytes a document in three accounts: codes and scales alone, everything here, everything among 100,000."""
    whole = {"everything": document + ID + shared / count, "everything_of_many": document + ID + shared / MANY}
    return {"document": document, "shared": shared} | whole


def means(quality: list[dict]) -> list[dict]:
    """Each method that was measured on all collections: means, those of judgments relative to dense."""
    collections = list(dict.fromkeys(row["collection"] for row in quality))
    at = {(row["collection"], row["method"]): row for row in quality}
    found = []
    for method in dict.fromkeys(row["method"] for row in quality):
        rows = [at[name, method] for name in collections if (name, method) in at]
        if len(rows) < len(collections):
            continue
        dense = [at[name, "float32"] for name in collections]
        row = {"method": method, "family": rows[0]["family"]}
        row |= {name: fmean(each[name] for each in rows) for name in ("recall_10_of_dense", *BYTES.values())}
        for name in ("map", "ndcg_10", "recall_100"):
            row[f"{name}_of_dense"] = fmean(mine[name] / whole[name] for mine, whole in zip(rows, dense, strict=True))
        found.append(row)
    return found


def fronts(rows: list[dict]) -> list[dict]:
    """For both measures and each account, the methods that no other beats in both, by bytes; of equal ones the first.

    A train that cuts nothing is stored as float32: such a method adds nothing to it.
    """
    found = []
    for measure in ("recall_10_of_dense", "ndcg_10_of_dense"):
        for account, column in BYTES.items():
            first = {(row[column], -row[measure]): row["method"] for row in reversed(rows)}
            front = [first[point] for point in sorted(pareto_frontier(list(first)))]
            found.append({"measure": measure, "account": account, "front": front})
    return found


def bar(name: str, least: float, value: float, *, most: bool = False) -> dict:
    """A bar and what was found."""
    return {
        "bar": name,
        "most" if most else "least": least,
        "found": value,
        "met": value <= least if most else value >= least,
    }


def bars(rows: list[dict], speed: list[dict]) -> list[dict]:
    """What was promised before it was measured."""
    at, found = {row["method"]: row for row in rows}, []
    for method, size, gain, kept in ((NINETY_SIX, 98, 0.96, 0.88), (FULL, 194, 0.99, 0.94)):
        if method in at:
            row = at[method]
            found.append(bar(f"{method}: bytes of codes", size, row["document"], most=True))
            found.append(bar(f"{method}: nDCG@10 of dense", gain, row["ndcg_10_of_dense"]))
            found.append(bar(f"{method}: recall@10 of dense", kept, row["recall_10_of_dense"]))
    for case in speed:
        if case["documents"] == MANY:
            found += faster(case)
    return found


def faster(case: dict) -> list[dict]:
    """The bars at 100,000 documents."""
    at = {row["name"]: row for row in case["contenders"]}
    where = f"{case['documents']:,} documents, {case['threads']} threads"
    apart = at[NINETY_SIX]["recall_10_of_dense"] - at[PLAIN]["recall_10_of_dense"]
    found = [bar(f"{where}: recall@10 of {NINETY_SIX} above {PLAIN}", 0.05, apart)]
    for kind, (names, least) in FASTER.items():
        for batch, ratio in zip((1, 32, 256), least, strict=True):
            if not (there := [at[name] for name in names if name in at]):
                continue  # turbovec is optional
            best = max(row[f"ratio_{batch}"] for row in there)
            found.append(bar(f"{where}: {kind}, times as fast at a batch of {batch}", ratio, best))
    return found


def summed_up(values: dict) -> dict:
    """The sections that follow from others."""
    rows = means(values.get("quality", []))
    return {"means": rows, "fronts": fronts(rows), "bars": bars(rows, values.get("speed", []))} if rows else {}
