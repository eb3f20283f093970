"""Peak memory of an audit is that of its largest matrix, twice, and a work space: measured in fresh processes."""

import os
import subprocess
import sys
import weakref
from functools import partial

import pytest
import torch
from small_checkpoints import noise, saved

from book.tools.notebooks import ROOT
from ttref.audit import auditing
from ttref.audit.sampling import PART

# VmHWM begins with the program; ru_maxrss would begin with the peak of the process that started it.
PEAK = """
import sys
from ttref.audit import audit
for path in sys.argv[1:]:
    audit(path, eps=0.3, progress=False)
    with open("/proc/self/status") as lines:
        print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""
# Lengths are prime, so that little is tried.
FEW, MANY, SMALL, GROWTH = 3, 40, (61, 4099), 4 << 20
ROWS, SHORT, LONG, WORK = 64, 65_537, 196_613, 8 << 20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read where Linux tells it")


def peaks(*paths):
    """Bytes after each audit, one after the other in a process of its own.

    What is given back is returned to the system: how much glibc keeps otherwise differs from run to run.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@on_linux
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """37 matrices more, of a megabyte each, which are told apart by their numbers."""
    matrices = {f"h.{k}.weight": noise(*SMALL, k) for k in range(MANY)}
    few, many = saved(dict(list(matrices.items())[:FEW]), tmp_path / "few"), saved(matrices, tmp_path / "many")
    assert many.stat().st_size - few.stat().st_size > 35 << 20
    before, after = peaks(few, many)
    assert after - before < GROWTH


@on_linux
def test_a_larger_matrix_takes_its_size_twice(tmp_path):
    """Itself and noise of its size; what is computed of them is computed in pieces."""
    short, long = (saved({"h.0.weight": noise(ROWS, n)}, tmp_path / f"{n}") for n in (SHORT, LONG))
    more = 4 * ROWS * (LONG - SHORT)
    before, after = peaks(short, long)
    assert after - before < 2 * more + WORK


def test_rows_of_a_table_that_a_sample_leaves_out_are_let_go(tmp_path, monkeypatch):
    """Before anything is computed of the others."""
    path = saved({"wte.weight": noise(2 * PART, 16)}, tmp_path)
    tables, opened, look = [], auditing.open_checkpoint, auditing.look

    def read(entry):
        table = entry.read().numpy().copy()  # a weak reference to an array tells, one to a tensor tells nothing
        tables.append(weakref.ref(table))
        return torch.from_numpy(table)

    def open_checkpoint(*given, **more):
        held = opened(*given, **more)
        return held._replace(entries=[one._replace(read=partial(read, one)) for one in held.entries])

    def looked(matrix, *given, **more):
        assert matrix.shape == (PART, 16) and [table() for table in tables] == [None]
        return look(matrix, *given, **more)

    monkeypatch.setattr(auditing, "open_checkpoint", open_checkpoint)
    monkeypatch.setattr(auditing, "look", looked)
    assert auditing.audit(path, sample=True, progress=False).rows[0]["looked"]
