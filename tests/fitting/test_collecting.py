"""Gram matrices collected from models: layers of all kinds, padding, shared inputs, and what is left behind."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupts import every_line
from language_models import IDS, gpt2, llama, masked_bert
from strategies import gaussian
from torch import nn

from ttref import TTLinear
from ttref.fitting import Gram, collect_gram, collecting, gram


class Attention(nn.Module):
    """Three layers of the same input, one of another, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.out, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(x)
        mixed = torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
        return self.out(self.out(mixed))


def plan(model):
    """Hooks, training modes and gradients of every module."""
    parts = [
        (name, part.training, list(part._forward_pre_hooks.values()), dict(part._forward_pre_hooks_with_kwargs))
        for name, part in model.named_modules()
    ]
    return parts, [parameter.grad for parameter in model.parameters()]


def batches(count=3, tokens=5, width=6):
    return [gaussian((2, tokens, width), k, torch.float32) for k in range(count)]


def test_every_layer_sees_what_a_forward_pass_gives_it():
    model, x = Attention().eval(), batches()
    grams = collect_gram(model, ["q", "out"], x)
    assert list(grams) == ["q", "out"] and (grams["q"].tokens, grams["out"].tokens) == (30, 60)
    torch.testing.assert_close(grams["q"].matrix, Gram.from_inputs(torch.cat(x)).matrix)
    with torch.no_grad():
        mixed = [torch.softmax(model.q(one) @ model.k(one).mT, -1) @ model.v(one) for one in x]
        both = [*mixed, *map(model.out, mixed)]  # the uses add up
    torch.testing.assert_close(grams["out"].matrix, Gram.from_inputs(torch.cat(both)).matrix)


def test_one_input_of_several_layers_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(collecting, "summed", lambda x: calls.append(len(x)) or gram.summed(x))
    grams = collect_gram(Attention(), ["q", "k", "v", "out"], batches())
    assert grams["q"] is grams["k"] is grams["v"] and grams["out"] is not grams["q"]
    assert calls == [10, 10, 10] * 3


def test_an_input_that_is_changed_in_place_is_another_input():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x.clone()
            return self.a(x) + self.b(x.mul_(2))

    x = batches(width=4)
    grams = collect_gram(Writing(), ["a", "b"], x)
    torch.testing.assert_close(grams["b"].matrix, 4 * grams["a"].matrix)
    with torch.inference_mode():  # whose tensors count no changes
        torch.testing.assert_close(collect_gram(Writing(), ["b"], x)["b"].matrix, 4 * grams["a"].matrix)


def test_layers_that_see_the_same_at_times_share_nothing():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, twice):
            return self.a(x) + self.b(x) + (self.b(x + 1) if twice else 0)

    x = batches(2, width=4)
    grams = collect_gram(Late(), ["a", "b"], [(x[0], False), [x[1], True]])
    assert (grams["a"].tokens, grams["b"].tokens) == (20, 30)
    torch.testing.assert_close(grams["b"].matrix - grams["a"].matrix, Gram.from_inputs(x[1] + 1).matrix)


PADDING = ["same", "valid", 1, (2, 0)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([(1, 1), (3, 3), (2, 3), (1, 5)]),
    st.sampled_from(PADDING),
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    st.sampled_from([1, 2, (2, 1)]),
    st.sampled_from([1, 2, (1, 2)]),
    st.integers(0, 9),
)
def test_the_patches_of_a_convolution(kernel, padding, mode, stride, dilation, seed):
    """The outputs' energy is that of the weight in the Gram matrix, for every weight."""
    if padding == "same":
        stride = 1
    conv = nn.Conv2d(3, 4, kernel, stride, padding, dilation, bias=False, padding_mode=mode)
    x = gaussian((2, 3, 9, 11), seed, torch.float32)
    found = collect_gram(nn.Sequential(conv), "0", [x, x[:1]])["0"]
    weights = gaussian((2, 4, 3, *kernel), seed + 1, torch.float32)
    for weight in weights:
        conv.weight.data = weight
        outputs = [conv(one).double() for one in (x, x[:1])]
        assert found.tokens == sum(one[:, 0].numel() for one in outputs)
        energy = torch.trace(weight.double().flatten(1) @ found.matrix @ weight.double().flatten(1).mT)
        torch.testing.assert_close(energy, sum(one.square().sum() for one in outputs), rtol=1e-5, atol=0)


