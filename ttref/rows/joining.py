"""Stores of rows that were compressed alike, one behind the other, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .buckets import Bucket, PackedRows, shallow_copy
from .store import RowStore


@torch.no_grad()
def joined(stores: Sequence[RowStore], *, trainable: bool = False) -> RowStore:
    """One store of all rows, with the buckets in the order in which one table of these rows would have them.

    Cost:
        A copy of everything.
    """
    first = stores[0]
    found = {bucket.layout.ranks: bucket.layout for store in stores for bucket in store.buckets}
    if len(found) > 255:
        raise ValueError(f"the rows have {len(found)} different ranks; at most 255 can be kept apart")
    place_of = {ranks: k for k, ranks in enumerate(sorted(found))}  # smaller caps first, whole rows last
    packed: list[list] = [[] for _ in found]
    sizes = [0] * len(found)
    count = sum(store.count for store in stores)
    bucket, place = torch.zeros(count, dtype=torch.uint8), torch.zeros(count, dtype=torch.int32)
    start = 0
    for store in stores:
        own, at = store.tensors()
        if own is None:
            own, at = torch.zeros(store.count, dtype=torch.uint8), torch.arange(store.count, dtype=torch.int32)
        mine = torch.tensor([place_of[one.layout.ranks] for one in store.buckets])
        bucket[start : start + store.count] = mine[own.long()].to(torch.uint8)
        place[start : start + store.count] = at + torch.tensor([sizes[k] for k in mine], dtype=torch.int32)[own.long()]
        start += store.count
        for k, one in zip(mine.tolist(), store.buckets, strict=True):
            packed[k].append([tensor.detach() for tensor in one.merged()])
            sizes[k] += len(one)
    whole = shallow_copy(first)
    whole.buckets = nn.ModuleList()
    for ranks, parts in zip(sorted(found), packed, strict=True):
        tensors = [torch.cat(column) for column in zip(*parts, strict=True)]
        whole.buckets.append(Bucket(found[ranks], first.bits, [PackedRows(tensors, trainable=trainable)]))
    whole.count = count
    whole.bucket, whole.place = (bucket, place) if len(found) > 1 else (None, None)
    return whole
