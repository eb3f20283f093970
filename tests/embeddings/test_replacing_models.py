"""Tables in many transformers models: all of them compute the same, or are refused and stay as they were."""

import copy
import pickle
import sys

import pytest
import torch
import transformers
from model_answers import (
    IDS,
    WIDTH,
    WORDS,
    output,
    plain,
    ties,
)
from strategies import agree
from torch import nn

from ttref import MPSEmbedding, TiedHead, TTMEmbedding, replace_embedding
from ttref.embeddings.head import ScaledTable

SIZES = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 1, "pad_token_id": 0}
HEADS = {"num_attention_heads": 2, "intermediate_size": 24}
GROUPS = {**HEADS, "num_key_value_heads": 1, "head_dim": 8}
SIDES = {
    f"{side}_{what}": n
    for side in ("encoder", "decoder")
    for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
}
TWO_SIDES = {"vocab_size": WORDS, "d_model": WIDTH, "max_position_embeddings": 20, "pad_token_id": 0, **SIDES}
T5 = {"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
START = {"decoder_start_token_id": 0}
ZAMBA = {"layer_types": ["mamba", "hybrid", "hybrid"], "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16}

# name of the model without "Config", its class, the options of its configuration
MODELS = {
    # read the weight of the head
    "Mamba": ("MambaForCausalLM", {**SIZES, "state_size": 4}),
    "FalconMamba": ("FalconMambaForCausalLM", {**SIZES, "state_size": 4, "tie_word_embeddings": True}),
    "Mamba2": (
        "Mamba2ForCausalLM",
        {**SIZES, "state_size": 4, "head_dim": 8, "num_heads": 4, "n_groups": 1, "tie_word_embeddings": True},
    ),
    "MobileBert": (
        "MobileBertForMaskedLM",
        {**SIZES, **HEADS, "embedding_size": WIDTH, "intra_bottleneck_size": 8, "true_hidden_size": 8},
    ),
    "Deberta": ("DebertaForMaskedLM", {**SIZES, **HEADS}),
    # declare their ties in __init__
    "Marian": ("MarianMTModel", {**TWO_SIDES, **START}),
    "Zamba": ("ZambaForCausalLM", {**SIZES, **HEADS, **ZAMBA, "num_hidden_layers": 3, "num_key_value_heads": 2,
                                   "mamba_d_state": 4, "n_mamba_heads": 2, "use_mamba_kernels": False}),
    # one table for encoder and decoder
    "T5": ("T5ForConditionalGeneration", {**T5, **START}),
    "MT5": ("MT5ForConditionalGeneration", {**T5, **START}),
    "Pegasus": ("PegasusForConditionalGeneration", TWO_SIDES),
    "Bart": ("BartForConditionalGeneration", TWO_SIDES),
    # scale their rows
    "MBart": ("MBartForConditionalGeneration", {**TWO_SIDES, "scale_embedding": True}),
    "M2M100": ("M2M100ForConditionalGeneration", {**TWO_SIDES, "scale_embedding": True}),
    "Gemma": ("GemmaForCausalLM", {**SIZES, **GROUPS}),
    "Gemma3Text": ("Gemma3ForCausalLM", {**SIZES, **GROUPS}),
    # heads of other kinds
    "Albert": ("AlbertForMaskedLM", {**SIZES, **HEADS, "embedding_size": 8}),
    "Electra": ("ElectraForMaskedLM", {**SIZES, **HEADS, "embedding_size": 8}),
    "DistilBert": ("DistilBertForMaskedLM", {"vocab_size": WORDS, "dim": WIDTH, "hidden_dim": 24, "n_layers": 1,
                                             "n_heads": 2}),
    "Roberta": ("RobertaForMaskedLM", {**SIZES, **HEADS, "max_position_embeddings": 20}),
    "XLNet": ("XLNetLMHeadModel", {"vocab_size": WORDS, "d_model": WIDTH, "d_inner": 24, "n_layer": 1, "n_head": 2}),
    "OPT": ("OPTForCausalLM", {**SIZES, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": WIDTH}),
    "Bloom": ("BloomForCausalLM", {**SIZES, "n_layer": 1, "n_head": 2}),
    "GPTNeo": ("GPTNeoForCausalLM", {**SIZES, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}),
    "Qwen2": ("Qwen2ForCausalLM", {**SIZES, **HEADS, "num_key_value_heads": 1, "tie_word_embeddings": True}),
}  # fmt: skip


def built(name):
    torch.manual_seed(0)
    kind, options = MODELS[name]
    return getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options)).eval()


def whole(model):
    return MPSEmbedding.from_embedding(plain(model.get_input_embeddings()), eps=0)


def swaps(model):
    return [name for name, module in model.named_modules() if isinstance(module, (MPSEmbedding, TiedHead, ScaledTable))]


@pytest.mark.filterwarnings("ignore:the head keeps")
@pytest.mark.parametrize("head", ["tied", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_and_the_way_back_is_exact(name, head, tmp_path):
    model = built(name)
    expected, declared, state = output(model), ties(model), list(model.state_dict())
    look_up, scores = model.get_input_embeddings(), model.get_output_embeddings()
    table = whole(model)
    before = replace_embedding(model, table, head=head)
    assert before == (look_up, scores)
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-3)
    left = [name for name, parameter in model.named_parameters() if parameter is look_up.weight]
    assert not left if head == "tied" else left
    assert (model.get_output_embeddings() is scores) == (head == "dense")
    model.tie_weights()  # transformers calls it by itself in several places
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-3)
    for parameter in table.parameters():
        parameter.data.zero_()
    assert not torch.allclose(output(model), expected, atol=1e-3)  # nothing computes with a table of its own

    replace_embedding(model, before[0], head=before[1])
    assert agree(output(model), expected) and not swaps(model)
    assert ties(model) == declared and list(model.state_dict()) == state
    assert "resize_token_embeddings" not in vars(model)
    model.tie_weights()
    assert agree(output(model), expected)
    assert (model.get_input_embeddings(), model.get_output_embeddings()) == before


def test_a_model_whose_scores_read_the_weight_of_the_table():
    """DeBERTa's newer head: nothing is tied, the forward hands the table itself to the head."""
    torch.manual_seed(0)
    model = transformers.DebertaForMaskedLM(transformers.DebertaConfig(**SIZES, **HEADS, legacy=False)).eval()
    expected = output(model)
    table = whole(model)
    before = replace_embedding(model, table)
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-3)
    replace_embedding(model, before[0])
    assert agree(output(model), expected)


@pytest.mark.parametrize("name", ["Mamba", "MobileBert"])
def test_gradients_reach_the_table_through_the_weight_that_is_read(name):
    model = built(name)
    table = MPSEmbedding.from_embedding(plain(model.get_input_embeddings()), rank=2)
    replace_embedding(model, table, head="tied")
    model(input_ids=IDS).logits.square().mean().backward()
    got = [parameter.grad for parameter in table.parameters()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in got)


@pytest.mark.parametrize("kind", [
    lambda t: MPSEmbedding.from_embedding(t, rank=2, center=True),
    lambda t: MPSEmbedding.from_embedding(t, rank=2, core_bits=8),
    lambda t: TTMEmbedding.from_embedding(t, row_shape=(5, 10), col_shape=(4, 4), rank=3),
])  # fmt: skip
def test_the_weight_of_table_and_head_is_the_dense_matrix(kind):
    table = kind(nn.Embedding(WORDS, WIDTH))
    dense = table.to_embedding().weight
    for module in (table, TiedHead(table), ScaledTable(table, 3.0)):
        assert torch.equal(module.weight, dense) and module.weight.dtype == table.dtype
        with pytest.raises((KeyError, AttributeError)):
            module.weight = nn.Parameter(dense.detach())
        assert not any(name.endswith("weight") for name in module.state_dict())


def scaled_bart(scale=True):
    torch.manual_seed(0)
    config = transformers.BartConfig(**TWO_SIDES, scale_embedding=scale)
    return transformers.BartForConditionalGeneration(config).eval()


# Rows that are scaled on their way in


@pytest.mark.parametrize("make", [scaled_bart, lambda: built("Gemma3Text"), lambda: built("Gemma")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_stays_and_the_head_scores_without_it(make, dtype):
    model = make().to(dtype)
    expected, look_up = output(model), model.get_input_embeddings()
    table = MPSEmbedding.from_embedding(plain(look_up), row_ranks=[1000] * WORDS)  # every row as it is
    before = replace_embedding(model, table, head="tied")
    found, scores = model.get_input_embeddings(), model.get_output_embeddings()
    assert found.table is table and scores.table is table and found.embed_scale == look_up.embed_scale
    assert agree(found(IDS), look_up(IDS))
    bound = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(output(model), expected, **bound)
    assert "embed_scale" not in " ".join(model.state_dict())

    other = MPSEmbedding.from_embedding(plain(look_up), row_ranks=[1000] * WORDS)
    replace_embedding(model, other, head="tied")  # one after another
    assert model.get_input_embeddings().table is other and agree(model.get_input_embeddings()(IDS), look_up(IDS))
    replace_embedding(model, *before[:1], head=before[1])
    assert agree(output(model), expected)


class Scaled(MPSEmbedding):
    def forward(self, ids):
        return super().forward(ids) * WIDTH**0.5


def test_a_table_that_scales_by_itself_is_taken_as_it_is():
    model = built("Gemma3Text")
    expected = output(model)
    table = Scaled.from_embedding(plain(model.get_input_embeddings()), eps=0)
    replace_embedding(model, table, head="tied")
    assert model.get_input_embeddings() is table
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-3)


def test_a_dense_table_for_a_scaled_one_as_the_message_says():
    model = built("Gemma3Text")
    expected = output(model)
    with pytest.raises(TypeError, match=r"does more than look up.* new = copy.deepcopy\(model.get_input_embeddings"):
        replace_embedding(model, plain(model.get_input_embeddings()), head="tied")
    new = copy.deepcopy(model.get_input_embeddings())
    new.weight = nn.Parameter(new.weight.detach().clone())
    replace_embedding(model, new, head="tied")
    assert model.get_input_embeddings() is new and model.lm_head.weight is new.weight
    assert agree(output(model), expected)


class Shifted(nn.Embedding):
    embed_scale = 2.0  # what it is called, and not what it does

    def forward(self, ids):
        return super().forward(ids) + 1


def test_a_look_up_of_another_kind_is_refused_with_advice_that_can_be_followed():
    model = built("Qwen2")
    own = Shifted(WORDS, WIDTH)
    model.set_input_embeddings(own)
    model.tie_weights()
    expected = output(model)
    with pytest.raises(TypeError, match="is a Shifted, .* Give a subclass of MPSEmbedding whose forward does the same"):
        replace_embedding(model, whole(model), head="tied")
    assert model.get_input_embeddings() is own and agree(output(model), expected)

    class ShiftedTable(MPSEmbedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    replace_embedding(model, ShiftedTable.from_embedding(plain(own), eps=0), head="tied")
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-3)


def test_a_head_that_computes_in_a_way_of_its_own_is_not_replaced():
    class Cooled(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) / 2

    model = built("Qwen2")
    model.lm_head = Cooled(WIDTH, WORDS, bias=False)
    model.tie_weights()
    expected = output(model)
    with pytest.raises(TypeError, match='the head is a Cooled, .* head="dense" keeps it, and head=module puts in one'):
        replace_embedding(model, whole(model), head="tied")
    assert agree(output(model), expected) and not swaps(model)
    with pytest.warns(UserWarning, match="the head keeps"):
        replace_embedding(model, whole(model), head="dense")
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-3)


def test_two_ways_to_look_up_in_one_table_are_refused():
    model = scaled_bart(scale=False)
    model.model.decoder.embed_tokens.embed_scale = 2.0
    expected, state = output(model), list(model.state_dict())
    with pytest.raises(TypeError, match="looks tokens up in the same table in two ways"):
        replace_embedding(model, whole(model), head="tied")
    assert agree(output(model), expected) and list(model.state_dict()) == state


# Other copies of the model


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["T5", "Gemma3Text", "Marian"])
def test_a_copy_can_be_undone_too(name, copied):
    model = built(name)
    expected, declared = output(model), ties(model)
    before = replace_embedding(model, whole(model), head="tied")
    twin = copied(model)
    assert twin.get_output_embeddings().table is not model.get_output_embeddings().table
    torch.testing.assert_close(output(twin), output(model))
    replace_embedding(twin, before[0], head=before[1])
    assert ties(twin) == declared and agree(output(twin), expected)


