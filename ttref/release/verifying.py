"""A release checked against its source: files by hashes, trains by deriving them again, other tensors by bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bars import bar
from ..files import digest
from ..shards import one_line
from ..surgery.wrappers import bare_modules
from .configs import CONFIG, check_config, same_configuration
from .contents import own, standing
from .deriving import DIFFERS, derived, methods, oriented
from .folders import opened, recovered
from .manifest import (
    MODEL,
    ROLLBACK,
    SIGNATURE,
    USING,
    damaged_tensors,
    damages,
    differing,
    read_manifest,
    read_tensors,
)
from .signing import checks_with, signed_sha256
from .sources import Source, lacking
from .verified import ABSENT, BY_HASH, CHANGED, EQUAL, NEW, SIGNED, VerifyReport

__all__ = ["verify"]


@torch.no_grad()
def verify(
    folder: str | Path,
    source: Any,
    *,
    sha256: str | None = None,
    public_key: str | Path | None = None,
    progress: bool = True,
) -> VerifyReport:
    """Check a release against the dense model that it says it comes from.

    First the files: their hashes, and that there are no others. Then every compressed layer is derived again from its
    dense weight, by the same decomposition, and compared: bits where the processor computes as the one that made it,
    else within a stated tolerance; the report says which. Every other tensor must be the source's, bit for bit. So
    weights that somebody changed beyond the tolerance are found out, new hashes or not: they differ, or the manifest
    says that they were fitted or changed, and then the release is not proved.

    Args:
        folder: The release.
        source: The dense model, its state dict, or the path of its safetensors, as for :func:`save_release`.
        sha256: The sha256 of the manifest, as :func:`save_release` returned it, if it is known.
        public_key: Path of the key that belongs to the one it was signed with (:func:`~ttref.release.signing.sign`):
            before anything else, all files must be signed with that.
        progress: A progress bar, where somebody may be watching.

    Returns:
        A :class:`VerifyReport`: ``.ok``, ``.proved``, ``.problems``.

    Raises:
        FileNotFoundError: No such folder, or no release; no such source or key.
        ModuleNotFoundError: A public key, and model-signing is not installed.
        TypeError, ValueError: A source or a key that cannot be read. What is wrong with the release is in the report.

    Tolerance:
        The largest error of a row, relative to its norm or to that of rows on average, may be 1e-8 for float64, 1e-5
        for float32, 1e-2 for float16 and int8 cores, 0.05 for bfloat16. Another processor, and another number of
        threads, change the last digits. Cores of integers that were rounded one after the other have no tolerance: they
        agree to the bit, or are checked by their hash.

    What is checked by hash alone:
        Tokenizer and card; the configuration, unless the source has one: a transformers model, or a folder with
        ``config.json``; the factor of a look-up that scales, unless the source is a model, and then the layer is not
        proved. Whoever changes these and the manifest is found out by ``sha256`` only. What the configuration says of
        compressed layers is always checked.

    What cannot be derived:
        Layers that were fitted to a Gram matrix, or trained: nothing here has their data. The report says so, and
        ``proved`` is False.

    Cost:
        As making all layers again. In memory what the folder holds, and one dense tensor of the source at a time.

    Example:
        >>> import copy, tempfile, ttref
        >>> from torch import nn
        >>> from ttref.release import save_release
        >>> dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = copy.deepcopy(dense)
        >>> _ = ttref.swap_layer(small, "0", ttref.TTLinear.from_linear(small[0], rank=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_release(small, f"{folder}/release", source=dense, override="an example, nothing was measured")
        ...     verify(f"{folder}/release", dense).proved, verify(f"{folder}/release", small).ok
        (True, False)
    """
    verifier = None if public_key is None else checks_with(public_key)
    dense, folder = Source.of(source), recovered(folder)
    try:
        if verifier is not None:
            sha256 = signed_sha256(folder, verifier, sha256)
        manifest, name = read_manifest(folder, sha256)
    except ValueError as error:
        return VerifyReport("", [str(error)])
    if problems := damages(folder, manifest):
        named = [f"{tensor} is not what was written" for tensor in damaged_tensors(folder, manifest)]
        return VerifyReport(name, problems + named)
    try:
        tensors = read_tensors(folder, manifest, MODEL)
        old = read_tensors(folder, manifest, ROLLBACK) if manifest["rollback"] == ROLLBACK else {}
    except ValueError as error:
        return VerifyReport(name, [str(error)])
    dense = dense.fitted([f"{layer}.weight" for layer in manifest["layers"]], tensors)
    problems = [f"{tensor} is not the tensor of the manifest" for tensor in differing(manifest, tensors)]
    rows = [] if verifier is None else [_row(SIGNATURE, SIGNED)]
    for layer in bar(manifest["layers"], progress, "deriving"):
        try:
            rows.append(_layer(layer, manifest["layers"][layer], tensors, dense, source))
        except (ValueError, TypeError, RuntimeError) as error:
            rows.append(_row(layer, DIFFERS))
            problems.append(f"{layer}: {one_line(error)}")
            continue
        if rows[-1]["status"] == DIFFERS:
            problems.append(f"{layer} is not what its method makes of the source (error {rows[-1]['error']:.2g})")
    for tensor in (each for each in tensors if not own(each, manifest["layers"])):
        rows.append(_row(tensor, _status(tensor, manifest, dense)))
        if rows[-1]["status"] == DIFFERS:
            problems.append(f"{tensor} is not the source's, and the manifest does not say that it was changed")
    for tensor in lacking(manifest, dense):
        said = CHANGED if tensor in manifest["changed"] else ABSENT if tensor in manifest["absent"] else DIFFERS
        rows.append(_row(tensor, said))
        if said == DIFFERS:
            problems.append(f"{tensor} of the source is missing, and the manifest does not say that it was left out")
    if CONFIG in manifest["files"]:
        found, wrong = _configuration(folder, manifest, source)
        rows += found
        problems += wrong
    problems += [*_tied(manifest, dense), *_way_back(manifest, old, dense)]
    return VerifyReport(name, problems, rows)


def _layer(name: str, about: dict[str, Any], tensors: dict[str, Tensor], dense: Source, source: Any) -> dict[str, Any]:
    """The row of a compressed layer; ValueError for one that is not as described, or of another source."""
    layer = standing(name, about["spec"], tensors)
    there = _found(f"{name}.weight", about["source"], dense)
    weight = dense.tensor(there).cpu()
    turned = dense.in_by_out(there)
    if turned is None and about["method"] is None:  # nothing tells, and it will be called unproved
        turned = about["transposed"]
    matrix, transposed = oriented(name, layer, weight, turned)
    known = _same_factor(name, layer, dense, source)
    layer = getattr(layer, "table", layer)
    how = derived(layer, matrix)
    if transposed != about["transposed"] or (about["method"] is not None and about["method"] not in methods(layer)):
        raise ValueError("the manifest names another way to make it than its cores have")
    if how.method is not None:
        status = how.agrees if known else BY_HASH
    else:  # a method that was recorded must work, except where integers were rounded one after the other
        status = DIFFERS if about["method"] is not None and how.allowed else BY_HASH
    return _row(name, status) | {
        "error": how.error if status != BY_HASH else None,
        "allowed": how.allowed,
        "relative_error": how.relative_error,
    }


def _same_factor(name: str, layer: nn.Module, dense: Source, source: Any) -> bool:
    """True if a layer multiplies rows by what the source does, False where that is unknown; ValueError for another."""
    factor = getattr(layer, "embed_scale", None)
    if not isinstance(source, nn.Module):
        return factor is None
    place = dense.find(f"{name}.weight").rpartition(".")[0]
    wanted = getattr(bare_modules(source, remove_duplicate=False).get(place), "embed_scale", None)
    if isinstance(factor, Tensor) and wanted is not None:
        wanted = torch.as_tensor(wanted).to(factor.dtype)
    one, other = (1.0 if each is None else float(each) for each in (factor, wanted))
    if one != other:
        raise ValueError(f"it multiplies rows by {one:.6g}, and the source by {other:.6g}")
    return True


def _configuration(folder: Path, manifest: dict[str, Any], source: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The row of the configuration, none where the source has none, and what is wrong with it."""
    problems = []
    try:
        with opened(folder, CONFIG) as file:
            check_config(json.load(file), manifest)
    except (ValueError, RecursionError) as error:
        problems.append(one_line(error))
    same = same_configuration(folder, source)
    if same is False:
        problems.append(f"{CONFIG} has other settings than that of the source")
    status = DIFFERS if problems else EQUAL
    return [] if same is None and not problems else [_row(CONFIG, status)], problems


def _found(name: str, about: dict[str, Any], dense: Source) -> str:
    """The source's tensor of this name, whatever name the manifest has for it; ValueError if its hash is another."""
    there = dense.find(name)
    if there is None:
        raise ValueError(f"the source has no {name}; is it another model?")
    if dense.hash(there) != about["sha256"]:
        raise ValueError(f"the source's {there} has another sha256 than the manifest says; is it another model?")
    return there


def _status(name: str, manifest: dict[str, Any], dense: Source) -> str:
    """The status of a tensor that no compressed layer stands for; its hash is what the manifest says."""
    there, held = dense.find(name), manifest["tensors"].get(name)
    if there is None:  # a head that was tied to a table, and kept the matrix, has no name in a file
        return EQUAL if held in {about["source"]["sha256"] for about in manifest["layers"].values()} else NEW
    if dense.hash(there) == held:
        return EQUAL
    return CHANGED if name in manifest["changed"] else DIFFERS


def _tied(manifest: dict[str, Any], dense: Source) -> Iterator[str]:
    """Ties that the source does not have: they would put one tensor in the place of another."""
    layers, users = manifest["layers"], manifest["users"]
    for name, first in manifest["ties"].items():
        there = None if own(name, [*layers, *users]) else dense.find(name)
        if there is not None and dense.hash(there) != manifest["tensors"].get(first):
            yield f"{name} is tied to {first}, which is not its tensor in the source"
    for name, spec in users.items():
        look_up, there = spec[USING[spec["kind"]]], dense.find(f"{name}.weight")
        if there is not None and dense.hash(there) != layers[look_up]["source"]["sha256"]:
            yield f"{name} uses the table of {look_up}, which is not its own in the source"


def _way_back(manifest: dict[str, Any], old: dict[str, Tensor], dense: Source) -> Iterator[str]:
    """Dense tensors for the way back that are not the source's."""
    origins = {f"{name}.weight": about["source"] for name, about in manifest["layers"].items()} | manifest["changed"]
    for name, about in origins.items():
        try:
            there = _found(name, about, dense)
        except ValueError as error:
            if name in manifest["changed"]:
                yield f"{name}: {error}"
            continue
        if manifest["rollback"] == ROLLBACK and (name not in old or digest(old[name]) != dense.hash(there)):
            yield f"{name} in {ROLLBACK} is not the source's"
    for name in old.keys() - origins.keys():
        yield f"{name} in {ROLLBACK} has no place in the model"


def _row(name: str, status: str) -> dict[str, Any]:
    return {"name": name, "status": status, "error": None, "allowed": None, "relative_error": None}
