"""The dense twin of a TTLoRALinear, and how far rounding may take the two apart."""

import pytest
import torch
from adapters import SHAPES, update_of, weight_of
from torch import nn

names = pytest.mark.parametrize("name", SHAPES)


def twin(layer, x, upstream):
    """Answers and gradients of ``x (W + update)^T + b`` in double precision, by autograd through einsum alone."""
    leaves = [t.detach().double().requires_grad_() for t in (x, *layer.cores, *layer.base_layer.parameters())]
    x, cores, (weight, *bias) = leaves[0], leaves[1 : 1 + len(layer.cores)], leaves[1 + len(layer.cores) :]
    turned = weight if isinstance(layer.base_layer, nn.Linear) else weight.T
    y = x @ (turned + update_of(layer, cores)).T
    y = y + bias[0] if bias else y
    return y.detach(), torch.autograd.grad(y, leaves, upstream.double())


def reach(layer, x):
    """The largest answer there could be if no two terms canceled: what rounding is measured by."""
    cores = [core.detach().double().abs() for core in layer.cores]
    most = weight_of(layer).detach().double().abs() + update_of(layer, cores).abs()
    bias = 0 if layer.bias is None else float(layer.bias.detach().double().abs().max())
    return float((x.detach().double().abs() @ most.T).max()) + bias if x.numel() else 1.0


def assert_close(actual, expected, dtype, scale=None, factor=100):
    scale = largest(expected.detach()) if scale is None else scale
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=factor * torch.finfo(dtype).eps * scale + 1e-300
    )


def largest(x):
    return float(x.abs().max()) if x.numel() else 0.0
