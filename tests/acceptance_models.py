"""What the tests of the acceptance suite share: models that know their answers by heart."""

import torch
from torch import nn

from ttref.release.accepting import AcceptanceSuite, Metric, Scored


class ByHeart(nn.Module):
    """Gives for example k the k-th of its answers."""

    def __init__(self, answers):
        super().__init__()
        self.answers = nn.Parameter(torch.as_tensor(answers, dtype=torch.float64), requires_grad=False)
        self.register_buffer("calls", torch.zeros(1))
        self.noise = nn.Dropout(0.5)

    def forward(self, places):
        return self.noise(self.answers[torch.as_tensor(places)])


def answers(model, places):
    return model(places)


def metric(margin=0.05, **how):
    return Metric("accuracy", answers, margin, **how)


def suite(count, margin=0.05, **how):
    """A suite whose examples are the first places; no times are taken."""
    own = {name: how.pop(name) for name in ("kind", "greater_is_better", "slice_margin") if name in how}
    return AcceptanceSuite(metric(margin, **own), **{"data": list(range(count)), "turns": 0, **how})


def flipped(examples, harmful, beneficial, right=0.7):
    """Scores 0 and 1 before and after, with so many flips."""
    before = torch.zeros(examples, dtype=torch.float64)
    before[: int(right * examples)] = 1
    after = before.clone()
    after[:harmful] = 0
    if beneficial:
        after[-beneficial:] = 1
    return before, after


def with_logits(logits):
    """A metric whose answers are logits that each model holds as ``(examples, classes)``: right is class 0."""

    def score(model, places):
        found = model(places)
        return Scored(found.argmax(-1) == 0, found)

    return Metric("accuracy", score, 0.1, **logits)
