"""The manifest of a release: what is in the folder, where it came from, and how everything can be checked.

``manifest.json`` names every other file with its size and sha256, and holds a sha256 of itself. A file that it does not
name, a link, or one changed byte anywhere is found before a number is read.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import MOST_HEADER, check_header, digest
from ..shards import one_line
from .folders import opened

FORMAT, VERSION = "ttref.release", 1
MANIFEST, MODEL, ROLLBACK, ACCEPTANCE = "manifest.json", "model.safetensors", "rollback.safetensors", "acceptance.json"
MOST = 64 << 20  # bytes of a manifest; that of a model of some thousand layers takes a few
# Files that tools around a release may add; nothing here reads them.
SIGNATURE = "model.sig"
BESIDE = {".git", ".gitattributes", ".cache", SIGNATURE}
USING = {"TiedHead": "look_up", "Shared": "with"}  # kinds without numbers of their own, and what names the table
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
_HASH = re.compile(r"[0-9a-f]{64}")
_TOP: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (int,),
    "sha256": (str,),
    "made_with": (dict,),
    "model": (dict,),
    "seed": (int, type(None)),
    "recipe": (dict, type(None)),
    "layers": (dict,),
    "users": (dict,),
    "changed": (dict,),
    "absent": (dict,),
    "tensors": (dict,),
    "ties": (dict,),
    "acceptance": (dict, type(None)),
    "override": (str, type(None)),
    "rollback": (str,),
    "bytes": (dict,),
    "files": (dict,),
}
_LAYER: dict[str, tuple[type, ...]] = {
    "spec": (dict,),
    "source": (dict,),
    "transposed": (bool,),
    "method": (dict, type(None)),
    "agrees": (str,),
    "relative_error": (float,),
}
SOURCE: dict[str, tuple[type, ...]] = {"name": (str,), "sha256": (str,), "dtype": (str,), "shape": (list,)}
_BYTES: dict[str, tuple[type, ...]] = {"before": (int,), "after": (int,), "before_is": (str,)}


def encoded(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest, with its own sha256 in it; the same for the same content."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    seal = hashlib.sha256(_text(rest).encode()).hexdigest()
    return _text(rest | {"sha256": seal}).encode()


def read_manifest(folder: Path, sha256: str | None = None) -> tuple[dict[str, Any], str]:
    """The manifest of a folder, checked to be what was written, and the sha256 of its file.

    Args:
        folder: The folder of the release.
        sha256: The sha256 that the manifest's file must have, if it is known.

    Raises:
        FileNotFoundError: No such folder, or no release.
        ValueError: A manifest that is damaged, of another format or version, or of another release.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; a release is a folder that save_release has written")
    if not (folder / MANIFEST).exists():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}, so it is no release; save_release writes one")
    try:
        content = limited(folder, MANIFEST, MOST)
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256:
            raise ValueError(f"the sha256 of {MANIFEST} is not the one asked for: this is another release")
        manifest = json.loads(content)
        _check(manifest)
        if encoded(manifest) != content:
            raise ValueError(f"{MANIFEST} is not what was written: its sha256 differs")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refused(folder, one_line(error)) from error
    return manifest, found


