"""The data path cycle by cycle: a picture of a whole run, and an animation that needs no network.

matplotlib writes the animation; its page would fetch icons, so the buttons get plain text here. Both pictures show a
schedule and are drawn from :func:`~ttref.fixedpoint.timeline.trace`, which the tests compare with the simulated
hardware.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import re

import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

from ttref.fixedpoint.scheduling import Schedule
from ttref.fixedpoint.timeline import Cycle, trace

__all__ = ["animate_run", "draw_run"]

_INK, _MUTED, _IDLE, _EMPTY, _HELD = "#222222", "#555555", "#F2F2F2", "#FFFFFF", "#DCEBF5"
_READ, _WRITE, _BUSY = "#7DB8DE", "#F3B27A", "#BFE3C8"
# In pixels as wide as a phone; larger screens show the frames at this size.
_SIZE, _DPI = (4.0, 4.3), 78
_BUTTONS = {
    "fa fa-minus": "slow",
    "fa fa-fast-backward": "|◀",
    "fa fa-step-backward": "◀|",
    "fa fa-play fa-flip-horizontal": "◀",
    "fa fa-pause": "❚❚",
    "fa fa-play": "▶",
    "fa fa-step-forward": "|▶",
    "fa fa-fast-forward": "▶|",
    "fa fa-plus": "fast",
}
_STYLE = """<style>
.animation { display: block; text-align: center; max-width: 100%; }
.animation img { max-width: 100%; height: auto; }
.animation .anim-slider { width: 92%; max-width: 24rem; }
.anim-buttons { margin: 0.4rem 0; }
.anim-buttons button { min-width: 2.1rem; min-height: 1.9rem; padding: 0 0.25rem; font-size: 0.8rem; }
.anim-state label { margin-right: 0.6rem; }
</style>"""


def draw_run(schedule: Schedule) -> Figure:
    """Draw a whole run, one chart for each stage: the word read, the product of every lane, and the word written.

    Args:
        schedule: From :func:`~ttref.fixedpoint.scheduling.schedule`; up to about 25 cycles a stage stay readable.

    Returns:
        The figure. Time runs to the right; a product is written as row and term of its core's matrix.

    Example:
        >>> from ttref.fixedpoint import schedule, tt_stages
        >>> figure = draw_run(schedule(tt_stages([(1, 2, 2, 2), (2, 2, 2, 1)]), 2))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['read word', 'lane 0', 'lane 1', 'write word']
        >>> plt.close(figure)
    """
    rows = ["read word", *(f"lane {lane}" for lane in range(schedule.used_lanes)), "write word"]
    faces = [_READ, *[_BUSY] * schedule.used_lanes, _WRITE]
    stages = [list(group) for _, group in itertools.groupby(trace(schedule), key=lambda cycle: cycle.stage)]
    figure, axes = plt.subplots(len(stages), 1, figsize=(7.2, len(stages) * (0.4 * len(rows) + 0.95)), squeeze=False)
    start, longest = 0, max(map(len, stages))
    for ax, stage in zip(axes.flat, stages, strict=True):
        for now, cycle in enumerate(stage, start):
            texts = ["" if cycle.read is None else str(cycle.read)]
            texts += ["" if product is None else f"{product[1]},{product[3]}" for product in cycle.products]
            texts += ["" if cycle.write is None else str(cycle.write)]
            for row, (text, face) in enumerate(zip(texts, faces, strict=True)):
                box = {"facecolor": face if text else _IDLE, "edgecolor": "white", "linewidth": 0.8}
                ax.add_patch(Rectangle((now, -row - 0.45), 1, 0.9, **box))
                ax.text(now + 0.5, -row, text, ha="center", va="center", fontsize=10)
        halves = "AB"[stage[0].stage % 2], "BA"[stage[0].stage % 2]
        ax.set_title(f"core $G_{stage[0].core + 1}$: reads half {halves[0]}, writes half {halves[1]}", fontsize=11)
        ax.set(xlim=(start, start + longest), ylim=(0.5 - len(rows), 0.5))
        ax.set_xticks([now + 0.5 for now in range(start, start + len(stage), 2)], range(start, start + len(stage), 2))
        ax.set_yticks([-row for row in range(len(rows))], rows)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[["left", "bottom"]].set_visible(False)
        start += len(stage)
    axes[-1, 0].set_xlabel("clock cycle")
    return figure


def animate_run(schedule: Schedule, *, milliseconds: int = 900) -> str:
    """Animate a run: one frame a cycle with the words in both halves of the memory and the product of every lane.

    Args:
        schedule: From :func:`~ttref.fixedpoint.scheduling.schedule`. Two lanes and about ten words in each half fit.
        milliseconds: Duration of a frame.

    Returns:
        HTML with frames, player and a description in words for readers who cannot see it. It loads nothing from the
        network, shows its first frame without a script, and its buttons are text. About 6 kB a frame.

    Example:
        >>> from ttref.fixedpoint import schedule, tt_stages
        >>> page = animate_run(schedule(tt_stages([(1, 2, 2, 1)]), 2))
        >>> "http" in page, 'alt="' in page, "anim1.play_animation()" in page
        (False, True, True)
    """
    cycles = list(trace(schedule))
    with plt.rc_context({"animation.embed_limit": 20, "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
        ax = figure.add_axes((0, 0, 1, 1))
        film = FuncAnimation(figure, lambda now: _frame(ax, schedule, cycles, now), frames=len(cycles), init_func=list)
        page = film.to_jshtml(fps=1000 / milliseconds, default_mode="once")
    plt.close(figure)
    return _offline(page, alt=_words(schedule, cycles))


def _frame(ax: Axes, schedule: Schedule, cycles: list[Cycle], now: int) -> list:
    """Draw one cycle: the two halves of the memory left and right, the core on top, the lanes between."""
    ax.clear()
    ax.set(xlim=(0, 10), ylim=(0, 10.75))
    ax.set_axis_off()
    cycle = cycles[now]
    source = cycle.stage % 2
    ax.text(5, 10.4, f"cycle {now} (0 to {len(cycles) - 1})", ha="center", va="center", fontsize=11, weight="bold")
    count = len(schedule.tiles)
    for core in range(count):
        x = 5 + 1.5 * (core - (count - 1) / 2)
        active = core == cycle.core
        ax.add_patch(Circle((x, 9.3), 0.5, facecolor=_WRITE if active else _IDLE, edgecolor=_INK, linewidth=1.2))
        ax.text(x, 9.28, f"$G_{core + 1}$", ha="center", va="center", fontsize=11)
    for half in (0, 1):
        _half(ax, schedule, cycles, now, half)
    x = (1.95, 8.05)
    for busy, y, begin, color in (
        (cycle.read is not None, 7.9, source, _READ),
        (cycle.write is not None, 1.05, source, _WRITE),
    ):
        arrow = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 2, "color": color if busy else "#DDDDDD"}
        ax.add_patch(FancyArrowPatch((x[begin], y), (x[1 - begin], y), **arrow))
    ax.text(5, 8.2, "" if cycle.read is None else f"reads word {cycle.read}", ha="center", fontsize=10)
    step = min(2.3, 5.2 / schedule.used_lanes)
    for lane, product in enumerate(cycle.products):
        y = 6.2 - step * lane
        face = _IDLE if product is None else _BUSY
        ax.add_patch(
            FancyBboxPatch((2.45, y - 0.75), 5.1, 1.5, boxstyle="round,pad=0.1", facecolor=face, edgecolor=_MUTED)
        )
        text = "idle"
        if product is not None:
            a, row, b, k = product
            text = f"adds to out[{a},{row},{b}]\n$G_{cycle.core + 1}$[{row},{k}] × z[{a},{k},{b}]"
        ax.text(2.55, y + 0.5, f"lane {lane}", va="center", fontsize=9, color=_MUTED)
        ax.text(5.3, y - 0.1, text, ha="center", va="center", fontsize=10)
    ax.text(
        5,
        1.95,
        "rounds, saturates," if cycle.write is not None else "rounding units idle",
        ha="center",
        va="center",
        fontsize=10,
        color=_INK if cycle.write is not None else _MUTED,
    )
    ax.text(5, 1.42, "" if cycle.write is None else f"writes word {cycle.write}", ha="center", va="center", fontsize=10)
    ax.text(5, 0.3, "reads A, writes B" if source == 0 else "reads B, writes A", ha="center", fontsize=10, color=_MUTED)
    return []


def _half(ax: Axes, schedule: Schedule, cycles: list[Cycle], now: int, half: int) -> None:
    """Draw one half of the memory: the words whose data is still needed, the one read, the one written."""
    cycle = cycles[now]
    depth = max(schedule.words[half::2])
    reading = cycle.stage % 2 == half
    boundary = cycle.stage if reading else cycle.stage + 1
    written = {c.write for c in cycles[:now] if c.stage == cycle.stage and c.write is not None}
    held = set(range(schedule.words[boundary])) if reading else written
    x, height = (0.25, 8.25)[half], min(0.86, 7.2 / depth)
    ax.text(x + 0.75, 8.9, f"half {'AB'[half]}", ha="center", va="center", fontsize=10)
    for word in range(depth):
        y = 8.3 - height * (word + 1)
        face = _HELD if word in held else _EMPTY
        if reading and cycle.read == word:
            face = _READ
        if not reading and cycle.write == word:
            face = _WRITE
        ax.add_patch(Rectangle((x, y), 1.5, height, facecolor=face, edgecolor=_MUTED, linewidth=0.8))
        ax.text(x + 0.75, y + height / 2, str(word), ha="center", va="center", fontsize=9.5)


def _words(schedule: Schedule, cycles: list[Cycle]) -> str:
    stages = []
    for stage, group in itertools.groupby(cycles, key=lambda cycle: cycle.stage):
        work = list(group)
        busy = sum(any(product is not None for product in cycle.products) for cycle in work)
        stages.append(
            f"core {work[0].core + 1} takes {len(work)} cycles, reading half {'AB'[stage % 2]} and writing half "
            f"{'BA'[stage % 2]}, with the lanes at work in {busy} of them"
        )
    lanes = f"{schedule.used_lanes} lane{'s' if schedule.used_lanes > 1 else ''}"
    return f"Animation of {schedule.cycles} cycles on {lanes}: " + "; then ".join(stages) + "."


def _offline(page: str, alt: str) -> str:
    """The player without icons from the network, with small frames, a first picture and a description."""
    page = re.sub(r"<link\b[^>]*>", "", page, count=1)
    page = re.sub(r"<style>.*?</style>", _STYLE, page, count=1, flags=re.DOTALL)
    for icon, text in _BUTTONS.items():
        page = page.replace(f'<i class="{icon}"></i>', text)
    # The player's names hold a random number, new for each run.
    page = page.replace(re.search(r'id="_anim_img(\w+)"', page)[1], "1")
    page = re.sub(r'"data:image/png;base64,([^"]*)"', lambda found: f'"{_small(found[1])}"', page)
    first = re.search(r'"(data:image/png;base64,[^"]*)"', page)[1]
    page = page.replace('class="anim-slider"', 'class="anim-slider" aria-label="clock cycle"')
    return page.replace('<img id="_anim_img1">', f'<img id="_anim_img1" alt="{html.escape(alt)}" src="{first}">')


def _small(frame: str) -> str:
    """A frame as a data address with a palette of 32 colors: half of the bytes."""
    picture = Image.open(io.BytesIO(base64.b64decode(re.sub(r"\\?\n", "", frame))))
    out = io.BytesIO()
    picture.convert("RGB").quantize(32, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
