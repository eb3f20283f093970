"""The compressed layers of a model: described together, put in place without numbers, and made dense again.

A table that stands in several places of a model is described where it stands first, and as ``Shared`` elsewhere::

    {
        "model.shared": {"kind": "MPSEmbedding", ...},
        "model.encoder.embed_tokens": {"kind": "Shared", "with": "model.shared"},
        "lm_head": {"kind": "TiedHead", "look_up": "model.shared", ...},
    }
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conv import TTConv2d
from ..embeddings.head import ScaledTable, TiedHead
from ..embeddings.tables import CompressedTable
from ..linears import conv1d_of
from ..surgery.ties import declare, declares
from ..surgery.wrappers import bare_modules
from ..ttlayer import TTLayer
from ..ttmatrix import TTMatrix
from .described import build, describe
from .makers import Spec, kind_in
from .places import HEAD, SHARED, check_fits, names_in

__all__ = ["Placing", "describe_model"]

_COMPRESSED = (TTMatrix, CompressedTable, ScaledTable, TiedHead)


def describe_model(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The descriptions of all compressed layers of a model by their names, as a release has them in its configuration.

    Layers that were rounded to integers in place of their weight are dense layers, and are not among them.

    Raises:
        TypeError: A subclass of a compressed layer, which nothing would describe.
        ValueError: An adapter around a layer; a head whose table is no look-up of the model; and as :func:`describe`.

    Cost:
        O(number of modules).

    Example:
        >>> from ttref import TTLinear
        >>> model = nn.Sequential(TTLinear((4, 4), (4, 4), rank=2), nn.ReLU())
        >>> [(name, spec["kind"]) for name, spec in describe_model(model).items()]
        [('0', 'TTLinear')]
    """
    modules = bare_modules(model, remove_duplicate=False)
    found: dict[str, dict[str, Any]] = {}
    first: dict[int, str] = {}
    for name, module in modules.items():
        if hasattr(module, "base_layer"):
            raise ValueError(f"{name} has an adapter around it; merge it first, or save it beside with save_tt_lora")
        if isinstance(module, _COMPRESSED) and name.rpartition(".")[0] not in found and type(module) is not TiedHead:
            if id(module) in first:
                found[name] = {"kind": SHARED, "with": first[id(module)]}
                continue
            found[name] = _described(name, module)
            first[id(module)] = name
            if isinstance(module, ScaledTable):
                first.setdefault(id(module.table), name)
    for name, module in modules.items():
        if type(module) is TiedHead:
            if id(module.table) not in first:
                raise ValueError(f"{name} scores with a table that no look-up of the model holds")
            found[name] = _described(name, module, first[id(module.table)])
    return found


