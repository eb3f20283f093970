"""The chapter on the frontier: MiniLM's token table stored in many ways, recorded points, and how both are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

from ttref import MPSEmbedding, TTMEmbedding, quantize_integer, truncated_svd
from ttref.compressed import Compressed

from .codes import Made, coded_axes, coded_rows, coded_train, integers, mean_row, parts
from .figures import pareto_frontier, readable

__all__ = [
    "LOOKS",
    "TRAINS",
    "Candidate",
    "candidates",
    "draw_points",
    "draw_stairs",
    "family_of",
    "log_axes",
    "on_front",
    "svd_int8",
    "words",
]

Way = Callable[[Tensor], Made]
Candidate = tuple[str, str, Callable[[], Made]]  # family, setting, how it is made
TURNED = {"center": True, "rotate": True, "core_bits": 8}
BLOCKS = {"row_shape": (32, 32, 30), "col_shape": (6, 8, 8)}
LOOKS = {  # one color and one marker for each family, in every figure of the chapter
    "integers": ("#009E73", "^"),
    "codes after a rotation": ("#C79A00", "v"),
    "codes, no rotation": ("#8C8C8C", "1"),
    "product quantization": ("#5C3317", "p"),
    "SVD": ("#D55E00", "s"),
    "train per row": ("#0072B2", "o"),
    "TT-matrix, floats": ("#CC79A7", "D"),
    "TT-matrix, codes": ("#6A3D9A", "h"),
    "frequent rows + trains": ("#000000", "X"),
    "frequent rows + other": ("#777777", "*"),
}
TRAINS = {"train per row", "TT-matrix, floats", "TT-matrix, codes", "frequent rows + trains"}
GROUPS = {  # how the families of the record begin, and what they are called here; the first that fits counts
    "int8 rows, MPS": "frequent rows + trains",
    "int4 rows, MPS": "frequent rows + trains",
    "adaptive": "frequent rows + trains",
    "TT-matrix in codes, mean": "frequent rows + trains",
    "int8 rows": "frequent rows + other",
    "int4 rows": "frequent rows + other",
    "mean row": "frequent rows + other",
    "random rotation, rows in codes, mean": "frequent rows + other",
    "product quantization, mean": "frequent rows + other",
    "TT-matrix in codes": "TT-matrix, codes",
    "TT-matrix": "TT-matrix, floats",
    "train, token first": "TT-matrix, floats",
    "SVD": "SVD",
    "PCA": "codes after a rotation",
    "random rotation": "codes after a rotation",
    "groups of": "codes, no rotation",
    "integers": "integers",
    "product": "product quantization",
    "MPS": "train per row",
}


def candidates(dense: nn.Embedding, by_id: Tensor, by_count: Tensor) -> Iterator[Candidate]:
    """List the candidates for MiniLM's token table.

    Args:
        dense: The table, 30,522 × 384.
        by_id: Its rows, frequent ones first, by id.
        by_count: The same, counted in a text.

    Yields:
        Family, setting, and a function of no argument that returns approximation and bytes.

    Example:
        >>> order = torch.arange(30522)
        >>> family, setting, make = next(candidates(nn.Embedding(30522, 384), order, order))
        >>> family, setting
        ('integers', 'int8 per row')
    """
    table = dense.weight.detach()

    def mixed(order: Tensor, count: int, head: Way, rest: Way) -> Callable[[], Made]:
        return partial(parts, table, order, (count,), (head, rest))

    for bits in (8, 4, 3):
        yield "integers", f"int{bits} per row", partial(integers, table, bits)
    for bits in (4, 3, 2):
        yield "integers", f"int{bits}, groups of 64", partial(integers, table, bits, group=64)
    yield "integers", "int3 per row, best scale", partial(integers, table, 3, best=True)
    yield "SVD", "SVD rank 96, float32", lambda: _made(truncated_svd(table, rank=96))
    for count in (48, 192):
        yield "SVD", f"SVD rank {count}, int8", partial(svd_int8, table, count)
    for bits in (4, 3, 2, 1):
        yield "codes after a rotation", f"random rotation, {_bits(bits)}", partial(coded_rows, table, bits)
    for bits in (2, 1):
        yield "codes after a rotation", f"principal axes, {_bits(bits)}", partial(coded_axes, table, bits)
    for rank in (1, 4, 8):
        yield "train per row", f"rank {rank}", partial(_trains, dense, rank=rank)
    yield "train per row", "rank 4, int8", partial(_trains, dense, rank=4, core_bits=8)
    yield "train per row", "rank 4, rotated, int8", partial(_trains, dense, rank=4, **TURNED)
    yield "train per row", "rank 4 of two modes, same", partial(_trains, dense, rank=4, shape=(16, 24), **TURNED)
    matrix = partial(TTMEmbedding.from_embedding, dense, rank=64, **BLOCKS)
    yield "TT-matrix, floats", "TT-matrix rank 64", lambda: _made(matrix())
    for bits in (2, 1):
        yield "TT-matrix, codes", f"TT-matrix, {_bits(bits)}", partial(coded_train, table, bits, by_row=True)
    name = "frequent rows + trains"
    yield name, "4,096 by id, rank 1 rest", partial(_adaptive, dense, by_id, 4096, 1)
    for rank in (1, 2):
        yield name, f"2,048 by count, rank {rank} rest", partial(_adaptive, dense, by_count, 2048, rank)
    int8, train = partial(integers, bits=8), partial(coded_train, bits=1, by_row=True)
    yield name, "2,048 by count, TT-codes 1 rest", mixed(by_count, 2048, int8, train)
    name, svd = "frequent rows + other", partial(svd_int8, count=16)
    yield name, "4,096 by id, SVD 16 rest", mixed(by_id, 4096, int8, svd)
    yield name, "2,048 by count, mean row rest", mixed(by_count, 2048, int8, mean_row)
    yield name, "2,048 by count, SVD 16 rest", mixed(by_count, 2048, int8, svd)
    yield name, "2,048 by count, rotated 1 rest", mixed(by_count, 2048, int8, partial(coded_rows, bits=1))
    yield name, "2,048 by count, int3 rest", mixed(by_count, 2048, int8, partial(integers, bits=3, group=64))


def svd_int8(table: Tensor, count: int) -> Made:
    """Store the mean row, the first principal axes in float32, and the coordinates along them in int8.

    Example:
        >>> table = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
        >>> approximation, nbytes = svd_int8(table, 8)
        >>> bool((approximation - table).norm() / table.norm() < 0.01), nbytes
        (True, 1248)
    """
    mean = table.mean(0)
    axes = torch.linalg.eigh(torch.cov((table - mean).double().mT))[1].flip(1)[:, :count].float()
    coordinates = quantize_integer(((table - mean) @ axes).contiguous(), 8)
    return coordinates.approximation @ axes.mT + mean, coordinates.nbytes + 4 * table.shape[1] * (count + 1)


def _bits(bits: int) -> str:
    return f"{bits} bit" if bits == 1 else f"{bits} bits"


def _made(compressed: Compressed) -> Made:
    return compressed.dense(), compressed.nbytes


def _trains(dense: nn.Embedding, **options) -> Made:
    return _made(MPSEmbedding.from_embedding(dense, **options))


def _adaptive(dense: nn.Embedding, order: Tensor, count: int, rank: int) -> Made:
    caps = torch.full((len(dense.weight),), rank)
    caps[order[:count]] = 10**6  # nothing is cut: the row stays whole
    return _trains(dense, row_ranks=caps, **TURNED)


def family_of(point: dict) -> str:
    """Name the family of a recorded point as the chapter does.

    Example:
        >>> family_of({"family": "MPS, two modes, int8 cores"})
        'train per row'
    """
    return next(family for start, family in GROUPS.items() if point["family"].startswith(start))


def words(family: str, setting: str) -> str:
    """Say in few words what a recorded point is.

    Example:
        >>> words("int4 rows, mean row for the rest", "8192 rows by counted, mean row rest")
        'int4 rows: 8192 by count, mean row rest'
        >>> words("random rotation, rows in codes", "3 bits a weight")
        'random rotation: 3 bits'
    """
    if family.startswith("integers"):
        return setting
    setting = setting.replace(" rows by counted", " by count").replace(" rows by id", " by id")
    setting = setting.replace("1 bits a weight", "1 bit").replace(" bits a weight", " bits")
    family = family.replace(", rows in codes", "").replace("MPS", "train per row")
    if family.endswith(" for the rest"):
        family, rest = family.removesuffix(" for the rest").rsplit(", ", 1)
        setting += "" if setting.endswith("rest") else f", {rest} rest"
    return f"{family}: {setting.replace('MPS', 'trains of')}"


def on_front(points: list[dict], x: str, y: str) -> list[dict]:
    """Return the points that no other one beats in both, smallest x first.

    Example:
        >>> points = [{"bits": 1, "error": 0.5}, {"bits": 2, "error": 0.6}, {"bits": 3, "error": 0.1}]
        >>> [point["bits"] for point in on_front(points, "bits", "error")]
        [1, 3]
    """
    steps = set(pareto_frontier([(point[x], point[y]) for point in points]))
    return sorted((point for point in points if (point[x], point[y]) in steps), key=lambda point: point[x])


def draw_points(
    ax: Axes, points: list[dict], x: str, y: str, names: dict[str, tuple[float, float, str]], *, front: bool = True
) -> None:
    """Draw points by family, each family's name beside them, and the staircase of those that no other beats.

    Args:
        ax: Axes to draw in.
        points: Each with a family and the keys `x` and `y`.
        x: Key of the cost.
        y: Key of the error; smaller is better.
        names: For each family where its name stands, and whether that is its "left", "right" or "center".
        front: Whether the staircase is drawn.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax, point = Figure().subplots(), {"family": "SVD", "bits": 1, "error": 0.5}
        >>> draw_points(ax, [point], "bits", "error", {"SVD": (1, 0.6, "left")})
        >>> [text.get_text() for text in ax.texts], len(ax.lines)
        (['SVD'], 2)
    """
    if front:
        steps = pareto_frontier([(point[x], point[y]) for point in points])
        ax.step(*zip(*steps, strict=True), where="post", color="#AAAAAA", linewidth=1.4, marker="", zorder=1)
    for family, (color, marker) in LOOKS.items():
        if mine := [point for point in points if point["family"] == family]:
            xs, ys = [point[x] for point in mine], [point[y] for point in mine]
            size = 11 if marker == "*" else 8
            style = {"linestyle": "", "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.8}
            ax.plot(xs, ys, color=color, marker=marker, zorder=3, **style)
    for family, (at, height, side) in names.items():
        ax.text(at, height, family, ha=side, va="center", color=readable(LOOKS[family][0]), zorder=4)


def draw_stairs(ax: Axes, points: list[dict], x: str, y: str, families: list[str]) -> None:
    """Draw one staircase for each family, over the points of all families in a faint gray.

    Between two of its points a family stays at the error of the cheaper one, and right of the last one at its error.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> points = [{"family": "SVD", "bits": bits, "error": 1 / bits} for bits in (1, 2)]
        >>> draw_stairs(ax, points, "bits", "error", ["SVD"])
        >>> ax.lines[1].get_drawstyle(), ax.lines[1].get_ydata().tolist()
        ('steps-post', [1.0, 0.5, 0.5])
    """
    ax.plot([p[x] for p in points], [p[y] for p in points], color="0.75", marker=".", linestyle="", markersize=4)
    end = 2 * max(point[x] for point in points)
    for family in families:
        color, marker = LOOKS[family]
        front = on_front([point for point in points if point["family"] == family], x, y)
        xs, ys = [point[x] for point in front], [point[y] for point in front]
        every = range(len(front))
        size = 10 if marker == "*" else 7
        style = {"drawstyle": "steps-post", "linewidth": 1.5, "markersize": size, "markevery": every}
        ax.plot([*xs, end], [*ys, ys[-1]], color=color, marker=marker, label=family, **style)


def log_axes(ax: Axes, x_ticks: tuple[float, ...], y_ticks: tuple[float, ...], xlabel: str, ylabel: str) -> None:
    """Make both axes logarithmic, with plain numbers at these places.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> log_axes(ax, (0.5, 1), (0.1, 1), "bits", "error")
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['0.5', '1']
    """
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    for axis, ticks in ((ax.xaxis, x_ticks), (ax.yaxis, y_ticks)):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_minor_formatter(NullFormatter())
