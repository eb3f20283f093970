"""Compressed token tables: one train for each row, one TT-matrix for all rows, and the head that shares them.

============  ==========================================================================================
`rows`        which cores of a row's train are stored, and how they are packed
`store`       rows in buckets of equal ranks, their index and their frame
`frame`       mean row and principal axes, shared by all rows
`sorting`     which rows share their ranks
`tables`      what both tables have in common: checked ids, repeated ids once, exact counts
`mps`         :class:`MPSEmbedding`, one train for each row
`ttm`         :class:`TTMEmbedding`, one TT-matrix for the whole table
`head`        :class:`TiedHead`, and a look-up that scales
`ties`        what transformers is told about ties meanwhile
`replacing`   :func:`replace_embedding`, all of it or nothing
`files`       safetensors files
============  ==========================================================================================
"""

from .head import TiedHead
from .mps import MPSEmbedding
from .replacing import replace_embedding
from .ttm import TTMEmbedding

__all__ = ["MPSEmbedding", "TTMEmbedding", "TiedHead", "replace_embedding"]
