"""What the tests of retrieval share: vectors like those of texts, queries near them, and a search without an index."""

import torch
from strategies import gaussian, shaken
from torch.nn import functional as F


def texts(count, width=48, seed=0, clusters=12, mean=0.5):
    """Vectors around a common mean in clusters, their variances falling from axis to axis: float32, of about norm 1."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 0.2, width, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(99)))[
        0
    ]
    centers = torch.randn(clusters, width, generator=torch.Generator().manual_seed(98), dtype=torch.float64)
    chosen = torch.randint(clusters, (count,), generator=generator)
    x = centers[chosen] + torch.randn(count, width, generator=generator, dtype=torch.float64)
    x = F.normalize(x * spread, dim=1) @ axes + mean * axes[0]
    return shaken(x.float())


def asked(documents, count, seed=1, noise=0.3):
    """Queries near documents."""
    generator = torch.Generator().manual_seed(seed)
    chosen = documents[torch.randint(len(documents), (count,), generator=generator)]
    near = gaussian((count, documents.shape[1]), seed + 1, torch.float32) * chosen.norm(dim=1, keepdim=True)
    return shaken(chosen + noise * near / documents.shape[1] ** 0.5)


def scores(documents, queries, metric="cosine"):
    """All scores in float64, ``(queries, documents)``."""
    documents, queries = documents.double(), queries.double()
    if metric == "cosine":
        documents, queries = F.normalize(documents, dim=1), F.normalize(queries, dim=1)
    return queries @ documents.mT


def recall(found, documents, queries, metric="cosine"):
    """The share of the true nearest documents among those found."""
    true = scores(documents, queries, metric).topk(found.shape[1], dim=1).indices
    return (true.unsqueeze(2) == found.unsqueeze(1)).any(2).double().mean().item()
