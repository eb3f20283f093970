"""Everything compressed gives one account: the whole protocol on each, against a dense twin and the file it writes."""

import inspect
import json
import math
import re

import numpy as np
import pytest
import torch
from compressed import embedding, noise
from safetensors import safe_open
from torch import nn

import ttref
from ttref import Compressed, MPSEmbedding, TTLinear, TTLoRALinear, TTMEmbedding, files
from ttref.fixedpoint import QuantizedTT

W = noise(24, 32)


def looked_up(table):
    """The dense matrix row by row."""
    return torch.stack([table(torch.tensor(k)) for k in range(table.num_embeddings)])


def multiplied(layer):
    """The matrix that a linear map multiplies with, column by column; without its bias."""
    return (layer(torch.eye(layer.in_features)) - layer(torch.zeros(layer.in_features))).mT


def product(cores):
    """The matrix of cores ``(r, m, n, s)``, one einsum a core."""
    made = torch.ones(1, 1, 1, dtype=cores[0].dtype)
    for core in cores:
        made = torch.einsum("xyr,rmns->xmyns", made, core)
        made = made.reshape(made.shape[0] * made.shape[1], -1, made.shape[4])
    return made[:, :, 0]


def grown():
    table = MPSEmbedding.from_embedding(embedding(W), row_ranks=[1, 2, 99] * 8, center=True)
    table.append(noise(3, 32, 1), row_ranks=[1, 4, 2])
    return table


def layer(**options):
    torch.manual_seed(0)
    return TTLinear(12, 10, rank=3, **options)


def adapted():
    torch.manual_seed(0)
    made = TTLoRALinear(nn.Linear(12, 10), rank=2, alpha=0.5)
    with torch.no_grad():
        for core in made.cores:
            core.normal_()
    return made


def integers(**options):
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=size) for size in ((1, 4, 3, 4), (4, 2, 5, 3), (3, 4, 4, 1))]
    return QuantizedTT.from_float(cores, **{"weight_width": [5, 8, 13], "act_width": 12, "x_max": 1.0, **options})


def many_integers():
    cores = [np.random.default_rng(0).normal(size=(7, *size)) for size in ((1, 4, 1, 3), (3, 4, 1, 1))]
    return QuantizedTT.from_float(cores, weight_width=3, act_width=8, x_max=1.0)


def by_books(made):
    books, codes = made.stored["codebooks"], made.stored["codes"]
    return torch.stack([torch.cat([books[k, code] for k, code in enumerate(row.tolist())]) for row in codes])


def svd(matrix, rank):
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank] @ v[:rank]).to(matrix.dtype)


