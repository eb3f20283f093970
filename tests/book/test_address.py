"""`make address` writes one address everywhere, and takes it back without a trace."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from book.tools import notebooks


def address(checkout: Path, repo: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "book.tools.address", repo]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def texts(checkout: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in [checkout / "_config.yml", *checkout.glob("notebooks/*.ipynb")]}


def test_an_address_reaches_every_notebook_and_goes_away_again(copy_of_the_checkout):
    assert address(copy_of_the_checkout, "").returncode == 0
    bare = texts(copy_of_the_checkout)
    assert len(bare) > 1
    assert not any(b"Open in Colab" in text for text in bare.values())

    done = address(copy_of_the_checkout, "owner/some-name")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((copy_of_the_checkout / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == "https://github.com/owner/some-name"
    tag = notebooks.revision()
    assert config["repository"]["branch"] == tag
    for path in copy_of_the_checkout.glob("notebooks/*.ipynb"):
        header, bootstrap, *_ = nbformat.read(path, as_version=4).cells
        links = [line for line in header.source.split("\n") if line.startswith("[Open in Colab]")]
        target = f"owner/some-name/blob/{tag}/notebooks/{path.name}"
        assert len(links) == 1
        assert f"(https://colab.research.google.com/github/{target})" in links[0]
        assert f"(https://mybinder.org/v2/gh/owner/some-name/{tag}?labpath=notebooks/{path.name})" in links[0]
        assert f"(https://github.com/{target})" in links[0]
        assert f"(https://raw.githubusercontent.com/owner/some-name/{tag}/notebooks/{path.name})" in links[0]
        assert bootstrap.source.count(f'= "https://github.com/owner/some-name", "{tag}"\n') == 1

    once = texts(copy_of_the_checkout)
    assert address(copy_of_the_checkout, "owner/some-name").returncode == 0
    assert texts(copy_of_the_checkout) == once
    assert address(copy_of_the_checkout, "").returncode == 0
    assert texts(copy_of_the_checkout) == bare


@pytest.mark.parametrize("repo", ["name", "https://example.org/owner/name", "owner/name/more", 'owner/na"me', "owner/"])
def test_what_is_not_an_address_is_refused(copy_of_the_checkout, repo):
    before = texts(copy_of_the_checkout)
    done = address(copy_of_the_checkout, repo)
    assert done.returncode == 1
    assert "is not of the form owner/name" in done.stderr
    assert "Traceback" not in done.stderr
    assert texts(copy_of_the_checkout) == before
