"""Compressed layers in plain JSON, and layers made of that: alike but for their numbers, or refused."""

import copy
import json

import pytest
import torch
from compressed import FLOATS, same_state
from hypothesis import given
from hypothesis import strategies as st
from small_tables import TABLES
from strategies import agree, gaussian
from torch import nn

from ttref import MPSEmbedding, TiedHead, TTConv2d, TTLinear, truncated_svd
from ttref.embeddings.head import ScaledTable
from ttref.release.described import build, describe
from ttref.surgery.making import layer_of

IDS = torch.tensor([[3, 1], [7, 49]])
X = gaussian((2, 12), 0, torch.float32)
PICTURES = gaussian((2, 8, 9, 9), 0, torch.float32)


def linear(**options):
    torch.manual_seed(0)
    return TTLinear.from_linear(nn.Linear(12, 10), rank=3, **options)


def of_factors():
    torch.manual_seed(0)
    dense = nn.Linear(12, 10)
    stored = truncated_svd(dense.weight.detach(), rank=2).stored
    return layer_of([stored["left"][None, :, None], stored["right"][:, None, :, None]], dense, dense.bias)


def without_bias():
    layer = linear()
    layer.bias, layer.order, layer.recompute = None, "two-gemm", True
    return layer.requires_grad_(False)


def conv(**options):
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2))
    return TTConv2d.from_conv(dense, rank=4, row_shape=(12, 1), col_shape=(6, 8), taps_first=True, **options)


LAYERS = {
    "linear": linear,
    "padded": lambda: TTLinear(12, 37, rank=2),
    "factors of an SVD": of_factors,
    "frozen, without bias": without_bias,
    "convolution": conv,
    "integer cores": lambda: conv(core_bits=3, group=8),
    **TABLES,
    "scaled": lambda: ScaledTable(TABLES["int8"](), 3.5),
    "scaled by a tensor": lambda: ScaledTable(TABLES["buckets"](), torch.tensor(3.3)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def answer(layer):
    if isinstance(layer, TTConv2d):
        return layer(PICTURES)
    return layer(X) if isinstance(layer, TTLinear) else layer(IDS)


def filled(spec, state):
    made = build(spec)
    made.load_state_dict(state, assign=True)
    return made


def sizes(layer):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in layer.state_dict().items()}


@layers
def test_a_layer_made_of_its_description_becomes_the_same_with_the_same_numbers(name):
    layer = LAYERS[name]()
    spec = describe(layer)
    assert json.loads(json.dumps(spec)) == spec
    made = build(spec)
    assert all(tensor.is_meta for tensor in made.state_dict().values()) and sizes(made) == sizes(layer)
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad == layer.get_parameter(name).requires_grad
    made = filled(spec, layer.state_dict())
    assert type(made) is type(layer) and same_state(made, layer) and describe(made) == spec
    assert agree(answer(made), answer(layer)) and str(made) == str(layer)
    assert not any(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))


@layers
def test_a_device_has_room_for_the_numbers(name):
    layer = LAYERS[name]()
    made = build(describe(layer), device="cpu")
    assert sizes(made) == sizes(layer)
    made.load_state_dict(layer.state_dict())
    assert same_state(made, layer) and agree(answer(made), answer(layer))


@pytest.mark.parametrize("dtype", FLOATS)
@layers
def test_another_dtype_is_that_of_a_converted_layer(name, dtype):
    """As by ``layer.to(dtype)``: codes, indices and scales of rows keep theirs."""
    layer = LAYERS[name]()
    made = build(describe(layer), dtype=dtype)
    assert sizes(made) == sizes(copy.deepcopy(layer).to(dtype)) and made.dtype == dtype


@layers
def test_what_a_file_keeps_beside_numbers_is_described(name):
    layer = LAYERS[name]()
    made = filled(describe(layer), layer.state_dict())
    for option in ("order", "recompute", "padding_idx", "sparse", "core_bits", "taps_first", "row_shape", "col_shape"):
        assert getattr(made, option, None) == getattr(layer, option, None)
    if isinstance(layer, MPSEmbedding):
        assert (made.store.eps, made.store.by_row) == (layer.store.eps, layer.store.by_row)
    if isinstance(layer, ScaledTable):
        assert float(made.embed_scale) == float(layer.embed_scale)


def test_a_table_that_grew_goes_on_growing():
    table = TABLES["pieces"]()
    made = filled(describe(table), table.state_dict())
    rows = gaussian((2, 16), 1, torch.float32)
    assert table.append(rows).tolist() == made.append(rows).tolist()
    assert same_state(made, table)


