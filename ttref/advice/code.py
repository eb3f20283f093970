"""The lines to type for a group of weights: to put what won into the model and measure that."""

from __future__ import annotations

from .check import Check, modes_of
from .kinds import TOKENS
from .weights import Weight

GPTQ = "# ttref.gptq.gptq_quantize rounds better, if you have inputs of the layer"


def lines(weight: Weight, check: Check, *, of_module: bool, loop: str) -> str:
    """Code that runs as it stands, with ``model``, ``advice`` and ``ttref`` at hand.

    Args:
        weight: The weight to write the code for.
        check: What won, and how.
        of_module: True for a model, False for a state dict, which is then called ``state``.
        loop: For integers, the expression that gives the names of all such weights; ``""`` for one.
    """
    head = f"for name in {loop}:" if loop else f'name = "{weight.name}"'
    indent = "    " if loop else ""
    if check.verdict == "integers":
        rounded = _shaped(f"ttref.quantize_integer(weight{weight.view}, {check.bits}).dense()", weight)
        hint = [GPTQ] if weight.layer == "Linear" else []  # what it takes: a matrix, and the Gram matrix of its inputs
        body = [_taken(of_module), *hint, f"weight.copy_({rounded})"]
        return "\n".join([head, *(indent + line for line in body)])
    m, n = weight.matrix.shape
    modes = modes_of(check.form if check.verdict == "train" else "SVD", m, n)
    if not (of_module and weight.layer):
        rows, cols = modes or modes_of("SVD", m, n)
        cores = f"ttref.ttm_svd(weight{weight.view}, {rows}, {cols}, eps={check.eps:g})"
        made = [f"cores = {cores}", f"weight.copy_({_shaped('ttref.ttm_to_matrix(cores)', weight)})"]
        return "\n".join([f'name = "{weight.name}"', _taken(of_module), *made])
    name = weight.name.removesuffix(".weight")
    if weight.layer == "Linear":
        sides = f", out_shape={modes[0]}, in_shape={modes[1]}" if modes else ""
        made = f"ttref.TTLinear.from_linear(\n    model.get_submodule(name), eps={check.eps:g}{sides})"
        return f'name = "{name}"\nlayer = {made}\nttref.swap_layer(model, name, layer)'
    sides = f", row_shape={modes[0]}, col_shape={modes[1]}" if modes else ""
    made = f"ttref.TTMEmbedding.from_embedding(\n    model.get_submodule(name), eps={check.eps:g}{sides})"
    put = "ttref.swap_layer(model, name, table)"
    if weight.kind == TOKENS and weight.tied:
        put = 'ttref.replace_embedding(model, table, head="tied")'
    return f'name = "{name}"\ntable = {made}\n{put}'


def _shaped(matrix: str, weight: Weight) -> str:
    """The expression of a matrix, in the shape of the weight."""
    return {"": matrix, ".mT": f"{matrix}.mT"}.get(weight.view, f"{matrix}.view(weight.shape)")


def _taken(of_module: bool) -> str:
    return "weight = model.get_parameter(name).detach()" if of_module else "weight = state[name].detach()"
