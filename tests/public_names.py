"""One case for every public name that computes, and a reason for each that does not: what the walks over them share."""

import copy
import pkgutil
import tempfile
from pathlib import Path

import pytest
import torch
from strategies import gaussian
from torch import nn

import ttref

WORDS, WIDTH = 40, 48


def noise(*shape, seed=0):
    return gaussian(shape, seed, torch.float32)


def waves():
    """A table of low rank, so that eps has something to find."""
    table = nn.Embedding(WORDS, WIDTH)
    with torch.no_grad():
        table.weight.copy_(torch.sin(torch.outer(torch.linspace(0.1, 2, WORDS), torch.arange(float(WIDTH)))))
    return table


def uneven():
    """A table whose principal axes have variances far apart; the axes of ``waves`` are anybody's guess."""
    return nn.Embedding.from_pretrained(noise(4 * WORDS, WIDTH) * torch.logspace(0, -2, WIDTH))


def weight():
    return noise(24, 36)


def inputs_gram():
    """Of inputs whose axes have variances far apart."""
    return pkgutil.resolve_name("ttref.fitting.Gram").from_inputs(noise(100, 36, seed=5) * torch.logspace(0, -1, 36))


def collected():
    model = nn.Sequential(linear())
    return pkgutil.resolve_name("ttref.fitting.collect_gram")(model, "0", [noise(2, 5, 36), noise(1, 3, 36, seed=1)])


def train(rank=3, seed=0):
    bonds = (1, rank, rank, 1)
    return [noise(bonds[k], 4, bonds[k + 1], seed=seed + k) for k in range(3)]


def matrix_train():
    return [noise(1, 4, 6, 3), noise(3, 6, 6, 1, seed=1)]


def linear():
    layer = nn.Linear(36, 24)
    with torch.no_grad():
        layer.weight.copy_(weight())
        layer.bias.copy_(noise(24, seed=1))
    return layer


def fitted(**how):
    return pkgutil.resolve_name("ttref.fitting.fit_cores")(weight(), inputs_gram(), (4, 6), (6, 6), **how)


def output_error(approximation):
    return pkgutil.resolve_name("ttref.fitting.output_error")(weight(), approximation, inputs_gram())


KERNEL = {"row_shape": (6, 4), "col_shape": (9, 4), "taps_first": True}


def convolution():
    layer = nn.Conv2d(4, 24, 3)
    with torch.no_grad():
        layer.weight.copy_(weight().reshape(24, 4, 3, 3))
        layer.bias.copy_(noise(24, seed=1))
    return layer


def state(module):
    return list(module.state_dict().values())


def sizes(cores):
    return [core.shape[-1] for core in cores]


def adapter(layer=None, init="orthogonal"):
    torch.manual_seed(3)
    made = ttref.TTLoRALinear(linear() if layer is None else layer, rank=2, alpha=0.7, init=init)
    with torch.no_grad():
        for k, core in enumerate(made.cores):
            core.add_(noise(*core.shape, seed=k))
    return made


class Model(nn.Module):
    """As much of a language model as ``replace_embedding`` and the adapters look at."""

    def __init__(self):
        super().__init__()
        self.table, self.up = waves(), nn.Linear(WIDTH, 24)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(noise(24, WIDTH))
            self.up.bias.zero_()
            self.head.weight.copy_(self.table.weight)

    def get_input_embeddings(self):
        return self.table

    def set_input_embeddings(self, table):
        self.table = table

    def get_output_embeddings(self):
        return self.head

    def set_output_embeddings(self, head):
        self.head = head


def adapted_model():
    torch.manual_seed(4)
    model = ttref.add_tt_lora(Model(), "up", rank=2, alpha=1.0, init="orthogonal")
    with torch.no_grad():
        model.up.cores[-1].copy_(noise(*model.up.cores[-1].shape))
    return model


def written_and_read(write, read):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers.safetensors"
        write(path)
        return read(path)


def mps(**how):
    return ttref.MPSEmbedding.from_embedding(waves(), **how)


def ttm(**how):
    return ttref.TTMEmbedding.from_embedding(waves(), row_shape=(5, 8), col_shape=(6, 8), **how)