class Stop(KeyboardInterrupt):
    pass


def traced(work, at=None):
    """Run the work and stop before the line of that count, of those of the embeddings' code; the lines that ran."""
    lines = []

    def trace(frame, event, _):
        if "embeddings" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) == at:
                raise Stop
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Stop:
        assert at is not None
    finally:
        sys.settrace(old)
    return lines


def told(model):
    return (
        [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)],
        [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)],
        ties(model),
        [name for name, part in model.named_modules() if "resize_token_embeddings" in vars(part)],
        list(model.state_dict()),
    )


# Interrupted anywhere


@pytest.mark.filterwarnings("ignore:the head keeps")
@pytest.mark.parametrize("name, head", [("Qwen2", "tied"), ("Roberta", "dense"), ("MBart", "tied")])
def test_interrupted_at_any_line_a_model_is_as_before_or_as_after(name, head):
    model = built(name)
    table, expected = MPSEmbedding.from_embedding(plain(model.get_input_embeddings()), rank=1), output(model)
    old = replace_embedding(model, table, head=head)
    after = output(model)
    replace_embedding(model, old[0], head=old[1])
    first = told(model)
    for work, there in (
        (lambda: replace_embedding(model, table, head=head), after),
        (lambda: undo(model, old), expected),
    ):
        if there is expected:
            replace_embedding(model, table, head=head)
        start, lines = output(model), traced(work)
        finished = 0
        for at in sorted({*{line: k for k, line in enumerate(lines, 1)}.values(), *map(lines.index, lines)} - {0}):
            undo(model, old)  # each line where it runs first and last
            if there is expected:
                replace_embedding(model, table, head=head)
            whence = told(model)
            traced(work, at)
            complete = told(model) != whence
            finished += complete
            assert agree(output(model), there if complete else start), lines[at - 1]
            undo(model, old)
            assert told(model) == first, lines[at - 1]
        assert finished < 10 < 50 < at  # after the last change only


def undo(model, old):
    return replace_embedding(model, old[0], head=old[1])
