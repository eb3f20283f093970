"""Models that are run part by part, so that what a changed layer leaves alone is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Parts = Callable[[nn.Module], list[nn.Module]]


def bert_parts(model: nn.Module) -> list[nn.Module]:
    """Look-up and blocks of a BERT encoder; with batches without padding they need no mask."""
    return [model.embeddings, *model.encoder.layer]


class Staged:
    """The last states of a model for fixed batches; what stands before the first changed part is taken from memory.

    A layer-by-layer search changes one layer between two evaluations, so on average half of the work is saved. A part
    counts as changed if a module, a parameter or a buffer in it is another one, or was written to.

    Args:
        parts: From the model to its parts, each called with what the one before returned.
        batches: Inputs of the first part.
    """

    def __init__(self, parts: Parts, batches: Sequence[Tensor]) -> None:
        self.parts, self.computed = parts, 0
        self._states: list[list[Tensor]] = [[batch] for batch in batches]
        self._marks: list[tuple] = []

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> list[Tensor]:
        """The last part's output for each batch."""
        parts = self.parts(model)
        marks = [mark(part) for part in parts]
        same = 0
        while same < len(self._marks) and self._marks[same][0] == marks[same][0]:
            same += 1
        self._marks, found = [], []  # an interrupted pass leaves nothing to build on
        for states in self._states:
            del states[same + 1 :]
            for part in parts[same:]:
                states.append(part(states[-1]))
            found.append(states[-1])
        self.computed += len(parts) - same
        self._marks = marks
        return found


def mark(part: nn.Module) -> tuple[tuple, list]:
    """Who is in a part, and how often it was written to; the list keeps all alive, so that no identity is reused."""
    tensors = [*part.parameters(), *part.buffers()]
    held = [*part.modules(), *tensors]
    return (tuple(map(id, held)), tuple(tensor._version for tensor in tensors)), held
