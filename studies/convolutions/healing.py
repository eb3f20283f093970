"""Healing: stored kernels trained on, as they are stored. Integers stay integers, by the straight-through estimator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttref.convolving import Geometry, kernel_of
from ttref.integer_cores import quantize_cores

from ..cifar import scores
from . import methods
from .methods import Kernel, Modes
from .networks import pictures, rest, shifted

STEPS, BATCH = 120, 32
RATE = 5e-3  # of the root mean square of a core's numbers


class Stored(nn.Module):
    """A convolution whose kernel is a train of integer cores, or one core: the numbers behind the codes are trained."""

    def __init__(self, conv: nn.Conv2d, kernel: Kernel, modes: Modes, cores: Sequence[Tensor], bits: int, group: int):
        super().__init__()
        weight, gram, _ = kernel.read(modes)
        _, scales, made = quantize_cores(cores, weight, gram, bits, group=group, rounds=0)
        self.cores = nn.ParameterList([core.float() for core in made])
        self.scales = nn.ParameterList([scale.float() for scale in scales])
        self.top, self.conv = 2 ** (bits - 1), conv
        sizes = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        self.geometry = Geometry(conv.in_channels, *sizes, modes.taps)

    def kernel(self) -> Tensor:
        """The kernel of the codes as they are now."""
        return kernel_of([self._on_grid(*both) for both in zip(self.cores, self.scales, strict=True)], self.geometry)

    def _on_grid(self, core: Tensor, scales: Tensor) -> Tensor:
        """Forward the levels that are nearest; backward as if nothing were rounded, and to the scales what was."""
        m, groups = scales.shape
        flat = core.transpose(0, 1).reshape(m, groups, -1)
        steps = scales.abs().clamp(min=1e-8).unsqueeze(2)
        exact = (flat / steps).clamp(0.5 - self.top, self.top - 0.5)
        levels = exact + ((exact - 0.5).round().clamp(-self.top, self.top - 1) + 0.5 - exact).detach()
        return (levels * steps).reshape(core.transpose(0, 1).shape).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        conv = self.conv
        return F.conv2d(x, self.kernel(), conv.bias, conv.stride, conv.padding, conv.dilation)


def stored(
    model: nn.Module, kernels: Sequence[Kernel], how: dict[str, tuple[Modes, Sequence[Tensor]]], bits: int, group: int
) -> nn.Module:
    """A copy of the model whose kernels are stored as integers in trainable form."""
    other = copy.deepcopy(model)
    for kernel in kernels:
        parent, _, leaf = kernel.name.rpartition(".")
        modes, cores = how[kernel.name]
        made = Stored(other.get_submodule(kernel.name), kernel, modes, cores, bits, group)
        setattr(other.get_submodule(parent), leaf, made)
    return other


def healed(model: nn.Module, teacher: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """The model after some steps towards the teacher's scores on shifted and mirrored training pictures."""
    torch.manual_seed(seed)
    groups = [
        {"params": [p], "lr": RATE * p.detach().square().mean().sqrt().clamp(min=1e-3).item()}
        for name, p in model.named_parameters()
        if ".conv." not in name  # the dense kernel that a stored one replaces
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: rest(k / STEPS))
    model.train()
    for _ in range(STEPS):
        seen = shifted(x[torch.randint(len(x), (BATCH,))])
        wanted = (scores(teacher, seen) / 2).softmax(-1)
        loss = -4 * (wanted * (model(seen) / 2).log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


ARMS = (  # family, share of the numbers, bits: about 2.1 bits a weight and about 1.1
    ("fitted train", 1 / 2, 4),
    ("GPTQ-like", 1, 2),
    ("whitened SVD", 1 / 2, 4),
    ("fitted train", 1 / 2, 2),
    ("GPTQ-like", 1, 1),
    ("whitened SVD", 1 / 2, 2),
)


def start(family: str, share: float, kernel: Kernel, modes: Modes) -> tuple[Modes, Sequence[Tensor]]:
    """Modes and cores of a kernel before they are rounded."""
    if family == "fitted train":
        return modes, methods.fitted(kernel, modes, share)
    if family == "whitened SVD":
        return kernel.factors, methods.whitened(kernel, share)
    return kernel.plain, [kernel.weight[None, :, :, None]]


def measured(
    model: nn.Module, folder: Path, kernels: Sequence[Kernel], modes: dict[str, dict[float, Modes]]
) -> list[dict]:
    """Accuracy of each arm before and after healing."""
    x, test, rows = pictures(folder, "train")[0], pictures(folder, "test"), []
    for family, share, bits in ARMS:
        how = {k.name: start(family, share, k, modes[k.name][1 / 2]) for k in kernels}
        made = stored(model, kernels, how, bits, 72 if share == 1 else 64)
        right = [correct(made, *test), correct(healed(made, model, x), *test)]
        row = {"family": family, "setting": f"int{bits}" if share == 1 else f"{1 / share:.3g}x int{bits}"}
        rows.append(row | {"before": right[0], "after": right[1], "steps": STEPS, "batch": BATCH})
    return rows


def correct(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of pictures classified correctly."""
    with torch.no_grad():
        return (scores(model, x).argmax(1) == y).double().mean().item()
