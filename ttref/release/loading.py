"""A release as a model: every hash first, then its layers and tensors, all of them or none."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..pretrained import model_class
from ..shards import one_line
from ..surgery.edit import edit
from ..surgery.wrappers import bare
from .configs import CONFIG, check_config, of_transformers
from .contents import devices_of, fill
from .folders import opened, recovered
from .manifest import MODEL, damages, read_manifest, read_tensors, refused
from .placing import Placing
from .signing import checks_with, signed_sha256

__all__ = ["load_release"]

GENERATION = "generation_config.json"


@torch.inference_mode(False)  # parameters made in inference mode could never be trained
def load_release(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    sha256: str | None = None,
    public_key: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Load a release after all its files are found to be what was written.

    Args:
        folder: The release.
        model: A model of the dense class, with any weights or on the meta device; changed in place, or left as it was
            if anything is wrong. Layers stay on their devices, and go from meta to the CPU. Left out for a transformers
            model, which is then made by ``from_pretrained``.
        sha256: The sha256 of the manifest, as :func:`save_release` returned it: any other release is refused. Without
            it, the hashes tell that nothing was damaged, and not who wrote them; :func:`verify` tells more.
        public_key: Path of the key that belongs to the one it was signed with (:func:`~ttref.release.signing.sign`): a
            release that is not signed, or by somebody else, is refused before anything else is looked at.
        options: For ``from_pretrained``, which gets a private copy of the files, hashed while it is made.

    Returns:
        The model, with the numbers of the release in the dtypes they were saved in, whichever of the two ways it takes;
        with ``dtype=`` among the options in that one, but for what transformers keeps in float32.

    Raises:
        FileNotFoundError: No such folder, or no release.
        ValueError: A file that is missing, changed, a link, or not in the manifest; another release than the one asked
            for; a model of another class, with other layers, or with buffers on the meta device that no file holds.
            Nothing has reached the model then.
        TypeError: Options beside a model.
        ModuleNotFoundError: A public key, and model-signing is not installed.

    Cost:
        The folder is read twice. With a model, the compressed numbers take their memory twice meanwhile; without one,
        its file takes its place twice in the folder for temporary files, from where it is mapped.

    Example:
        >>> import copy, tempfile, ttref
        >>> from ttref.release import save_release
        >>> dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = copy.deepcopy(dense)
        >>> _ = ttref.swap_layer(small, "0", ttref.TTLinear.from_linear(small[0], rank=4))
        >>> fresh, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(3, 64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_release(small, f"{folder}/release", source=dense, override="an example, nothing was measured")
        ...     loaded = load_release(f"{folder}/release", fresh)
        >>> loaded is fresh, torch.equal(loaded(x), small(x))
        (True, True)
    """
    folder = recovered(folder)
    manifest = checked(folder, sha256, public_key)
    if model is None:
        return _from_pretrained(folder, manifest, options)
    if options:
        raise TypeError(f"{', '.join(options)} are for from_pretrained, and here the model is there already")
    check_class(folder, model, manifest)
    tensors = read_tensors(folder, manifest, MODEL)
    inner = bare(model)
    specs = {name: about["spec"] for name, about in manifest["layers"].items()} | manifest["users"]
    try:
        with edit(inner):
            devices = devices_of(inner)
            placing = Placing(inner, specs)
            fill(inner, tensors, manifest["ties"], devices)
            placing.complete(inner)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be loaded into this {type(inner).__name__}: {error}") from error
    if of_transformers(inner):  # so that save_pretrained writes it again
        from .quantizer import TensorTrainConfig

        inner.config.quantization_config = TensorTrainConfig(specs)
    return model


def checked(folder: Path, sha256: str | None, public_key: str | Path | None) -> dict[str, Any]:
    """The manifest of a release all of whose files are what was written, and signed where a key is given."""
    if public_key is not None:
        sha256 = signed_sha256(folder, checks_with(public_key), sha256)
    manifest, _ = read_manifest(folder, sha256)
    if problems := damages(folder, manifest):
        raise refused(folder, "; ".join(problems[:3]))
    if CONFIG in manifest["files"]:
        try:
            check_config(json.loads(content_of(folder, manifest, CONFIG)), manifest)
        except (ValueError, RecursionError) as error:
            raise refused(folder, one_line(error)) from error
    return manifest


def content_of(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """A small file of a release, hashed as it is read: whatever takes its place after the check is refused."""
    about = manifest["files"][name]
    try:
        with opened(folder, name) as file:
            content = file.read(about["bytes"] + 1)
    except ValueError as error:
        raise refused(folder, str(error)) from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise refused(folder, f"{name} is not what was written: its sha256 differs")
    return content


def check_class(folder: Path, model: nn.Module, manifest: dict[str, Any]) -> None:
    """Refuse a model of another class than the one that was saved."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    wanted, kinds = manifest["model"]["class"], [kind.__name__ for kind in type(bare(model)).__mro__]
    if wanted not in kinds:
        raise ValueError(f"{folder} is the release of a {wanted}, and this model is a {kinds[0]}")


def _from_pretrained(folder: Path, manifest: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """The model as transformers makes it, of the class that was saved."""
    wanted = manifest["model"]["class"]
    if CONFIG not in manifest["files"]:
        raise ValueError(f"{folder} is the release of a {wanted}, no transformers model: give a model of that class")
    from . import quantizer  # noqa: F401 (makes the method known to transformers)

    if (kind := model_class(wanted)) is None:
        raise ValueError(f"transformers has no class {wanted}; make a model of it, and give that")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as private:  # mapped from there: never twice in memory
        for name in {CONFIG, GENERATION, MODEL} & manifest["files"].keys():
            _copy(folder, manifest, name, Path(private))
        try:
            made = kind.from_pretrained(private, **options)
        except ValueError as error:
            raise ValueError(str(error).replace(private, str(folder))) from error
    model = made[0] if isinstance(made, tuple) else made  # with what output_loading_info asks for
    model.name_or_path = model.config.name_or_path = str(folder)
    return made


def _copy(folder: Path, manifest: dict[str, Any], name: str, private: Path) -> None:
    """Copy a file and hash what is copied: transformers opens it by its path, where another may be by then."""
    found = hashlib.sha256()
    with opened(folder, name) as file, (private / name).open("wb") as copy:
        while part := file.read(1 << 20):
            found.update(part)
            copy.write(part)
    if found.hexdigest() != manifest["files"][name]["sha256"]:
        raise refused(folder, f"{name} is not what was written: its sha256 differs")
