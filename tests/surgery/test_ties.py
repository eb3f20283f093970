"""Layers that something else uses too are not swapped in silence, however the sharing is done."""

import copy
import sys

import pytest
import torch
from strategies import agree
from surgery_models import Tied, plan_of
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from ttref import MPSEmbedding, TiedHead, TTLinear, replace_embedding, swap_layer
from ttref.surgery import find_layers
from ttref.surgery.ties import declare


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def refused(model, name, layer, message):
    plan = plan_of(model)
    with pytest.raises(ValueError, match=message):
        swap_layer(model, name, layer)
    assert plan_of(model) == plan


def test_a_table_that_a_tied_head_scores_with():
    model = gpt2()
    replace_embedding(model, MPSEmbedding.from_embedding(model.get_input_embeddings(), rank=2), head="tied")
    other = MPSEmbedding.from_embedding(nn.Embedding(50, 16), rank=1)
    refused(model, "transformer.wte", other, "lm_head uses transformer.wte without holding it")
    assert isinstance(model.lm_head, TiedHead) and model.lm_head.table is model.transformer.wte
    swap_layer(model, "lm_head", nn.Linear(16, 50, bias=False))  # the head itself can go


@pytest.mark.parametrize("hide", [lambda module: (module,), lambda module: [module], lambda module: {"a": module}])
def test_a_module_hidden_in_a_container(hide):
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "user": nn.Identity()})
    model["user"].kept = hide(model["table"])
    refused(model, "table", nn.Embedding(5, 4), "user uses table without holding it")


def test_shared_buffers_memory_and_children():
    norms = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, affine=False))
    norms[1].running_mean = norms[0].running_mean
    refused(norms, "0", nn.BatchNorm1d(4), "0 shares a buffer with 1.running_mean")
    model = Tied()
    model.head.weight = nn.Parameter(model.embed.weight.data)  # another parameter, the same numbers
    refused(model, "head", TTLinear(12, 20, 2), "head shares a parameter with embed.weight")
    block = nn.Sequential(nn.Linear(4, 4))
    model = nn.ModuleDict({"block": block, "inner": block[0]})
    refused(model, "block", nn.Identity(), "block shares a parameter with inner.weight")


def test_a_layer_of_a_block_under_two_names_is_one_place():
    block = nn.Sequential(nn.Linear(4, 4))
    model = nn.ModuleDict({"first": block, "again": block})
    layer = TTLinear(4, 4, 1)
    swap_layer(model, "first.0", layer)
    assert model["again"][0] is layer


def test_a_head_untied_as_advised_stays_untied(tmp_path):
    model, tokens = gpt2(), torch.arange(6)[None]
    refused(model, "lm_head", TTLinear(16, 50, 2, bias=False), "lm_head shares a parameter .* untie them first")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    head = TTLinear.from_linear(model.lm_head, rank=4)
    with torch.no_grad():
        dense = swap_layer(model, "lm_head", head)
        wanted = model(tokens).logits
        model.tie_weights()
        model.save_pretrained(tmp_path)
        assert model.lm_head is head
        torch.testing.assert_close(model(tokens).logits, wanted)
        assert swap_layer(model, "lm_head", dense) is head
        model.tie_weights()
        assert model.lm_head is dense and dense.weight is not model.transformer.wte.weight
        copy.deepcopy(model).resize_token_embeddings(60)