def test_many_patches_are_summed_in_pieces(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), gaussian((5, 3, 8, 8), 0, torch.float32)
    whole = collect_gram(model, "0", [x])["0"]
    monkeypatch.setattr(collecting, "CHUNK_BYTES", 8 * 27 * 64 * 2)
    monkeypatch.setattr(gram, "CHUNK_BYTES", 8 * 27 * 50)
    pieces, of_patches = [], collecting.summed
    monkeypatch.setattr(collecting, "summed", lambda x: pieces.append(len(x)) or of_patches(x))
    cut = collect_gram(model, "0", [x])["0"]
    torch.testing.assert_close(cut.matrix, whole.matrix)
    assert cut.tokens == whole.tokens == 5 * 64 and pieces == [128, 128, 64]
    assert collect_gram(model, "0", [x[0]])["0"].tokens == 64  # a picture without a batch


def test_models_of_transformers():
    """GPT-2's Conv1D, BERT and Llama, by the ends of names; a train sees what its dense layer saw."""
    model = gpt2().eval()
    grams = collect_gram(model, "c_fc", [{"input_ids": IDS}, {"input_ids": IDS[:, :2]}])
    assert list(grams) == ["transformer.h.0.mlp.c_fc"] and grams["transformer.h.0.mlp.c_fc"].tokens == 6
    assert grams["transformer.h.0.mlp.c_fc"].width == 16
    dense = model.transformer.h[0].mlp.c_fc
    model.transformer.h[0].mlp.c_fc = TTLinear.from_linear(dense, rank=4)
    again = collect_gram(model, "c_fc", [{"input_ids": IDS}, {"input_ids": IDS[:, :2]}])
    torch.testing.assert_close(again["transformer.h.0.mlp.c_fc"].matrix, grams["transformer.h.0.mlp.c_fc"].matrix)
    grams = collect_gram(llama(), ["gate_proj", "up_proj", "q_proj", "k_proj", "down_proj"], [{"input_ids": IDS}])
    assert grams["model.layers.0.mlp.gate_proj"] is grams["model.layers.0.mlp.up_proj"]
    assert grams["model.layers.0.self_attn.q_proj"] is grams["model.layers.0.self_attn.k_proj"]
    assert grams["model.layers.0.mlp.down_proj"].width == 32


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_counted(side):
    model, names = masked_bert().eval(), ["query", "intermediate.dense"]
    texts = [IDS[0], IDS[0, :2], IDS[0, :3]]
    apart = collect_gram(model, names, [{"input_ids": ids.unsqueeze(0)} for ids in texts])
    padded, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    positions = torch.zeros(3, 6, dtype=torch.long)
    for row, ids in enumerate(texts):
        place = slice(0, len(ids)) if side == "right" else slice(6 - len(ids), 6)
        padded[row, place], mask[row, place], positions[row, place] = ids, 1, torch.arange(len(ids))
    batch = {"input_ids": padded, "attention_mask": mask, "position_ids": positions}
    together = collect_gram(model, names, [batch])
    for name in apart:
        assert together[name].tokens == apart[name].tokens == 9
        torch.testing.assert_close(together[name].matrix, apart[name].matrix, rtol=1e-4, atol=1e-4)
    plain = collect_gram(model, names, [batch], mask=lambda batch: None)
    assert [seen.tokens for seen in plain.values()] == [18, 18]


