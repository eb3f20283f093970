"""The methods of the embedding study, with names and settings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from book.workbook import codes
from ttref import factorize

from . import methods as ways
from .methods import Method


def trains(width: int) -> Iterator[Method]:
    """Trains for each row at one rank."""
    for rank in (1, 2, 3, 4, 6, 8, 16):
        yield Method(f"mps-{rank}", "MPS", f"rank {rank}", True, partial(ways.train, rank=rank))
    unpadded = {"shape": factorize(width), "rank": 4}
    fours = {"shape": (4,) * (((width - 1).bit_length() + 1) // 2), "rank": 4}
    yield Method("mps-unpadded-4", "MPS, unpadded", "rank 4", True, partial(ways.train, **unpadded))
    yield Method("mps-fours-4", "MPS, modes of 4", "rank 4", True, partial(ways.train, **fours))
    square = {"shape": factorize(width, 2)}
    for rank in (1, 2, 4):
        yield Method(
            f"mps-square-{rank}", "MPS, two modes", f"rank {rank}", True, partial(ways.train, rank=rank, **square)
        )
    centered, rotated, int8 = {"center": True}, {"center": True, "rotate": True}, {"core_bits": 8}
    kinds = {
        "int8": ("MPS, int8 cores", int8, (1, 2, 4)),
        "centered": ("MPS, centered", centered, (1, 4)),
        "rotated": ("MPS, centered, rotated", rotated, (1, 2, 4)),
        "rotated-int8": ("MPS, centered, rotated, int8 cores", rotated | int8, (1, 2, 4)),
        "square-rotated-int8": ("MPS, two modes, centered, rotated, int8 cores", rotated | int8 | square, (1, 2, 4)),
    }
    for key, (family, options, ranks) in kinds.items():
        for rank in ranks:
            yield Method(f"mps-{key}-{rank}", family, f"rank {rank}", True, partial(ways.train, rank=rank, **options))


def shared(rows: int, width: int) -> Iterator[Method]:
    """One train for the table, and its competitors: SVD, integers, product quantization."""
    dense = 4 * rows * width
    for ratio in (3, 9, 100):
        yield Method(
            f"ttm-{ratio}", "TT-matrix", f"about {ratio}x", True, partial(ways.tt_matrix, budget=dense // ratio)
        )
    for share in (4, 8):
        rank, inner = width // share, max(factorize(width, 2)) // 2
        way = partial(ways.shared_train, rank=rank, inner=inner)
        yield Method(f"shared-{share}", "train, token first, int8", f"ranks {rank} and {inner}", True, way)
    for ratio in (3, 9, 28):
        yield Method(f"svd-{ratio}", "SVD", f"about {ratio}x", False, partial(ways.svd, budget=dense // ratio))
    for ratio in (8, 16, 28):
        way = partial(ways.svd_integers, budget=dense // ratio)
        yield Method(f"svd-int8-{ratio}", "SVD, centered, int8 factors", f"about {ratio}x", False, way)
    for bits in (8, 4, 3, 2):
        yield Method(f"int{bits}", "integers", f"int{bits} per row", False, partial(codes.integers, bits=bits))
    for bits in (4, 3, 2):
        way = partial(codes.integers, bits=bits, best=True)
        yield Method(f"int{bits}-best", "integers, best scale", f"int{bits} per row, best scale", False, way)
        way = partial(codes.integers, bits=bits, group=48, best=True)
        yield Method(f"int{bits}-group-best", "integers, groups, best scale", f"int{bits}, groups of 48", False, way)
    for bits in (4, 3, 2):
        way = partial(codes.integers, bits=bits, group=48)
        yield Method(f"int{bits}-group", "integers, groups", f"int{bits}, groups of 48", False, way)
    yield Method("mean-row", "mean row", "for every token", False, codes.mean_row)
    for pieces in (width // 4, width // 8):
        name = f"{pieces} pieces of 8 bits"
        yield Method(f"pq-{pieces}", "product quantization", name, False, partial(ways.product, subvectors=pieces))


def coded() -> Iterator[Method]:
    """Normal codes behind a TT-matrix, behind principal axes and behind a random rotation."""
    kinds = {
        "tt-codes": ("TT-matrix in codes", codes.coded_train, (2, 1.5, 1)),
        "tt-row-codes": ("TT-matrix in codes, row scales", partial(codes.coded_train, by_row=True), (4, 3, 2)),
        "pca-codes": ("PCA in codes, row scales", codes.coded_axes, (3, 2, 1.5)),
        "row-codes": ("random rotation, rows in codes", codes.coded_rows, (4, 3, 2, 1)),
        "group-codes": ("groups of 48 in codes", codes.coded_groups, (4, 3, 2)),
    }
    for key, (family, way, widths) in kinds.items():
        for bits in widths:
            name = f"{bits} bits a weight"
            yield Method(f"{key}-{bits}", family, name, key.startswith("tt"), partial(way, bits=bits))


def coded_by_frequency(orders: dict[str, Tensor], sizes: tuple[int, ...]) -> Iterator[Method]:
    """Three bits for frequent rows, the mean row for the rest: with TT-matrices and without."""
    kinds = {
        "tt": ("TT-matrix in codes, mean row for the rest", partial(codes.coded_train, bits=3, by_row=True)),
        "rows": ("random rotation, rows in codes, mean row for the rest", partial(codes.coded_rows, bits=3)),
        "pq": ("product quantization, mean row for the rest", partial(ways.product_of_width, length=4)),
    }
    for name, order in orders.items():
        for size in sizes:
            for kind, (family, way) in kinds.items():
                if kind != "pq" or (name, size) == ("id", sizes[-1]):  # k-means takes minutes
                    made = partial(codes.parts, order=order, sizes=(size,), ways=(way, codes.mean_row))
                    setting = f"{size} rows by {name}, {2 if kind == 'pq' else 3} bits a weight"
                    yield Method(f"{kind}-codes-{name}-{size}", family, setting, kind == "tt", made)


def by_frequency(orders: dict[str, Tensor], width: int, sizes: tuple[int, ...]) -> Iterator[Method]:
    """Frequent rows dense, the rest compressed: by trains, and by the controls that a train must beat."""
    for name, order in orders.items():
        for size in sizes:
            way = partial(ways.adaptive, order=order, whole=size, rank=1, rotate=True)
            setting = f"{size} rows by {name}, rank 1 rest"
            yield Method(f"adaptive-{name}-{size}-1", "adaptive: int8 rows, MPS rest", setting, True, way)
        size = sizes[2]
        way = partial(ways.adaptive, order=order, whole=size, rank=2, rotate=True)
        setting = f"{size} rows by {name}, rank 2 rest"
        yield Method(f"adaptive-{name}-{size}-2", "adaptive: int8 rows, MPS rest", setting, True, way)
        shape = factorize(width, 2)
        way = partial(ways.adaptive, order=order, whole=size, rank=1, rotate=True, shape=shape)
        setting = f"{size} rows by {name}, rank 1 of two modes rest"
        yield Method(f"adaptive-{name}-{size}-square-1", "adaptive: int8 rows, MPS rest", setting, True, way)
        yield from divided(name, order, 8, size, ("mean row", "MPS rank 1", "PCA of 22 bytes", "PCA of 74 bytes"))
        yield from divided(name, order, 8, size, ("int4", "int3", "int2"))
        for size in sizes[:2]:
            yield from divided(name, order, 4, size, ("mean row",))
        for size in sizes[2:]:
            yield from divided(name, order, 4, size, ("mean row", "MPS rank 1", "PCA of 22 bytes"))


def weighted(weight: Tensor, rows: int, width: int) -> Iterator[Method]:
    """Whole rows clustered, and least squared errors weighted by the counts of the tokens; controls of that size.

    A TT-matrix takes minutes to fit, so there is one.
    """
    dense, counted = 4 * rows * width, "weighted by counts"
    for centers, bits in ((2000, 8), (2000, None), (3600, 8)):
        kind, name = ("-int8", ", int8") if bits else ("", "")
        way = partial(ways.clusters, centers=centers, bits=bits)
        yield Method(f"clusters-{centers}{kind}", "clusters of rows", f"{centers} centers{name}", False, way)
    way, name = partial(ways.clusters, centers=2000, bits=8, weight=weight), "2000 centers, int8"
    yield Method("clusters-weighted-2000-int8", f"clusters of rows, {counted}", name, False, way)
    for ratio in (3, 9):
        way = partial(ways.svd, budget=dense // ratio, weight=weight)
        yield Method(f"svd-weighted-{ratio}", f"SVD, {counted}", f"about {ratio}x", False, way)
    way = partial(ways.svd_integers, budget=dense // 8, weight=weight)
    yield Method("svd-int8-weighted-8", f"SVD, centered, int8 factors, {counted}", "about 8x", False, way)
    order = weight.argsort(descending=True, stable=True)
    family = "random rotation, rows in codes, mean row for the rest"
    yield from divided("counted", order, 8, 2048, ("mean row",))
    for size, bits in ((4096, 3), (12288, 1)):
        way = partial(codes.coded_rows, bits=bits)
        way = partial(codes.parts, order=order, sizes=(size,), ways=(way, codes.mean_row))
        setting = f"{size} rows by counted, {bits} bits a weight"
        yield Method(f"rows-codes-{bits}-counted-{size}", family, setting, False, way)
    way = partial(ways.tt_matrix, budget=dense // 9, weight=weight)
    yield Method("ttm-weighted-9", f"TT-matrix, {counted}", "about 9x", True, way)


def divided(name: str, order: Tensor, bits: int, size: int, rests: tuple[str, ...]) -> Iterator[Method]:
    """Integer rows for the ``size`` most frequent tokens, and each of several methods for the rest."""
    rest_ways = {
        "mean row": codes.mean_row,
        "MPS rank 1": partial(ways.train, rank=1, center=True, core_bits=8),
        **{f"PCA of {numbers} bytes": partial(ways.svd_rows, numbers=numbers) for numbers in (22, 74)},
        **{f"int{bits}": partial(codes.integers, bits=bits) for bits in (4, 3, 2)},
    }
    for rest in rests:
        key = f"int{bits}-{name}-{size}-{rest.lower().replace(' ', '-')}"
        head = partial(codes.integers, bits=bits)
        way = partial(codes.parts, order=order, sizes=(size,), ways=(head, rest_ways[rest]))
        setting = f"{size} rows by {name}, {rest} rest"
        yield Method(key, f"int{bits} rows, {rest} for the rest", setting, rest.startswith("MPS"), way)
