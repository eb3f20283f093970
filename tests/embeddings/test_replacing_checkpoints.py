"""What users do with a model after its table was replaced: save, load, resize, train it, run it in parallel."""

import copy
import importlib

import pytest
import torch
from language_models import IDS, KINDS, WIDTH, WORDS, built, compressed, gpt2, llama, masked_bert, output, t5
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from strategies import agree
from torch import nn

from ttref import MPSEmbedding, TiedHead, replace_embedding


def tied(make=gpt2, kind="mps"):
    model = built(make)
    return model, replace_embedding(model, compressed(model, kind), head="tied")


def moved(model):
    """The same model with other numbers everywhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    return model


# Saving


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_encoder_and_decoder_is_saved_once_and_read_back(kind, tmp_path):
    model, _ = tied(t5, kind)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {f"shared.{name}" for name in model.shared.state_dict()} <= set(saved)
    assert not any(name.startswith(("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")) for name in saved)
    twin = moved(tied(t5, kind)[0])
    twin.load_state_dict(saved, strict=False)
    torch.testing.assert_close(output(twin), output(model))
    twin = moved(tied(t5, kind)[0])
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(output(twin), output(model))


@pytest.mark.parametrize("kind", ["mps", "int8"])
def test_a_table_that_has_grown_is_saved_too(kind, tmp_path):
    model, _ = tied(t5, kind)
    model.get_input_embeddings().append(torch.ones(3, WIDTH))
    model.tie_weights()
    model.save_pretrained(tmp_path)
    for part in ("encoder", "decoder"):
        assert getattr(model, part).embed_tokens is model.shared


@pytest.mark.parametrize("make", [gpt2, llama, masked_bert, t5])
def test_a_trainer_resumes_from_its_checkpoint(make, tmp_path):
    """What it does at every checkpoint, and what it does to go on from one."""
    model, _ = tied(make)
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    twin = moved(tied(make)[0])
    missing, unexpected = twin.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not unexpected and not [name for name in missing if "embed_tokens" not in name and "bias" not in name]
    twin.tie_weights()
    torch.testing.assert_close(output(twin), output(model))


@pytest.mark.parametrize("assign", [False, True])
def test_the_state_of_a_head_holds_no_table_and_is_read_strictly(assign):
    model, _ = tied(gpt2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(name.startswith("lm_head") for name in state)
    twin = moved(tied(gpt2)[0])
    twin.load_state_dict(state, assign=assign)
    assert agree(output(twin), output(model))
    table = twin.get_input_embeddings()
    assert twin.lm_head.table is table
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.zero_()
    scores = output(twin)  # every row is the mean row now
    torch.testing.assert_close(scores, scores[..., :1].expand_as(scores))


# Resizing


@pytest.mark.parametrize("make", [gpt2, t5])
def test_resizing_says_what_to_do(make):
    model, before = tied(make)
    table, expected = model.get_input_embeddings(), output(model)
    for one in (model, model.base_model, copy.deepcopy(model)):
        with pytest.raises(
            TypeError, match=r"keeps its 50 rows; table.append\(rows\) adds .* put the dense table back"
        ):
            one.resize_token_embeddings(WORDS + 3)
    assert agree(output(model), expected) and model.config.vocab_size == WORDS
    assert model.resize_token_embeddings() is table is model.resize_token_embeddings(WORDS)
    with pytest.raises(TypeError, match="keeps its 50 rows"):
        model.resize_token_embeddings(pad_to_multiple_of=64)
    replace_embedding(model, before[0], head=before[1])
    model.resize_token_embeddings(WORDS + 3)
    assert output(model).shape[-1] == WORDS + 3
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_head_told_to_keep_its_matrix_is_not_tied_again():
    model = built(gpt2)
    old = model.get_input_embeddings()
    other = nn.Embedding(WORDS, WIDTH)
    replace_embedding(model, other, head="dense")
    kept = model.lm_head.weight.detach().clone()
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, kept) and model.lm_head.weight is not other.weight
    replace_embedding(model, old, head=model.lm_head)
    model.tie_weights()
    assert model.lm_head.weight is old.weight and model._tied_weights_keys is type(model)._tied_weights_keys


# Copies that run side by side


def test_each_replica_of_a_model_scores_with_its_own_table(monkeypatch):
    replicate = importlib.import_module("torch.nn.parallel.replicate")

    def copies(tensors, devices, detach=False):
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)  # what two devices would get
    model, _ = tied(gpt2, "ttm")
    state = list(model.state_dict())
    replicas = replicate.replicate(model, [0, 1])
    tables = [replica.transformer.wte for replica in replicas]
    assert [replica.lm_head.table for replica in replicas] == tables and tables[0] is not tables[1]
    assert model.lm_head.table is model.transformer.wte not in tables and list(model.state_dict()) == state


@pytest.mark.parametrize("wrapper", [nn.DataParallel])
def test_a_model_wrapped_for_parallel_training_is_refused(wrapper):
    model = built(gpt2)
    with pytest.raises(TypeError, match="the GPT2LMHeadModel inside, model.module, before it is wrapped"):
        replace_embedding(wrapper(model), compressed(model), head="tied")


def test_a_compiled_model_sees_the_new_table():
    model = built(gpt2)
    compiled, expected = torch.compile(model, backend="eager"), output(model)
    assert agree(compiled(IDS)[0], expected)
    before = replace_embedding(compiled, compressed(model), head="tied")
    torch.testing.assert_close(compiled(IDS)[0], output(model))
    assert not torch.allclose(compiled(IDS)[0], expected, atol=1e-4)
    replace_embedding(compiled, before[0], head=before[1])
    assert agree(compiled(IDS)[0], expected) and "_tied_weights_keys" not in vars(model)


def test_a_head_before_its_table_in_the_order_of_modules():
    table = MPSEmbedding.from_embedding(nn.Embedding(WORDS, WIDTH), rank=2)
    model = nn.ModuleDict({"head": TiedHead(table, nn.Parameter(torch.zeros(WORDS))), "table": table})
    names = [name for name, _ in model.named_parameters()]
    assert set(names) <= set(model.state_dict()) and all(name.startswith(("table.", "head.bias")) for name in names)
    model.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    assert twin["head"].table is twin["table"] is not table
    assert model["head"].shares() == (table,) and not list(model["head"].children())


# PEFT


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"ensure_weight_tying": True}])
@pytest.mark.parametrize("names", [["wte"], ["wte", "lm_head"]])
def test_a_head_scores_with_the_copy_that_peft_trains(names, options, tmp_path):
    model, _ = tied(gpt2)
    expected, first = output(model), copy.deepcopy(model)
    config = LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=names, task_type="CAUSAL_LM", **options)
    adapted = get_peft_model(model, config)
    trained = model.transformer.wte.modules_to_save["default"]
    torch.testing.assert_close(output(adapted), expected)
    output(adapted).square().mean().backward()
    assert model.get_output_embeddings().table is trained
    assert all(parameter.grad is not None for parameter in trained.parameters())
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(0)
    assert not torch.allclose(output(adapted), expected, atol=1e-3)
    after = output(adapted)
    with adapted.disable_adapter():
        torch.testing.assert_close(output(adapted), expected)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(first, tmp_path)
    torch.testing.assert_close(output(again), after)
    merged = adapted.merge_and_unload()
    assert merged.lm_head.table is merged.transformer.wte is trained
    torch.testing.assert_close(output(merged), after)


@pytest.mark.filterwarnings("ignore")
def test_a_table_is_replaced_inside_peft():
    model = built(gpt2)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    expected = output(adapted)
    before = replace_embedding(adapted, compressed(model), head="tied")
    assert not torch.allclose(output(adapted), expected, atol=1e-4)
    with pytest.raises(TypeError, match="keeps its 50 rows"):
        adapted.resize_token_embeddings(WORDS + 3)
    replace_embedding(adapted, before[0], head=before[1])
    assert agree(output(adapted), expected) and "_tied_weights_keys" not in vars(model)


def test_a_head_whose_table_was_taken_away_says_so():
    model, _ = tied(gpt2)
    model.set_input_embeddings(nn.Embedding(WORDS, WIDTH))
    with pytest.raises(RuntimeError, match="look-up is of type Embedding now, .* with replace_embedding"):
        output(model)
