"""Two convolutional networks for CIFAR-10 as modules: a published ResNet-20, and a plain one taught by it here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from book.workbook.store import built_once, sha256_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILE = "resnet_cifar10/resnet20_cifar10.npz"
VARIANTS, EPOCHS, BATCH, RATE = 8, 3, 64, 0.04  # of the plain network's lessons


def pictures(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """The pictures of a part, "train" or "test", normalized, and their classes."""
    held = np.load(folder / "cifar10" / "cifar10_part.npz")
    x = torch.from_numpy(held[f"{part}_x"]).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (x - mean) / std, torch.from_numpy(held[f"{part}_y"].astype(np.int64))


def convolution(ins: int, outs: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution without bias."""
    return nn.Conv2d(ins, outs, 3, stride, 1, bias=False)


class Block(nn.Module):
    """Two convolutions beside a shortcut; where the picture is halved, the shortcut pads channels with zeros."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(ins, outs, stride), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = convolution(outs, outs), nn.BatchNorm2d(outs)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ins, height, width)`` to ``(batch, outs, height / stride, width / stride)``."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            quarter = x.shape[1] // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """A stem, three stages of three blocks with 16, 32 and 64 channels, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 16), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            ins, outs = widths[stage - 1 : stage + 1]
            blocks = [Block(ins, outs, 2 if stage > 1 else 1), Block(outs, outs, 1), Block(outs, outs, 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, 32, 32)`` to ``(batch, 10)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


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


def resnet20(folder: Path) -> nn.Module:
    """The trained ResNet-20, in eval mode."""
    held = np.load(folder / FILE)
    model = ResNet20()
    model.load_state_dict({name: torch.from_numpy(held[name]) for name in held.files}, strict=False)
    return model.eval()


def plain(folder: Path) -> nn.Module:
    """The plain network, trained here once and kept in the cache, in eval mode."""

    def build(target: Path) -> None:
        np.savez(target / "plain.npz", **{k: v.numpy() for k, v in taught(folder).state_dict().items()})

    at = built_once("plain-cifar10", build, source_sha256=sha256_of(folder / FILE))
    held = np.load(at / "plain.npz")
    model = Plain()
    model.load_state_dict({name: torch.from_numpy(held[name]) for name in held.files})
    return model.eval()


@torch.no_grad()
def scores(model: nn.Module, x: Tensor) -> Tensor:
    """The class scores of pictures, ``(pictures, 10)``."""
    return torch.cat([model(part) for part in x.split(128)])


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
