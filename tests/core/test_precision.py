"""What is stored or measured under a caller's autocast has the digits it has without: every public name is tried."""

import inspect
import pkgutil

import pytest
import torch
from public_names import CASES, EXEMPT, WIDTH, adapter, flattened, linear, mps, noise, train, waves

import ttref
from ttref.precision import any_autocast, full_precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_no_digits_are_lost_under_autocast(name, dtype):
    expected = flattened(CASES[name]())
    with torch.autocast("cpu", dtype=dtype):
        found = flattened(CASES[name]())
        assert any_autocast(), "the caller's own setting comes back"
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        gap = torch.linalg.vector_norm(one.double() - other.double())
        assert gap <= 1e-5 * torch.linalg.vector_norm(other.double())


def test_every_public_name_is_tried_or_exempt_for_a_reason():
    public = set(ttref.__all__)
    assert not public - set(CASES) - set(EXEMPT), "give each new public name a case, or a reason"
    assert not set(CASES) & set(EXEMPT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_answer_in_the_dtype_of_autocast_and_tables_in_their_own(dtype):
    layer, table, x = ttref.TTLinear.from_linear(linear(), rank=4), mps(rank=2), noise(5, 36)
    with torch.autocast("cpu", dtype=dtype):
        assert layer(x).dtype == adapter()(x).dtype == linear()(x).dtype == dtype
        assert table(torch.arange(3)).dtype == waves()(torch.arange(3)).dtype == torch.float32
        assert ttref.TiedHead(table)(noise(5, WIDTH)).dtype == dtype


def test_gradients_under_autocast_are_those_without():
    cores = [core.requires_grad_() for core in train()]
    expected = torch.autograd.grad(ttref.tt_to_tensor(cores).square().sum(), cores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ttref.tt_to_tensor(cores).square().sum()
    found = torch.autograd.grad(loss, cores)  # outside, as torch wants it
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_rule_leaves_signatures_and_docstrings_as_they_are():
    assert list(inspect.signature(ttref.tt_svd).parameters) == ["x", "shape", "rank", "eps", "batch_dims"]
    for name in CASES:
        value = pkgutil.resolve_name(f"ttref.{name}")
        assert value.__name__ == name.rpartition(".")[2] and value.__module__.startswith("ttref")
        assert "Example:" in value.__doc__


def test_compilers_and_transforms_follow_the_rule():
    cores = train()
    expected = ttref.tt_to_tensor(cores)
    compiled = torch.compile(ttref.tt_to_tensor, backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(cores), expected)
        mapped = torch.func.vmap(lambda core: ttref.tt_to_tensor([core, *cores[1:]]))(torch.stack([cores[0]] * 2))
    torch.testing.assert_close(mapped[1], expected)


def test_an_error_inside_puts_autocast_back():
    @full_precision
    def fail():
        assert not any_autocast()
        raise ValueError("inside")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="inside"):
            fail()
        assert any_autocast()
