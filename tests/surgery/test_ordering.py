"""Another order of hidden units and heads changes no output, can be taken back to the bit, and helps a train."""

import pytest
import torch
from strategies import gaussian
from surgery_models import Tied
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from ttref import TTLinear
from ttref.surgery import order_units

IDS = torch.tensor([[3, 7, 1, 9, 4], [8, 2, 6, 0, 5]])


def seeded(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, which start at zero
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def bert():
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
    return BertModel(config)


def gpt2():
    return GPT2Model(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=4))


def llama():
    """Twice as many heads as keys and values."""
    sizes = dict(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    return LlamaModel(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def torchs(bias=True):
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, bias=bias), 2, enable_nested_tensor=False
    )


BERT, LAYER = "encoder.layer.1", "layers.1"
CASES = {
    "BERT, feed-forward": (bert, f"{BERT}.intermediate.dense", f"{BERT}.output.dense", None),
    "BERT, heads": (
        bert,
        [f"{BERT}.attention.self.{name}" for name in ("query", "key", "value")],
        f"{BERT}.attention.output.dense",
        4,
    ),
    "GPT-2, feed-forward": (gpt2, "h.1.mlp.c_fc", "h.1.mlp.c_proj", None),
    "GPT-2, fused heads": (gpt2, "h.0.attn.c_attn", "h.0.attn.c_proj", 4),
    "LLaMA, gated": (llama, [f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"], f"{LAYER}.mlp.down_proj", None),
    "LLaMA, grouped heads": (
        llama,
        [f"{LAYER}.self_attn.{name}_proj" for name in "qkv"],
        f"{LAYER}.self_attn.o_proj",
        2,
    ),
    "torch, feed-forward": (torchs, f"{LAYER}.linear1", f"{LAYER}.linear2", None),
    "torch, heads": (torchs, f"{LAYER}.self_attn", f"{LAYER}.self_attn.out_proj", 4),
    "torch without biases": (lambda: torchs(False), f"{LAYER}.self_attn", f"{LAYER}.self_attn.out_proj", 4),
}


@torch.no_grad()
def outputs(model):
    if isinstance(model, nn.TransformerEncoder):
        return model(gaussian((2, 5, 16), 1, torch.float32))
    return model(IDS).last_hidden_state


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("by", ["nearest", "norm", "reverse"])
def test_no_output_changes_and_the_order_is_taken_back_to_the_bit(case, by):
    make, writers, reader, blocks = CASES[case]
    model = seeded(make)
    first, before = outputs(model), {name: x.clone() for name, x in model.state_dict().items()}
    count = blocks or 24 + 40 * (make is gpt2)
    order = order_units(
        model, writers, reader, blocks=blocks, by=torch.arange(count).flip(0) if by == "reverse" else by
    )
    assert sorted(order.tolist()) == list(range(count))
    changed = [name for name, x in model.state_dict().items() if not torch.equal(x, before[name])]
    assert bool(changed) == (order.tolist() != list(range(count))) and (changed or blocks == 2)
    named = [*([writers] if isinstance(writers, str) else writers), reader]
    assert all(name.startswith(tuple(named)) for name in changed)
    torch.testing.assert_close(outputs(model), first, rtol=1e-4, atol=1e-5)
    order_units(model, writers, reader, blocks=blocks, by=order.argsort())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_units_that_were_mixed_are_brought_together_and_a_train_fits_them():
    """Eight units copied eight times, in a random order: one chain puts the copies side by side."""
    model = nn.Sequential(nn.Linear(12, 64), nn.Linear(64, 12))
    with torch.no_grad():
        model[0].weight.copy_(gaussian((8, 12), 0, torch.float32).repeat_interleave(8, 0))
        model[1].weight.copy_(gaussian((12, 8), 1, torch.float32).repeat_interleave(8, 1))
    order_units(model, "0", "1", by=torch.randperm(64, generator=torch.Generator().manual_seed(2)))

    def error():
        train = TTLinear.from_linear(model[0], rank=1, out_shape=(8, 8), in_shape=(12, 1))
        return ((train.dense() - model[0].weight).norm() / model[0].weight.norm()).item()

    mixed = error()
    order_units(model, "0", "1")
    assert mixed > 0.3 and error() < 1e-5
    assert len(model[0].weight.unflatten(0, (8, 8))[:, 0].unique(dim=0)) == 8


def test_norms_rise():
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 4))
    order_units(model, ["0"], "1", by="norm")
    first, second = model[0].weight / model[0].weight.norm(), model[1].weight / model[1].weight.norm()
    norms = first.square().sum(1) + second.square().sum(0)
    assert (norms.diff() > -1e-6).all()


class Pair(nn.Module):
    def __init__(self, rows=24, width=24):
        super().__init__()
        self.up, self.other, self.down = nn.Linear(8, rows), nn.Linear(8, 30), nn.Linear(width, 8)
        self.norm = nn.LayerNorm(8)


@pytest.mark.parametrize(
    "make, arguments, error, says",
    [
        (Pair, dict(writers="up", reader="norm"), TypeError, "norm must be an nn.Linear or Conv1D, got LayerNorm"),
        (Pair, dict(writers="norm", reader="down"), TypeError, "norm must be an nn.Linear"),
        (Pair, dict(writers="nothing", reader="down"), ValueError, "no module is named 'nothing'"),
        (Pair, dict(writers=[], reader="down"), ValueError, "writers is empty"),
        (Pair, dict(writers=["up", "up"], reader="down"), ValueError, "named twice"),
        (Pair, dict(writers="other", reader="down"), ValueError, "other has 30 outputs, which are neither the 24"),
        (lambda: Pair(12), dict(writers="up", reader="down"), ValueError, "up has 12 outputs"),
        (Pair, dict(writers="up", reader="down", blocks=5), ValueError, "5 blocks do not divide the 24"),
        (Pair, dict(writers="up", reader="down", blocks=0), ValueError, "blocks must be at least 1"),
        (Pair, dict(writers="up", reader="down", by="size"), ValueError, "by must be 'nearest', 'norm' or an order"),
        (Pair, dict(writers="up", reader="down", by=torch.ones(24)), TypeError, "an order holds integers"),
        (Pair, dict(writers="up", reader="down", by=torch.zeros(24, dtype=int)), ValueError, "each of 0 to 23 once"),
        (Tied, dict(writers="head", reader="body"), ValueError, "20 outputs"),
        (Tied, dict(writers="body", reader="head"), ValueError, "head shares a parameter with embed"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_has_changed(make, arguments, error, says):
    model = make()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(error, match=says):
        order_units(model, **arguments)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_weights_that_are_computed_or_compressed_are_refused():
    pruned = Pair()
    nn.utils.prune.random_unstructured(pruned.up, "weight", amount=0.5)
    compressed = Pair()
    compressed.down = TTLinear.from_linear(compressed.down, rank=4)
    broken = Pair()
    with torch.no_grad():
        broken.up.weight[0, 0] = float("nan")
    for model, error, says in (
        (pruned, TypeError, "up is a Linear without a plain weight"),
        (compressed, TypeError, "down is a TTLinear without a plain weight"),
        (broken, ValueError, "NaN or Inf"),
    ):
        with pytest.raises(error, match=says):
            order_units(model, "up", "down")
    keyed = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, add_bias_kv=True)})
    with pytest.raises(TypeError, match="add_bias_kv"):
        order_units(keyed, "attention", "out_proj", blocks=2)
