"""What the tests of the transformers quantizer share: small models with compressed layers, and their folders."""

import warnings

import torch
import transformers
from compressed import smooth
from torch import nn

from ttref import MPSEmbedding, TTConv2d, TTLinear, TTMEmbedding, replace_embedding, swap_layer
from ttref.release.placing import describe_model
from ttref.release.quantizer import TensorTrainConfig

WORDS, WIDTH = 60, 16
IDS = torch.tensor([[5, 6, 7, WORDS - 1]])
SIZES = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "pad_token_id": 0}


def answer(model):
    """Logits, or the last hidden states of a model without a head."""
    given = {"input_ids": IDS}
    if model.main_input_name == "pixel_values":
        given = {"pixel_values": torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)}
    elif model.config.is_encoder_decoder:
        given["decoder_input_ids"] = IDS
    with torch.no_grad():
        found = model(**given)
    return found.logits if "logits" in found else found.last_hidden_state


def put_trains(model, *names, rank=3):
    for name in names:
        swap_layer(model, name, TTLinear.from_linear(model.get_submodule(name), rank=rank))


def put_table(model, head, *, kind=MPSEmbedding, **options):
    table = model.get_input_embeddings()
    plain = nn.Embedding.from_pretrained(smooth(WORDS, table.weight.shape[1]), freeze=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the head keeps its dense matrix")
        replace_embedding(model, kind.from_embedding(plain, **options), head=head)


def gpt2(head="tied"):
    config = {"vocab_size": WORDS, "n_positions": 16, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, bos_token_id=None, eos_token_id=None))
    put_table(model, head, rank=2, center=True)
    put_trains(model, "transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc")
    swap_layer(model, "transformer.wpe", TTMEmbedding.from_embedding(model.transformer.wpe, rank=2))
    return model


def llama(tied):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config)
    if tied:
        put_table(model, "tied", row_ranks=[1, 2, 9] * (WORDS // 3), core_bits=8)
    else:
        put_table(model, None, kind=TTMEmbedding, rank=3)
        put_trains(model, "lm_head")
    put_trains(model, "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj")
    model.get_submodule("model.layers.0.self_attn.q_proj").requires_grad_(False)
    return model


def bert(kind=transformers.BertModel):
    model = kind(transformers.BertConfig(**SIZES, max_position_embeddings=20))
    put_table(model, None if kind is transformers.BertModel else "tied", rank=2, rotate=True)
    prefix = "" if kind is transformers.BertModel else "bert."
    put_trains(model, f"{prefix}encoder.layer.0.intermediate.dense", f"{prefix}encoder.layer.1.attention.self.query")
    return model


def vit():
    config = {name: value for name, value in SIZES.items() if name not in ("vocab_size", "pad_token_id")}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**config, image_size=8, patch_size=2))
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    conv = TTConv2d.from_conv(
        model.get_submodule(name), rank=4, row_shape=(WIDTH, 1), col_shape=(4, 3), taps_first=True, core_bits=4
    )
    swap_layer(model, name, conv)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layer" in name]
    put_trains(model, *linear[:3])
    return model


def bart(scaled=False):
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 24))}
    sides |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "scale_embedding": scaled}
    config = {"vocab_size": WORDS, "d_model": WIDTH, "max_position_embeddings": 20, "pad_token_id": 0, **sides}
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**config))
    put_table(model, "tied", row_ranks=[1, 2, 9] * (WORDS // 3), core_bits=8)
    put_trains(model, "model.encoder.layers.0.fc1")
    return model


def gemma():
    config = transformers.Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8)
    model = transformers.Gemma3ForCausalLM(config)
    put_table(model, "tied", rank=2)
    put_trains(model, "model.layers.1.mlp.down_proj")
    return model


def t5():
    config = {"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config, decoder_start_token_id=0))
    put_table(model, "tied", kind=TTMEmbedding, rank=3)
    put_trains(model, "encoder.block.0.layer.1.DenseReluDense.wi", "encoder.block.0.layer.1.DenseReluDense.wo")
    return model


MODELS = {
    "GPT-2, tied": gpt2,
    "GPT-2, dense head": lambda: gpt2("dense"),
    "LLaMA, tied": lambda: llama(True),
    "LLaMA, untied": lambda: llama(False),
    "BERT": bert,
    "BERT, masked words": lambda: bert(transformers.BertForMaskedLM),
    "ViT": vit,
    "BART": bart,
    "BART, scaled": lambda: bart(True),
    "Gemma": gemma,
    "T5": t5,
}


def built(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def saved(model, folder):
    """The folder of a release: ``config.json`` with descriptions, and the numbers."""
    model.config.quantization_config = TensorTrainConfig(describe_model(model))
    model.save_pretrained(folder)
    return folder
