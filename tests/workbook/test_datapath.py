"""The pictures of the data path: offline, readable without a script, and true to the trace."""

import base64
import io
import re

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from book.workbook.datapath import animate_run, draw_run
from ttref.fixedpoint import schedule, trace, tt_stages

TINY = [(1, 2, 2, 2), (2, 2, 2, 1)]


@pytest.fixture(scope="module")
def tiny():
    return schedule(tt_stages(TINY), 2)


@pytest.fixture(scope="module")
def page(tiny):
    return animate_run(tiny, milliseconds=500)


def pictures(page):
    found = re.findall(r'(frames\[\d+\] = |src=)"data:image/png;base64,([^"]+)"', page)
    return [(where, Image.open(io.BytesIO(base64.b64decode(code)))) for where, code in found]


def test_the_animation_loads_nothing_and_keeps_within_its_share_of_a_notebook(page):
    assert not re.search(r"https?:|//[a-z]+\.|<link|font-awesome|\bfa-", page)
    assert len(page) < 300_000


def test_every_cycle_has_a_frame_and_the_first_stands_there_without_a_script(page, tiny):
    shown = pictures(page)
    frames = [image for where, image in shown if where != "src="]
    assert len(frames) == tiny.cycles == 36
    (still,) = (image for where, image in shown if where == "src=")
    assert still.tobytes() == frames[0].tobytes()
    assert all("transparency" not in image.info and image.mode == "P" for image in frames)
    assert len({image.convert("RGB").tobytes() for image in frames}) == tiny.cycles


def test_the_words_for_those_who_do_not_see_it_count_the_cycles(page):
    words = re.search(r'<img [^>]*alt="([^"]+)"', page)[1]
    assert words.startswith("Animation of 36 cycles on 2 lanes: core 2 takes 18 cycles, reading half A")
    assert "then core 1 takes 18 cycles, reading half B and writing half A, with the lanes at work in 8" in words


def test_every_button_has_text_and_a_fixed_player(page):
    buttons = re.findall(r'<button title="([^"]+)"[^>]*onclick="(anim1\.\w+)\(\)">\s*(\S+)\s*</button>', page)
    assert len(buttons) == 9 == page.count("<button")
    assert ("Play", "anim1.play_animation", "▶") in buttons
    assert set(re.findall(r"_anim_img(\w*)", page)) == {"1"}
    (slider,) = re.findall(r'<input [^>]*type="range"[^>]*>', page)
    assert 'aria-label="clock cycle"' in slider


def test_the_chart_writes_what_the_trace_says(tiny):
    figure = draw_run(tiny)
    at = {tuple(text.get_position()): text.get_text() for ax in figure.axes for text in ax.texts}
    for now, cycle in enumerate(trace(tiny)):
        expected = ["" if cycle.read is None else str(cycle.read)]
        expected += ["" if p is None else f"{p[1]},{p[3]}" for p in cycle.products]
        expected += ["" if cycle.write is None else str(cycle.write)]
        assert [at[now + 0.5, -row] for row in range(4)] == expected
    assert [ax.get_xlim() for ax in figure.axes] == [(0, 18), (18, 36)]
    plt.close(figure)
