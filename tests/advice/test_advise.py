"""A whole model: every weight once, under its kind, read right, and never changed."""

import copy
import warnings

import pytest
import torch
from strategies import gaussian
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import ttref
from ttref.advice import kinds
from ttref.advice.weights import weights_of


def bert():
    return BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
        )
    )


def gpt2(**more):
    sizes = {"vocab_size": 50, "n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **more))


def llama(**more):
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **more))


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=10))


def mixed():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "layer": layer, "head": nn.Linear(16, 10)})


MODELS = {
    "bert": (bert, {"token table": 1, "position table": 1, "attention q, k": 2, "attention v, out": 2}),
    "gpt2": (gpt2, {"token table": 1, "position table": 1, "attention fused": 1, "attention v, out": 1}),
    "llama": (llama, {"token table": 1, "attention q, k": 2, "attention v, out": 2, "feed-forward": 3, "head": 1}),
    "vit": (vit, {"position table": 1, "convolution": 1, "feed-forward": 2, "head": 1}),
    "mixed": (mixed, {"attention fused": 1, "attention v, out": 1, "feed-forward": 2, "convolution": 1, "head": 1}),
}


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0]()


def counts(advice):
    return {row["part"]: row["matrices"] for row in advice.rows if row["matrices"]}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_and_its_state_dict_say_the_same(name):
    model = made(name)
    of_model, of_state = ttref.advise(model), ttref.advise(model.state_dict())
    assert MODELS[name][1].items() <= counts(of_model).items()
    assert counts(of_model) == counts(of_state)
    assert [check | {"name": ""} for check in of_model.checks] == [check | {"name": ""} for check in of_state.checks]


