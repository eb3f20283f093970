"""`make hashes` writes the hashes of the files that a reader's machine may take, and of no others."""

import pytest

from book.tools import hashes

A, B, C, D = (letter * 64 for letter in "abcd")


def page(*files: tuple[str, str]) -> str:
    links = (f'<a href="../../{digest[:2]}/{name}#sha256={digest}">{name}</a><br />' for name, digest in files)
    return "\n".join(["<html><body>", *links, "</body></html>"])


@pytest.mark.parametrize(
    "name",
    [
        "x-1.0-py3-none-any.whl",
        "x-1.0-py2.py3-none-any.whl",
        "x-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "x-1.0-cp313-cp313-manylinux_2_28_aarch64.whl",
        "x-1.0-cp39-abi3-macosx_11_0_arm64.whl",
        "x-1.0-cp312-cp312-win_amd64.whl",
    ],
)
def test_a_wheel_that_a_reader_may_take_counts(name):
    assert hashes.takes(name)


@pytest.mark.parametrize(
    "name",
    [
        "x-1.0-cp310-cp310-manylinux_2_28_x86_64.whl",
        "x-1.0-cp313-cp313t-manylinux_2_28_x86_64.whl",
        "x-1.0-cp314-cp314-win_amd64.whl",
        "x-1.0-cp314-abi3-win_amd64.whl",
        "x-1.0-cp312-cp312-musllinux_1_2_x86_64.whl",
        "x-1.0-cp312-cp312-pyodide_2024_0_wasm32.whl",
        "x-1.0-pp311-pypy311_pp73-win_amd64.whl",
        "x-1.0-cp27-cp27m-win_amd64.whl",
    ],
)
def test_a_wheel_for_another_python_or_platform_does_not(name):
    assert not hashes.takes(name)


def test_only_the_pinned_version_counts_and_local_builds_of_it_do():
    listed = page(
        ("x-1.0-py3-none-any.whl", A),
        ("x-1.0%2Bcpu-py3-none-any.whl", B),
        ("x-1.0.1-py3-none-any.whl", C),
        ("x-1.0.tar.gz", D),
    )
    assert hashes.hashes(listed, "1.0") == [A, B]


def test_a_source_distribution_counts_where_there_is_no_wheel():
    assert hashes.hashes(page(("x-1.0.tar.gz", D), ("x-0.9-py3-none-any.whl", A), ("x-1.0-old.exe", B)), "1.0") == [D]


def test_pins_without_hashes_get_them_and_the_rest_stays():
    text = f"# why\n--only-binary :all:\n\nx==1.0\ny==2 ; sys_platform != 'win32'\nz==3 \\\n    --hash=sha256:{C}\n"
    pages = {
        "x": page(("x-1.0-py3-none-any.whl", B), ("x-1.0-cp311-cp311-win_amd64.whl", A)),
        "y": page(("y-2-py3-none-any.whl", D)),
    }
    fresh = hashes.locked(text, pages.__getitem__)
    assert fresh == (
        f"# why\n--only-binary :all:\n\nx==1.0 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n"
        f"y==2 ; sys_platform != 'win32' \\\n    --hash=sha256:{D}\nz==3 \\\n    --hash=sha256:{C}\n"
    )
    assert hashes.locked(fresh, {}.__getitem__) == fresh


@pytest.mark.parametrize("line", ["x>=1.0", "x==9.9", "x"])
def test_a_pin_that_is_not_exact_or_has_no_file_is_refused(line):
    with pytest.raises(ValueError, match="no exact pin, or no file of this version fits"):
        hashes.locked(line + "\n", lambda _: page(("x-1.0-py3-none-any.whl", A)))


def test_torch_is_asked_for_at_its_own_index_too_and_nothing_else_is(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://pypi.example/simple")
    monkeypatch.setenv("TORCH_INDEX", "https://torch.example/cpu")
    assert hashes.indexes("torch") == ["https://pypi.example/simple", "https://torch.example/cpu"]
    assert hashes.indexes("numpy") == ["https://pypi.example/simple"]