def damages(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the files of a folder: missing, changed, or not in the manifest; nothing if all is well."""
    found = []
    there = sorted(path.name for path in folder.iterdir())
    for name in there:
        if name not in manifest["files"] and name != MANIFEST and name not in BESIDE:
            found.append(f"{escaped(name)} is not in the manifest")
    for name, about in manifest["files"].items():
        try:
            with opened(folder, name) as file:
                same = file.seek(0, 2) == about["bytes"]
                file.seek(0)
                if not same or hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                    found.append(f"{name} is not what was written: its {'sha256' if same else 'size'} differs")
        except ValueError as error:
            found.append(str(error))
    return found


def read_tensors(folder: Path, manifest: dict[str, Any], name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of the release, whose bytes are checked before they are read as such.

    Raises:
        ValueError: A file that is missing, a link, of another size or hash, or with a header that is too large.
    """
    about = manifest["files"][name]
    try:
        content = limited(folder, name, about["bytes"])
        if len(content) != about["bytes"] or hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise ValueError(f"{name} is not what was written: its sha256 differs")
        return _tensors(content)
    except ValueError as error:
        raise refused(folder, one_line(error)) from error


def damaged_tensors(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of the model's tensors that are not what was written, where its file can still be read; nothing else."""
    try:
        return differing(manifest, _tensors(limited(folder, MODEL, manifest["files"][MODEL]["bytes"])))
    except ValueError:
        return []


def differing(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are missing, too many, or of another hash than the manifest says."""
    said = manifest["tensors"]
    return [
        name for name in sorted({*said, *tensors}) if name not in tensors or said.get(name) != digest(tensors[name])
    ]


def refused(folder: Path, why: str) -> ValueError:
    """The error for a folder that is not, or no longer, a release."""
    return ValueError(f"{folder} is no release of ttref, or was changed ({why}); nothing was loaded: get it again")


def plain_name(name: str) -> bool:
    """True for a file name without folders, hidden parts or other characters than letters, digits, dots and dashes."""
    return bool(_NAME.fullmatch(name))


def escaped(name: str) -> str:
    """The name of a file that anybody may have written, in plain letters: a terminal obeys some others."""
    return ascii(name)[1:-1][:80]


def limited(folder: Path, name: str, most: int) -> bytes:
    """The bytes of a file, whose size is compared first: a manifest may claim any."""
    with opened(folder, name) as file:
        if (size := file.seek(0, 2)) > most:
            raise ValueError(f"{name} has more than {most} bytes")
        file.seek(0)
        return file.read(size)


def _tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError for one that is none, or whose header is too large."""
    import safetensors.torch

    if (size := int.from_bytes(content[:8], "little")) > MOST_HEADER:
        raise ValueError(f"its header would take {size} bytes, and {MOST_HEADER} can be read")
    try:
        loaded = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    # Fresh tensors: those of the reader are aligned differently, and products of them round differently.
    return {key: loaded.pop(key).clone() for key in sorted(loaded)}


def _check(manifest: Any) -> None:
    """Refuse a manifest that lacks anything, or has anything of another type."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is not of the format {FORMAT}")
    if manifest.get("version") != VERSION:
        raise ValueError(f"it has version {manifest.get('version')!r} of the format, and this ttref reads {VERSION}")
    check_header(manifest, _TOP)
    check_header(manifest["bytes"], _BYTES)
    check_header(manifest["model"], {"class": (str,), "base_model": (str, type(None))})
    for name, kind in (("users", dict), ("tensors", str), ("ties", str)):
        if wrong := [key for key, value in manifest[name].items() if type(value) is not kind]:
            raise TypeError(f"its {name} has {reprlib.repr(manifest[name][wrong[0]])} for {reprlib.repr(wrong[0])}")
    for about in manifest["layers"].values():
        check_header(about, _LAYER)
        check_header(about["source"], SOURCE)
    for name, spec in manifest["users"].items():
        if spec.get("kind") not in USING or spec.get(USING[spec["kind"]]) not in manifest["layers"]:
            raise ValueError(f"{reprlib.repr(name)} uses no table of the model")
    for about in (*manifest["changed"].values(), *manifest["absent"].values()):
        check_header(about, SOURCE)
    for name, about in manifest["files"].items():
        if not plain_name(name) or name == MANIFEST:
            raise ValueError(f"{reprlib.repr(name)} is no name of a file in this folder")
        check_header(about, {"bytes": (int,), "sha256": (str,)})
        if about["bytes"] < 0 or not _HASH.fullmatch(about["sha256"]):
            raise ValueError(f"{name} has no size or no sha256")
    if MODEL not in manifest["files"] or manifest["rollback"] not in (ROLLBACK, "source"):
        raise ValueError(f"it names no {MODEL}, or no way back")
    if (manifest["rollback"] == ROLLBACK) != (ROLLBACK in manifest["files"]):
        raise ValueError(f"its way back is {manifest['rollback']}, but its files are {', '.join(manifest['files'])}")


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
