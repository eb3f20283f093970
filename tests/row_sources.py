"""Files of rows of every kind, for the tests of what is compressed shard by shard."""

import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file
from small_tasks import once

from ttref import MPSEmbedding
from ttref.scale.row_work import compress

KINDS = ("safetensors", "npy", "parquet", "parquet fixed", "parquet columns")


def written(folder, rows, kind, name="rows"):
    """A file of this kind with these rows."""
    path = folder / f"{name}.{kind.split()[0]}"
    if kind == "safetensors":
        save_file({"other": rows[0].clone(), "x": rows.contiguous()}, path)
    elif kind == "npy":
        np.save(path, rows.numpy())
    else:
        columns = floats(rows) if "columns" in kind else {"x": lists(rows, fixed="fixed" in kind)}
        pq.write_table(pa.table(columns), path)
    return path


def lists(rows, *, fixed=False):
    """Rows as a column of lists."""
    values = pa.array(rows.numpy().reshape(-1))
    if fixed:
        return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    return pa.array(list(rows.numpy()), pa.list_(values.type))


def floats(rows):
    """Rows as columns side by side."""
    return {f"c{k}": pa.array(column) for k, column in enumerate(rows.numpy().T.copy())}


def dying(task, *, marks, within, **how):
    """Compresses a shard; who does the second one first dies: within its work, or before it can say that it is done."""
    dies = "rows-00002" in task["name"] and once(marks, task["name"])
    if dies and within:
        MPSEmbedding.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    found = compress(task, **how)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