# What makes it; its dense twin, computed in another way; numbers stored; ranks; modes.
HALVES = ((2, 1),) * 5
CASES = {
    "MPS": (lambda: MPSEmbedding.from_embedding(embedding(W), rank=2), looked_up, 24 * 24, (1, 2, 2, 2, 2, 1), HALVES),
    "MPS, buckets": (grown, looked_up, None, (1, 2, 4, 4, 2, 1), HALVES),
    "MPS, int8": (
        lambda: MPSEmbedding.from_embedding(embedding(W), rank=2, core_bits=8),
        looked_up,
        24 * 25,
        (1, 2, 2, 2, 2, 1),
        HALVES,
    ),
    "TT-matrix": (
        lambda: TTMEmbedding.from_embedding(embedding(W), row_shape=(4, 6), col_shape=(4, 8), rank=3),
        looked_up,
        3 * (16 + 48),
        (1, 3, 1),
        ((4, 4), (6, 8)),
    ),
    "layer": (layer, multiplied, None, None, None),
    "layer, no bias": (lambda: layer(bias=False), multiplied, None, None, None),
    "adapter": (adapted, lambda made: multiplied(made) - made.base_layer.weight, None, None, None),
    "update": (lambda: adapted().delta, lambda made: multiplied(adapted()) - adapted().base_layer.weight, *[None] * 3),
    "SVD": (
        lambda: ttref.truncated_svd(W, rank=5),
        lambda made: svd(W, 5),
        5 * 56,
        (1, 5, 1),
        ((24, 1), (1, 32)),
    ),
    "SVD, tall": (
        lambda: ttref.truncated_svd(W.mT, rank=5),
        lambda made: svd(W.mT, 5),
        5 * 56,
        (1, 5, 1),
        ((32, 1), (1, 24)),
    ),
    "integer codes": (
        lambda: ttref.quantize_integer(W, 3, group=8),
        lambda made: (made.stored["codes"] * made.stored["scales"].float().unsqueeze(2)).reshape(24, 32),
        24 * (32 + 4),
        (),
        (),
    ),
    "product codes": (lambda: ttref.product_quantize(W, subvectors=8, bits=4), by_books, 24 * 8 + 16 * 32, (), ()),
    "fixed point": (
        integers,
        lambda made: product([torch.from_numpy(core) for core in made.float_cores]).numpy(),
        4 * 12 + 12 * 10 + 3 * 16,
        (1, 4, 3, 1),
        ((4, 3), (2, 5), (4, 4)),
    ),
    "fixed point, many": (
        many_integers,
        lambda made: np.stack(
            [product([torch.from_numpy(core[k]) for core in made.float_cores]).numpy() for k in range(7)]
        ),
        7 * 24,
        (1, 3, 1),
        ((4, 1), (4, 1)),
    ),
}
every = pytest.mark.parametrize("case", CASES)


def dense_of(made):
    return torch.as_tensor(made.dense()).detach()


@every
def test_dense_is_the_matrix(case):
    made, twin = CASES[case][0](), CASES[case][1]
    dense = made.dense()
    assert type(dense) in (torch.Tensor, np.ndarray)
    torch.testing.assert_close(dense_of(made), torch.as_tensor(twin(made)).detach(), rtol=1e-4, atol=1e-5)
    if isinstance(made, nn.Module) and any(p.requires_grad for p in made.parameters()):
        dense.sum().backward()
        assert all(p.grad is not None for name, p in made.named_parameters() if "cores" in name)


@every
def test_the_account(case):
    make, _, params, ranks, modes = CASES[case]
    made = make()
    assert isinstance(made, Compressed)
    assert (params or made.params, ranks or made.ranks, modes or made.modes) == (made.params, made.ranks, made.modes)
    assert {type(value) for value in (made.params, made.nbytes, made.dense_nbytes)} == {int}
    assert {type(made.ranks), type(made.modes)} == {tuple}
    dense = made.dense()
    assert made.ratio == pytest.approx(math.prod(dense.shape) / made.params)
    if not isinstance(made, QuantizedTT):
        assert made.dense_nbytes == dense.numel() * dense.element_size()
    if made.modes:
        assert len(made.ranks) == len(made.modes) + 1 and made.ranks[0] == made.ranks[-1] == 1
        assert {len(pair) for pair in made.modes} == {2}


@every
def test_the_file_holds_what_is_counted(case, path):
    made = CASES[case][0]()
    made.save(path)
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys() if name != "bias"}
    assert sum(tensor.numel() * tensor.element_size() for tensor in held.values()) == made.nbytes


@every
def test_load_knows_the_class(case, path):
    made = CASES[case][0]()
    made.save(path)
    again = ttref.load(path)
    assert isinstance(again, Compressed)
    for name in ("params", "nbytes", "dense_nbytes", "ratio", "ranks", "modes"):
        assert getattr(again, name) == getattr(made, name), name
    torch.testing.assert_close(dense_of(again), dense_of(made))
    before = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == before