@pytest.mark.parametrize("name", MODELS)
def test_every_number_counts_once(name):
    model = made(name)
    advice = ttref.advise(model)
    assert advice.numbers == sum(parameter.numel() for parameter in model.parameters())
    names = [one for row in advice.rows for one in row["names"]]
    assert sorted(names) == sorted(one for one, _ in model.named_parameters())
    assert sum(row["share"] for row in advice.rows) == pytest.approx(1)
    for row in advice.rows:
        assert row["numbers"] == sum(model.get_parameter(one).numel() for one in row["names"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("eps", [0.2, 0.1])
def test_the_lines_run_and_keep_the_error(name, eps):
    """Typed as they stand, on the model and on its state dict, they change each matrix by at most eps."""
    for source in (made(name), made(name).state_dict()):
        advice = ttref.advise(source)
        before = {weight.name: weight.matrix.clone() for weight in weights_of(source) if weight.matrix is not None}
        for row in advice.rows:
            if row["code"]:
                exec(
                    advice.code(row["part"], eps), {"model": source, "state": source, "advice": advice, "ttref": ttref}
                )
        after = {weight.name: weight.matrix for weight in weights_of(source) if weight.matrix is not None}
        assert set(before) == set(after)
        for weight, matrix in before.items():
            assert 0 < (after[weight] - matrix).norm() <= eps * matrix.norm()


def smooth(m, n):
    time = torch.linspace(0, 3, m).unsqueeze(1)
    return time * (time * torch.linspace(1, 6, n)).sin()


class Smooth(nn.Module):
    """A model whose weights of all kinds are smooth along their rows, so that trains win."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(510, 96), nn.Embedding(512, 96)
        self.mlp = nn.Linear(96, 512)
        self.pos_embed = nn.Parameter(smooth(512, 96).unsqueeze(0))
        self.conv = nn.Conv1d(32, 512, 3)
        self.lm_head = nn.Linear(96, 510, bias=False)
        with torch.no_grad():
            for weight in (self.wte.weight, self.wpe.weight, self.mlp.weight):
                weight.copy_(smooth(*weight.shape))
            self.conv.weight.copy_(smooth(512, 96).view(512, 32, 3))
        self.lm_head.weight = self.wte.weight

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, table):
        self.wte = table

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, head):
        self.lm_head = head


@pytest.mark.parametrize("part", ["token table", "position table", "feed-forward", "convolution"])
def test_trains_are_put_in_where_they_win(part):
    model = Smooth()
    advice = ttref.advise(model)
    row = advice.row(part)
    assert row["verdict"] == ["train", "train"]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    exec(advice.code(part), {"model": model, "advice": advice, "ttref": ttref})
    layer = {"token table": model.wte, "feed-forward": model.mlp}.get(part)
    changed = layer.dense() if layer else model.get_parameter(row["names"][0])
    old = before[row["names"][0]]
    assert (changed.detach() - old).norm() <= 0.2 * old.norm()
    if part == "token table":
        assert isinstance(model.wte, ttref.TTMEmbedding) and isinstance(model.lm_head, ttref.TiedHead)
    if part == "feed-forward":
        assert isinstance(model.mlp, ttref.TTLinear)


@pytest.mark.parametrize("layer", [nn.Linear(96, 512), nn.Embedding(512, 96)])
def test_the_lines_run_on_a_bare_layer_too(layer):
    """It has no place in a model where a train could be put, so its weight is changed."""
    with torch.no_grad():
        layer.weight.copy_(smooth(512, 96))
    advice = ttref.advise(layer)
    part = advice.rows[0]["part"]
    assert advice.row(part)["verdict"] == ["train", "train"]
    exec(advice.code(part), {"model": layer, "ttref": ttref})
    assert 0 < (layer.weight.detach() - smooth(512, 96)).norm() <= 0.2 * smooth(512, 96).norm()


def test_the_lines_run_on_a_dictionary_of_parameters():
    state = dict(made("bert").named_parameters())
    before = {name: weight.detach().clone() for name, weight in state.items()}
    advice = ttref.advise(state)
    exec(advice.code("feed-forward"), {"state": state, "advice": advice, "ttref": ttref})
    assert all(not torch.equal(state[name], before[name]) for name in advice.names("feed-forward"))


def test_several_matrices_that_trains_win_are_named():
    advice = ttref.advise(Smooth())
    assert '# the first of advice.names("position table")' in advice.code("position table")
    assert advice.names("position table") == ["pos_embed", "wpe.weight"]


def test_integers_say_whose_bits_they_take_and_what_rounds_better():
    """The second matrix has one large entry: its scale leaves few levels for the others."""
    model = nn.ModuleDict({name: nn.ModuleDict({"fc1": nn.Linear(64, 64)}) for name in "ab"})
    with torch.no_grad():
        for seed, layer in enumerate((model["a"]["fc1"], model["b"]["fc1"])):
            layer.weight.copy_(gaussian((64, 64), seed, torch.float32))
        layer.weight[:, 0] *= 8
    lines = ttref.advise(model).code("feed-forward").splitlines()
    bits = [ttref.does_a_train_pay(model[one]["fc1"].weight.detach()).bits for one in "ab"]
    assert bits[0] < bits[1]
    assert lines[0] == f"# {bits[1]} bits: what the worst of them needs; {bits[0]} do for the best"
    assert f"quantize_integer(weight, {bits[1]})" in lines[-1] and "gptq_quantize" in lines[-2]
    assert "#" not in ttref.advise(model.state_dict()).code("feed-forward").splitlines()[-2]  # no layers, no inputs


def test_a_part_that_disagrees_says_how_many():
    state = {"a.mlp": smooth(512, 96), "b.mlp": gaussian((64, 64), 0, torch.float32), "c.mlp": gaussian((64, 64), 1)}
    advice = ttref.advise(state)
    row = advice.row("feed-forward")
    assert (row["verdict"], row["agreed"], row["matrices"]) == (["integers", "integers"], [2, 2], 3)
    assert "integers 2 of 3" in repr(advice)
    assert advice.names("feed-forward", "train") == ["a.mlp"] and advice.names("feed-forward", "SVD", 0.1) == []
    old = {name: tensor.clone() for name, tensor in state.items()}
    exec(advice.code("feed-forward"), {"state": state, "advice": advice, "ttref": ttref})
    for name, tensor in state.items():
        assert 0 < (tensor - old[name]).norm() <= 0.2 * old[name].norm()


def test_a_position_table_is_looked_at_as_a_whole():
    checks = ttref.advise({"wpe": smooth(1024, 16), "wte": smooth(1024, 16)}).checks
    assert [check["rows"] for check in checks if check["eps"] == 0.2] == [(0, 1024), (256, 768)]


@pytest.mark.parametrize("known", ["h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"])
@pytest.mark.parametrize("stored", ["in x out", "out x in"])
def test_the_orientation_of_gpt2_names_is_read_off_a_layer_that_tells(known, stored):
    wide = gaussian((64, 16), 0) if "c_proj" not in known else gaussian((16, 64), 0)  # out x in
    state = {"h.0.attn.c_proj.weight": gaussian((16, 16), 1), known: wide if stored == "out x in" else wide.T}
    found = {weight.name: weight for weight in weights_of(state)}
    assert found[known].matrix.shape == wide.shape
    assert {weight.view for weight in found.values()} == {"" if stored == "out x in" else ".mT"}


def test_ties_count_once_in_state_dicts_too():
    model = gpt2()
    assert ttref.advise(model.state_dict()).numbers == sum(p.numel() for p in model.parameters())
    untied = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ttref.advise(untied).numbers == sum(tensor.numel() for tensor in untied.values())


def test_nothing_of_the_model_changes():
    model = made("bert").eval()
    model.encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = [(p.requires_grad, p.grad) for p in model.parameters()], [m.training for m in model.modules()]
    versions = [p._version for p in model.parameters()]
    advice = ttref.advise(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert flags == ([(p.requires_grad, p.grad) for p in model.parameters()], [m.training for m in model.modules()])
    assert versions == [p._version for p in model.parameters()]
    assert not any(isinstance(value, torch.Tensor) for check in advice.checks for value in check.values())


def quantized(*shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will remove these tensors; as long as it has them we know them
        return torch.quantize_per_tensor(torch.randn(shape), 0.1, 0, torch.qint8)


def test_integers_are_said_to_be_integers_already():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 32))
    state = {"0.weight": torch.ones(16, 16, dtype=torch.int8), "1.weight": model[1].weight.detach()}
    advice = ttref.advise(state)
    assert advice.row(kinds.INTEGERS)["names"] == ["0.weight"]
    assert "33.3% are integers already" in advice.summary
    assert ttref.advise({"w": quantized(16, 16)}).row(kinds.INTEGERS)["numbers"] == 256
    model.register_buffer("qweight", torch.ones(4, 16, dtype=torch.int32))
    assert ttref.advise(model).row(kinds.INTEGERS)["names"] == ["qweight"]


def test_packed_parameters_of_torch_are_integers_already():
    class Packed(nn.Module):
        _packed_params = object()

        def weight(self):
            return quantized(16, 8)

    advice = ttref.advise(nn.ModuleDict({"fc": Packed(), "head": nn.Linear(8, 10)}))
    assert advice.row(kinds.INTEGERS)["numbers"] == 128 and advice.row(kinds.HEAD)["matrices"] == 1


def test_layers_that_are_trains_already_are_named():
    model = nn.ModuleDict({"fc1": ttref.TTLinear(16, 64, rank=2), "fc2": nn.Linear(64, 16)})
    model["table"] = ttref.MPSEmbedding.from_embedding(nn.Embedding(20, 16), rank=2)
    advice = ttref.advise(model)
    names = advice.row(kinds.COMPRESSED)["names"]
    assert "fc1.cores.0" in names and any(name.startswith("table.") for name in names)
    assert advice.row(kinds.FORWARD)["names"] == ["fc2.weight"]


def test_the_frozen_weight_beside_an_adapter_is_looked_at():
    model = ttref.add_tt_lora(
        nn.ModuleDict({"fc1": nn.Linear(16, 64), "fc2": nn.Linear(64, 16)}), "fc1", rank=2, alpha=1
    )
    assert "fc1.base_layer.weight" in ttref.advise(model).row(kinds.FORWARD)["names"]


def test_buffers_and_counters_are_no_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model.register_buffer("mask", torch.ones(16, 16))
    model.register_buffer("position_ids", torch.arange(32).view(1, 32))
    assert ttref.advise(model).numbers == sum(p.numel() for p in model.parameters())
    assert ttref.advise(model.state_dict() | {"steps": torch.tensor(3)}).numbers == sum(
        tensor.numel() for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    )


def test_experts_that_are_stacked_are_one_tall_matrix():
    found = weights_of({"layers.0.mlp.experts.gate_up_proj": torch.randn(4, 16, 32)})
    assert found[0].matrix.shape == (64, 32) and found[0].kind == kinds.FORWARD


def test_a_model_without_matrices_has_nothing_to_compare():
    advice = ttref.advise(nn.LayerNorm(16))
    assert advice.summary.startswith("Nothing to compare") and advice.checks == [] and advice.ratio == (1, 1)
    assert "norms, biases, small" in repr(advice) and "What to type" not in repr(advice)
    assert advice.code("norms, biases, small") == ""


def with_nan():
    model = nn.Sequential(nn.Linear(16, 16))
    with torch.no_grad():
        model[0].weight[3, 4] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (with_nan(), ValueError, r"0\.weight has 1 entries that are NaN"),
        (nn.Sequential(), ValueError, "no weights"),
        ({}, ValueError, "no weights"),
        (nn.Linear(16, 16, device="meta"), ValueError, "meta device"),
        (nn.Sequential(nn.LazyLinear(16)), ValueError, "call the model once"),
        ("bert-base-uncased", TypeError, "from_pretrained"),
        (torch.ones(16, 16), TypeError, "does_a_train_pay"),
        ({"state_dict": {}, "epoch": 3}, TypeError, "state_dict"),
        ({"w": torch.ones(16, 16, dtype=torch.complex64)}, TypeError, "complex"),
    ],
)
def test_what_is_refused(model, error, words):
    with pytest.raises(error, match=words):
        ttref.advise(model)


def test_another_error_may_be_asked_about():
    advice = ttref.advise({"fc1": gaussian((64, 64), 0, torch.float32)}, eps=(0.05,))
    assert advice.eps == (0.05,) and advice.checks[0]["eps"] == 0.05
    with pytest.raises(ValueError, match="between 0 and 1"):
        ttref.advise({"fc1": torch.ones(16, 16)}, eps=(2,))
    with pytest.raises(ValueError, match="eps is empty"):
        ttref.advise({"fc1": torch.ones(16, 16)}, eps=())
