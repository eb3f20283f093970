"""The model card of a release, filled from its manifest: every number with the hash of the file it comes from."""

from __future__ import annotations

import json
from typing import Any

from .configs import CONFIG
from .manifest import ACCEPTANCE, MANIFEST, MODEL

BITS_SAID = {
    "bits": "bit for bit",
    "tolerance": "to rounding",
    "differs": "not derived again: by its hash alone",
}


def card(manifest: dict[str, Any], report: Any) -> str:
    """The text of ``README.md``: metadata for the Hub, sizes, layers, acceptance, and how to check it."""
    parts = [_metadata(manifest, report), _opening(manifest), _use(manifest), _sizes(manifest), _layers(manifest)]
    if report is not None:
        parts.append(report.card().strip())
        parts.append(f"All of it, with every score: `{ACCEPTANCE}`, sha256 `{_hash(manifest, ACCEPTANCE)}`.")
    if manifest["override"] is not None:
        why = "No acceptance suite was run" if report is None else "**The acceptance suite did not accept the model**"
        parts.append(f"## Released all the same\n\n{why}. The reason given: {_plain(manifest['override'])}")
    return "\n\n".join(parts) + "\n"


def _metadata(manifest: dict[str, Any], report: Any) -> str:
    """YAML for the Hub; JSON is YAML, and needs no rules for quoting."""
    base = manifest["model"]["base_model"]
    fields: dict[str, Any] = {"library_name": "transformers" if _of_transformers(manifest) else "pytorch"}
    fields["tags"] = ["tensor-train", "ttref"]
    if base is not None:
        fields |= {"base_model": base, "base_model_relation": "quantized"}
    if report is not None:
        fields["model-index"] = [{"name": base or manifest["model"]["class"], "results": _results(manifest, report)}]
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _results(manifest: dict[str, Any], report: Any) -> list[dict[str, Any]]:
    """One result for each metric over all examples, with the hashes of the data and of the file of scores."""
    digest = _hash(manifest, ACCEPTANCE)
    return [
        {
            "task": {"type": "other", "name": "acceptance"},
            "dataset": {"type": "other", "name": f"sha256 {report.data_hash}", "revision": report.data_hash},
            "metrics": [
                {"type": row["metric"], "name": f"{row['metric']}, compressed", "value": row["compressed"]},
                {"type": row["metric"], "name": f"{row['metric']}, dense", "value": row["dense"]},
            ],
            "source": {"name": f"{ACCEPTANCE}, sha256 {digest}", "url": ACCEPTANCE},
        }
        for row in report.rows
        if row["slice"] == "all"
    ]


def _opening(manifest: dict[str, Any]) -> str:
    base = manifest["model"]["base_model"]
    origin = f"`{base}`" if base else f"a {manifest['model']['class']}"
    count = len(manifest["layers"])
    return (
        f"# {base.rpartition('/')[2] if base else manifest['model']['class']} with tensor trains\n\n"
        f"{origin} with {count} of its layers and tables stored as tensor trains by "
        f"ttref {manifest['made_with']['ttref']}."
    )


def _use(manifest: dict[str, Any]) -> str:
    if _of_transformers(manifest):
        kind = manifest["model"]["class"]
        load = f'import ttref\nfrom transformers import {kind}\n\nmodel = {kind}.from_pretrained("FOLDER")'
    else:
        load = 'from ttref.release import load_release\n\nmodel = load_release("FOLDER", model)  # of the dense class'
    check = (
        'from ttref.release import rollback, verify\n\nprint(verify("FOLDER", "SOURCE"))  # derives the trains again'
    )
    undo = 'rollback("FOLDER", "DENSE")  # the dense model, bit for bit'
    return f"```python\n{load}\n```\n\n```python\n{check}\n{undo}\n```"


def _sizes(manifest: dict[str, Any]) -> str:
    size, files = manifest["bytes"], manifest["files"]
    kind = "its files" if size["before_is"] == "files" else "its tensors"
    ratio = size["before"] / size["after"]
    found = f"{ratio:.2f} times fewer" if ratio > 1 else "**not smaller**"
    return (
        "## Bytes\n\n"
        f"Before, {kind}: {size['before']:,}. After, `{MODEL}`: {size['after']:,} "
        f"({found}; sha256 `{files[MODEL]['sha256']}`)."
    )


def _layers(manifest: dict[str, Any]) -> str:
    """A table of the layers; where each comes from, by hash."""
    rows = ["| layer | kind | ranks | error of the weight | derived again | sha256 of the dense weight |"]
    rows.append("| :--- | :--- | :--- | ---: | :--- | :--- |")
    for name, about in manifest["layers"].items():
        spec = about["spec"].get("table", about["spec"])
        each = spec["ranks"] if spec["kind"] == "MPSEmbedding" else [spec["ranks"]]
        ranks = " ".join(map(str, each[0])) if len(each) == 1 else f"{len(each)} different"
        cells = [f"`{name}`", spec["kind"], ranks, f"{about['relative_error']:.4f}", BITS_SAID[about["agrees"]]]
        rows.append("| " + " | ".join([*cells, f"`{about['source']['sha256']}`"]) + " |")
    said = (
        f"Where each layer comes from; `{MANIFEST}` has all of it. An error is that of the weight in the Frobenius "
        "norm, not of the model."
    )
    if manifest["changed"]:
        said += f" Other tensors that are not the source's: {', '.join(f'`{name}`' for name in manifest['changed'])}."
    if manifest["absent"]:
        said += f" Tensors of the source that are left out: {', '.join(f'`{name}`' for name in manifest['absent'])}."
    return "\n".join(["## Layers", "", said, "", *rows])


def _of_transformers(manifest: dict[str, Any]) -> bool:
    return CONFIG in manifest["files"]


def _hash(manifest: dict[str, Any], name: str) -> str:
    return manifest["files"][name]["sha256"]


def _plain(text: str) -> str:
    """One line of text without marks that Markdown or HTML would read."""
    text = " ".join(text.split())
    for mark in "\\`*_[]|<>#":
        text = text.replace(mark, f"\\{mark}")
    return text
