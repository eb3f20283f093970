"""Every language model that a small configuration makes: with another table it computes the same, or is refused."""

import pytest
import torch
import transformers
from model_answers import output, plain, ties
from strategies import agree
from transformers.models.auto import modeling_auto

from ttref import MPSEmbedding, replace_embedding

SMALL = {
    2: "n_layer n_layers num_layers num_hidden_layers num_attention_heads n_head n_heads num_heads "
    "encoder_attention_heads decoder_attention_heads num_key_value_heads num_experts num_local_experts "
    "n_routed_experts",
    1: "encoder_layers decoder_layers num_encoder_layers num_decoder_layers num_experts_per_tok",
    16: "head_dim d_kv d_head embedding_size kv_channels v_head_dim moe_intermediate_size true_hidden_size",
    8: "kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim state_size intra_bottleneck_size",
    32: "hidden_size d_model n_embd dim",
    48: "intermediate_size d_ff d_inner ffn_dim encoder_ffn_dim decoder_ffn_dim hidden_dim n_inner",
    64: "max_position_embeddings n_positions vocab_size",
}
SIZES = {name: size for size, names in SMALL.items() for name in names.split()}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "scale_embedding": True}
KINDS = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM")
NAMES = sorted(
    {
        (family, names if isinstance(names, str) else names[0])
        for kind in KINDS
        for family, names in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").items()
    }
)


def small(family, name):
    """The model with as few numbers as its configuration lets; whatever it raises says that there is none so small."""
    config = transformers.AutoConfig.for_model(family)
    known = config.to_dict()
    sizes = {key: size for key, size in SIZES.items() if not isinstance(known.get(key, ()), (list, tuple, dict))}
    config, kind = type(config)(**sizes), getattr(transformers, name)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in kind(config).parameters()) < 2e7
    torch.manual_seed(0)
    model = kind(config).eval()
    assert output(model).isfinite().all() and model.get_input_embeddings().weight.shape[0] > 50
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family, name", NAMES)
def test_the_same_or_refused(family, name, tmp_path):
    try:
        model = small(family, name)
    except Exception as error:  # what the model needs is not what is tried here
        pytest.skip(f"no small {name}: {error}")
    expected, declared = output(model), ties(model)
    for head in ("tied", "dense", None):
        table = MPSEmbedding.from_embedding(plain(model.get_input_embeddings()), eps=0)
        try:
            before = replace_embedding(model, table, head=head)
        except (TypeError, ValueError):
            pass
        else:
            torch.testing.assert_close(output(model), expected, rtol=2e-3, atol=2e-3)
            model.tie_weights()
            model.save_pretrained(tmp_path)
            replace_embedding(model, before[0], head=before[1])
        assert agree(output(model), expected) and ties(model) == declared
