"""The same layers and models in onnxruntime: do they answer the same, and how long do they take beside torch?"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .costing import of_layer
from .speeds import compared, ids_of
from .variants import folder, load

LAYER = "encoder.layer.0.intermediate.dense"  # 384 to 1,536
VECTORS = (1, 64, 2048)
SENTENCES = ((1, 32), (64, 128))
FORMS = ("dense", "trains", "svd")


class States(nn.Module):
    """An encoder that gives its last states alone, which a graph can return."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor:
        """``(batch, tokens)`` to ``(batch, tokens, width)``."""
        return self.net(ids).last_hidden_state


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No warnings, and no word of operators of packages that are not here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def written(module: nn.Module, args: tuple, dynamic: tuple | None = None) -> bytes:
    """A module as an ONNX graph, by ``torch.onnx.export(..., dynamo=True)``."""
    with silent(), torch.no_grad():
        program = torch.onnx.export(module, args, dynamo=True, verbose=False, dynamic_shapes=dynamic)
    return program.model_proto.SerializeToString()


def session(graph: bytes) -> Callable[..., Tensor]:
    """A graph in onnxruntime on one thread of the processor, called with tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in made.get_inputs()]

    def call(*args: Tensor) -> Tensor:
        given = {name: arg.numpy() for name, arg in zip(names, args, strict=True)}
        return torch.from_numpy(made.run(None, given)[0])

    return call


def in_int8(graph: bytes) -> bytes:
    """The graph with int8 weights, by onnxruntime's own dynamic quantization."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it recommends a step that changes nothing here
    with tempfile.TemporaryDirectory() as place:
        paths = Path(place, "float.onnx"), Path(place, "int8.onnx")
        paths[0].write_bytes(graph)
        quantize_dynamic(*paths, per_channel=True, weight_type=QuantType.QInt8)
        return paths[1].read_bytes()


@functools.cache
def form(name: str) -> nn.Module:
    """MiniLM in one form."""
    return load("minilm", name, folder("minilm", name))


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def both(modules: dict[str, nn.Module], x: Tensor, dynamic: Any = None) -> Iterator[tuple[str, Callable, float, int]]:
    """Calls of torch and of onnxruntime, how far the answers lie apart from torch's dense or own ones, bytes."""
    for name, module in modules.items():
        graph = written(module, (x,), dynamic)
        with torch.no_grad():
            wanted = module(x)
        ways = {f"{name}, onnxruntime": graph}
        if name == "dense":
            ways["int8, onnxruntime"] = in_int8(graph)
        yield f"{name}, torch", module, 0.0, 0
        for way, made in ways.items():
            call = session(made)
            yield way, call, apart(call(x), wanted), len(made)


def layers(limits: dict[str, float], before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``graph_layers``: one matrix of 384 to 1,536."""
    modules = {name: form(name).get_submodule(LAYER) for name in FORMS}
    for vectors in VECTORS:
        if (key := str(vectors)) in before:
            continue
        x = torch.randn(vectors, modules["dense"].in_features, generator=torch.Generator().manual_seed(0))
        works = {f"{name}, {way}": [of_layer(m, vectors)] for name, m in modules.items() for way in WAYS}
        yield {"key": key, "vectors": vectors} | told_apart(modules, x, works, vectors, limits)


def models(limits: dict[str, float], before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``graph_models``: all of MiniLM."""
    for batch, length in SENTENCES:
        if (key := f"{batch} x {length}") in before:
            continue
        modules = {name: States(form(name)) for name in FORMS}
        ids = ids_of(form("dense"), batch, length)
        yield {"key": key, "batch": batch, "length": length} | told_apart(modules, ids, {}, batch * length, limits)


WAYS = ("torch", "onnxruntime")


def told_apart(modules: dict[str, nn.Module], x: Tensor, works: dict, items: int, limits: dict[str, float]) -> dict:
    """Times of all modules in both runtimes, in turns, and how far their answers lie apart."""
    calls, rest = {}, {}
    for name, call, error, size in both(modules, x):
        calls[name] = functools.partial(call, x)
        rest[name] = {"apart": error, "graph_bytes": size}
    rows = compared(calls, works, items, limits)
    return {"rows": [row | rest[row["form"]] for row in rows]}
