"""Convolutional networks for CIFAR-10: a published ResNet-20, and two plain ones taught by it here."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from book.workbook.store import built_once, sha256_of

from ..cifar import RESNET20, convolution, scores

VARIANTS, EPOCHS, BATCH, RATE = 8, 3, 64, 0.04  # of the lessons
WIDE = (32, 64, 64, 128, 128, 128, 128)
NARROW = (16, 16, 32, 32, 32, 64, 64)  # channels that have no twin to stand in for them

pictures = RESNET20.pictures  # for all: ResNet-20 taught the others
resnet20 = RESNET20.read


class Plain(nn.Module):
    """Seven convolutions without shortcuts: a small relative of VGG.

    Args:
        widths: Channels of each.
    """

    def __init__(self, widths: Sequence[int] = WIDE) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ins = 3
        for k, outs in enumerate(widths):
            layers += [convolution(ins, outs), nn.BatchNorm2d(outs), nn.ReLU()]
            if k in (0, 2, 4):
                layers.append(nn.MaxPool2d(2))
            ins = outs
        self.features, self.linear = nn.Sequential(*layers), nn.Linear(ins, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, 32, 32)`` to ``(batch, 10)``."""
        return self.linear(self.features(x).mean((2, 3)))


def plain(folder: Path, name: str = "plain", widths: Sequence[int] = WIDE) -> nn.Module:
    """A plain network, trained here once and kept in the cache, in eval mode."""

    def build(target: Path) -> None:
        np.savez(target / "plain.npz", **{k: v.numpy() for k, v in taught(folder, widths).state_dict().items()})

    at = built_once(f"{name}-cifar10", build, source_sha256=sha256_of(folder / RESNET20.file))
    held = np.load(at / "plain.npz")
    model = Plain(widths)
    model.load_state_dict({name: torch.from_numpy(held[name]) for name in held.files})
    return model.eval()


def taught(folder: Path, widths: Sequence[int]) -> nn.Module:
    """A plain network that learns the scores of ResNet-20 on shifted, mirrored and mixed training pictures."""
    torch.manual_seed(0)
    teacher, model = resnet20(folder), Plain(widths)
    x = pictures(folder, "train")[0]
    x = torch.cat([mixed(shifted(x)) for _ in range(VARIANTS)])
    wanted = (scores(teacher, x) / 4).softmax(-1)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, 10 * k / steps) * rest(k / steps))
    for _ in range(EPOCHS):
        for ids in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            loss = -16 * (wanted[ids] * (model(x[ids]) / 4).log_softmax(-1)).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def rest(part: float) -> float:
    """Half a cosine from one to zero."""
    return (1 + math.cos(math.pi * min(part, 1.0))) / 2


def shifted(x: Tensor) -> Tensor:
    """Each picture shifted by up to four pixels and mirrored at random."""
    padded = F.pad(x, (4, 4, 4, 4))
    found = torch.empty_like(x)
    for k, (dy, dx) in enumerate(torch.randint(0, 9, (len(x), 2)).tolist()):
        part = padded[k, :, dy : dy + 32, dx : dx + 32]
        found[k] = part.flip(-1) if torch.rand(()) < 0.5 else part
    return found


def mixed(x: Tensor) -> Tensor:
    """Every picture mixed with another one, at random shares."""
    share = torch.rand(len(x), 1, 1, 1) * 0.5 + 0.5
    return share * x + (1 - share) * x[torch.randperm(len(x))]


NETWORKS = {
    "ResNet-20": resnet20,
    "plain": plain,
    "narrow": functools.partial(plain, name="narrow", widths=NARROW),
}
