"""Models that workers of jobs make for themselves, in a module that other processes import, so quickly."""

import torch
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


def no_model():
    return "nothing"


def no_memory():
    raise MemoryError("it is too large")


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
