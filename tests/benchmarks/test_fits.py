"""The cases of fits: operations are counted, contenders are judged on other text, and the matrices are a model's."""

import pytest
import torch
from seen_layers import small
from strategies import gaussian

from benchmarks import fits


def test_products_and_factorizations_are_counted():
    a, b = gaussian((6, 4), 1), gaussian((4, 3), 2)
    square = b.mT @ b
    assert fits.counted(lambda: a @ b) == 2 * 6 * 4 * 3
    assert fits.counted(lambda: torch.linalg.cholesky(square)) == 9  # 3^3 / 3
    assert fits.counted(lambda: torch.linalg.eigh(square)) == 9 * 27
    assert fits.counted(lambda: torch.linalg.qr(a)) == 4 * 6 * 4 * 4
    assert fits.counted(lambda: a * 2) == 0


@pytest.mark.parametrize("make", [fits.fit, fits.search])
def test_a_case_has_a_floor_and_an_error_for_each_contender(make):
    (layer,) = small()
    case, extra = make(layer)
    errors = extra["errors"]
    assert list(errors) == [contender.name for contender in case.contenders]
    assert case.flops > 24 * 16**2 and case.bytes == 8 * (24 * 16 + 16**2)
    assert all(0 < error < 1 for error in errors.values()) and extra["shape"] == [24, 16]
    if make is fits.fit:
        assert errors["ttref.fit_cores"] < errors["ttref.ttm_svd"]
        assert errors["ttref.ttm_svd"] == pytest.approx(errors["TensorLy's TT-SVD"], rel=1e-4)
    else:
        assert errors["ttref.choose_modes"] <= 1.02 * errors["truncated_svd(gram=)"]


def test_the_matrices_are_minilms_and_see_enough_tokens(monkeypatch):
    assert fits.WINDOWS // 2 * fits.LENGTH > 2 * 1536
    monkeypatch.setattr(fits, "WINDOWS", 4)
    monkeypatch.setattr(fits, "LENGTH", 8)
    found = list(fits.layers())
    assert [tuple(layer.weight.shape) for layer in found] == [(384, 384), (1536, 384), (384, 1536)]
    assert all(layer.gram.tokens == layer.other.tokens == 16 for layer in found)
    assert not any(torch.equal(layer.gram.matrix, layer.other.matrix) for layer in found)
    assert all(layer.gram.width == layer.weight.shape[1] for layer in found)
