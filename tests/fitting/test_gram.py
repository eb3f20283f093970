"""Gram matrices: sums in float64, merging, files, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian, seeds

import ttref
from ttref.fitting import Gram, Grams, as_gram, gram

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 40), st.sampled_from(FLOATS), seeds)
def test_shards_add_up_to_the_whole(tokens, width, cut, dtype, seed):
    x = gaussian((tokens + cut, width), seed).to(dtype)
    whole = Gram.from_inputs(x)
    parts = Gram.from_inputs(x[:cut]) + Gram.from_inputs(x[cut:])
    dense = torch.einsum("ti,tj->ij", x.double(), x.double())
    for made in (whole, parts):
        assert made.matrix.dtype == torch.float64 and made.tokens == tokens + cut and made.width == width
        torch.testing.assert_close(made.matrix, dense, rtol=1e-12, atol=1e-12)
        assert torch.equal(made.matrix, made.matrix.mT)


def test_it_holds_the_error_of_the_outputs():
    x, change = gaussian((3, 7, 5), 0), gaussian((4, 5), 1)
    seen = Gram.from_inputs(x)
    assert seen.tokens == 21
    assert torch.trace(change @ seen.matrix @ change.mT).item() == pytest.approx((x @ change.mT).square().sum().item())


def test_many_tokens_are_summed_in_pieces(monkeypatch):
    x = gaussian((50, 3), 0)
    whole = Gram.from_inputs(x).matrix
    monkeypatch.setattr(gram, "CHUNK_BYTES", 8 * 3 * 7)
    pieces, split = [], torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda *a, **k: pieces.append(split(*a, **k)) or pieces[-1])
    torch.testing.assert_close(Gram.from_inputs(x).matrix, whole)
    assert [len(piece) for piece in pieces[0]] == [7] * 7 + [1]


def test_half_precision_inputs_are_summed_in_float64():
    """A thousand ones of squares 1e-4 beside 1e4: lost in float16, and beyond its range."""
    x = torch.cat((torch.full((1, 1), 200.0), torch.full((5000, 1), 0.01))).half()
    exact = x.double().square().sum().item()
    assert Gram.from_inputs(x).matrix.item() == pytest.approx(exact, rel=1e-14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Gram.from_inputs(x).matrix.item() == pytest.approx(exact, rel=1e-14)


def test_a_gram_matrix_is_saved_and_loaded(path):
    seen = Gram.from_inputs(gaussian((9, 4), 0))
    seen.save(path)
    for loaded in (Gram.load(path), ttref.load(path)):
        assert isinstance(loaded, Gram) and loaded.tokens == 9 and torch.equal(loaded.matrix, seen.matrix)
    with pytest.raises(ValueError, match="no Grams saved by ttref"):
        Grams.load(path)


def test_collections_add_up_and_keep_what_is_shared(path):
    one, other = Gram.from_inputs(gaussian((9, 4), 0)), Gram.from_inputs(gaussian((5, 3), 1))
    grams = Grams({"q": one, "k": one, "up": other})
    both = grams + Grams({"k": one, "up": other, "q": one})
    assert list(both) == ["q", "k", "up"] and both["q"] is both["k"] and both["q"].tokens == 18
    torch.testing.assert_close(both["up"].matrix, 2 * other.matrix)
    # What one side shares and the other does not is not shared in the sum.
    apart = grams + Grams({"q": one, "k": Gram.from_inputs(gaussian((2, 4), 5)), "up": other})
    assert apart["q"] is not apart["k"] and (apart["q"].tokens, apart["k"].tokens) == (18, 11)
    grams.save(path)
    for loaded in (Grams.load(path), ttref.load(path)):
        assert isinstance(loaded, Grams) and list(loaded) == ["q", "k", "up"] and loaded["q"] is loaded["k"]
        assert [seen.tokens for seen in loaded.values()] == [9, 9, 5]
        assert all(torch.equal(loaded[name].matrix, grams[name].matrix) for name in grams)
    assert path.stat().st_size < 8 * (16 + 9) + 900  # the shared matrix lies there once
    assert repr(grams) == "Grams(q: 4 x 4, k: 4 x 4, up: 3 x 3)"


def test_collections_of_other_layers_do_not_add_up():
    one, other = Gram.from_inputs(gaussian((9, 4), 0)), Gram.from_inputs(gaussian((5, 3), 1))
    with pytest.raises(ValueError, match="only one of the two has b, c"):
        Grams({"a": one, "b": one}) + Grams({"a": one, "c": one})
    with pytest.raises(ValueError, match="a: Gram matrices of widths 4 and 3: of two different layers"):
        Grams({"a": one}) + Grams({"a": other})
    with pytest.raises(ValueError, match="widths 4 and 3"):
        one + other
    with pytest.raises(TypeError):
        one + torch.eye(4)
    with pytest.raises(TypeError):
        Grams({"a": one}) + {"a": one}
    with pytest.raises(ValueError, match="at least one layer"):
        Grams({})
    with pytest.raises(TypeError, match=r"grams\['a'\] must be a Gram, got Tensor"):
        Grams({"a": torch.eye(2)})


def test_what_is_no_gram_matrix_is_refused():
    good = torch.eye(3, dtype=torch.float64)
    assert Gram(0 * good, 4).tokens == 4  # a layer may have seen zeros alone
    with pytest.raises(TypeError, match="torch.float32, but a Gram matrix is summed in float64"):
        Gram(good.float(), 4)
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        Gram(good, 0)
    with pytest.raises(TypeError, match="tokens must be an integer"):
        Gram(good, 1.5)
    with pytest.raises(ValueError, match=r"matrix has shape \(3, 2\) and is not square"):
        Gram(good[:, :2], 4)
    with pytest.raises(ValueError, match="not symmetric"):
        Gram(good + torch.triu(torch.ones(3, 3), 1), 4)
    with pytest.raises(ValueError, match="the negative eigenvalue -2"):
        Gram(good - 3 * torch.diag(torch.tensor([0.0, 1.0, 0.0])), 4)
    with pytest.raises(ValueError, match="NaN"):
        Gram(good / 0, 4)
    with pytest.raises(ValueError, match="x has no entries"):
        Gram.from_inputs(torch.ones(0, 3))
    with pytest.raises(ValueError, match="x has 1 entries that are NaN or Inf"):
        Gram.from_inputs(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(TypeError, match="torch.int64"):
        Gram.from_inputs(torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("tokens", [1, 3, 400])
def test_rounding_is_no_negative_eigenvalue(tokens):
    """Few tokens in many directions leave eigenvalues that are rounding of either sign, in float32 larger ones."""
    x = gaussian((tokens, 64), 0) * torch.logspace(0, -6, 64)
    for matrix in (x.mT @ x, x.float().mT @ x.float()):
        made = as_gram(matrix, 64)
        assert made.dtype == torch.float64 and torch.equal(made, made.mT)
        torch.testing.assert_close(made, x.mT @ x, rtol=0, atol=1e-5 * made.diagonal().max().item())


def test_rounding_of_inputs_far_from_zero_is_no_negative_eigenvalue():
    """It grows with the largest eigenvalue, which a common mean makes as large as the trace; real ones are seen."""
    x = gaussian((100, 768), 0, torch.float32) + 5
    seen = x.mT @ x
    assert torch.linalg.eigvalsh(seen.double())[0] < -1e-6 * seen.max()  # so that there is something to bear
    assert as_gram(seen, 768).shape == (768, 768)
    seen.diagonal().sub_(1e-6 * seen.trace())
    with pytest.raises(ValueError, match="has the negative eigenvalue"):
        as_gram(seen, 768)
