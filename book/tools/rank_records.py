"""What the rank explorer knows: objects, ways to write them as trains, and what was recorded at which ranks.

`objects()` reads `book/results/` at each build, so the page cannot outlive its records. An **object** is a matrix with
its chapter, its scores beside the error, and its rivals. A **form** is one way to write it: a TT-matrix with row and
column modes, or one train for each row. A **record** is what was measured at one cap on the ranks, or at the inner
ranks that a bound on the error chose. The page computes sizes itself; `bytes` are those that the study wrote down, and
a test compares the two.
"""

from book.tools.rank_parts import Part, matrix, record, recorded, rival, score, thing
from book.tools.rank_tables import minilm, positions, smollm2
from ttref import ttm_params


def objects() -> list[Part]:
    """All objects, in the order of the menu."""
    return [
        positions("GPT-2", "gpt2-positions", "GPT-2: table of positions"),
        positions("MiniLM", "minilm-positions", "MiniLM: table of positions"),
        positions("sinusoidal", "waves", "Positions as sines and cosines, not learned"),
        smollm2(),
        minilm(),
        digits(),
        pictures(),
        query(),
        adapters(),
    ]


def digits() -> Part:
    """The first layer of a digit network, cut after training, at every rank."""
    found = recorded("toy_classifier")["ranks"]
    paired = (4, 16), (8, 8)

    def of(method: str) -> list[Part]:
        return [
            record(
                p["rank"],
                error=p["weight_error"],
                nullError=p["null_error"],
                bytes=p["nbytes"],
                scores=[p["test_accuracy"]],
            )
            for p in found["points"]
            if p["method"] == method
        ]

    forms = [
        matrix(f"pairs-{a}", "one TT-matrix", (a, b), (a, b), of(f"TT-matrix ({a},{b})x({a},{b})")) for a, b in paired
    ]
    forms.append(
        matrix("source", "one train, inputs before outputs", (1, 1, 4, 16), (4, 16, 1, 1), of("TT as in the source"))
    )
    rivals = []
    for p in found["points"]:
        if p["method"] in ("SVD", "integers"):
            name = f"SVD, rank {p['rank']}" if "rank" in p else f"int{p['bits']} per row"
            rivals.append(rival(name, p["nbytes"], p["weight_error"], scores=[p["test_accuracy"]]))
    return thing(
        "digits",
        "Digits: a layer cut after training",
        (64, 64),
        "layer",
        "02_toy_classifier",
        "toy_classifier",
        forms=forms,
        rivals=rivals,
        scores=[score("test accuracy", "%", found["dense"]["test_accuracy"], "higher")],
    )


def pictures() -> Part:
    """The first layer of a network for MNIST: trained as a train, or cut and trained on; null: shuffled pixels."""
    rows = recorded("toy_classifier")["mnist"]["rows"]
    family, starts = "TT-matrix (28,28)x(16,32)", ("from scratch", "healed")
    test = {(p["family"], p["start"], p["rank"]): p for p in rows if p["family"].startswith("TT")}
    dense = {p["start"]: p["test_accuracy"] for p in rows if p["family"] == "dense"}

    def accuracy(name: str, start: str, rank: int) -> float | None:
        return test[name, start, rank]["test_accuracy"] if (name, start, rank) in test else None

    records = []
    for rank in sorted({rank for name, _, rank in test if name == family}):
        shuffled = accuracy(f"{family}, pixels shuffled", starts[0], rank)
        both = [accuracy(family, start, rank) for start in starts]
        nbytes = 4 * test[family, starts[0], rank]["params"]
        records.append(record(rank, bytes=nbytes, scores=both, nullScores=shuffled and [shuffled, None]))
    rivals = []
    for p in rows:
        if p["family"] not in ("dense", *{name for name, *_ in test}):
            at = 0 if p["start"] == starts[0] else 1
            size = {"SVD": f", rank {p.get('rank')}", "narrower dense": f", {p.get('width')} hidden units"}
            late = ", not trained on" if p["start"] == "not trained again" else ""
            name = p["family"] + size.get(p["family"], "") + late
            both = [p["test_accuracy"] if k == at else None for k in range(2)]
            rivals.append(rival(name, p.get("nbytes", 4 * (p.get("params") or 0)), scores=both))
    return thing(
        "pictures",
        "MNIST: a layer trained as a train",
        (512, 784),
        "layer",
        "02_toy_classifier",
        "toy_classifier",
        forms=[matrix("picture", "rows and columns of the picture", (16, 32), (28, 28), records)],
        rivals=rivals,
        scores=[
            score("test accuracy, trained from the start", "%", dense[starts[0]], "higher"),
            score("test accuracy, cut and trained on", "%", dense[starts[1]], "higher"),
        ],
        null="pixels shuffled",
    )