def declared(model):
    """What transformers is told about ties, and the parameters that there are."""
    names = "_tied_weights_keys", "all_tied_weights_keys"
    parts = [part for part in model.modules() if hasattr(part, "get_expanded_tied_weights_keys")]
    told = [(name in vars(part), dict(getattr(part, name, None) or {})) for part in parts for name in names]
    return told, {name: id(kept) for name, kept in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("swap_first", [True, False])
def test_a_swapped_head_and_a_replaced_table_are_undone_step_by_step(swap_first):
    model, tokens = gpt2(), torch.arange(6)[None]
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    swap_layer(model, "lm_head", swap_layer(model, "lm_head", nn.Linear(16, 50, bias=False)))  # untied for good
    expected, head = model(tokens).logits, TTLinear.from_linear(model.lm_head, eps=0)
    table = MPSEmbedding.from_embedding(model.get_input_embeddings(), eps=0)

    def swap():
        old = swap_layer(model, "lm_head", head)
        return lambda: swap_layer(model, "lm_head", old)

    def replace():
        old = replace_embedding(model, table)
        return lambda: replace_embedding(model, old[0])

    undo, states = [], []
    for step in (swap, replace) if swap_first else (replace, swap):
        states.append(declared(model))
        undo.append(step())
        model.tie_weights()
        torch.testing.assert_close(model(tokens).logits, expected)
        assert model.lm_head is head or model.get_input_embeddings() is table
    while undo:
        undo.pop()()
        assert declared(model) == states.pop()
    assert agree(model(tokens).logits, expected)


def test_the_advice_names_what_is_shared():
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=16)).eval()
    name, dense = "cls.predictions.decoder", model.cls.predictions.decoder
    for leaf in ("weight", "bias"):
        with pytest.raises(ValueError, match=rf"untie them first .* layer.{leaf} = copy.deepcopy\(layer.{leaf}\)"):
            swap_layer(model, name, TTLinear.from_linear(dense, rank=2))
        setattr(dense, leaf, copy.deepcopy(getattr(dense, leaf)))
    head = TTLinear.from_linear(dense, rank=2)
    assert swap_layer(model, name, head) is dense
    model.tie_weights()
    assert model.cls.predictions.decoder is head


def test_a_swap_that_is_interrupted_leaves_the_model_as_it_was(monkeypatch):
    model = gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    head, plan, ties = TTLinear.from_linear(model.lm_head, rank=4), plan_of(model), declared(model)

    def interrupted(*arguments, **options):
        declare(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("ttref.surgery.ties.declare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swap_layer(model, "lm_head", head)
    assert plan_of(model) == plan and declared(model) == ties


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
@pytest.mark.parametrize("wrapped_name", [True, False])
def test_names_inside_wrappers(wrap, wrapped_name):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)), torch.randn(2, 12)
    wrapped = wrap(model)
    wrapped(x)
    layer = TTLinear(12, 20, 2)
    inside = "module." if isinstance(wrapped, nn.DataParallel) else "_orig_mod."
    swap_layer(wrapped, (inside if wrapped_name else "") + "0", layer)
    assert model[0] is layer
    torch.testing.assert_close(wrapped(x), model(x))


def test_the_layer_inside_a_compiled_one():
    model, x = nn.Sequential(torch.compile(nn.Linear(12, 20), backend="eager")), torch.randn(2, 12)
    model(x)
    layer = TTLinear(12, 20, 2)
    swap_layer(model, "0._orig_mod", layer)
    torch.testing.assert_close(model(x), layer(x))


def test_a_model_in_distributed_training_is_refused():
    class DistributedDataParallel(nn.Module):  # in the real one's place, which needs a process group
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = DistributedDataParallel(nn.Sequential(nn.Linear(12, 20)))
    refused(model, "module.0", TTLinear(12, 20, 2), "would not synchronize")


@pytest.mark.parametrize("asked", [None, "whole", "ends"])
def test_twice_the_layers_take_twice_the_work(asked):
    def work(count):
        model = nn.Sequential(*(nn.ModuleDict({f"part{k}": nn.Linear(8, 8)}) for k in range(count)))
        names = {"whole": [f"{k}.part{k}" for k in range(count)], "ends": [f"part{k}" for k in range(count)]}.get(asked)
        calls, before = 0, sys.getprofile()

        def count_one(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count_one)
        try:
            found = find_layers(model, names)
        finally:
            sys.setprofile(before)
        assert len(found) == count
        return calls

    work(2)  # what is imported late
    assert work(80) < 2.2 * work(40)
