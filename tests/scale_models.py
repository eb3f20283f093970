"""Models that workers of jobs make for themselves, in a module that other processes import, so quickly."""

import os
import signal

import torch
from small_tasks import once
from torch import nn

LINES = ["the cat sees a small dog", "", "  ", "a dog runs home", "the house and the small cat", "ünï"] * 5


class Experts(nn.Module):
    """Two layers of one input; one expert for each sign of the first number, which some batches never reach."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.first, self.second, self.never = (nn.Linear(6, 6) for _ in range(5))

    def forward(self, x):
        mixed = self.q(x) + self.k(x)
        return self.first(mixed) if x.flatten()[0] > 0 else self.second(mixed)


class Weighted(nn.Module):
    """A layer after a product with what it is given, a number, a list, a tensor or a layer."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.q = weight, nn.Linear(6, 6)

    def forward(self, x):
        made = self.weight(x) if isinstance(self.weight, nn.Module) else torch.as_tensor(self.weight) * x
        return self.q(made)


def scaled(batch, by):
    """A mask that holds a number."""
    return torch.full(batch.shape[:2], float(by["by"][0]))


def no_model():
    return "nothing"


def no_memory():
    raise MemoryError


def first_token(batch):
    """A mask that lets the first token of each text through."""
    mask = torch.zeros(batch.shape[:2])
    mask[:, 0] = 1
    return mask


def twice(model, batch):
    """Run a model on a batch and on its double."""
    model(batch)
    model(2 * batch)


def batches(count=7):
    """Batches of 2 x 3 tokens; the first two reach one expert, the others the other one."""
    from strategies import gaussian

    made = [gaussian((2, 3, 6), k, torch.float32) for k in range(count)]
    for k, batch in enumerate(made):
        batch[0, 0, 0] = 1.0 if k < 2 else -1.0
    return made


class Batch:
    """A batch of a class of its own."""

    def __init__(self, inputs):
        self.inputs = inputs


def unpacked(model, batch):
    """Run a model on what a batch holds."""
    model(torch.as_tensor(batch.inputs if isinstance(batch, Batch) else batch))


def dying(model, batch, marks):
    """Run a model on a batch; the first that does is killed."""
    if once(marks, "died"):
        os.kill(os.getpid(), signal.SIGKILL)
    model(batch)


class Indexed:
    """A sequence that is no list, as a data set on a disk is."""

    def __len__(self):
        return 7

    def __getitem__(self, k):
        return batches()[k]


def gpt2(folder):
    """A folder with a tiny GPT-2, its tokenizer and three files of texts."""
    import tiny_gpt2

    tiny_gpt2.write(folder)
    for k in range(3):
        (folder / f"texts-{k}").write_text("\n".join(LINES[k:]), encoding="utf-8")
    return folder
