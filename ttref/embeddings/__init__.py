"""Compressed token tables: one train for each row, one TT-matrix for all rows, and the head that shares them.

============  ==========================================================================================
`tables`      the base of both tables: checked ids, repeated ids once, exact counts
`row_table`   the stored part of :class:`MPSEmbedding`: counts, files, states
`mps`         :class:`MPSEmbedding`, one train for each row
`ttm`         :class:`TTMEmbedding`, one TT-matrix for the whole table
`settings`    modes of a row, and checks of a file's header
`head`        :class:`TiedHead`, and a look-up that scales
`replacing`   :func:`replace_embedding`, all of it or nothing
============  ==========================================================================================

The rows of an :class:`MPSEmbedding` are stored by :mod:`ttref.rows`.
"""

from .head import TiedHead
from .mps import MPSEmbedding
from .replacing import replace_embedding
from .ttm import TTMEmbedding

__all__ = ["MPSEmbedding", "TTMEmbedding", "TiedHead", "replace_embedding"]
