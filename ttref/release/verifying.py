"""A release checked against its source: files by hashes, trains by deriving them again, other tensors by bits."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bars import bar
from ..files import digest
from ..printed import html_table, text_table
from ..surgery.wrappers import bare_modules
from .configs import CONFIG, check_config, same_configuration
from .contents import own, standing
from .deriving import BITS, DIFFERS, derived, methods, oriented
from .folders import opened, recovered
from .manifest import MODEL, ROLLBACK, USING, damaged_tensors, damages, differing, read_manifest, read_tensors
from .sources import Source, lacking

__all__ = ["VerifyReport", "verify"]

EQUAL, BY_HASH, NEW, CHANGED, ABSENT = "equal", "by hash", "not in the source", "changed", "left out"
SAYS = {
    BITS: "derived again, bit for bit",
    "tolerance": "derived again, to rounding",
    EQUAL: "as in the source, bit for bit",
    BY_HASH: "by its hash alone: no method gives it from the source (fitted, trained, or integers rounded elsewhere)",
    CHANGED: "by its hash alone: another than in the source",
    ABSENT: "left out, as the manifest says: the source has it",
    NEW: "by its hash alone: the source has none",
    DIFFERS: "differs",
}
PROVED = BITS, "tolerance", EQUAL
WIDTH = 88
HEADS = ["name", "how it was checked", "error", "of the weight"]
CAPTION = (
    "Error: the largest of a row, against the layer that was derived again. Of the weight: that of the layer against "
    "the dense weight. Tensors that are as in the source are counted above."
)


@dataclass(frozen=True, repr=False)
class VerifyReport:
    """What :func:`verify` found. Printing it shows a table; in a notebook it is a real one.

    Attributes:
        sha256: Of the manifest's file: it names the release.
        problems: A sentence for each thing that is wrong; empty if nothing is.
        rows: One dictionary for each compressed layer, each other tensor and the configuration: its ``name``;
            ``status``: "bits" or "tolerance" (derived again from the source), "equal" (as in the source), "by hash",
            "changed", "not in the source" or "left out" (nothing but the manifest vouches for it), or "differs"; of
            layers the largest ``error`` of a row against the layer derived again, the error ``allowed``, and
            ``relative_error``, that of the weight against the source. What does not apply is None.

    Example:
        >>> report = VerifyReport("ab" * 32, [], [{"name": "0", "status": "bits", "error": 0.0}])
        >>> report.ok, report.proved
        (True, True)
    """

    sha256: str
    problems: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    @property
    def proved(self) -> bool:
        """True if nothing is wrong, and everything was derived again or is equal: no number is trusted by its hash."""
        return self.ok and all(row["status"] in PROVED for row in self.rows)

    def names(self, status: str) -> list[str]:
        """Names of the layers and tensors with this status."""
        return [row["name"] for row in self.rows if row["status"] == status]

    @property
    def summary(self) -> str:
        """The result in a few sentences."""
        if not self.ok:
            return " ".join([f"Not what it says it is: {len(self.problems)} problems.", *self.problems])
        counts = [f"{len(found)} {SAYS[status]}" for status in SAYS if (found := self.names(status))]
        whole = "Verified" if self.proved else "Nothing is wrong, but not everything can be derived"
        return f"{whole}: {'; '.join(counts)}."

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain lists, numbers and strings."""
        return {"ok": self.ok, "proved": self.proved, "sha256": self.sha256} | {
            "problems": self.problems,
            "rows": self.rows,
        }

    def __repr__(self) -> str:
        """The table as text."""
        table = text_table(HEADS, self._cells(), left=2) if self._cells() else []
        return "\n".join([*textwrap.wrap(self.summary, WIDTH), "", *table]).rstrip()

    def _repr_html_(self) -> str:
        table = html_table(HEADS, self._cells(), label="Table: how each layer was checked", caption=CAPTION, left=2)
        return f"<p><strong>{html.escape(self.summary)}</strong></p>\n{table}"

    def _cells(self) -> list[list[str]]:
        """A row for everything that is not simply the source's."""
        return [
            [row["name"], SAYS[row["status"]].partition(":")[0], _number(row["error"]), _number(row["relative_error"])]
            for row in self.rows
            if row["status"] != EQUAL
        ]


@torch.no_grad()
def verify(folder: str | Path, source: Any, *, sha256: str | None = None, progress: bool = True) -> VerifyReport:
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
        progress: A progress bar, where somebody may be watching.

    Returns:
        A :class:`VerifyReport`: ``.ok``, ``.proved``, ``.problems``.

    Raises:
        FileNotFoundError: No such folder, or no release; no such source.
        TypeError, ValueError: A source that cannot be read. What is wrong with the release is in the report.

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
    dense, folder = Source.of(source), recovered(folder)
    try:
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
    rows = []
    for layer in bar(manifest["layers"], progress, "deriving"):
        try:
            rows.append(_layer(layer, manifest["layers"][layer], tensors, dense, source))
        except (ValueError, TypeError, RuntimeError) as error:
            rows.append(_row(layer, DIFFERS))
            problems.append(f"{layer}: {' '.join(str(error).split())}")
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
        problems.append(" ".join(str(error).split()))
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


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
