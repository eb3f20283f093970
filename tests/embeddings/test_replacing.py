"""Tables put into transformers models and back: what they compute, what is tied, and how such models are used."""

import copy
import pickle
import warnings

import pytest
import torch
from compressed import embedding, noise
from language_models import (
    BERT,
    IDS,
    KINDS,
    WIDTH,
    WORDS,
    built,
    compressed,
    gpt2,
    llama,
    masked_bert,
    output,
    parts,
    same,
    t5,
)
from strategies import agree
from torch import nn
from transformers import BertConfig, BertModel

from ttref import TiedHead, TTMEmbedding, replace_embedding


def bert():
    return BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=32, **BERT))


TIED = [gpt2, llama, masked_bert, t5]
UNTIED = [lambda: gpt2(False), lambda: llama(False)]


# In models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", TIED)
def test_a_tied_table(make, kind):
    model = built(make)
    before, old = output(model), parts(model)
    table = compressed(model, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given_back = replace_embedding(model, table, head="tied")
    assert given_back == old
    head = model.get_output_embeddings()
    assert model.get_input_embeddings() is table and isinstance(head, TiedHead) and head.table is table
    assert head.training == old[1].training and getattr(old[1], "bias", None) is head.bias
    assert model.config.tie_word_embeddings is True  # some models read it while they compute

    # The same as a dense model with the reconstructed table.
    twin = built(make)
    with torch.no_grad():
        twin.get_input_embeddings().weight.copy_(table.to_embedding().weight)
    torch.testing.assert_close(output(model), output(twin), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output(model), before, atol=1e-4)

    output(model).square().mean().backward()
    assert all(p.grad is not None for p in table.parameters())
    assert sum(p is q for p in model.parameters() for q in table.parameters()) == len(list(table.parameters()))

    assert replace_embedding(model, given_back[0], head="tied") == (table, head)
    assert agree(output(model), before)
    look_up, scores = parts(model)
    assert scores.weight is look_up.weight is old[0].weight and type(scores) is nn.Linear
    assert model.config.tie_word_embeddings is True
    model.tie_weights()
    assert agree(output(model), before)


@pytest.mark.parametrize("kind", ["mps", "ttm"])
@pytest.mark.parametrize("make", TIED)
def test_a_tied_model_may_keep_its_dense_head_and_is_told_the_bytes(make, kind):
    model = built(make)
    before, old = output(model), parts(model)
    table = compressed(model, kind)
    message = f"the head keeps its dense matrix of 3,200 bytes, so nothing is saved: .* of {table.nbytes:,} bytes"
    with pytest.warns(UserWarning, match=message) as caught:
        replace_embedding(model, table, head="dense")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert model.get_input_embeddings() is table and model.get_output_embeddings() is old[1]
    assert model.config.tie_word_embeddings is True  # some models read it while they compute
    weight = old[1].weight.detach().clone()
    model.tie_weights()  # does not put the dense table back
    assert model.get_input_embeddings() is table and torch.equal(old[1].weight, weight)
    output(model).sum().backward()
    assert all(p.grad is not None for p in table.parameters())
    assert replace_embedding(model, old[0])[0] is table
    assert agree(output(model), before) and same(model, old)
    assert model.config.tie_word_embeddings is True


@pytest.mark.parametrize("make", TIED)
def test_a_tied_model_needs_a_choice(make):
    model = built(make)
    old = parts(model)
    with pytest.raises(ValueError, match='so say what becomes of the scores: head="tied" takes .* head="dense" keeps'):
        replace_embedding(model, compressed(model))
    assert same(model, old) and model.config.tie_word_embeddings


@pytest.mark.parametrize("head", [None, "dense"])
@pytest.mark.parametrize("make", UNTIED)
def test_an_untied_model_keeps_its_head(make, head):
    model = built(make)
    before, old = output(model), parts(model)
    table = compressed(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace_embedding(model, table, head=head) == old
    assert model.get_input_embeddings() is table and model.get_output_embeddings() is old[1]
    assert model.config.tie_word_embeddings is False
    assert not agree(output(model), before)
    replace_embedding(model, old[0], head=head)
    assert agree(output(model), before) and same(model, old)


@pytest.mark.parametrize("make", UNTIED)
def test_an_untied_model_has_nothing_to_tie(make):
    model = built(make)
    old = parts(model)
    with pytest.raises(ValueError, match="the model scores tokens with a matrix of its own, so .* leave head out"):
        replace_embedding(model, compressed(model), head="tied")
    assert same(model, old)


def test_a_model_without_a_head():
    model = built(bert)
    before, old = output(model), parts(model)
    tie = model.config.tie_word_embeddings
    with pytest.raises(ValueError, match="the model has no output head, so there is nothing to tie"):
        replace_embedding(model, compressed(model), head="tied")
    assert same(model, old)
    table = compressed(model)
    assert replace_embedding(model, table) == (old[0], None)
    assert not agree(output(model), before)
    output(model).sum().backward()
    assert all(p.grad is not None for p in table.parameters())
    assert replace_embedding(model, old[0]) == (table, None)
    assert agree(output(model), before) and model.config.tie_word_embeddings == tie


@pytest.mark.parametrize("make", [gpt2, llama, t5])
@pytest.mark.parametrize("head", ["tied", "dense"])
@pytest.mark.filterwarnings("ignore:the head keeps")
def test_generation(make, head):
    model = built(make)
    replace_embedding(model, compressed(model, "buckets"), head=head)
    tokens = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    start = tokens if make is t5 else tokens[:, :-1]
    if make is not t5:
        assert tokens.shape == (1, 8)
        assert torch.equal(output(model, start)[:, 3:].argmax(-1), tokens[:, 4:])


@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_loss_trains_table_and_model(make):
    model = built(make).train()
    replace_embedding(model, compressed(model), head="tied")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_one_compressed_table_after_another():
    model = built(gpt2)
    before, old = output(model), parts(model)
    first, second = compressed(model), TTMEmbedding((5, 10), (4, 4), rank=3)
    replace_embedding(model, first, head="tied")
    look_up, head = replace_embedding(model, second, head="tied")
    assert look_up is first and head.table is first
    assert model.get_output_embeddings().table is second
    with pytest.raises(ValueError, match="has no dense matrix to keep: put the dense table back first"):
        replace_embedding(model, first, head="dense")
    with pytest.raises(ValueError, match="say what becomes of the scores"):
        replace_embedding(model, first)
    assert model.get_input_embeddings() is second
    replace_embedding(model, old[0], head="tied")
    assert agree(output(model), before)


def test_another_dense_table_takes_the_head_along():
    """How a baseline is put in."""
    model = built(masked_bert)
    bias, before = model.get_output_embeddings().bias, output(model)
    rounded = embedding(model.get_input_embeddings().weight.detach().round(decimals=2))
    old, _ = replace_embedding(model, rounded, head="tied")
    scores = model.get_output_embeddings()
    assert type(scores) is nn.Linear and scores.weight is rounded.weight and scores.bias is bias
    assert not scores.training
    assert (scores.in_features, scores.out_features) == (WIDTH, WORDS)
    assert model.config.tie_word_embeddings is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_embedding(model, old, head="tied")
        assert agree(output(model), before)
        replace_embedding(model, rounded, head="dense")  # bytes are not what a dense table is about
    assert model.get_output_embeddings().weight is old.weight


@pytest.mark.parametrize("make, head", [(bert, None), *((make, head) for make in TIED for head in ("tied", "dense"))])
@pytest.mark.filterwarnings("ignore:the head keeps")
def test_the_state_of_the_model_holds_the_table_and_can_be_read_back(make, head):
    model, other = built(make), built(make)
    for one in (model, other):
        replace_embedding(one, compressed(one), head=head)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(model.state_dict())
    assert agree(output(other), output(model))
    assert not any("table" in name for name in model.state_dict())


@pytest.mark.parametrize("make", [gpt2, llama, masked_bert])
@pytest.mark.parametrize("head", ["tied", "dense"])
@pytest.mark.filterwarnings("ignore:the head keeps")
def test_a_model_can_be_saved_the_way_of_transformers(make, head, tmp_path):
    """The file holds the table once; what reads it is load_state_dict of a model prepared in the same way."""
    from safetensors.torch import load_file

    model = built(make)
    table = compressed(model)
    replace_embedding(model, table, head=head)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    cores = [name for name in saved if name.endswith(".cores")]
    assert len(cores) == 1 and torch.equal(saved[cores[0]], table.store.buckets[0].pieces[0].cores)
    twin = built(make)
    replace_embedding(twin, compressed(twin), head=head)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    twin.load_state_dict(saved, strict=False)
    torch.testing.assert_close(output(twin), output(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_keep_the_tie(copied):
    model = built(gpt2)
    replace_embedding(model, compressed(model), head="tied")
    twin, before = copied(model), output(model)
    look_up, head = parts(twin)
    assert agree(output(twin), before) and head.table is look_up is not model.get_input_embeddings()
    with torch.no_grad():
        for p in look_up.parameters():
            p.zero_()
    assert not agree(output(twin), before) and agree(output(model), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_moves_with_its_table(dtype):
    model = built(gpt2)
    replace_embedding(model, compressed(model), head="tied")
    model.to(dtype)
    assert output(model).dtype == dtype and model.get_output_embeddings().table.dtype == dtype


def test_a_vocabulary_that_has_grown():
    model = built(gpt2)
    table = compressed(model)
    replace_embedding(model, table, head="tied")
    before = output(model)
    table.append(noise(2, WIDTH))
    grown = output(model, torch.tensor([[1, 2, 3, WORDS - 1]]))
    assert grown.shape == (1, 4, WORDS + 2)
    torch.testing.assert_close(grown[..., :WORDS], before)
    output(model, torch.tensor([[WORDS, WORDS + 1]]))