@every
def test_a_flipped_bit_is_refused(case, path):
    """Anywhere in the file; in the payload, the tensor is named."""
    CASES[case][0]().save(path)
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for place in [
        *range(8, start, max(start // 40, 1)),
        *range(start, len(good), max(len(good) // 20, 1)),
        len(good) - 1,
    ]:
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="file.safetensors is no file saved by ttref, or is damaged") as error:
            ttref.load(path)
        if place >= start:
            assert re.search(r"\(ValueError: \S+ is not what was written", str(error.value))


def rewritten(path, header, **tensors):
    """The same file under a new seal, with settings and tensors changed."""
    with safe_open(path, "pt") as file:
        held, about = {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()
    about = {"format": about["format"], "version": about["version"], "header": json.loads(about["header"]) | header}
    path.write_bytes(b"".join(files.sealed(about | {"header": json.dumps(about["header"])}, held | tensors)))


@pytest.mark.parametrize(
    "case, header, tensors",
    [
        ("SVD", {"dtype": "float64"}, {}),
        ("SVD", {"dtype": "nn"}, {}),
        ("SVD", {"bits": 4}, {}),
        ("SVD", {}, {"left": torch.ones(24, 4)}),
        ("SVD", {}, {"left": torch.full((24, 5), math.nan)}),
        ("SVD", {}, {"scales": torch.ones(3)}),
        ("integer codes", {"bits": 9}, {}),
        ("integer codes", {"bits": None}, {}),
        ("integer codes", {"bits": 4}, {}),
        ("integer codes", {"shape": [24, 4]}, {}),
        ("integer codes", {"shape": [-24, -4, 8]}, {}),
        ("integer codes", {"shape": [24, 4, 8.0]}, {}),
        ("integer codes", {"shape": [1 << 40, 1 << 40, 1]}, {}),
        ("integer codes", {}, {"scales": torch.ones(24, 5, dtype=torch.bfloat16)}),
        ("product codes", {"shape": [8, 24]}, {}),
        ("product codes", {"shape": None}, {}),
        ("product codes", {}, {"codebooks": torch.ones(8, 8, 4)}),
        ("fixed point", {"shapes": [[1, 4, 3, 4]]}, {}),
        ("fixed point", {"shapes": [[1, 4, 3, 4], [4, 2, 5, 3], [3, 4, 4, -1]]}, {}),
        ("fixed point", {"shapes": [[1, 4, 3, 4], [4, 5, 2, 3], [1, 4, 12, 1]]}, {}),
        ("fixed point", {"core_formats": ["ap_fixed<8,1>"] * 3}, {}),
        ("fixed point", {"stage_formats": []}, {}),
        ("fixed point", {}, {"cores.3": torch.ones(1)}),
        ("fixed point", {}, {"cores.0": torch.ones(3)}),
    ],
)
def test_what_does_not_fit_is_refused(case, header, tensors, path):
    CASES[case][0]().save(path)
    rewritten(path, {})
    ttref.load(path)
    rewritten(path, header, **tensors)
    with pytest.raises(ValueError, match="file.safetensors is no file saved by ttref, or is damaged"):
        ttref.load(path)


def test_a_file_of_another_reader(path):
    files.write(path, "something else", {"x": torch.ones(1)}, {}, lambda tensors, header: None)
    with pytest.raises(ValueError, match="it holds ttref.something else, which is not read by its kind alone"):
        ttref.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ttref.load(path.with_name("nothing"))


def test_an_adapter_s_file_gives_its_updates(path):
    model = ttref.add_tt_lora(nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 6)), ["0", "1"], rank=2, alpha=0.5)
    ttref.save_tt_lora(model, path)
    found = ttref.load(path)
    assert list(found) == ["0", "1"]
    for name, update in found.items():
        torch.testing.assert_close(update.dense(), model[int(name)].delta.dense())


def test_kinds_name_what_there_is():
    """Each entry of the registry is a function of tensors and a header, and nothing else is registered."""
    for kind, (module, name) in files.KINDS.items():
        found = files.restorer(kind)
        assert callable(found) and list(inspect.signature(found).parameters) == ["tensors", "header"], (module, name)
