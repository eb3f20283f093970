"""Time of MiniLM for short and long sentences; tokens a second of SmolLM2, prefill and decoding. All forms in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Case, repeated, run

from .costing import Work, of_model, told
from .variants import FORMS, folder, int8_linear, linears, load

SENTENCES = ((1, 32), (1, 128), (64, 32), (64, 128))  # texts at once, tokens of each
PREFILL = (128, 512)
BEFORE, NEW = 128, 8  # tokens in the cache, tokens that are decoded one by one
ROUNDS = 3


def int8_speed(limits: dict[str, float]) -> float:
    """Integer operations a second of torch's int8 layer at its best, the roof of the form ``int8``."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (2048, 2048), dtype=torch.int8, generator=draw)
    layer, x = int8_linear(codes, torch.ones(2048), None), torch.randn(2048, 2048, generator=draw)
    case = Case("", "call", [repeated("int8", lambda: layer(x))], 0, 0, "flops32_per_s")
    return 1e6 * 2 * 2048**3 / run(case, limits, threads=1)["rows"][0]["low_us"]


def forms(model: str) -> dict[str, nn.Module]:
    """All forms of a model by name."""
    return {form: load(model, form, folder(model, form)) for form in FORMS}


def ids_of(net: nn.Module, batch: int, length: int) -> Tensor:
    """Token ids, the same in every run."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(1000, net.config.vocab_size - 1000, (batch, length), generator=draw)


def compared(
    calls: dict[str, Callable[[], object]], works: dict[str, list[Work]], items: int, limits: dict[str, float]
) -> list[dict]:
    """Rows of one case, in turns within each round: milliseconds of a call, ratios to the first, the roofline's."""
    with torch.inference_mode():
        contenders = [repeated(name, call) for name, call in calls.items()]
        measured = run(Case("", "call", contenders, 0, 0, "flops32_per_s"), limits, ROUNDS, threads=1)
    rows = []
    for row in measured["rows"]:
        found = {"form": row["name"]}
        found |= {f"{name}_ms": row[f"{name}_us"] / 1e3 for name in ("median", "low", "high")}
        found |= {"times_dense": row["ratio"], "tokens_per_s": 1e6 * items / row["median_us"]}
        rows.append(found | (told(works[row["name"]], limits) if row["name"] in works else {}))
    return rows


def answering(net: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """A call that runs an encoder."""
    return lambda: net(ids).last_hidden_state


def minilm(limits: dict[str, float], before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``minilm``."""
    if all(f"{batch} x {length}" in before for batch, length in SENTENCES):
        return
    nets = forms("minilm")
    names = linears("minilm", nets["dense"])
    for batch, length in SENTENCES:
        if (key := f"{batch} x {length}") not in before:
            ids = ids_of(nets["dense"], batch, length)
            calls = {form: answering(net, ids) for form, net in nets.items()}
            works = {form: of_model("minilm", net, names, batch, length) for form, net in nets.items()}
            rows = compared(calls, works, batch * length, limits)
            yield {"key": key, "batch": batch, "length": length, "rows": rows}


def smollm2(limits: dict[str, float], before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``smollm2``."""
    wanted = [f"prefill {length}" for length in PREFILL] + ["decode"]
    if all(key in before for key in wanted):
        return
    nets = forms("smollm2")
    names = linears("smollm2", nets["dense"])
    for length in PREFILL:
        if (key := f"prefill {length}") not in before:
            ids = ids_of(nets["dense"], 1, length)
            calls = {form: prefilling(net, ids) for form, net in nets.items()}
            works = {form: of_model("smollm2", net, names, 1, length) for form, net in nets.items()}
            yield {"key": key, "length": length, "rows": compared(calls, works, length, limits)}
    if "decode" not in before:
        ids = ids_of(nets["dense"], 1, BEFORE)
        with torch.inference_mode():
            calls = {form: decoding(net, ids) for form, net in nets.items()}
        works = {
            form: [work for k in range(NEW) for work in of_model("smollm2", net, names, 1, 1, BEFORE + k)]
            for form, net in nets.items()
        }
        yield {"key": "decode", "before": BEFORE, "new": NEW, "rows": compared(calls, works, NEW, limits)}


def prefilling(net: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """A call that reads a prompt and gives the logits of its last token."""
    return lambda: net(ids, use_cache=True, logits_to_keep=1).logits


def decoding(net: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """A call that decodes some tokens greedily after a prompt, which is read once, here."""
    first = net(ids, use_cache=True, logits_to_keep=1)
    cache, start = first.past_key_values, first.logits[:, -1].argmax(-1, keepdim=True)

    def call() -> Tensor:
        token = start
        for _ in range(NEW):
            token = net(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        cache.crop(-NEW)  # the next call begins after the prompt, too
        return token

    return call
