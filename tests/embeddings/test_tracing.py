"""Tables compiled, exported and traced: the same rows for other ids, and none for wrong ones."""

import pytest
import torch
from small_tables import (
    TABLES,
)

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
OTHERS = [torch.tensor([[3, 3, 40], [7, 8, 8]]), torch.arange(30).reshape(10, 3), torch.tensor([[3, 3, 3]])]
WAYS = {
    "compile": lambda table: torch.compile(table, backend="eager", fullgraph=True),
    "export": lambda table: torch.export.export(table, (IDS,), dynamic_shapes=({0: torch.export.Dim("n")},)).module(),
    "trace": lambda table: torch.jit.trace(table, IDS),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TABLES)
def test_other_ids_give_the_same_rows_and_wrong_ones_an_error(kind, way, grad):
    torch._dynamo.reset()
    table = TABLES[kind]()
    with torch.set_grad_enabled(grad):
        followed = WAYS[way](table)
        for ids in OTHERS[: 2 if way == "export" else 3]:
            assert torch.allclose(followed(ids), table(ids), atol=1e-5)
        for wrong in (-1, table.num_embeddings, table.num_embeddings + 5):
            with pytest.raises((IndexError, RuntimeError)):
                followed(torch.tensor([[wrong, 1, 2], [1, 2, 3]]))