def grown():
    table = mps(rank=2)
    table.append(noise(3, WIDTH))
    return table


def dense_of(table):
    ids = torch.tensor([3, 1, 3])
    return [*state(table), table(ids), table.to_embedding().weight, table.to_embedding()(ids)]


def replaced():
    model = Model()
    model.head.weight = model.table.weight
    ttref.replace_embedding(model, mps(rank=2), head="tied")
    return [*state(model.table), model.table(torch.arange(5))]


def searched():
    """The trains of two layers, and the metric that let them in."""
    model = nn.Sequential(linear(), nn.Linear(24, 24, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(noise(24, 24, seed=2))

    def error(model):
        return -(ttref.ttm_to_matrix(list(model[0].cores)) if hasattr(model[0], "cores") else weight()).square().sum()

    report = pkgutil.resolve_name("ttref.surgery.partial_tensorize")(
        model.eval(), error, eps=0.8, max_drop=1e6, progress=False
    )
    return [*state(model), *[row["metric"] for row in report.layers], len(report.names())]


def replacements():
    """What every candidate makes of one layer, and those for tables of a table."""
    ways = pkgutil.resolve_name("ttref.surgery.candidates")
    made = [ways.tensor_train(ratio=2), ways.svd(ratio=2), ways.integer(4)]
    fitted = [ways.fitted(ratio=2, order=2), ways.whitened_svd(ratio=2), ways.gptq(3)]
    found = [one.make(linear(), inputs_gram()) for one in made + fitted] + [one.make(uneven()) for one in made]
    # the matrices, not their cores: those of a fit are anybody's guess
    return [one.dense() if hasattr(one, "dense") else one.weight for one in found]


def sensed():
    """What Gram matrices predict: a gradient would be the model's own, in the precision of the caller."""
    model = nn.Sequential(linear(), nn.ReLU(), nn.Linear(24, 8, bias=False)).eval()
    with torch.no_grad():
        model[2].weight.copy_(noise(8, 24, seed=3))
    grams = {"0": inputs_gram(), "2": pkgutil.resolve_name("ttref.fitting.Gram").from_inputs(noise(99, 24, seed=4))}
    sensitivity = pkgutil.resolve_name("ttref.surgery.sensitivity")
    table = sensitivity(model, None, layers=["0", "2"], grams=grams, method="output", progress=False)
    return [row["output"] for row in table.rows]


def ordered():
    model = nn.Sequential(linear(), nn.Linear(24, 12, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(noise(12, 24, seed=3))
    return [pkgutil.resolve_name("ttref.surgery.order_units")(model, "0", "1").double(), *state(model)]


def indexed():
    """What the documents become, and the nearest; codes of a few bits would jump where rounding moves a number."""
    index = pkgutil.resolve_name("ttref.retrieval.TTIndex")(20, bits=32, core_bits=32).fit(noise(60, 36))
    train = pkgutil.resolve_name("ttref.retrieval.TTIndex")(
        20, bits=32, core_bits=32, metric="inner_product", rotate=False, shape=(6, 8), rank=7
    ).fit(uneven().weight)
    train.add(noise(3, WIDTH))
    return [
        index.dense(),
        *index.kneighbors(noise(5, 36, seed=1), 4),
        train.dense(),
        *train.kneighbors(noise(5, WIDTH, seed=1), 4),
    ]


def in_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    config_of = pkgutil.resolve_name("ttref.lora.peft.TTLoraConfig")
    config = config_of(rank=2, alpha=1.0, target_modules=["up"], init="orthogonal")
    model = peft.get_peft_model(Model(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "TTLORA" in name.upper() or "cores" in name:
                parameter.add_(noise(*parameter.shape))
    return state(model.merge_and_unload())


def merged_and_not(layer):
    layer.merge()
    merged = copy.deepcopy(state(layer))
    layer.unmerge()
    return [*merged, *state(layer)]


def saved_and_loaded():
    model = adapted_model()

    def load(path):
        return ttref.load_tt_lora(Model(), path)

    return state(written_and_read(lambda path: ttref.save_tt_lora(model, path), load))


def flattened(found):
    """All numbers of nested lists, in order; each tensor with its dtype."""
    if isinstance(found, torch.Tensor):
        return [found.detach()]
    if isinstance(found, (int, float)):
        return [torch.tensor(float(found), dtype=torch.float64)]
    return [tensor for part in found for tensor in flattened(part)]


# Each case gives what the name computes: numbers and tensors, in lists.
CASES = {
    "tt_svd": lambda: [
        ttref.tt_svd(noise(4, 4, 4, 4), rank=3),
        ttref.tt_svd(noise(9, 64), (4, 4, 4), eps=0.2, batch_dims=1),
    ],
    "tt_to_tensor": lambda: ttref.tt_to_tensor(train()),
    "tt_entry": lambda: ttref.tt_entry(train(), torch.tensor([[0, 1, 2], [3, 3, 3]])),
    "tt_orthogonalize": lambda: ttref.tt_orthogonalize(train(), 1),
    "tt_round": lambda: [ttref.tt_round(train(), rank=2), sizes(ttref.tt_round(train(), eps=0.3))],
    "tt_norm": lambda: ttref.tt_norm(train()),
    "tt_dot": lambda: ttref.tt_dot(train(), train(2, 9)),
    "tt_add": lambda: [ttref.tt_add(train(), train(2, 9)), ttref.tt_add([noise(1, 5, 1)], [noise(1, 5, 1, seed=1)])],
    "tt_hadamard": lambda: ttref.tt_hadamard(train(), train(2, 9)),
    "ttm_svd": lambda: ttref.ttm_svd(weight(), (4, 6), (6, 6), rank=5),
    "ttm_to_matrix": lambda: ttref.ttm_to_matrix(matrix_train()),
    "ttm_matvec": lambda: [ttref.ttm_matvec(matrix_train(), noise(5, 36), plan) for plan in ("two-gemm", "dense")],
    "schmidt_values": lambda: [ttref.schmidt_values(noise(4, 4, 4), 1), ttref.schmidt_values(train(), 2)],
    "entanglement_entropy": lambda: [ttref.entanglement_entropy(x, 1) for x in (noise(4, 4), train())],
    "suggest_ranks": lambda: [ttref.suggest_ranks(x, eps=1e-3) for x in (waves().weight.detach(), train())],
    "gaussian_distortion": lambda: ttref.gaussian_distortion(noise(50).square(), 30),
    "truncated_svd": lambda: [
        ttref.truncated_svd(weight(), rank=5).approximation,
        ttref.truncated_svd(weight(), rank=5, gram=inputs_gram()).approximation,
    ],
    "quantize_integer": lambda: [ttref.quantize_integer(weight(), 4, best=b).approximation for b in (False, True)],
    "product_quantize": lambda: ttref.product_quantize(weight(), subvectors=6, bits=3).approximation,
    "gptq.gptq_quantize": lambda: [
        pkgutil.resolve_name("ttref.gptq.gptq_quantize")(weight(), inputs_gram(), bits, group=9).approximation
        for bits in (1, 3)
    ],
    "clusters.cluster_rows": lambda: pkgutil.resolve_name("ttref.clusters.cluster_rows")(weight(), 5).approximation,
    "fitting.Gram": lambda: [inputs_gram().matrix, (inputs_gram() + inputs_gram()).matrix],
    "fitting.Grams": lambda: written_and_read(collected().save, ttref.load)["0"].matrix,
    "fitting.fit_cores": lambda: [
        ttref.ttm_to_matrix(fitted(rank=4)),
        output_error(ttref.ttm_to_matrix(fitted(eps=0.3))),
        sizes(fitted(eps=0.3)),
    ],
    "fitting.output_error": lambda: output_error(noise(24, 36, seed=1)),
    "fitting.collect_gram": lambda: collected()["0"].matrix,
    "fitting.choose_modes": lambda: (
        pkgutil.resolve_name("ttref.fitting.choose_modes")(weight(), inputs_gram(), params=200).error
    ),
    "gaussian_null": lambda: ttref.gaussian_null(weight()),
    "Baseline": lambda: [
        ttref.truncated_svd(weight(), rank=24).relative_error(weight()),
        ttref.quantize_integer(weight(), 8).relative_error(weight()),
    ],
    "TTLinear": lambda: [
        torch.manual_seed(0) and state(ttref.TTLinear(36, 24, rank=3)),
        state(ttref.TTLinear.from_linear(linear(), rank=4)),
        state(ttref.TTLinear.from_linear(linear(), eps=0.1)),
        ttref.TTLinear.from_linear(linear(), rank=4).weight,
        state(ttref.TTLinear.from_linear(linear(), rank=4).to_linear()),
    ],
    "TTConv2d": lambda: [
        state(ttref.TTConv2d.from_conv(convolution(), rank=3, **KERNEL)),
        ttref.TTConv2d.from_conv(convolution(), eps=0.3, **KERNEL).weight,
        state(ttref.TTConv2d.from_conv(convolution(), rank=3, **KERNEL).to_conv()),
    ],
    "integer_cores.quantize_cores": lambda: [
        pkgutil.resolve_name("ttref.integer_cores.quantize_cores")(matrix_train(), weight(), inputs_gram(), bits)[2]
        for bits in (4, 8)
    ],
    "MPSEmbedding": lambda: [
        dense_of(mps(rank=2)),
        dense_of(mps(eps=1e-3)),
        mps(eps=1e-3).ratio,
        dense_of(ttref.MPSEmbedding.from_embedding(uneven(), rank=2, center=True, rotate=True)),
        dense_of(mps(rank=2, core_bits=8)),
        dense_of(grown()),
        torch.manual_seed(0) and state(ttref.MPSEmbedding(WORDS, WIDTH, 2)),
    ],
    "TTMEmbedding": lambda: [
        dense_of(ttm(rank=4)),
        ttm(eps=1e-3).ratio,
        torch.manual_seed(0) and state(ttref.TTMEmbedding((5, 8), (6, 8), rank=4)),
    ],
    "replace_embedding": replaced,
    "surgery.candidates.tensor_train": replacements,
    "surgery.sensitivity": sensed,
    "surgery.order_units": ordered,
    "TTLoRALinear": lambda: [
        [adapter(init=init).get_delta_weight() for init in ("zero_last", "orthogonal", "paper")],
        merged_and_not(adapter()),
    ],
    "add_tt_lora": lambda: state(adapted_model()),
    "merge_tt_lora": lambda: state(ttref.merge_tt_lora(adapted_model())),
    "save_tt_lora": lambda: saved_and_loaded(),
    "load_tt_lora": lambda: saved_and_loaded(),
    "lora.peft.TTLoraConfig": in_peft,
    "surgery.partial_tensorize": searched,
    "retrieval.TTIndex": indexed,
    "does_a_train_pay": lambda: list(ttref.does_a_train_pay(waves().weight)[1:5]),
    "advise": lambda: [
        [row[key] for key in ("share", "train", "svd", "noise", "integers")] for row in ttref.advise(Model()).rows
    ],
}

EXEMPT = {
    "factorize": "integers",
    "balanced_modes": "integers",
    "tt_ranks": "integers",
    "tt_params": "integers",
    "ttm_params": "integers",
    "plan_contraction": "counts operations, computes none",
    "Plan": "counts",
    "TiedHead": "a layer: its scores take autocast's dtype, as those of nn.Linear do",
    "edit": "moves modules",
    "surgery.find_layers": "names layers",
    "surgery.search_ranks": "chooses among numbers that are given",
    "swap_layer": "moves a module",
    "Compressed": "a protocol",
    "load": "reads what was stored",
    "interop.from_quimb": "a train changes hands: its numbers stay as they are",
    "interop.from_tensorly": "a train changes hands: its numbers stay as they are",
    "interop.from_torchtt": "a train changes hands: its numbers stay as they are",
    "interop.to_quimb": "a train changes hands: its numbers stay as they are",
    "interop.to_tensorly": "a train changes hands: its numbers stay as they are",
    "interop.to_torchtt": "a train changes hands: its numbers stay as they are",
}
