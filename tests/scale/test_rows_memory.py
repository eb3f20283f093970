"""Peak memory of a worker is that of its blocks and three times its shard: measured in a fresh process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from row_sources import written

from book.tools.notebooks import ROOT

PEAK = """
import json, sys
from ttref.scale import compress_rows
for size in 1 << 15, 1 << 17:
    how = {"rank": 99, "rows_per_shard": size, "engine": "pool", "workers": 1}
    shards = compress_rows(sys.argv[1], f"{sys.argv[2]}/{size}", **how).shards
    with open("/proc/self/status") as lines:
        peak = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps([shards[0]["nbytes"], peak]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read where Linux tells it")
def test_a_larger_shard_takes_its_size_three_times(tmp_path):
    """What is given back is returned to the system: how much glibc keeps otherwise differs from run to run."""
    source = written(tmp_path, torch.ones(1 << 17, 64), "npy")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, source, tmp_path], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (small, before), (large, after) = map(json.loads, done.stdout.splitlines())
    assert large - small == 24 << 20 and 2 < (after - before) / (large - small) < 3.5