def test_a_mask_fits_flat_inputs_and_leaves_others_alone():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.pooled = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.flat(x.flatten(0, 1)), self.pooled(x.mean(1))

    x = gaussian((2, 3, 4), 0, torch.float32)
    keep = torch.tensor([[True, False, True], [False, False, True]])
    grams = collect_gram(Flat(), ["flat", "pooled"], [x], mask=lambda batch: keep)
    assert (grams["flat"].tokens, grams["pooled"].tokens) == (3, 2)
    torch.testing.assert_close(grams["flat"].matrix, Gram.from_inputs(x[keep]).matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_every_dtype_and_autocast(dtype):
    model, x = Attention().eval(), [one.to(dtype) for one in batches()]
    found = collect_gram(copy.deepcopy(model).to(dtype), "q", x)["q"]
    torch.testing.assert_close(found.matrix, Gram.from_inputs(torch.cat(x)).matrix, rtol=1e-12, atol=1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collect_gram(model, "q", batches())["q"]
    torch.testing.assert_close(found.matrix, Gram.from_inputs(torch.cat(batches())).matrix, rtol=1e-12, atol=1e-12)


def test_a_model_in_wrappers_and_a_module_under_two_names():
    inner = Attention()
    inner.same = inner.q
    grams = collect_gram(nn.DataParallel(inner), ["q", "same"], batches())
    assert list(grams) == ["q", "same"] and grams["q"] is grams["same"] and grams["q"].tokens == 30


def test_torchs_transformer_is_seen_in_evaluation_mode():
    """Without hooks it would take a fused path there, which calls no layer."""
    block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model, x = nn.TransformerEncoder(block, 2).eval(), gaussian((2, 3, 8), 0, torch.float32)
    grams = collect_gram(model, ["linear1", "linear2"], [x])
    assert [(seen.width, seen.tokens) for seen in grams.values()] == [(8, 6), (8, 6), (12, 6), (12, 6)]


def test_forward_runs_the_model_as_told():
    labeled = [(x, torch.tensor(3)) for x in batches()]
    found = collect_gram(Attention(), "q", labeled, forward=lambda model, batch: model(batch[0]))["q"]
    torch.testing.assert_close(found.matrix, Gram.from_inputs(torch.cat(batches())).matrix)
    by_name = collect_gram(Attention(), "q", [{"x": x} for x in batches()])["q"]
    assert by_name.tokens == 30


def test_nothing_is_left_behind():
    model = Attention().train()
    model.k.eval()
    model.q.register_forward_pre_hook(lambda layer, args: None)
    before = plan(model)
    collect_gram(model, ["q", "out"], batches())
    assert plan(model) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["batches", "model", "bar"])
def test_nothing_is_left_behind_by_an_error(error, where, monkeypatch):
    model = Attention().train()

    def failing(*_):
        raise error("stopped")

    def broken():
        yield from batches(1)
        failing()

    given = broken() if where == "batches" else batches()
    if where == "model":
        model.out.forward = failing
    if where == "bar":
        monkeypatch.setattr(collecting, "bar", failing)
    before = plan(model)
    with pytest.raises(error, match="stopped"):
        collect_gram(model, ["q", "out"], given)
    assert plan(model) == before


def test_nothing_is_left_behind_by_an_interrupt_at_any_line():
    wanted = plan(Attention().train())
    few = batches(1, tokens=2)
    runs = every_line(
        lambda: Attention().train(), lambda model: collect_gram(model, ["q", "out"], few), collecting.__file__
    )
    for model in runs:
        assert plan(model) == wanted


def test_what_cannot_be_collected_is_refused_before_anything_runs():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3))
    x = [torch.ones(2, 4)]
    with pytest.raises(TypeError, match="1 is a ReLU; Gram matrices are collected for nn.Linear, Conv1D"):
        collect_gram(model, ["0", "1"], x)
    with pytest.raises(TypeError, match="3 is a Conv1d"):
        collect_gram(model, ["3"], x)
    with pytest.raises(ValueError, match="2 is a convolution in 2 groups"):
        collect_gram(model, ["2"], x)
    with pytest.raises(ValueError, match="no module is named 'query'"):
        collect_gram(model, ["query"], x)
    with pytest.raises(ValueError, match="layers is empty"):
        collect_gram(model, [], x)
    for one in (x[0], {"x": x[0]}, "text"):
        with pytest.raises(TypeError, match="batches must be an iterable of batches, got one"):
            collect_gram(model, ["0"], one)
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_what_a_run_does_not_give_is_said():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    x = gaussian((2, 3, 4), 0, torch.float32)
    with pytest.raises(ValueError, match="unused was never called"):
        collect_gram(Skips(), ["used", "unused"], [x])
    with pytest.raises(ValueError, match="there were no batches"):
        collect_gram(Skips(), ["used"], [])
    with pytest.raises(ValueError, match="used saw no tokens"):
        collect_gram(Skips(), ["used"], [x], mask=lambda batch: torch.zeros(2, 3))
    with pytest.raises(ValueError, match="used saw no tokens"):
        collect_gram(Skips(), ["used"], [x[:0]])
    bad = x.clone()
    bad[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="the inputs of used hold NaN or Inf"):
        collect_gram(Skips(), ["used"], [x, bad])
    keep = torch.ones(2, 3)
    keep[1, 2] = 0
    assert collect_gram(Skips(), ["used"], [bad], mask=lambda batch: keep)["used"].tokens == 5  # NaN of padding
    with pytest.raises(ValueError, match=r"the mask must be a tensor \(batch, tokens\), got \(2, 1, 3, 3\)"):
        collect_gram(Skips(), ["used"], [{"x": x, "attention_mask": torch.ones(2, 1, 3, 3)}])
    with pytest.raises(RuntimeError):  # the layer's own error
        collect_gram(Skips(), ["used"], [x[..., :2]])
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(ValueError, match="out_proj was never called"):
        collect_gram(attention, ["out_proj"], [(x, x, x)])
