"""A document index: codes of a few bits in front of shared cores, with scikit-learn's neighbor grammar.

=============  =============================================================================================
`index`        :class:`TTIndex`: fit, add, remove, kneighbors
`stored`       what an index keeps, its counts and its file
`shared`       the shared cores: mean, basis or train, and the rotation of the bond in front of them
`grid`         coordinates of documents in a few bits: ranges, unbiased scales, packing
`scanning`     the nearest documents, block by block: integers first, then floating point
`handover`     the same through FAISS
`estimator`    scikit-learn's grammar without scikit-learn
`inputs`       vectors and ids, checked
=============  =============================================================================================
"""

from .index import TTIndex

__all__ = ["TTIndex"]
