"""Cases: LoRA in tensor-train form beside PEFT's LoRA, on the query and value layers of MiniLM.

A training step, inference with the adapter apart and merged, and one short text. Beside the times stand the
bytes that training and storing take.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from book.workbook import figures
from book.workbook.sources import load_encoder
from ttref import add_tt_lora, save_tt_lora
from ttref.lora.model import adapters
from ttref.lora.peft import TTLoraConfig

from . import page
from .measure import Case, Contender, repeated, run

RESULT, MODELS = "adapters", ["all-MiniLM-L6-v2"]
PACKAGES = ("torch", "peft")
BATCH, LENGTH, SHORT = 32, 64, 16
TARGETS = ["query", "value"]
RANK, LORA_RANK, ALPHA = 4, 8, 2.0
STRADDLING = (32, 18, 16, 16)
OURS = f"TT-LoRA, rank {RANK}"
PEER = f"PEFT LoRA, r = {LORA_RANK}"
BASE = "no adapter"
ROUNDS = 9
PANELS = {"train": "a training step", "apart": "inference, adapter apart"}
DRAWN = (OURS, PEER, "PEFT LoRA, r = 1", "TT-LoRA, rank 8", "rebuilt as in the published code", BASE)
RENAMED = (
    'Rows "forced: factors" and "forced: cores" are named as in the program that was measured. They are the orders '
    'that `TTLoRALinear.order` calls "two-gemm" and "right-to-left" today.'
)


def measure(limits: dict) -> dict:
    """All cases on the same number of threads, because most of each contender's work is the same model."""
    listed = tqdm(cases(), desc="adapters", disable=None)
    return {"cases": [run(case, limits, ROUNDS, limits["threads"]) | extra for case, extra in listed]}


class Rebuilding(nn.Module):
    """The method's published code: one einsum over all cores in every call, then a separate product."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.cores, self.alpha = adapter.base_layer, adapter.cores, adapter.alpha
        letters, bonds = "abcdefghij", "qrstuvwxyz"
        terms = [bonds[k] + letters[k] + bonds[k + 1] for k in range(len(self.cores))]
        self.equation = ",".join(terms) + "->" + letters[: len(terms)]

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in)`` to ``(*batch, out)``."""
        update = torch.einsum(self.equation, *self.cores).reshape(self.base_layer.weight.shape)
        return self.base_layer(x) + self.alpha * linear(x, update)


def models() -> dict[str, nn.Module]:
    """The encoder, and copies of it with nonzero adapters: all cores and factors are Gaussian."""
    torch.manual_seed(0)
    encoder = load_encoder().model.requires_grad_(False)

    def ours(**options: object) -> nn.Module:
        return add_tt_lora(copy.deepcopy(encoder), TARGETS, alpha=ALPHA, **options)

    def forced(order: str) -> nn.Module:
        model = ours(rank=RANK)
        for layer in adapters(model).values():
            layer.order = order
        return model

    def rebuilding() -> nn.Module:
        model = ours(rank=RANK)
        for name, layer in adapters(model).items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Rebuilding(layer))
        return model

    def peft(config: object) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(copy.deepcopy(encoder), config)

    found = {
        OURS: ours(rank=RANK),
        "the same through PEFT": peft(TTLoraConfig(rank=RANK, alpha=ALPHA, target_modules=TARGETS)),
        PEER: peft(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK * ALPHA, target_modules=TARGETS)),
        "PEFT LoRA, r = 1": peft(LoraConfig(r=1, lora_alpha=ALPHA, target_modules=TARGETS)),
        "TT-LoRA, rank 8": ours(rank=8),
        "TT-LoRA, a straddling mode": ours(rank=RANK, shape=STRADDLING),
        **{f"rank {RANK}, forced: {order}": forced(order) for order in ("two-gemm", "right-to-left", "dense")},
        "rebuilt as in the published code": rebuilding(),
        BASE: encoder,
    }
    for model in found.values():
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
    return {name: model.eval() for name, model in found.items()}  # no dropout, so that all do the same work


