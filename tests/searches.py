"""What the tests of searches share: a small trained net, a metric that counts, a plain search on copies, and states."""

import copy
import functools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from ttref import TTLinear

NAMES = ["0", "2", "4"]


@functools.cache
def _trained():
    """Digits, a net of three layers trained on 1,000 of them, and the other 797."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    steps = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        steps.zero_grad()
        F.cross_entropy(net(x[:1000]), y[:1000]).backward()
        steps.step()
    return net.eval(), x[1000:], y[1000:]


def net():
    return copy.deepcopy(_trained()[0])


@torch.no_grad()
def right(model):
    """Which digits the net reads."""
    _, x, y = _trained()
    return (model(x).argmax(1) == y).double()


def accuracy(model):
    return right(model).mean().item()


class Counted:
    """A metric that counts its calls, and at one of them does something else."""

    def __init__(self, metric, at=None, instead=None):
        self.metric, self.at, self.instead, self.calls = metric, at, instead, 0

    def __call__(self, model):
        self.calls += 1
        return self.instead(model) if self.calls == self.at else self.metric(model)


def compressed(model):
    return [name for name, part in model.named_modules() if isinstance(part, TTLinear)]


def replaced(model, names, eps):
    """A copy with these layers as trains."""
    twin = copy.deepcopy(model)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, TTLinear.from_linear(twin.get_submodule(name), eps=eps))
    return twin


def smaller(model, names, eps):
    """Those layers whose trains have fewer numbers."""
    trains = {name: TTLinear.from_linear(model.get_submodule(name), eps=eps) for name in names}
    return [
        name
        for name in names
        if sum(core.numel() for core in trains[name].cores) < model.get_submodule(name).weight.numel()
    ]


def forward_on_copies(model, metric, names, eps, most, to_last=False):
    """The published loop, word for word, on copies of the model: the accepted layers."""
    accepted, before = [], metric(model)
    for name in smaller(model, names, eps):
        after = metric(replaced(model, [*accepted, name], eps))
        if before - after <= most:
            accepted.append(name)
            before = after if to_last else before
    return accepted


def restore_on_copies(model, metric, names, eps, most):
    """All layers replaced, the most harmful put back one by one: the accepted layers."""
    before, left = metric(model), smaller(model, names, eps)
    for name in sorted(left, key=lambda name: metric(replaced(model, [name], eps))):
        if before - metric(replaced(model, left, eps)) <= most:
            break
        left.remove(name)
    return left


def state(model):
    """All that a search may change: what the model holds, objects by identity, and numbers to the bit."""
    held = [(name, key, id(value)) for name, part in model.named_modules() for key, value in sorted(vars(part).items())]
    inside = [(name, id(part), part.training) for name, part in model.named_modules(remove_duplicate=False)]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    numbers = [(name, id(x), x.requires_grad, x.detach().flatten().view(torch.uint8).tolist()) for name, x in tensors]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    return held, inside, numbers, hooks
