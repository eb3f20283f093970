"""Characters of Shakespeare and pictures of CIFAR-10 in patches, from files that are not shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import cifar
from .network import Form

TEXT = "tinyshakespeare/input.txt"
LENGTH, PATCH = 64, 4
BATCH = 16  # windows or pictures in a step: 1,024 symbols or patches


class Task(NamedTuple):
    """Batches to train on, endlessly, and a network's scores on half of what is held out, "validation" or "test"."""

    form: Form
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    scores: Callable[[nn.Module, str], dict[str, float]]


def characters(folder: Path) -> Task:
    """The next character: nine tenths of the text to train on, 256 windows of the rest to judge by."""
    text = (folder / TEXT).read_text(encoding="utf-8")
    known = sorted(set(text))
    codes = torch.from_numpy(np.searchsorted(known, list(text)))
    train, rest = codes[: len(codes) * 9 // 10], codes[len(codes) * 9 // 10 :]
    starts = torch.linspace(0, len(rest) - LENGTH - 1, 256).long()
    held = rest[starts[:, None] + torch.arange(LENGTH + 1)]

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(train) - LENGTH, (BATCH, 1), generator=generator)
            windows = train[starts + torch.arange(LENGTH + 1)]
            yield windows[:, :-1], windows[:, 1:]

    form = Form(LENGTH, len(known), words=len(known))
    return Task(form, batches, lambda model, part: judged(model, held[:, :-1], held[:, 1:], part))


def pictures(folder: Path) -> Task:
    """The class of a picture of 64 patches: 3,044 pictures, shifted and mirrored, to train on, 761 to judge by."""
    (x, y), (x_test, y_test) = (cifar.pixels(folder, part) for part in ("train", "test"))
    mean, spread = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x, x_test = (x - mean) / spread, (x_test - mean) / spread
    padded = F.pad(x, (4, 4, 4, 4))

    def patches(x: Tensor) -> Tensor:
        return F.unfold(x, PATCH, stride=PATCH).mT

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            ids = torch.randint(len(x), (BATCH,), generator=generator)
            down, right = (int(n) for n in torch.randint(9, (2,), generator=generator))
            taken = padded[ids, :, down : down + 32, right : right + 32]
            turned = torch.rand(BATCH, generator=generator) < 0.5
            yield patches(torch.where(turned[:, None, None, None], taken.flip(3), taken)), y[ids]

    form = Form((32 // PATCH) ** 2, 10, entries=3 * PATCH**2)
    return Task(form, batches, lambda model, part: judged(model, patches(x_test), y_test, part))


@torch.no_grad()
def judged(model: nn.Module, x: Tensor, y: Tensor, part: str) -> dict[str, float]:
    """Mean cross entropy in nats and the share of right answers, on every other example."""
    model.eval()
    x, y = (held[part == "test" :: 2] for held in (x, y))
    scores = torch.cat([model(part) for part in x.split(64)]).flatten(0, -2)
    model.train()
    y = y.flatten()
    return {"loss": F.cross_entropy(scores, y).item(), "right": (scores.argmax(1) == y).double().mean().item()}


TASKS: dict[str, Callable[[Path], Task]] = {"characters": characters, "pictures": pictures}