def step(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Forward, backward and Adam; without an adapter, backward only to the first layer's input."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-6) if parameters else None
    table = model.get_input_embeddings()

    def call() -> None:
        if optimizer is None:
            found = model(inputs_embeds=table(ids).requires_grad_())
        else:
            optimizer.zero_grad()
            found = model(input_ids=ids)
        found.last_hidden_state.square().mean().backward()
        if optimizer is not None:
            optimizer.step()

    return call


def forward(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """One forward pass without gradients."""

    def call() -> None:
        with torch.no_grad():
            model(input_ids=ids)

    return call


def flops(call: Callable[[], None]) -> float:
    """Floating-point operations of the matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def cases() -> list[tuple[Case, dict]]:
    """All cases; with the first, the sizes of the adapters."""
    found = models()
    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    short = ids[:1, :SHORT]
    training = {name: step(model, ids) for name, model in found.items()}
    apart = {name: forward(model, ids) for name, model in found.items()}
    alone = {name: forward(model, short) for name, model in found.items()}
    agree(found, short)
    listed = [
        (case(f"a training step, {BATCH} x {LENGTH} tokens", training), {"kind": "train", "weights": weights(found)}),
        (case(f"inference, adapter apart, {BATCH} x {LENGTH} tokens", apart), {"kind": "apart"}),
        (case(f"inference, adapter apart, 1 x {SHORT} tokens", alone, short=True), {"kind": "short"}),
    ]
    return [*listed, (merged(found, ids), {"kind": "merged"})]


def case(name: str, calls: dict[str, Callable[[], None]], *, short: bool = False) -> Case:
    """A case whose floor is the arithmetic of the model without an adapter."""
    contenders = [repeated(label, call) if short else Contender(label, call, 1) for label, call in calls.items()]
    return Case(name, "call", contenders, flops(calls[BASE]), 0, "flops32_per_s")


def merged(found: dict[str, nn.Module], ids: Tensor) -> Case:
    """Merged copies, which multiply by the base weights only."""
    ours, peer = copy.deepcopy(found[OURS]), copy.deepcopy(found[PEER])
    for layer in adapters(ours).values():
        layer.merge()
    peer.merge_adapter()
    calls = {OURS: forward(ours, ids), PEER: forward(peer, ids), BASE: forward(found[BASE], ids)}
    return case(f"inference, adapter merged, {BATCH} x {LENGTH} tokens", calls)


def agree(found: dict[str, nn.Module], ids: Tensor) -> None:
    """Every order of the rank-4 train must give the same answers before any of them is timed."""
    first = adapters(found[OURS])
    others = [name for name in found if name.startswith((f"rank {RANK}", "rebuilt"))]
    answers = {}
    with torch.no_grad():
        for name in (OURS, *others):
            for layer, model in zip(first.values(), wrapped(found[name]), strict=True):
                for core, source in zip(model.cores, layer.cores, strict=True):
                    core.copy_(source)
            answers[name] = found[name](input_ids=ids).last_hidden_state
    for name in others:
        torch.testing.assert_close(answers[name], answers[OURS], rtol=1e-3, atol=1e-4, msg=name)


def wrapped(model: nn.Module) -> list[nn.Module]:
    """The layers with cores, in order."""
    return list(adapters(model).values()) or [m for m in model.modules() if isinstance(m, Rebuilding)]


def weights(found: dict[str, nn.Module]) -> list[dict]:
    """Trainable numbers, bytes of Adam's two moments, and bytes of the adapter's file."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in (OURS, "the same through PEFT", "TT-LoRA, rank 8", "PEFT LoRA, r = 1", PEER):
            model, place = found[name], Path(folder, name.replace(" ", "_"))
            if isinstance(model, PeftModel):
                model.save_pretrained(place)
                file = place / "adapter_model.safetensors"
            else:
                save_tt_lora(model, file := place.with_suffix(".safetensors"))
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            rows.append(
                {"name": name, "trained": trained, "adam_bytes": 8 * trained, "file_bytes": file.stat().st_size}
            )
    return rows


def draw(results: dict) -> Figure:
    """Milliseconds of the main contenders: training in the upper panel, inference in the lower one."""
    figures.use_house_style()
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 6), layout="constrained")
    for ax, (kind, title) in zip(axes, PANELS.items(), strict=True):
        (case,) = (case for case in results["cases"] if case["kind"] == kind)
        rows = [row for row in case["rows"] if row["name"] in DRAWN][::-1]
        for place, row in enumerate(rows):
            color = "0.45" if row["name"] == BASE else figures.OKABE_ITO[1 if "PEFT LoRA" in row["name"] else 0]
            low, middle, high = (row[key] / 1000 for key in ("low_us", "median_us", "high_us"))
            ax.plot([low, high], [place, place], color=color, lw=1.5, marker="none")
            ax.plot(middle, place, color=color, marker="x" if row["name"] == BASE else "o")
        base = next(row["median_us"] for row in rows if row["name"] == BASE) / 1000
        ax.axvline(base, color="0.45", ls="--", lw=1)
        ax.set_yticks(range(len(rows)), [row["name"].replace(" as in the", "\nas in the") for row in rows])
        ax.set(xlabel="milliseconds", title=title)
        ax.set_xlim(left=0)
    return figure


def markdown(results: dict) -> str:
    """A table of the adapters' sizes, then the folded ones of their times."""
    (training,) = (case for case in results["cases"] if case["kind"] == "train")
    lines = ["| Adapter | Trained numbers | Adam's moments, kB | File, kB |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['name']} | {row['trained']:,} | {row['adam_bytes'] / 1000:,.0f} | {row['file_bytes'] / 1000:,.0f} |"
        for row in training["weights"]
    ]
    if any(row["name"].endswith("forced: factors") for row in training["rows"]):
        lines += ["", RENAMED]
    return "\n".join(lines) + "\n\n" + page.markdown(results)


def write(record: dict) -> None:
    """Redraw the figure and the tables of the performance page."""
    page.write(RESULT, markdown(record), draw(record))
