"""Stores of rows that were compressed alike, one behind the other, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .buckets import Bucket, PackedRows, shallow_copy
from .store import RowStore


@torch.no_grad()
def joined(stores: Sequence[RowStore]) -> RowStore:
    """One frozen store of all rows, with the buckets in the order in which one table of these rows would have them.

    Cost:
        A copy of everything.
    """
    first = stores[0]
    layouts = {bucket.layout.ranks: bucket.layout for store in stores for bucket in store.buckets}
    if len(layouts) > 255:
        raise ValueError(f"the rows have {len(layouts)} different ranks; at most 255 can be kept apart")
    order = sorted(layouts)  # smaller caps first, whole rows last
    whole = shallow_copy(first)
    whole.buckets = nn.ModuleList()
    for ranks in order:
        parts = [one.merged() for store in stores for one in store.buckets if one.layout.ranks == ranks]
        tensors = [torch.cat(column) for column in zip(*parts, strict=True)]
        whole.buckets.append(Bucket(layouts[ranks], first.bits, [PackedRows(tensors, trainable=False)]))
    whole.count = sum(store.count for store in stores)
    whole.bucket, whole.place = _index(stores, order) if len(order) > 1 else (None, None)
    return whole


def _index(stores: Sequence[RowStore], order: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Bucket and place of each row, for buckets in this order of their ranks."""
    sizes = [0] * len(order)
    buckets, places = [], []
    for store in stores:
        bucket, place = store.tensors()
        if bucket is None:
            bucket, place = torch.zeros(store.count, dtype=torch.uint8), torch.arange(store.count, dtype=torch.int32)
        mine = [order.index(one.layout.ranks) for one in store.buckets]
        before = torch.tensor([sizes[k] for k in mine], dtype=torch.int32)
        buckets.append(torch.tensor(mine, dtype=torch.uint8)[bucket.long()])
        places.append(place + before[bucket.long()])
        for k, one in zip(mine, store.buckets, strict=True):
            sizes[k] += len(one)
    return torch.cat(buckets), torch.cat(places)
