"""Tables of positions and of tokens, for `rank_records`."""

import math

from book.tools.rank_parts import Part, binary, each, matrix, record, recorded, rival, score, thing
from ttref import balanced_modes, factorize, ttm_params


def positions(model: str, key: str, name: str) -> Part:
    """A table of positions: trains whose ranks a bound on the error chose, then a train for each column or row."""
    found, gpt2 = recorded("embeddings")["positions"][model], recorded("embeddings")["gpt2"]["positions"]
    places, width = found["shape"]
    dense = 4 * places * width

    def whole(form: str, label: str) -> Part:
        modes, records = found["modes"][form], []
        cut = next(k for k in range(len(modes) + 1) if math.prod(modes[:k]) == places)
        for one, noise in zip(found["real"], found["null"], strict=True):
            sizes = [round(dense / entry[f"{form}_ratio"]) for entry in (one, noise)]
            measured = {"error": one[f"{form}_error"], "bytes": sizes[0], "bound": one["eps"], "nullBytes": sizes[1]}
            records.append(record(one[f"{form}_ranks"], **measured))
        return matrix(form, label, modes[:cut] + [1] * (len(modes) - cut), [1] * cut + modes[cut:], records)

    def trains(real: list[Part], null: list[Part]) -> list[Part]:
        return [
            record(one["rank"], error=one["error"], nullError=noise["error"], bytes=round(dense / one["ratio"]))
            for one, noise in zip(real, null, strict=True)
        ]

    forms = [
        whole("two", "one train, the positions in two modes"),
        whole("fours", "one train, the positions in small modes"),
        whole("split", "one train, positions and width in small modes"),
        each(
            "columns",
            "a train for each column",
            binary(places),
            (width, places),
            trains(found["real_columns"], found["null_columns"]),
        ),
    ]
    rivals = [
        rival(f"SVD, rank {one['svd_rank']}", dense / one["svd_ratio"], one["eps"], most=True) for one in found["real"]
    ]
    if model == "GPT-2":
        records = trains(gpt2["real"], gpt2["white"])
        forms.append(each("rows", "a train for each row", binary(width), (places, width), records))
        for one in recorded("overview")["position_integers"]:
            rivals.append(rival(f"int{one['bits']} per row", dense / one["ratio"], one["error"]))
    chapter = "03b_does_a_train_pay"
    return thing(key, name, (places, width), "table", chapter, "embeddings", forms=forms, rivals=rivals)


def tokens(points: list[Part], rate: Part, names: list[str]) -> tuple[list[Part], list[Part]]:
    """Forms and rivals of a token table: `names` are the keys of a point's scores, `rate` has the trains of noise."""
    known, rows, width = {point["key"]: point for point in points}, rate["rows"], rate["width"]
    null = {point["key"]: point["error"] for point in rate["null"]}

    def measured(key: str, ranks: int) -> Part:
        point = known[key]
        values = {"error": point["error"], "bytes": point["nbytes"], "nullError": null.get(key)}
        return record(ranks, **values, scores=[point[name] for name in names])

    def of_rows(key: str, label: str, modes: tuple[int, ...], prefix: str, bits: int = 32) -> Part:
        ends = {name: name.removeprefix(prefix) for name in known if name.startswith(prefix)}
        records = [measured(name, int(end)) for name, end in ends.items() if end.isdigit()]
        return each(key, label, modes, (rows, width), records, bits)

    forms = [of_rows("rows", "a train for each row, modes of two", binary(width), "mps-")]
    forms.append(of_rows("pairs", "a train for each row, two modes", factorize(width, 2), "mps-square-"))
    if "mps-int8-1" in known:
        fours = (4,) * ((len(binary(width)) + 1) // 2)
        forms.append(of_rows("fours", "a train for each row, modes of four", fours, "mps-fours-"))
        forms.append(of_rows("unpadded", "a train for each row, not padded", factorize(width), "mps-unpadded-"))
        forms.append(of_rows("int8", "a train for each row, eight bits", binary(width), "mps-int8-", 8))
    row_modes, col_modes = balanced_modes(rows)[::-1], balanced_modes(width)
    records = []
    for ratio in (100, 9, 3):
        if f"ttm-{ratio}" in known:
            numbers = known[f"ttm-{ratio}"]["nbytes"] // 4
            rank = next(r for r in range(1, 2000) if ttm_params(row_modes, col_modes, r) == numbers)
            records.append(measured(f"ttm-{ratio}", rank))
    forms.append(matrix("matrix", "one TT-matrix for the table", row_modes, col_modes, records))
    rivals = [
        rival(f"{p['family']}: {p['setting']}", p["nbytes"], p["error"], scores=[p[name] for name in names])
        for p in points
        if not p["tt"]
    ]
    return forms, rivals


def smollm2() -> Part:
    """SmolLM2's token table, with the rise of the loss."""
    found = recorded("embeddings")
    forms, rivals = tokens(
        found["loss"]["points"], found["rate"]["SmolLM2-135M-Instruct"], ["wikitext2_input", "wikitext2_tied"]
    )
    return thing(
        "smollm2-tokens",
        "SmolLM2: table of tokens",
        (found["loss"]["rows"], found["loss"]["width"]),
        "table",
        "03c_frontier",
        "embeddings",
        forms=forms,
        rivals=rivals,
        scores=[
            score("loss rise, head left dense", "nats", 0, "lower"),
            score("loss rise, head tied", "nats", 0, "lower"),
        ],
        note="The weights had been rounded to eight bits by their makers, so eight bits cost nothing here.",
    )


def minilm() -> Part:
    """MiniLM's token table, with the cosine between the vectors of a sentence before and after."""
    found = recorded("embeddings")
    rate = found["rate"]["all-MiniLM-L6-v2"]
    forms, rivals = tokens(found["encoder"]["points"], rate, ["wikitext2_cosine"])
    scores = [score("cosine of sentence vectors", "", 1, "higher")]
    return thing(
        "minilm-tokens",
        "MiniLM: table of tokens",
        (rate["rows"], rate["width"]),
        "table",
        "03c_frontier",
        "embeddings",
        forms=forms,
        rivals=rivals,
        scores=scores,
    )
