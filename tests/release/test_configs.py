"""What config.json says of the compressed layers is what the manifest says."""

import copy
import json

import pytest
from language_models import gpt2
from releases import released

from ttref import TTLinear
from ttref.release.configs import CONFIG, check_config
from ttref.release.manifest import MANIFEST

NAME = "transformer.h.0.mlp.c_fc"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Configuration and manifest of a release."""
    model, folder = gpt2(), tmp_path_factory.mktemp("configs") / "r"
    released(folder, model, layers={NAME: TTLinear.from_linear(model.get_submodule(NAME), rank=2)})
    return [json.loads((folder / name).read_bytes()) for name in (CONFIG, MANIFEST)]


def test_what_was_written_agrees(written):
    check_config(*written)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["quantization_config"]["layers"][NAME].update(bias=None),
        lambda config: config["quantization_config"]["layers"].clear(),
        lambda config: config["quantization_config"].update(version=True),
        lambda config: config["quantization_config"].update(more=1),
        lambda config: config.pop("quantization_config"),
    ],
)
def test_another_description_of_the_layers_is_refused(change, written):
    config, manifest = copy.deepcopy(written)
    change(config)
    with pytest.raises(ValueError, match="quantization_config in config.json is not that of the layers"):
        check_config(config, manifest)
    with pytest.raises(ValueError, match="quantization_config"):
        check_config([config], manifest)
