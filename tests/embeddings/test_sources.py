"""What is read of a table that is compressed: the rows that it looks up now, and nothing that would be lost."""

import pytest
import torch
from compressed import every
from torch import nn
from torch.nn.utils import parametrizations, prune

from ttref import MPSEmbedding, TTMEmbedding

KINDS = [MPSEmbedding, TTMEmbedding]
kinds = pytest.mark.parametrize("kind", KINDS)


def hooked(register, hook):
    table = nn.Embedding(12, 20)
    getattr(table, register)(hook)
    return table


def patched():
    table = nn.Embedding(12, 20)
    plain = table.forward
    table.forward = lambda ids: 3 * plain(ids)
    return table


@kinds
@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: hooked("register_forward_hook", lambda table, ids, y: 3 * y), TypeError, "has forward hooks"),
        (lambda: hooked("register_forward_pre_hook", lambda table, ids: ids[0] + 1), TypeError, "forward pre-hooks"),
        (patched, TypeError, "had its forward replaced, which would be lost; compress a plain Embedding"),
        (lambda: nn.Embedding(12, 20, device="meta"), ValueError, "not here but on the meta device"),
    ],
)
def test_what_would_be_lost_is_refused(kind, make, error, message):
    with pytest.raises(error, match=message):
        kind.from_embedding(make(), rank=2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@kinds
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    "hang",
    [
        lambda table: prune.l1_unstructured(table, "weight", amount=0.5),
        nn.utils.weight_norm,
        parametrizations.weight_norm,
    ],
)
def test_the_weight_in_use_is_what_is_compressed(kind, trained, hang):
    torch.manual_seed(0)
    table = hang(nn.Embedding(12, 20))
    with torch.no_grad():  # what hooks computed at the last call is out of date now
        for parameter in table.parameters():
            parameter.mul_(1.5).requires_grad_(trained)
    made = kind.from_embedding(table, eps=0)
    torch.testing.assert_close(made(every(made)), table(torch.arange(12)), rtol=1e-4, atol=1e-5)
    assert [parameter.requires_grad for parameter in made.parameters()] == [trained] * len(list(made.parameters()))


def test_cores_that_were_frozen_stay_frozen():
    cores = list(TTMEmbedding((3, 4), (4, 5), rank=2).cores)
    cores[0].requires_grad_(False)
    assert [core.requires_grad for core in TTMEmbedding.from_cores(cores).cores] == [False, True]
    assert all(core.requires_grad for core in TTMEmbedding.from_cores([core.detach() for core in cores]).cores)


def test_a_core_that_is_masked_is_not_drawn_anew():
    table = TTMEmbedding((3, 4), (4, 5), rank=2)
    prune.l1_unstructured(table.cores, "0", amount=0.5)
    with pytest.raises(RuntimeError, match=r"cores\[0\] is computed from other numbers"):
        table.reset_parameters()
