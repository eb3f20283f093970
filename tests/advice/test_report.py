"""The advice as text, as a page, and as a file."""

import html.parser
import json

import pytest
import torch
from strategies import gaussian
from torch import nn

import ttref


@pytest.fixture(scope="module")
def advice():
    time = torch.linspace(0, 3, 512).unsqueeze(1)
    model = nn.ModuleDict({"wpe": nn.Embedding(512, 96), "fc1": nn.Linear(96, 64), "fc2": nn.Linear(64, 96)})
    with torch.no_grad():
        model["wpe"].weight.copy_(time * (time * torch.linspace(1, 6, 96)).sin())
        for k, layer in enumerate((model["fc1"], model["fc2"])):
            layer.weight.copy_(gaussian(tuple(layer.weight.shape), k, torch.float32))
    return ttref.advise(model)


def test_the_text_fits_and_says_what_to_type(advice):
    text = repr(advice)
    assert max(map(len, text.splitlines())) <= 88
    assert text == str(advice) and text.startswith("Round to integers: they win on")
    lines = text.splitlines()
    assert "Position table (79.8%): train." in " ".join(lines)
    head = next(line for line in lines if line.startswith("part"))
    assert head.split() == ["part", "verdict", "share", "matrices", "train", "SVD", "noise", "integers"]
    row = next(line for line in lines if line.startswith("position table"))
    assert row.split()[2:5] == ["train", "79.8%", "1"]
    assert 'name = "wpe"' in text and 'for name in advice.names("feed-forward"):' in text


def test_long_names_of_parts_fit_too():
    state = {f"layers.{k}.self_attn.{one}_proj.weight": gaussian((64, 64), k) for k in range(3) for one in "vo"}
    time = torch.linspace(0, 3, 512).unsqueeze(1)
    state["layers.9.self_attn.o_proj.weight"] = time * (time * torch.linspace(1, 6, 512)).sin()
    text = repr(ttref.advise(state))
    assert "integers 6 of 7" in text and max(map(len, text.splitlines())) <= 88


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_page_has_a_real_table(advice):
    page = Tags()
    page.feed(advice._repr_html_())
    compared = [row for row in advice.rows if row["matrices"]]
    assert page.open == [] and len(page.cells) == 8 * (1 + len(compared)) + 2  # of the norms: the part and its share
    assert page.cells[:3] == ["part", "verdict", "share"] and "position table" in page.cells
    assert "<script" not in advice._repr_html_()


def test_names_of_weights_are_escaped():
    page = ttref.advise({"<b>.mlp": gaussian((16, 16), 0)})._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;" in page


def test_the_file_holds_everything(advice, tmp_path):
    path = tmp_path / "advice.json"
    path.write_text("old")
    advice.save(path)
    kept = json.loads(path.read_text())
    assert kept == json.loads(json.dumps(advice.as_dict())) and list(tmp_path.iterdir()) == [path]
    assert [row["part"] for row in kept["rows"]] == [row["part"] for row in advice.rows]
    assert {check["name"] for check in kept["checks"]} == {"wpe.weight", "fc1.weight", "fc2.weight"}
    assert kept["eps"] == [0.2, 0.1] and kept["numbers"] == advice.numbers
    with pytest.raises(FileNotFoundError):
        advice.save(tmp_path / "none" / "advice.json")


def test_the_ratio_of_the_whole_model_counts_bytes_of_all(advice):
    by_name = {check["name"]: check for check in advice.checks if check["eps"] == 0.2}
    left = sum(row["numbers"] for row in advice.rows if not row["matrices"])
    for check in by_name.values():
        numbers = check["shape"][0] * check["shape"][1]
        left += numbers / {"train": 4 * check["train"], "integers": check["integers"]}[check["verdict"]]
    assert advice.ratio[0] == pytest.approx(advice.numbers / left)


def test_ratios_are_against_float32_whatever_the_model_is_kept_in(advice):
    assert "smaller than in float32." in " ".join(repr(advice).split())
    state = {"fc1": gaussian((64, 96), 0, torch.float32).bfloat16()}
    assert ttref.advise(state).ratio == ttref.advise({"fc1": state["fc1"].float()}).ratio


def test_an_error_that_was_not_asked_about_is_named(advice):
    for ask in (advice.code, lambda part, eps: advice.names(part, "integers", eps)):
        with pytest.raises(ValueError, match=r"eps=0.05 was not asked about, only 0.2, 0.1: advise\(model, eps="):
            ask("feed-forward", 0.05)


def test_a_part_that_is_not_there_is_named(advice):
    with pytest.raises(ValueError, match="position table"):
        advice.code("convolution")
    with pytest.raises(ValueError, match="no part 'head'"):
        advice.names("head")
