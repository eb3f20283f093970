"""Two convolutional networks for CIFAR-10: a published ResNet-20, and a plain one taught by it here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from book.workbook.store import built_once, sha256_of

from ..cifar import RESNET20, convolution, scores

VARIANTS, EPOCHS, BATCH, RATE = 8, 3, 64, 0.04  # of the plain network's lessons

pictures = RESNET20.pictures  # for both: ResNet-20 taught the plain network
resnet20 = RESNET20.read


class Plain(nn.Module):
    """Seven convolutions with 32, 64 and 128 channels, without shortcuts: a small relative of VGG."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ins = 3
        for k, outs in enumerate((32, 64, 64, 128, 128, 128, 128)):
            layers += [convolution(ins, outs), nn.BatchNorm2d(outs), nn.ReLU()]
            if k in (0, 2, 4):
                layers.append(nn.MaxPool2d(2))
            ins = outs
        self.features, self.linear = nn.Sequential(*layers), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, 32, 32)`` to ``(batch, 10)``."""
        return self.linear(self.features(x).mean((2, 3)))


def plain(folder: Path) -> nn.Module:
    """The plain network, trained here once and kept in the cache, in eval mode."""

    def build(target: Path) -> None:
        np.savez(target / "plain.npz", **{k: v.numpy() for k, v in taught(folder).state_dict().items()})

    at = built_once("plain-cifar10", build, source_sha256=sha256_of(folder / RESNET20.file))
    held = np.load(at / "plain.npz")
    model = Plain()
    model.load_state_dict({name: torch.from_numpy(held[name]) for name in held.files})
    return model.eval()


def taught(folder: Path) -> nn.Module:
    """A plain network that learns the scores of ResNet-20 on shifted, mirrored and mixed training pictures."""
    torch.manual_seed(0)
    teacher, model = resnet20(folder), Plain()
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


NETWORKS = {"ResNet-20": resnet20, "plain": plain}
