"""What a weight is for, read from its name alone, and from its module where there is one."""

import pytest
from torch import nn

from ttref.advice import kinds

NAMES = {
    kinds.TOKENS: [
        "embeddings.word_embeddings.weight",
        "transformer.wte.weight",
        "model.embed_tokens.weight",
        "tok_embeddings.weight",
        "token_embedding.weight",
        "shared.weight",
        "gpt_neox.embed_in.weight",
    ],
    kinds.POSITIONS: [
        "wpe",
        "bert.embeddings.position_embeddings.weight",
        "model.decoder.embed_positions.weight",
        "pos_embed",
        "encoder.pos_embedding",
        "visual.positional_embedding",
        "layers.0.blocks.0.attn.relative_position_bias_table",
    ],
    kinds.OTHER_TABLE: ["embeddings.token_type_embeddings.weight"],
    kinds.QK: [
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.0.attention.self.key.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "transformer.layer.0.attention.k_lin.weight",
        "layers.0.attention.wq.weight",
        "encoder.block.0.layer.0.SelfAttention.k.weight",
        "down_blocks.0.attn1.to_q.weight",
        "sa.heads.0.query.weight",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
    ],
    kinds.VO: [
        "encoder.layer.0.attention.self.value.weight",
        "encoder.layer.0.attention.output.dense.weight",
        "h.0.attn.c_proj.weight",
        "blocks_0_attn_c_proj_w",
        "model.layers.0.self_attn.o_proj.weight",
        "layers.0.self_attn.out_proj.weight",
        "blocks.0.attn.proj.weight",
        "layers.0.attention.wo.weight",
        "encoder.block.0.layer.0.SelfAttention.o.weight",
        "h.0.self_attention.dense.weight",
        "mid.attn.to_out.0.weight",
    ],
    kinds.FUSED: [
        "transformer.h.0.attn.c_attn.weight",
        "blocks.0.attn.qkv.weight",
        "layers.0.self_attn.in_proj_weight",
        "h.0.self_attention.query_key_value.weight",
        "encoder.layers.0.attn.Wqkv.weight",
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        "model.layers.0.self_attn.qkv_proj.weight",
    ],
    kinds.FORWARD: [
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.output.dense.weight",
        "h.0.mlp.c_fc.weight",
        "h.0.mlp.c_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "layers.0.linear1.weight",
        "layers.0.feed_forward.w2.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "blocks.0.mlp.fc1.weight",
        "transformer.layer.0.ffn.lin1.weight",
        "encoder.layers.encoder_layer_0.mlp.0.weight",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight",
    ],
    kinds.HEAD: ["lm_head.weight", "classifier.weight", "score.weight", "fc.weight", "head.weight", "output.weight"],
    kinds.OTHER: ["pooler.dense.weight", "0.weight", "layers.0.mixer.in_proj.weight"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_names(kind, name):
    assert kinds.kind_of(name, 2, None) == kind


def test_heads_of_reinforcement_learning_are_heads():
    assert kinds.kind_of("value_head.weight", 2, None) == kinds.HEAD


def test_more_axes_are_convolutions_but_not_experts():
    assert kinds.kind_of("conv1.weight", 4, None) == kinds.CONVOLUTION
    assert kinds.kind_of("patch_embed.proj.weight", 4, None) == kinds.CONVOLUTION
    assert kinds.kind_of("model.layers.0.mlp.experts.gate_up_proj", 3, None) == kinds.FORWARD


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        (nn.Embedding(3, 2), "users.weight", kinds.OTHER_TABLE),
        (nn.Embedding(3, 2), "embedding.weight", kinds.TOKENS),
        (nn.Embedding(3, 2), "embed_positions.weight", kinds.POSITIONS),
        (nn.Linear(3, 2), "pos_emb.weight", kinds.OTHER),
        (nn.MultiheadAttention(4, 2), "0.in_proj_weight", kinds.FUSED),
        (nn.Conv2d(3, 2, 1), "fc1.weight", kinds.CONVOLUTION),
    ],
)
def test_the_module_counts_more_than_the_name(module, name, kind):
    assert kinds.kind_of(name, 2, module) == kind


def test_every_kind_has_a_place_in_the_table():
    assert {*NAMES, kinds.CONVOLUTION, kinds.SMALL, kinds.INTEGERS, kinds.COMPRESSED} == set(kinds.KINDS)
