"""Indexes of other libraries, trained, filled and measured: FAISS (the extra ``retrieval``), turbovec if there is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TRAINING = 10_240  # documents at most
POINTS = 256  # of a center, of which FAISS's k-means takes no more
ROUNDS = 20  # of OPQ; FAISS's own 50 find no more on MEDLARS, and take minutes


def faiss_index(x: Tensor, factory: str) -> tuple[Any, int, float]:
    """An index of inner products by FAISS's name for it.

    Returns:
        The index, the bytes that all documents share (its file when it is trained and empty), and those of each.
    """
    import faiss

    index = faiss.index_factory(x.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    *before, coder = parts(faiss, index)
    if hasattr(coder, "do_polysemous_training"):
        coder.do_polysemous_training = False  # minutes, for a search in Hamming distance that nobody asks for
    if hasattr(coder, "pq"):
        coder.pq.cp.min_points_per_centroid = 1  # no warning that there are few documents
    for part in before:
        # Left to itself the rotation is trained for codes of 8 bits, whatever comes after it.
        helper = faiss.ProductQuantizer(part.d_out, part.M, coder.pq.nbits)
        helper.cp.min_points_per_centroid = 1
        part.niter, part.pq = ROUNDS, helper
    most = min(TRAINING, POINTS << coder.pq.nbits) if hasattr(coder, "pq") else TRAINING
    step = -(-len(x) // most)
    index.train(x[::step].contiguous().numpy())
    shared = faiss.serialize_index(index).nbytes
    index.add(x.contiguous().numpy())
    for part in before:
        part.pq = None  # it ends with this function
    return index, shared, index.sa_code_size()


def parts(faiss: Any, index: Any) -> list[Any]:
    """The index, or what it is a chain of."""
    if not isinstance(index, faiss.IndexPreTransform):
        return [index]
    chain = [faiss.downcast_VectorTransform(index.chain.at(k)) for k in range(index.chain.size())]
    return [*chain, faiss.downcast_index(index.index)]


def turbo(x: Tensor, bits: int) -> tuple[Any, int, float]:
    """An index by turbovec, calibrated with a thousand of them; bytes as above."""
    import turbovec

    index = turbovec.TurboQuantIndex(x.shape[1], bit_width=bits)
    sample = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:1024]
    index.calibrate(x[sample].contiguous().numpy())
    sizes = []
    for part in (x[:1], x[1:]):
        index.add(part.contiguous().numpy())
        sizes.append(len(index.to_bytes()))
    document = (sizes[1] - sizes[0]) / (len(x) - 1)
    return index, round(sizes[0] - document), document
