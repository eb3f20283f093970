"""Arms of the TT-LoRA study: classifiers with their trainable parameters, and one training run."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from book.workbook.finetuning import SentenceClassifier, trainable_parameters
from book.workbook.training import fit
from ttref import TTLoRALinear, add_tt_lora

from .tasks import SPLITS, Task, docstrings, encoder

QUERY_VALUE = ("query", "value")
ALL_LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
SHAPES = {
    "automatic": None,
    "aligned": (8, 6, 8, 8, 6, 8),
    "straddling": (32, 18, 16, 16),
    "coarse": (384, 384),
    "fine": (3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3),
}
BATCH = 32
EPOCHS = 2
RTOL = 1e-4  # singular values below this share of the largest count as zero: the cores are float32


@dataclass(frozen=True)
class Arm:
    """The settings of a training run.

    Attributes:
        method: "head", "full", "top" (the last two layers), "lora" (PEFT) or "ttlora".
        rank, alpha: Of the adapter. For both methods the update is multiplied by alpha (PEFT's ``lora_alpha`` is
            alpha times its rank).
        lr: Adam's learning rate, constant.
        head: "trained", or "frozen" at its random start, as the method's published code leaves it.
        targets: Names of the linear layers that get an adapter.
        layers: Indices of the encoder's layers that get adapters; None for all.
        init, shape: Of TT-LoRA; a shape may be a name in ``SHAPES``.
    """

    method: str
    rank: int = 0
    alpha: float = 1.0
    lr: float = 2e-3
    head: str = "trained"
    targets: Sequence[str] = QUERY_VALUE
    layers: tuple[int, ...] | None = None
    init: str = "zero_last"
    shape: str | Sequence[int] | None = None

    @property
    def key(self) -> str:
        """A readable string that identifies this arm in the record."""
        parts = [self.method, *([f"r{self.rank}"] if self.rank else []), f"lr{self.lr:g}"]
        default = Arm(self.method, self.rank)
        for name in ("alpha", "head", "targets", "layers", "init", "shape"):
            value = getattr(self, name)
            if value != getattr(default, name):
                parts.append(f"{name}={'-'.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(parts)


def build(arm: Arm, classes: int, seed: int) -> nn.Module:
    """A new classifier on a copy of MiniLM, with all parameters frozen that this arm does not train."""
    torch.manual_seed(seed)
    body = copy.deepcopy(encoder().model)
    body.pooler = None  # unused here, and no part of what full fine-tuning trains
    model = SentenceClassifier(body, classes, seed=seed)
    saved = ["head"] if arm.head == "trained" else []
    if arm.method == "lora":
        config = LoraConfig(
            r=arm.rank,
            lora_alpha=arm.alpha * arm.rank,
            target_modules=list(arm.targets),
            layers_to_transform=None if arm.layers is None else list(arm.layers),
            modules_to_save=saved or None,
        )
        return get_peft_model(model, config)
    if arm.method == "ttlora":
        shape = SHAPES[arm.shape] if isinstance(arm.shape, str) else arm.shape
        return add_tt_lora(
            model, arm.targets, rank=arm.rank, alpha=arm.alpha, shape=shape, init=arm.init, modules_to_save=saved
        )
    if arm.method == "head":
        model.encoder.requires_grad_(False)
    elif arm.method == "top":
        model.encoder.requires_grad_(False)
        model.encoder.encoder.layer[-2:].requires_grad_(True)
    elif arm.method != "full":
        raise ValueError(f"unknown method {arm.method!r}")
    model.head.requires_grad_(arm.head == "trained")
    return model


@functools.cache
@torch.no_grad()
def vectors(ids: Tensor) -> Tensor:
    """The head's inputs from the frozen encoder: the same in every step, so computed once."""
    model = SentenceClassifier(copy.deepcopy(encoder().model), 1)
    model.head = nn.Identity()
    return model(ids)


@torch.no_grad()
def predicted(model: nn.Module, task: Task, split: str) -> Tensor:
    """The predicted class of each text."""
    return model(task.ids[split]).argmax(-1)


