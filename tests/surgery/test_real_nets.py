"""Layers are found, replaced and measured in nets of the usual kinds: GPT-2 with its tie, torch's encoder, pictures."""

import pytest
import torch
from language_models import gpt2
from strategies import gaussian
from torch import nn
from transformers import BertConfig, BertModel

from ttref.fitting import collect_gram
from ttref.surgery import candidates, edit, find_layers, search_ranks, sensitivity

WAYS = [candidates.tensor_train(ratio=2), candidates.svd(ratio=2), candidates.integer(2), candidates.gptq(4)]
IDS = torch.tensor([[3, 7, 1, 9, 4], [8, 2, 6, 0, 5]])


def bert():
    return BertModel(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        )
    )


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 1)


def pictures():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 10, bias=False)
    )


INPUTS = {
    gpt2: IDS,
    bert: IDS,
    encoder: gaussian((2, 5, 16), 1, torch.float32),
    pictures: gaussian((4, 3, 8, 8), 1, torch.float32),
}
FOUND = {
    gpt2: ["wpe", "c_attn", "c_proj", "c_fc", "c_proj"],
    bert: ["word_embeddings", "position_embeddings", *["query", "key", "value"], *["dense"] * 4],
    encoder: ["out_proj", "linear1", "linear2"],
    pictures: ["0", "2", "4"],
}


@torch.no_grad()
def output(model, x):
    found = model(x)
    return getattr(found, "logits", getattr(found, "last_hidden_state", found))


@pytest.mark.parametrize("make", FOUND)
def test_a_sweep_and_a_choice(make):
    torch.manual_seed(0)
    model, x = make().eval(), INPUTS[make]
    found = find_layers(model)
    assert [layer.name.rpartition(".")[2] for layer in found] == FOUND[make]
    if make is gpt2:
        assert found.skipped.keys() == {"transformer.wte", "lm_head"}
    wanted = output(model, x)
    linears = [layer.name for layer in found if not isinstance(layer.module, nn.Embedding)]
    seen = [name for name in linears if "out_proj" not in name and "pooler" not in name]  # torch reads its weight
    grams = collect_gram(model, seen, [x])
    table = sensitivity(
        model,
        lambda model: -(output(model, x) - wanted).square().mean().item(),
        candidates=WAYS,
        grams=grams,
        method=["exact", "output"],
    )
    torch.testing.assert_close(output(model, x), wanted)
    assert table.layers == [layer.name for layer in found]
    pooler = [row["drop"] for row in table.rows if "pooler" in row["layer"]]
    assert all(abs(drop) < 1e-9 for drop in pooler)  # its output is not looked at
    assert all(row["drop"] > 0 for row in table.rows if "pooler" not in row["layer"])
    assert table.kendall("exact", "output") > 0.1
    ways = {way.name: way for way in WAYS}
    choice = search_ranks(table, nbytes=sum(layer.nbytes for layer in found) / 3)
    modules = {layer.name: layer.module for layer in found}
    made = {name: ways[way].make(modules[name], grams.get(name)) for name, way in choice.items() if way}
    assert made and sum(one.nbytes for one in made.values()) <= choice.nbytes
    with edit(model) as change:
        change.put(made)
    assert 1e-4 < (output(model, x) - wanted).abs().max() < 100
    change.undo()
    torch.testing.assert_close(output(model, x), wanted)
    assert all(dict(model.named_modules())[layer.name] is layer.module for layer in found)