@pytest.mark.parametrize("bias", [None, nn.Parameter(torch.ones(48), requires_grad=False)], ids=["no bias", "bias"])
def test_a_head_is_made_for_the_table_of_its_look_up(bias):
    """A bias may be shorter than a table to which tokens were appended."""
    table = TABLES["one bucket"]()
    head = TiedHead(table, bias)
    spec = describe(head, "wte")
    assert spec["look_up"] == "wte" and json.loads(json.dumps(spec)) == spec
    made = build(spec, table=ScaledTable(table, 2.0))
    assert made.table is table and sizes(made) == sizes(head)
    made.load_state_dict(head.state_dict(), assign=True)
    hidden = gaussian((3, 16), 0, torch.float32)
    assert agree(made(hidden), head(hidden))
    assert bias is None or not made.bias.requires_grad
    with pytest.raises(ValueError, match="look_up=name"):
        describe(head)
    with pytest.raises(ValueError, match="scores with the table of wte, which is to be given"):
        build(spec)
    with pytest.raises(ValueError, match="a TiedHead needs an MPSEmbedding or a TTMEmbedding, got Embedding"):
        build(spec, table=nn.Embedding(50, 16))
    with pytest.raises(ValueError, match="its bias has 51 entries, and its table 50 rows"):
        build(spec | {"bias": True, "rows": 51, "dtype": "float32"}, table=table)


class Doubled(TTLinear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_nothing_would_describe_is_refused():
    for layer in (nn.Linear(2, 2), Doubled((2, 2), (2, 2), 2)):
        with pytest.raises(TypeError, match=f"a {type(layer).__name__} cannot be described, only TTLinear"):
            describe(layer)
    layer = linear()
    nn.utils.prune.l1_unstructured(layer.cores, "0", amount=2)
    with pytest.raises(ValueError, match="holds other tensors than its settings tell"):
        describe(layer)
    nn.utils.prune.remove(layer.cores, "0")
    assert describe(layer) == describe(linear())


@pytest.mark.parametrize("spec", [None, [], {}, {"kind": "Linear"}, {"kind": 5}, {"kind": ["TTLinear"]}])
def test_an_unknown_kind_is_named(spec):
    with pytest.raises(ValueError, match="no kind of compressed layer; known are TTLinear"):
        build(spec)


@layers
def test_a_description_is_whole_and_nothing_else(name):
    spec = describe(LAYERS[name]())
    for lacking in spec.keys() - {"kind"}:
        with pytest.raises(ValueError, match=f"no {spec['kind']} is like that: .*{lacking}"):
            build({name: value for name, value in spec.items() if name != lacking})
    with pytest.raises(ValueError, match=f"no {spec['kind']} is like that: .*colour"):
        build(spec | {"colour": 1})
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype, got torch.int8"):
        build(spec, dtype=torch.int8)


WRONG = [
    ("linear", {"modes": [[10, 12]]}, "1 modes and 4 ranks"),
    ("linear", {"ranks": [1, 3, 3, 2]}, "end ranks"),
    ("linear", {"ranks": [1, True, 3, 1]}, "its ranks"),
    ("linear", {"in_features": 13}, "in_features is 13, but the modes"),
    ("linear", {"modes": [[1 << 30, 1 << 30], [1, 1], [1, 1]]}, "a tensor of"),
    ("linear", {"modes": [[2, 2, 2]] * 3}, "no pairs"),
    ("linear", {"order": "backwards"}, "order"),
    ("linear", {"dtype": "int8"}, "int8"),
    ("convolution", {"kernel_size": [5, 5]}, "no multiple of the 25 taps"),
    ("convolution", {"core_bits": 9}, "cores of 9 bits"),
    ("convolution", {"groups": [1, 1]}, "groups"),
    ("integer cores", {"groups": [1]}, "groups"),
    ("integer cores", {"groups": [1, 7]}, "7 groups do not divide"),
    ("one bucket", {"pieces": [[49]]}, "holds 49 rows, and 50 are announced"),
    ("one bucket", {"pieces": [[50], [1]]}, "2"),
    ("one bucket", {"pieces": [50]}, "pieces of bucket 0"),
    ("one bucket", {"num_embeddings": 10**15, "pieces": [[10**15]]}, "a tensor of"),
    ("one bucket", {"ranks": [[1, 9, 9, 9, 1]]}, "which its modes cannot have"),
    ("one bucket", {"padding_idx": 50}, "padding_idx is 50"),
    ("matrix", {"padding_idx": -1}, "padding_idx"),
    ("scaled", {"scale": float("nan")}, "scale"),
    ("scaled", {"table": {"kind": "TTLinear"}}, "its table is a 'TTLinear'"),
]


@pytest.mark.parametrize("name, change, says", WRONG)
def test_settings_that_contradict_each_other_are_named(name, change, says):
    spec = describe(LAYERS[name]())
    with pytest.raises(ValueError, match=f"no {spec['kind']} is like that: .*{says}"):
        build(spec | change)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats() | st.sampled_from(["", "float32", "auto"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["kind", "shape"]), inner, max_size=2),
    max_leaves=8,
)


@given(st.sampled_from([*LAYERS]), st.data())
def test_whatever_a_description_claims_is_a_layer_on_the_meta_device_or_a_valueerror(name, data):
    spec = SPECS[name]
    key = data.draw(st.sampled_from([*spec]))
    try:
        made = build(spec | {key: data.draw(anything)})
    except ValueError:
        return
    assert all(tensor.is_meta for tensor in made.state_dict().values())


SPECS = {name: describe(make()) for name, make in LAYERS.items()}