def run(
    arm: Arm,
    task: Task,
    seed: int,
    *,
    epochs: int = EPOCHS,
    train: int | None = None,
    splits: Sequence[str] = ("validation", "test"),
    report: Callable[[dict], None] | None = None,
) -> tuple[dict, dict[str, Tensor]]:
    """Train one arm once; returns its record and its predictions on each split.

    Args:
        arm: The arm.
        task: The task.
        seed: For the initial head and adapter and the order of the texts.
        epochs: Passes over the training texts.
        train: Number of training texts, from the first; all if left out.
        splits: Splits on which it is measured.
        report: Called after each epoch with ``epoch``, the accuracy on each split, and ``right``: for each split
            a list of bool, one for every text.

    Raises:
        FloatingPointError: The loss or a parameter became NaN or infinite.
    """
    model = build(arm, len(task.classes), seed)
    counts = trainable_parameters(model)
    if arm.method == "head":
        task, model = task._replace(ids={split: vectors(ids) for split, ids in task.ids.items()}), model.head
    ids, labels = task.ids["train"][:train], task.labels["train"][:train]
    aside = 0.0

    def after(epoch: int) -> None:
        nonlocal aside
        start = time.process_time()
        right = {split: predicted(model, task, split) == task.labels[split] for split in splits}
        aside += time.process_time() - start
        scores = {split: found.double().mean().item() for split, found in right.items()}
        report({"epoch": epoch} | scores | {"right": {split: found.tolist() for split, found in right.items()}})

    start = time.process_time()
    losses = fit(
        model, ids, labels, epochs=epochs, lr=arm.lr, batch_size=BATCH, seed=seed, after_epoch=report and after
    )
    spent = time.process_time() - start - aside
    model.eval()
    answers = {split: predicted(model, task, split) for split in splits}
    point = {
        "adapter_params": counts["adapter"],
        "head_params": counts["head"],
        "losses": [round(loss, 4) for loss in losses],
        "cpu_seconds_per_step": round(spent / (epochs * -(-len(ids) // BATCH)), 3),
    }
    scores = {split: round(accuracy(answers[split], task.labels[split]), 6) for split in splits}
    return point | scores | updates(model), answers


def accuracy(answers: Tensor, labels: Tensor) -> float:
    """Share of correct predictions."""
    return (answers == labels).double().mean().item()


@torch.no_grad()
def updates(model: nn.Module) -> dict:
    """Numerical matrix ranks of the trained updates, and their Frobenius norms relative to the frozen weights."""
    pairs = []
    for module in model.modules():
        if isinstance(module, TTLoRALinear):
            pairs.append((module.get_delta_weight(), module.base_layer.weight))
        elif isinstance(module, LoraLayer):
            pairs.append((module.get_delta_weight("default"), module.get_base_layer().weight))
    if not pairs:
        return {}
    if not all(delta.isfinite().all() for delta, _ in pairs):
        raise FloatingPointError("an update overflowed although its factors are finite")
    ranks = [int(torch.linalg.matrix_rank(delta.double(), rtol=RTOL)) for delta, _ in pairs]
    norms = [(delta.norm() / weight.norm()).item() for delta, weight in pairs]
    return {
        "update": {
            "matrices": len(pairs),
            "rank_mean": sum(ranks) / len(ranks),
            "rank_max": max(ranks),
            "relative_norm": round(sum(norms) / len(norms), 5),
        }
    }


def run_trial(
    config: dict, report: Callable[[dict], None] | None = None, *, splits: Sequence[str] = SPLITS[1:2]
) -> dict:
    """One TT-LoRA run on the docstring task, from plain values: a trial of a search.

    Args:
        config: ``rank``, ``alpha``, ``lr``, ``shape`` (modes, a name in ``SHAPES``, or None), and if wanted ``init``,
            ``targets``, ``head``, ``seed``, ``epochs``, ``train``.
        report: Called after each epoch with ``epoch``, the accuracy on each split, and ``right``: for each split
            a list of bool, one for every text.
        splits: Splits on which it is measured.

    Returns:
        The record of ``run``, and ``right`` as in a report.

    Raises:
        FloatingPointError: The loss or a parameter became NaN or infinite.
    """
    chosen = dict(config)
    extra = {name: chosen.pop(name) for name in ("epochs", "train") if name in chosen}
    seed, task = chosen.pop("seed", 0), docstrings()
    point, answers = run(Arm("ttlora", **chosen), task, seed, splits=splits, report=report, **extra)
    return point | {"right": {split: (answers[split] == task.labels[split]).tolist() for split in splits}}
