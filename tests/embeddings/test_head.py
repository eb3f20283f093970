"""The head that shares a compressed table, and putting tables into transformers models and back."""

import copy
import pickle
import warnings

import pytest
import torch
from compressed import embedding, every, noise
from strategies import agree
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ttref import MPSEmbedding, TiedHead, TTMEmbedding, replace_embedding

WORDS, WIDTH = 50, 16
BERT = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def gpt2(tied=True):
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip


def llama(tied=True):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=0,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip


def masked_bert():
    model = BertForMaskedLM(BertConfig(vocab_size=WORDS, max_position_embeddings=32, **BERT))
    nn.init.normal_(model.get_output_embeddings().bias)  # zeros would hide a lost bias
    return model


def bert():
    return BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=32, **BERT))


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


TIED = [gpt2, llama, masked_bert, t5]
UNTIED = [lambda: gpt2(False), lambda: llama(False)]
IDS = torch.tensor([[1, 2, 3, WORDS - 1]])
KINDS = {
    "mps": lambda table: MPSEmbedding.from_embedding(table, rank=2, center=True),
    "buckets": lambda table: MPSEmbedding.from_embedding(table, row_ranks=[1, 99] * (WORDS // 2)),
    "int8": lambda table: MPSEmbedding.from_embedding(table, rank=2, core_bits=8),
    "ttm": lambda table: TTMEmbedding.from_embedding(table, row_shape=(6, 9), col_shape=(4, 4), rank=4),
}


def built(make):
    torch.manual_seed(0)
    return make().eval()


def output(model, ids=IDS):
    more = {"decoder_input_ids": ids} if isinstance(model, T5ForConditionalGeneration) else {}
    return model(input_ids=ids, **more)[0]


def compressed(model, kind="mps"):
    return KINDS[kind](model.get_input_embeddings())


def parts(model):
    return model.get_input_embeddings(), model.get_output_embeddings()


def same(model, before):
    return all(now is then for now, then in zip(parts(model), before, strict=True))


# The head alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_scores_as_the_dense_one_does(kind, bias):
    table = KINDS[kind](embedding(noise(WORDS, WIDTH)))
    shift = nn.Parameter(noise(1, WORDS, 1).squeeze(0)) if bias else None
    head = TiedHead(table, shift)
    assert (head.in_features, head.out_features) == (WIDTH, WORDS) and head.table is table
    hidden = noise(6, WIDTH, 2).view(2, 3, WIDTH)
    expected = nn.functional.linear(hidden, table.to_embedding().weight, shift)
    torch.testing.assert_close(head(hidden), expected, rtol=1e-4, atol=1e-4)
    if bias:
        head(hidden).sum().backward()
        torch.testing.assert_close(shift.grad, torch.full((WORDS,), 6.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden).dtype == torch.bfloat16


def test_a_head_follows_its_table():
    table = MPSEmbedding.from_embedding(embedding(noise(WORDS, WIDTH)), rank=2)
    head = TiedHead(table)
    table.append(noise(3, WIDTH, 1))
    assert head.out_features == WORDS + 3 and head(noise(2, WIDTH)).shape == (2, WORDS + 3)


def test_a_head_needs_a_compressed_table():
    with pytest.raises(TypeError, match="a TiedHead needs an MPSEmbedding or a TTMEmbedding, got Embedding"):
        TiedHead(nn.Embedding(3, 4))


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


# What is refused, and nothing half-done


class Plain(nn.Module):
    """A model of one's own with the four methods, a linear head and no config."""

    def __init__(self, scores=None, config=None):
        super().__init__()
        self.words, self.scores = nn.Embedding(WORDS, WIDTH), scores
        if config is not None:
            self.config = config

    def get_input_embeddings(self):
        return self.words

    def set_input_embeddings(self, new):
        self.words = new

    def get_output_embeddings(self):
        return self.scores

    def set_output_embeddings(self, new):
        self.scores = new


class Config:
    tie_word_embeddings = True


def tied_plain(kind=Plain, **options):
    model = kind(nn.Linear(WIDTH, WORDS, bias=False), **options)
    model.scores.weight = model.words.weight
    return model


def test_a_model_of_one_s_own():
    for config in (None, Config()):
        model = tied_plain(config=config)
        table, old = compressed(model), parts(model)
        replace_embedding(model, table, head="tied")
        assert model.words is table and model.scores.table is table
        replace_embedding(model, old[0], head="tied")
        assert model.words is old[0] and model.scores.weight is old[0].weight
        assert config is None or config.tie_word_embeddings is True


class NoNewHead(Plain):
    def set_output_embeddings(self, new):
        raise NotImplementedError("this head stays")


class NoNewTable(Plain):
    def set_input_embeddings(self, new):
        raise NotImplementedError("this table stays")


class NoKeys(Plain):
    """Fails where transformers lists its tied weights, after everything is put in."""

    def get_expanded_tied_weights_keys(self, all_submodels):
        if self.words is not self.first:
            raise RuntimeError("no keys")
        return {}


@pytest.mark.parametrize("kind, error", [(NoNewHead, NotImplementedError), (NoNewTable, NotImplementedError)])
def test_a_model_that_refuses_stays_as_it_was(kind, error):
    model = tied_plain(kind, config=Config())
    old = parts(model)
    with pytest.raises(error, match="stays"):
        replace_embedding(model, compressed(model), head="tied")
    assert same(model, old) and model.scores.weight is model.words.weight
    assert model.config.tie_word_embeddings is True


def test_a_model_that_fails_at_the_end_is_put_back():
    model = tied_plain(NoKeys, config=Config())
    object.__setattr__(model, "first", model.words)
    old = parts(model)
    with pytest.raises(RuntimeError, match="no keys"):
        replace_embedding(model, compressed(model), head="tied")
    assert same(model, old) and model.config.tie_word_embeddings is True


@pytest.mark.parametrize(
    "wrong, head, error, message",
    [
        (lambda: nn.Linear(WIDTH, WORDS), "tied", TypeError, "embedding must be an MPSEmbedding, .* got Linear"),
        (lambda: nn.Embedding(WORDS + 1, WIDTH), "tied", ValueError, "num_embeddings is 51, but the .* has 50"),
        (lambda: nn.Embedding(WORDS, WIDTH + 1), "tied", ValueError, "embedding_dim is 17, but the .* has 16"),
        (lambda: TTMEmbedding((7, 8), (4, 4), 2), "tied", ValueError, "num_embeddings is 56, but the .* has 50"),
        (lambda: nn.Embedding(WORDS, WIDTH), "free", ValueError, "a module, got 'free'"),
        (lambda: nn.Embedding(WORDS, WIDTH), True, ValueError, "got True"),
    ],
)
@pytest.mark.parametrize("make", [gpt2, llama])
def test_bad_arguments_change_nothing(make, wrong, head, error, message):
    model = built(make)
    before, old = output(model), parts(model)
    with pytest.raises(error, match=message):
        replace_embedding(model, wrong(), head=head)
    assert same(model, old) and model.config.tie_word_embeddings is True and agree(output(model), before)


def test_modules_that_are_no_such_model():
    table = MPSEmbedding.from_embedding(nn.Embedding(WORDS, WIDTH), rank=1)
    for model in (nn.Sequential(nn.Embedding(WORDS, WIDTH)), "gpt2"):
        with pytest.raises(TypeError, match=r"has no get_input_embeddings\(\) and its like; for a module of your own"):
            replace_embedding(model, table)
    model = Plain()
    model.words = nn.Linear(WORDS, WIDTH)
    with pytest.raises(TypeError, match="the model's token table is a Linear, not an nn.Embedding"):
        replace_embedding(model, table)


def test_a_head_without_a_weight_is_a_head_of_its_own():
    model = Plain(nn.Sequential(nn.Linear(WIDTH, WORDS)))
    table, old = compressed(model), parts(model)
    with pytest.raises(ValueError, match="scores tokens with a matrix of its own"):
        replace_embedding(model, table, head="tied")
    assert same(model, old)
    replace_embedding(model, table)
    assert model.words is table and model.scores is old[1]
    assert model.words(every(table)).shape == (WORDS, WIDTH)


def test_the_old_head_itself_comes_back():
    model = built(gpt2)
    head, before = model.lm_head, output(model)
    old = replace_embedding(model, compressed(model), head="tied")
    replace_embedding(model, old[0], head=old[1])
    assert model.lm_head is head and agree(output(model), before)


@pytest.mark.parametrize("part", ["transformer.wte", "lm_head"])
@pytest.mark.parametrize(
    "hang",
    [
        lambda module: module.register_forward_hook(lambda _, given, y: 3 * y),
        lambda module: module.register_forward_pre_hook(lambda _, given: None),
        lambda module: setattr(module, "forward", lambda given, plain=module.forward: 3 * plain(given)),
    ],
)
def test_what_hangs_on_a_look_up_or_a_head_is_not_lost_in_silence(part, hang):
    model = built(gpt2)
    table, before = compressed(model), (model.transformer.wte, model.lm_head)
    hang(model.get_submodule(part))
    with pytest.raises(TypeError, match="which would be lost .* take it off"):
        replace_embedding(model, table, head="tied")
    assert (model.transformer.wte, model.lm_head) == before
    if part == "lm_head":  # which stays, or is replaced by one that knows
        with pytest.warns(UserWarning, match="the head keeps"):
            replace_embedding(model, table, head="dense")
        assert model.lm_head is before[1]


def test_a_table_of_another_dtype_is_refused():
    model = built(gpt2)
    with pytest.raises(ValueError, match="the new table is torch.float32, but the model's table is torch.bfloat16"):
        replace_embedding(model.bfloat16(), nn.Embedding(WORDS, WIDTH), head="tied")


def test_a_scaled_table_is_not_replaced_by_a_plain_one():
    """Gemma multiplies every row on its way in; a plain table would lose that in silence."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **heads, **tokens))
    with pytest.raises(TypeError, match="does more than look up"):
        replace_embedding(model, nn.Embedding(WORDS, WIDTH), head="tied")


def test_a_head_that_reads_the_flag_of_tying_computes_the_same():
    """Switch Transformers scales its scores if the configuration says that they are tied."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    sizes = {"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = SwitchTransformersConfig(**sizes, num_decoder_layers=1, num_experts=2, tie_word_embeddings=True)
    config.decoder_start_token_id = 0
    torch.manual_seed(0)
    model = SwitchTransformersForConditionalGeneration(config).eval()
    ids = {"input_ids": torch.tensor([[1, 2, 3]]), "decoder_input_ids": torch.tensor([[4, 5]])}
    before = model(**ids).logits
    look_up = model.get_input_embeddings()
    whole = MPSEmbedding.from_embedding(look_up, row_ranks=[1000] * look_up.num_embeddings)
    replace_embedding(model, whole, head="tied")
    torch.testing.assert_close(model(**ids).logits, before)


def test_the_bias_of_a_head_grows_with_the_table():
    model = built(masked_bert)
    table = compressed(model)
    replace_embedding(model, table, head="tied")
    before = output(model)
    table.append(torch.zeros(3, WIDTH))
    after = output(model)
    assert after.shape[-1] == WORDS + 3
    torch.testing.assert_close(after[..., :WORDS], before)
