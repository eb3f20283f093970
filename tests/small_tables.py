"""Small compressed tables of every kind, for what is done to tables as modules."""

from compressed import noise, smooth
from torch import nn

from ttref import MPSEmbedding, TTMEmbedding


def grown():
    table = compressed(rank=2)
    table.append(noise(3, 16))
    return table


def compressed(**options):
    return MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(smooth(50, 16), padding_idx=3), **options)


TABLES = {
    "one bucket": lambda: compressed(rank=2),
    "buckets": lambda: compressed(row_ranks=[1, 2, 4, 9, 1] * 10),
    "frame": lambda: compressed(eps=0.3, center=True, rotate=True),
    "int8": lambda: compressed(row_ranks=[1, 2] * 25, core_bits=8),
    "pieces": grown,
    "matrix": lambda: TTMEmbedding((5, 5, 4), (2, 4, 4), rank=3, num_embeddings=90, embedding_dim=30, padding_idx=3),
}
