"""Peak memory of an audit is that of its largest matrix, twice, and a work space: measured in fresh processes."""

import os
import subprocess
import sys

import pytest
from small_checkpoints import noise, saved

from book.tools.notebooks import ROOT

# VmHWM begins with the program; ru_maxrss would begin with the peak of the process that started it.
PEAK = """
import sys
from ttref.audit import audit
audit(sys.argv[1], eps=0.3, progress=False)
with open("/proc/self/status") as lines:
    print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""
ROWS, SHORT, LONG = 64, 65_537, 262_147  # lengths are prime, so that little is tried
TENSOR = 4 * ROWS * SHORT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read where Linux tells it")


def peak(path):
    """Bytes. What is given back is returned to the system: how much glibc keeps otherwise differs from run to run."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """The peak of a checkpoint with two equal tensors, which are told apart by their numbers."""
    return peak(saved({f"h.{k}.weight": noise(ROWS, SHORT, k) for k in range(2)}, tmp_path_factory.mktemp("two")))


def test_twelve_matrices_take_no_more_than_two(of_two, tmp_path):
    path = saved({f"h.{k}.weight": noise(ROWS, SHORT, k) for k in range(12)}, tmp_path)
    assert path.stat().st_size > 12 * TENSOR
    assert peak(path) - of_two < TENSOR


def test_a_larger_matrix_takes_its_size_twice(of_two, tmp_path):
    """Itself and noise of its size; what is computed of them is computed in pieces."""
    path = saved({"h.0.weight": noise(ROWS, LONG)}, tmp_path)
    assert peak(path) - of_two < 3 * 4 * ROWS * (LONG - SHORT)
