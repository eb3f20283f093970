"""What the tests of compressed tables share: tables to compress, a second way to rebuild rows, and what torch holds."""

import math

import torch
from strategies import dense, gaussian
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ttref import tt_svd

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def embedding(w, **options):
    return nn.Embedding.from_pretrained(w.detach().clone(), freeze=False, **options)


def noise(count, width, seed=0, dtype=torch.float32):
    return gaussian((count, width), seed, dtype)


def smooth(count, width, seed=0, dtype=torch.float32, rough=0.05):
    """Rows of low and different ranks: a few waves each, and a little noise, more from row to row."""
    generator = torch.Generator().manual_seed(seed)
    pace = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    grows = torch.linspace(0, 4 * rough, count, dtype=torch.float64).unsqueeze(1)
    w = torch.sin(pace * torch.arange(width)) + grows * gaussian((count, width), seed)
    return w.to(dtype)


def every(table):
    return torch.arange(table.num_embeddings)


def rebuilt(w, shape, rank):
    """The oracle for rows without a frame: pad, TT-SVD, one einsum per core, cut the padding off."""
    padded = nn.functional.pad(w, (0, math.prod(shape) - w.shape[1]))
    cores = tt_svd(padded, shape, rank=rank, batch_dims=1)
    return dense([core.double() for core in cores]).flatten(1)[:, : w.shape[1]]


def row_norms(w):
    return torch.linalg.vector_norm(w.detach().double(), dim=1)


def unit(dtype):
    """Rounding of what is computed in this dtype: halves are contracted in float32."""
    return torch.finfo(dtype).eps


def assert_rows(actual, expected, dtype, factor=40):
    """Each row within rounding of its norm."""
    error = row_norms(actual.double() - expected.double())
    assert (error <= factor * unit(dtype) * row_norms(expected) + 1e-300).all(), (error / row_norms(expected)).max()


def same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Largest(TorchDispatchMode):
    """The most numbers that any one tensor made meanwhile holds."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """The numbers that autograd keeps for the backward pass, each tensor once."""

    def __init__(self):
        self.tensors = {}
        super().__init__(self._keep, lambda x: x)

    def _keep(self, x):
        self.tensors[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    def __enter__(self):
        super().__enter__()
        return self

    @property
    def numbers(self):
        return sum(self.tensors.values())
