"""The command line: what it prints, writes and returns, and that every fault is one line."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib

import pytest
import torch
from small_checkpoints import noise, saved, small_model

from book.tools.notebooks import ROOT
from ttref.command import COMMANDS, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(small_model(), tmp_path_factory.mktemp("model")).parent


def test_an_audit_is_printed_and_written(folder, tmp_path, capsys):
    data, page = tmp_path / "a.json", tmp_path / "a.html"
    assert main(["audit", str(folder), "--json", str(data), "--html", str(page), "--only", "wpe*"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("A tensor train pays for wpe.weight") and err == ""
    held = json.loads(data.read_text())
    assert [row["verdict"] for row in held["rows"]] == ["tt"] and "<svg" in page.read_text()
    assert main(["audit", str(folder), "--json", "-", "--only", "wpe*", "--eps", "0.2", "--sample"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["eps"] == [0.2] and held["sampled"]


def faults(tmp_path):
    """Words of the command line, the exit code, and what the line on stderr says."""
    cut = saved({"w": noise(16, 16)}, tmp_path, "cut.safetensors")
    cut.write_bytes(cut.read_bytes()[:-8])
    (tmp_path / "picture.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 64)
    torch.save({"w": noise(16, 16)}, tmp_path / "model.pt")
    good = saved({"w": noise(16, 16)}, tmp_path / "good")
    return {
        "missing": ([f"{tmp_path}/none.safetensors"], 3, "there is no file or folder"),
        "truncated": ([str(cut)], 3, "truncated or damaged"),
        "foreign": ([f"{tmp_path}/picture.safetensors"], 3, "no safetensors or GGUF file"),
        "pickle": ([f"{tmp_path}/model.pt"], 3, "--state-dict"),
        "pattern": ([str(good), "--only", "x*"], 3, "no name matches"),
        "folder of the result": ([str(good), "--json", f"{tmp_path}/no/a.json"], 3, "there is no folder"),
        "texts": ([str(good), "--data", f"{tmp_path}/none.txt"], 3, "no file of texts"),
    }


FAULTS = ("missing", "truncated", "foreign", "pickle", "pattern", "folder of the result", "texts")


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_line(tmp_path, capsys, name):
    words, code, says = faults(tmp_path)[name]
    assert main(["audit", *words]) == code
    err = capsys.readouterr().err
    assert err.startswith("ttref: ") and err.count("\n") == 1 and says in err


def test_a_state_dict_is_read_where_it_is_asked_for(tmp_path, capsys):
    torch.save({"w.weight": noise(16, 16)}, tmp_path / "model.pt")
    assert main(["audit", f"{tmp_path}/model.pt", "--state-dict"]) == 0
    assert "quantize" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["audit"], [], ["nothing"], ["audit", "x", "--eps", "2"], ["audit", "x", "--eps", "a"]]
)
def test_a_wrong_command_line_is_two(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and capsys.readouterr().err


def test_a_missing_package_is_four_and_a_stop_is_130(monkeypatch, folder, capsys):
    faults = (ModuleNotFoundError("needs x; install it"), 4), (KeyboardInterrupt(), 130)
    faults += (MemoryError(), 3), (OverflowError("too large"), 3), (RecursionError("too deep"), 3)  # 1 is a difference
    for error, code in faults:

        def fail(*args, error=error, **settings):
            raise error

        monkeypatch.setattr("ttref.audit.audit", fail)
        assert main(["audit", str(folder)]) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and len(err) > len("ttref: ") + 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete_and_needs_no_torch(command):
    code = f"import sys; sys.modules['torch'] = None; from ttref.command import main; main(['{command}', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: ttref" in done.stdout and "Exit codes" in done.stdout and "None" not in done.stdout


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "ttref", "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    # Without the marks of a docstring: a terminal shows no type.
    assert "(verify, unless --allow-by-hash)" in " ".join(done.stdout.split()) and "`" not in done.stdout


def test_an_installed_package_has_a_script_that_is_the_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert importlib.metadata.EntryPoint("ttref", scripts["ttref"], "console_scripts").load() is main
