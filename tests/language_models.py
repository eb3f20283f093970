"""What the tests of replaced tables share: tiny language models, tied or not, and tables compressed in every way."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ttref import MPSEmbedding, TTMEmbedding

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


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


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
