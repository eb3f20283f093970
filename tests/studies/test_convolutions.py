"""What the book says of convolutions: the record, its arithmetic, and one kernel of it measured again."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from book.tools.results import RESULTS
from studies.cifar import ResNet20
from studies.convolutions import healing, methods, speed, study
from studies.convolutions.methods import Kernel, Modes
from studies.convolutions.networks import Plain, pictures, resnet20
from ttref import tt_params, ttm_to_matrix
from ttref.fitting import output_error

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "convolutions.json").read_text(encoding="utf-8"))


def first(recorded):
    (network,) = (each for each in recorded["networks"] if each["network"] == "ResNet-20")
    return network


def point(network, family, setting):
    (found,) = (row for row in network["points"] if (row["family"], row["setting"]) == (family, setting))
    return found


def small(outs=8, ins=6, area=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outs, ins * area, generator=generator, dtype=torch.float64)
    mixing = torch.randn(ins * area, ins * area, generator=generator, dtype=torch.float64)
    x = torch.randn(500, ins * area, generator=generator, dtype=torch.float64) @ mixing
    return Kernel("small", weight, x.mT @ x, area)


def test_the_recorded_points_are_the_means_of_their_draws(recorded):
    for network in recorded["networks"]:
        for row in network["points"]:
            each = row["accuracy_each"]
            assert row["accuracy"] == pytest.approx(sum(each) / len(each), abs=2e-4)
            again = (row["family"], row["setting"]) in study.AGAIN
            assert len(each) == (3 if again else 1), row


def test_the_sentences_on_the_front_hold(recorded):
    """Below two bits the trains lead, from about two bits integers are level, and factors are far behind."""
    network = first(recorded)
    one, integer = point(network, "fitted train", "2x int2"), point(network, "GPTQ-like", "int1")
    assert one["bits"] < integer["bits"] and one["accuracy"] > integer["accuracy"] + 0.1
    two, level = point(network, "fitted train", "2x int4"), point(network, "GPTQ-like", "int2")
    assert two["bits"] < level["bits"] and abs(two["accuracy"] - level["accuracy"]) < 0.03
    assert two["accuracy"] > point(network, "whitened SVD", "2x int4")["accuracy"] + 0.3
    for row in network["null"]:
        assert row["null"] > row["error"]


@needs_data
def test_the_bytes_and_the_error_of_one_kernel_are_as_recorded(recorded):
    """One of the small kernels: its modes are searched again at the recorded budget, fitted and rounded."""
    model = resnet20(Path(DATA))
    name = "layer1.1.conv1"
    torch.manual_seed(0)
    x = pictures(Path(DATA), "train")[0]
    ids = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: study.PICTURES]
    inputs = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda layer, given: inputs.append(given[0]))
    with torch.no_grad():
        for part in x[ids[:64]].split(32):
            model(part)
    hook.remove()
    columns = nn.functional.unfold(torch.cat(inputs), 3, padding=1).transpose(0, 1).flatten(1).double()
    weight = model.get_submodule(name).weight.detach().double().flatten(1)
    kernel = Kernel(name, weight, columns @ columns.mT, 9)
    (row,) = (each for each in first(recorded)["modes"] if (each["layer"], each["share"]) == (name, 0.5))
    modes = Modes(row["taps_first"], tuple(row["rows"]), tuple(row["cols"]))
    cores = methods.fitted(kernel, modes, 0.5)
    approximation, nbytes = methods.rounded(kernel, modes, cores, 4)
    train = output_error(weight, approximation, kernel.gram)
    factors, more = methods.rounded(kernel, kernel.factors, methods.whitened(kernel, 0.5), 4)
    assert nbytes <= more * 1.1 and train < 0.5 * output_error(weight, factors, kernel.gram)
    assert 1.8 < 8 * nbytes / weight.numel() < 2.3


@pytest.mark.parametrize("taps", [False, True])
def test_a_kernel_read_and_put_back_is_itself(taps):
    kernel = small()
    modes = Modes(taps, (8, 1), (9, 6))
    weight, gram, order = kernel.read(modes)
    assert torch.equal(kernel.back(weight, order), kernel.weight)
    assert output_error(kernel.weight, 0.5 * kernel.weight, kernel.gram) == pytest.approx(
        output_error(weight, 0.5 * weight, gram)
    )


def test_whitened_factors_are_the_best_of_their_rank():
    kernel = small()
    cores = methods.whitened(kernel, 0.5)
    fitted = methods.fitted(kernel, kernel.factors, 0.5)
    errors = [output_error(kernel.weight, ttm_to_matrix(made), kernel.gram) for made in (cores, fitted)]
    assert errors[0] <= errors[1] * (1 + 1e-3)


def test_searched_modes_stay_within_the_share():
    kernel = small()
    for share, modes in methods.searched(kernel, (0.5, 0.25)).items():
        cores = methods.fitted(kernel, modes, share)
        assert sum(core.numel() for core in cores) <= share * kernel.weight.numel()
        paired = [m * n for m, n in zip(modes.rows, modes.cols, strict=True)]
        assert tt_params(paired, methods.rank_within(modes, share * kernel.weight.numel()) + 1) > share * 432


def test_ternary_counts_five_codes_to_a_byte():
    kernel = small()
    approximation, nbytes = methods.ternary(kernel, 18)
    assert nbytes == -(-432 // 5) + 2 * 8 * 3
    assert all(len(row.unique()) <= 3 for row in approximation.reshape(-1, 18))


def test_integers_with_all_levels_beat_those_without():
    kernel = small()
    for bits in (2, 3):
        ours, size = methods.gptq(kernel, bits, 18)
        other, same = methods.gptq(kernel, bits, 18, zero=True)
        assert size == same
        assert output_error(kernel.weight, ours, kernel.gram) < output_error(kernel.weight, other, kernel.gram)


def test_trainable_integers_start_as_the_stored_ones_and_stay_on_their_grid():
    kernel = small()
    conv = nn.Conv2d(6, 8, 3, bias=False)
    modes = Modes(True, (8, 1), (9, 6))
    cores = methods.fitted(kernel, modes, 0.5)
    made = healing.Stored(conv, kernel, modes, cores, 2, 64)
    expected, _ = methods.rounded(kernel, modes, cores, 2)
    torch.testing.assert_close(made.kernel().flatten(1).double(), expected, atol=1e-4, rtol=1e-4)
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(2))
    made(x).square().sum().backward()
    assert all(core.grad.abs().sum() > 0 for core in made.cores)
    with torch.no_grad():
        for core in made.cores:
            core.add_(0.3 * core.std() * torch.randn(core.shape, generator=torch.Generator().manual_seed(1)))
    made(x).square().sum().backward()  # off the grid, a larger scale changes what rounding leaves
    assert all(scale.grad.abs().sum() > 0 for scale in made.scales)
    first_core, scales = made.cores[0], made.scales[0]
    on = made._on_grid(first_core, scales).transpose(0, 1).reshape(*scales.shape, -1) / scales.unsqueeze(2).abs()
    assert set((on.detach() * 2).round().unique().tolist()) <= {-3, -1, 1, 3}
    torch.testing.assert_close(on * 2, (on * 2).round())


@pytest.mark.parametrize("network", [ResNet20, Plain])
def test_the_networks_answer_ten_scores_and_their_kernels_are_found(network):
    torch.manual_seed(0)
    model = network().eval()
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)][1:]
    modes = {
        name: Modes(True, (layer.out_channels, 1), (9, layer.in_channels))
        for name in names
        for layer in [model.get_submodule(name)]
    }
    train = speed.swapped(model, modes, 0.5)
    counted = speed.macs(train, names, 2)
    dense = [model.get_submodule(name).weight for name in names]
    assert len(dense) == (18 if network is ResNet20 else 6) and counted["planned"] <= counted["rebuilt"]
    assert counted["staged"] > 0 and counted["dense"] > 10_000_000


def test_a_network_with_its_own_kernels_is_itself():
    torch.manual_seed(0)
    model = ResNet20().eval()
    x = torch.randn(2, 3, 32, 32)
    name = "layer1.0.conv1"
    other = study.put(model, {name: model.get_submodule(name).weight.detach().flatten(1)})
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    assert study.accuracy(model, x, model(x).argmax(1)) == 1.0