def query() -> Part:
    """A query matrix of a vision transformer, fitted to what it sees; the error is that of its outputs."""
    found, layer, side = recorded("fitting"), "0.query", 128
    real = {p["ratio"]: p for p in found["vit"] if p["layer"] == layer}
    null = {p["ratio"]: p for p in found["vit_noise"] if p["layer"] == layer}

    def of(method: str, a: tuple[int, ...], b: tuple[int, ...]) -> list[Part]:
        each_rank = ttm_params(a, b, 1)
        found = []
        for ratio in sorted(real, reverse=True):
            rank = side * side // ratio // each_rank
            noise = null[ratio][method] if ratio in null else None
            found.append(record(rank, error=real[ratio][method], nullError=noise, bytes=4 * rank * each_rank))
        return found

    halves, even = ((side, 1), (2, side // 2)), ((8, 16), (16, 8))
    forms = [
        matrix("halves", "fitted, one projection for both halves", *halves, of("shared", *halves)),
        matrix("even", "fitted, two even cores", *even, of("balanced", *even)),
        matrix("plain", "TT-SVD, two even cores", *even, of("tt_svd_balanced", *even)),
    ]
    rivals = []
    for ratio, p in sorted(real.items()):
        rank = side * side // ratio // (2 * side)
        rivals.append(rival(f"SVD, rank {rank}", 8 * side * rank, p["svd"]))
        rivals.append(rival(f"whitened SVD, rank {rank}", 8 * side * rank, p["whitened"]))
    (rounded,) = (p for p in found["vit_integers"] if p["layer"] == layer)
    for key, label in (("int", "integers"), ("gptq", "integers, GPTQ")):
        for bits in (1, 2, 3, 4):
            if f"{key}{bits}" in rounded:  # a scale of two bytes for 64 weights
                nbytes = side * side * (bits / 8 + 2 / 64)
                rivals.append(rival(f"{label}, {bits} bits in groups", nbytes, rounded[f"{key}{bits}"]))
    return thing(
        "query",
        "Vision transformer: a query matrix",
        (side, side),
        "layer",
        "04_partial_tensorization",
        "fitting",
        forms=forms,
        rivals=rivals,
        errorOf="outputs",
    )


def adapters() -> Part:
    """The updates of twelve query and value matrices of MiniLM, with the accuracy of the model; null: without them."""
    points = recorded("tt_lora")["grid"]["points"]["trained"]
    best: dict[int, Part] = {}
    for p in points:  # of two learning rates, the one that validation prefers
        if p["method"] == "ttlora" and p["validation"] > best.get(p["rank"], {"validation": 0})["validation"]:
            best[p["rank"]] = p
    without = [next(p["test"] for p in points if p["method"] == "head")]
    records = [
        record(rank, bytes=4 * p["adapter_params"], scores=[p["test"]], nullScores=without)
        for rank, p in sorted(best.items())
    ]
    names = {
        "head": "no adapter, only the head trained",
        "top": "the last two blocks trained",
        "full": "all weights trained",
    }
    rivals = []
    for p in points:
        if p["method"] != "ttlora":
            part = " in four of six blocks" if p["layers"] else ""
            name = names.get(p["method"], f"LoRA, rank {p['rank']}{part}")
            rivals.append(rival(name, 4 * p["adapter_params"], scores=[p["test"]]))
    modes = (8, 8, 6)
    forms = [matrix("automatic", "outputs before inputs", (*modes, 1, 1, 1), (1, 1, 1, *modes[::-1]), records)]
    return thing(
        "adapters",
        "MiniLM: TT-LoRA on twelve matrices",
        (384, 384),
        "adapter",
        "05_tt_lora",
        "tt_lora",
        forms=forms,
        rivals=rivals,
        scores=[score("test accuracy", "%", next(p["test"] for p in points if p["method"] == "full"), "higher")],
        copies=12,
        null=names["head"],
        nullBytes=0,
        whole="all weights trained",
    )
