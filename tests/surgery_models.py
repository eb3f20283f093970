"""What the tests of swapped layers share: a model with a tie, and the plan of a swap."""

from torch import nn


class Tied(nn.Module):
    """Two layers of one weight, as an embedding and the output head of a language model."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight


def plan_of(model):
    """What a model consists of: every module and parameter, by identity."""
    modules = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    return modules + [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)]