class Placing:
    """Compressed layers put in place of a model's dense ones, without numbers; and the dense ones kept, to go back.

    The model has its weights on the meta device, or any. Its declared ties become those that hold with the new layers.

    Args:
        model: The model, of dense layers. Nothing changes if a description does not fit.
        described: Descriptions by names, as :func:`describe_model` makes them.
        dtype: Of all numbers; left out, each layer's own.
        same: False for a model of another class than the one described: a base model, or another head on top. Names
            then are found with and without ``base_model_prefix``, and those outside of the base model may be missing.

    Attributes:
        names: Names in this model of the layers put in place, in the order in which they were described.
        untied: Names of parameters that are tied no more, because what they were tied to is compressed.

    Raises:
        ValueError: A name that no module has, a layer of another kind or of other widths than the one in its place, a
            description that :func:`build` refuses; the message names the layer.
    """

    def __init__(
        self, model: nn.Module, described: Mapping[str, Spec], dtype: torch.dtype | None = None, *, same: bool = True
    ) -> None:
        here = names_in(model, described, same)
        self._specs = {here[name]: described[name] for name in here}
        made = _made({name: described[name] for name in here}, dtype)
        self._replaced = {here[name]: model.get_submodule(here[name]) for name in here}
        self._shared = {
            here[name]: here[described[name]["with"]] for name in here if kind_in(described[name]) == SHARED
        }
        for name in here:
            check_fits(model, name, self._replaced[here[name]], made[name if name in made else described[name]["with"]])
        self._frozen = {}
        ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
        for name, layer in made.items():
            _put(model, here[name], layer)
            self._frozen[here[name]] = [inner for inner, held in layer.named_parameters() if not held.requires_grad]
        for name in self._shared:
            _put(model, name, nn.Module())  # numbers are to be read under one name
        for name, layer in made.items():
            if isinstance(layer, TiedHead):
                layer._place = _place(model, here[described[name]["look_up"]])
        self.names = [here[name] for name in here]
        _declare(model)
        self.untied = ties.keys() - (getattr(model, "all_tied_weights_keys", None) or {}).keys()

    @contextmanager
    def undone(self, model: nn.Module) -> Iterator[list[nn.Module]]:
        """The model as it was, for a while; the block gets its dense layers."""
        held = {name: model.get_submodule(name) for name in self.names}
        for name in held:
            _put(model, name, self._replaced[name])
        try:
            yield [self._replaced[name] for name in held]
        finally:
            for name, layer in held.items():
                _put(model, name, layer)

    @torch.no_grad()
    def complete(self, model: nn.Module) -> None:
        """The last step, when the numbers are there: what no state holds, and shared tables in all their places."""
        for name in self._frozen:
            layer = model.get_submodule(name)
            for inner, held in layer.named_parameters():
                held.requires_grad_(inner not in self._frozen[name])
            if isinstance(getattr(layer, "embed_scale", None), Tensor):
                layer.embed_scale = layer.embed_scale.to(layer.table.device).fill_(self._specs[name]["scale"])
        for name, first in self._shared.items():
            _put(model, name, model.get_submodule(first))
        _declare(model)

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Put dense layers with the numbers of the compressed ones into the places of all that are still compressed."""
        left = {name: model.get_submodule(name) for name in self.names}
        left = {name: layer for name, layer in left.items() if isinstance(layer, _COMPRESSED)}
        tables = {name: layer.table for name, layer in left.items() if isinstance(layer, TiedHead)}  # while they stand
        weights: dict[int, nn.Parameter] = {}
        for name, layer in left.items():
            if name not in tables:
                inner = layer.table if isinstance(layer, ScaledTable) else layer
                dense = _dense(self._replaced[name], layer, weights.get(id(inner)))
                weights[id(inner)] = dense.weight
                _put(model, name, dense)
        for name, table in tables.items():
            _put(model, name, _dense_head(self._replaced[name], left[name], weights[id(table)]))
        _declare(model)


def _described(name: str, module: nn.Module, look_up: str | None = None) -> dict[str, Any]:
    try:
        return describe(module, look_up)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def _made(described: Mapping[str, Spec], dtype: torch.dtype | None) -> dict[str, nn.Module]:
    """The layers by the names they are described with; heads last, because they use others."""
    made: dict[str, nn.Module] = {}
    for name, spec in sorted(described.items(), key=lambda item: kind_in(item[1]) == HEAD):
        if kind_in(spec) == SHARED:
            continue
        table = made[spec["look_up"]] if kind_in(spec) == HEAD else None
        try:
            made[name] = build(spec, dtype=dtype, table=table)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return made


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Parent and attribute name of a module."""
    above, _, leaf = name.rpartition(".")
    return model.get_submodule(above), leaf


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, leaf = _place(model, name)
    setattr(parent, leaf, module.train(parent.training))


def _declare(model: nn.Module) -> None:
    """Let a transformers model declare the ties that hold now."""
    if not declares(model):
        return
    try:
        look_up = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # no table of tokens, or several
        look_up = None
    declare(model, look_up, untied=False)


def _dense(skeleton: nn.Module, made: nn.Module, weight: nn.Parameter | None) -> nn.Module:
    """The model's own kind of layer with the numbers of a compressed one, or with a weight that is known already."""
    dense, inner = copy.deepcopy(skeleton), made.table if isinstance(made, ScaledTable) else made
    bias = inner.bias if isinstance(inner, TTLayer) else None
    if weight is None:
        matrix = inner.weight if isinstance(inner, TTConv2d) else inner.dense()
        if conv1d_of(skeleton):
            matrix = matrix.mT
        trained = any(held.requires_grad for held in inner.parameters() if held is not bias)
        weight = nn.Parameter(matrix.detach().clone(memory_format=torch.contiguous_format), requires_grad=trained)
    dense.weight = weight
    if "bias" in dense._parameters:
        absent = bias is None and dense.bias is not None
        dense.bias = nn.Parameter(weight.new_zeros(dense.bias.shape)) if absent else bias
    for name, held in dense.named_buffers(recurse=False):  # the factor of a scaled look-up
        dense.register_buffer(name, getattr(made, name).to(held.dtype), persistent=False)
    return dense.train(made.training)


def _dense_head(skeleton: nn.Module, head: TiedHead, weight: nn.Parameter) -> nn.Module:
    """The model's own kind of head with the weight of the look-up, and the bias that the tied head has."""
    dense = copy.deepcopy(skeleton)
    dense.weight = weight
    if (bias := head.bias) is not None and len(bias) < len(weight):
        bias.data = F.pad(bias.data, (0, len(weight) - len(bias)))  # in place: other modules may hold it
    dense.bias = bias
    return dense.train(head.training)
