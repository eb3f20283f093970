"""The configuration of a transformers model: if it has one, what a release adds, and whether it is the source's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..surgery.wrappers import bare

CONFIG = "config.json"
METHOD, VERSION = "tensor_train", 1  # of the quantization, as transformers calls it
# What a release changes or adds, and what tells who wrote the file and when.
_OTHERS = {"architectures", "dtype", "torch_dtype", "quantization_config", "transformers_version"}


def of_transformers(model: nn.Module) -> bool:
    """True for a model that transformers saves and loads, told without importing transformers."""
    return hasattr(model, "save_pretrained") and hasattr(getattr(model, "config", None), "to_diff_dict")


def quantization(described: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration says of the compressed layers, for ``from_pretrained``, from their descriptions."""
    return {"quant_method": METHOD, "version": VERSION, "layers": dict(described)}


def check_config(config: Any, manifest: Mapping[str, Any]) -> None:
    """Refuse a configuration that does not describe the compressed layers as the manifest does.

    Args:
        config: What ``config.json`` of the release holds.
        manifest: Of the release.

    Raises:
        ValueError: Another description, or none.
    """
    found = config.get("quantization_config") if isinstance(config, Mapping) else None
    described = {name: about["spec"] for name, about in manifest["layers"].items()} | manifest["users"]
    one, other = (json.dumps(each, sort_keys=True) for each in (found, quantization(described)))
    if one != other:  # as texts: to Python 1, 1.0 and True are equal
        raise ValueError(f"the quantization_config in {CONFIG} is not that of the layers in the manifest")


def same_configuration(folder: Path, source: Any) -> bool | None:
    """True if the configuration of a release is that of its source; None where the source has none to compare.

    Settings that one of the two leaves at their defaults count as equal; dtype and the compressed layers do not count.

    Args:
        folder: The release, with a ``config.json``.
        source: The dense model, or the path of its folder or of a file in it.
    """
    wanted = None
    if isinstance(source, nn.Module) and of_transformers(bare(source)):
        wanted = bare(source).config.to_dict()
    elif isinstance(source, (str, Path)):
        beside = Path(source) / CONFIG if Path(source).is_dir() else Path(source).with_name(CONFIG)
        wanted = json.loads(beside.read_bytes()) if beside.is_file() else None
    if wanted is None:
        return None
    try:
        return _whole(json.loads((folder / CONFIG).read_bytes())) == _whole(wanted)
    except (ValueError, KeyError, TypeError, AttributeError):  # settings that no model of transformers has
        return False


def _whole(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, those left out at their defaults, as JSON has them."""
    from transformers import CONFIG_MAPPING

    plain = {name: value for name, value in settings.items() if name not in _OTHERS and not name.startswith("_")}
    made = CONFIG_MAPPING[settings["model_type"]](**{name: plain[name] for name in plain if name != "model_type"})
    found = json.loads(json.dumps(made.to_dict(), default=str))
    return {name: value for name, value in found.items() if name not in _OTHERS and not name.startswith("_")}
