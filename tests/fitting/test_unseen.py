"""Inputs that were never on, or as good as never: they cost the others nothing where tokens are plenty."""

import warnings

import pytest
import torch
from strategies import gaussian
from torch import nn
from torch.nn import functional as F

from ttref import TTConv2d, ttm_to_matrix
from ttref.fitting import Gram, choose_modes, fit_cores, output_error
from ttref.fitting.weighting import ever_on, spans

CHANNELS, DEAD = 8, [2, 5]
LIVE = [k for k in range(CHANNELS) if k not in DEAD]


def convolutions():
    """A convolution whose kernel is largest where its inputs are never on, and the same without these channels."""
    whole, small = (nn.Conv2d(count, 12, 3, padding=1, bias=False).double() for count in (CHANNELS, len(LIVE)))
    with torch.no_grad():
        whole.weight.copy_(gaussian(whole.weight.shape, 1))
        whole.weight[:, DEAD] *= 6
        small.weight.copy_(whole.weight[:, LIVE])
    return whole, small


def pictures(faint):
    """Pictures ``(24, 8, 10, 10)`` of uneven channels; two are off, but for faint numbers in the first picture."""
    x = (gaussian((24, CHANNELS, 10, 10), 2) * torch.logspace(0, -1.5, CHANNELS)[:, None, None]).relu()
    x[:, DEAD] = 0
    x[0, DEAD] = faint * gaussian((len(DEAD), 10, 10), 3).relu()
    return x


def patches(x):
    return Gram.from_inputs(F.unfold(x, 3, padding=1).mT)


@pytest.mark.parametrize("faint", [0, 1e-6])
@pytest.mark.parametrize("counted", [True, False])
def test_a_kernel_with_channels_never_on_is_fitted_as_one_without_them(faint, counted):
    x, errors = pictures(faint), []
    for conv, seen in zip(convolutions(), (x, x[:, LIVE]), strict=True):
        gram = patches(seen) if counted else patches(seen).matrix
        how = {"rank": 3, "row_shape": (12, 1), "col_shape": (9, conv.in_channels), "taps_first": True}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it leans on nothing
            made = TTConv2d.from_conv(conv, **how, gram=gram)
        with torch.no_grad():
            y = conv(seen)
            errors.append(((made(seen) - y).norm() / y.norm()).item())
    assert errors[0] <= 1.02 * errors[1]


def test_the_number_of_patches_reaches_the_fit():
    conv, _ = convolutions()
    gram = patches(pictures(1)[:1, :, :5, :5])  # 25 patches of 72 numbers
    with pytest.warns(UserWarning, match=r"do not span its width 72 \(25 tokens\)"):
        TTConv2d.from_conv(conv, rank=4, row_shape=(12, 1), col_shape=(9, 8), taps_first=True, gram=gram)


def test_modes_are_chosen_as_if_inputs_never_on_were_not_there():
    x = gaussian((4000, 24), 4) * torch.logspace(0, -1, 24)
    x[:, ::4] = 0
    weight = gaussian((16, 24), 5)
    weight[:, ::4] *= 6
    calm = weight.clone()
    calm[:, ::4] = 0
    errors = [choose_modes(each, Gram.from_inputs(x), params=150).error for each in (weight, calm)]
    assert errors[0] <= 1.02 * errors[1]


def test_few_tokens_keep_the_columns_that_they_have_not_shown():
    x = gaussian((6, 24), 6)
    x[:, ::4] = 0
    weight, gram = gaussian((16, 24), 5), Gram.from_inputs(x)
    with pytest.warns(UserWarning, match="6 tokens"):
        cores = fit_cores(weight, gram, (4, 4), (6, 4), rank=12)
    gap = (ttm_to_matrix(cores) - weight)[:, ::4].norm() / weight[:, ::4].norm()
    assert gap < 0.8 and output_error(weight, ttm_to_matrix(cores), gram) < 0.5


def test_a_feature_that_nobody_scaled_does_not_hide_the_others():
    x = gaussian((10, 64), 0).double()
    x[:, 0] *= 1e6
    gram = x.mT @ x
    assert ever_on(gram).all() and not spans(gram, 10)
    with pytest.warns(UserWarning, match="span"):
        fit_cores(gaussian((32, 64), 1), Gram(gram, 10), (4, 8), (8, 8), rank=6)
