"""Tables that cannot be put into a model: what is refused, by name, and nothing half-done."""

import pytest
import torch
from compressed import every
from language_models import (
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
)
from strategies import agree
from torch import nn

from ttref import MPSEmbedding, TTMEmbedding, replace_embedding


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


# What is refused, and nothing half-done


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
        if id(self.words) != self.first:
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
    model.first = id(model.words)
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


@pytest.mark.parametrize("part", ["transformer.wte", "lm_head"])
def test_a_table_or_head_that_is_used_in_hiding_is_not_replaced(part):
    model = built(gpt2)
    model.user = nn.Identity()
    model.user.kept = {"mine": model.get_submodule(part)}
    old = parts(model)
    with pytest.raises(ValueError, match="a Identity of the model uses the (Embedding|Linear) without holding it"):
        replace_embedding(model, compressed(model), head="tied")
    assert same(model, old)
