"""Who made a release: a signature over all its files, made with a private key and checked with the public one, offline.

Hashes tell that a release was not damaged; whoever changes it can write new ones. A signature tells that the holder of
a key wrote it. The format is that of model-signing (OpenSSF), whose command line reads and writes it too; nothing is
asked of a network.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..atomic import settle
from .folders import recovered
from .manifest import BESIDE, MANIFEST, SIGNATURE, limited, one_line, read_manifest, refused

__all__ = ["sign"]

MOST = 16 << 20  # bytes of a signature, which names every file once


def sign(folder: str | Path, private_key: str | Path, *, password: str | None = None) -> Path:
    """Sign a release: write ``model.sig`` into its folder, over the manifest and all files that it names.

    The signature is no part of what the manifest hashes, so the release keeps its name. It goes when the release is
    replaced. ``public_key=`` of :func:`load_release`, :func:`verify` and :func:`rollback` asks for it.

    Args:
        folder: The release; it must be what :func:`save_release` has written.
        private_key: Path of an elliptic-curve key in PEM, of P-256, P-384 or P-521.
        password: Of the key, if it has one.

    Returns:
        The path of the signature.

    Raises:
        ModuleNotFoundError: model-signing is not installed; the message holds the install line.
        FileNotFoundError: No release, or no key.
        ValueError: A release that was changed; a key of another kind, or another password. An older signature stays.

    Cost:
        The folder is read once.

    Example:
        >>> import copy, ttref
        >>> from cryptography.hazmat.primitives import serialization as pem
        >>> from cryptography.hazmat.primitives.asymmetric import ec
        >>> from torch import nn
        >>> from ttref.release import load_release, save_release
        >>> key, dense = ec.generate_private_key(ec.SECP256R1()), nn.Sequential(nn.Linear(64, 64))
        >>> private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
        >>> public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        >>> small = copy.deepcopy(dense)
        >>> _ = ttref.swap_layer(small, "0", ttref.TTLinear.from_linear(small[0], rank=4))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder, keys = Path(place, "release"), [Path(place, name) for name in ("key.pem", "pub.pem")]
        ...     _ = [path.write_bytes(content) for path, content in zip(keys, (private, public))]
        ...     _ = save_release(small, folder, source=dense, override="an example, nothing was measured")
        ...     name = sign(folder, keys[0]).name
        ...     loaded = load_release(folder, copy.deepcopy(dense), public_key=keys[1])
        >>> name, type(loaded[0]).__name__
        ('model.sig', 'TTLinear')
    """
    folder, signing = recovered(folder), _tool("signing")
    read_manifest(folder)
    with _reading(private_key):
        secret = None if password is None else password.encode()
        maker = signing.Config().use_elliptic_key_signer(private_key=Path(private_key), password=secret)
    try:
        hashes = _hashes(folder)
    except ValueError as error:
        raise refused(folder, one_line(error)) from error
    if wrong := _wrong(folder, hashes):
        raise refused(folder, f"{wrong} is not what was written")
    # Beside the folder: what a killed process leaves within would be a foreign file of the release.
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as private:
        maker.set_hashing_config(hashes).sign(folder, written := Path(private, SIGNATURE))
        os.replace(written, folder / SIGNATURE)
        settle(folder)
    return folder / SIGNATURE


def asking(public_key: str | Path) -> Any:
    """What checks signatures with a key, for :func:`signed`.

    Raises:
        ModuleNotFoundError, FileNotFoundError, ValueError: As :func:`sign`.
    """
    config = _tool("verifying").Config()
    with _reading(public_key):
        return config.use_elliptic_key_verifier(public_key=Path(public_key))


def signed(folder: Path, checker: Any, sha256: str | None = None) -> str:
    """The sha256 of the manifest in a folder whose files are all signed, and none other in it.

    Args:
        folder: The release.
        checker: From :func:`asking`.
        sha256: The sha256 that the manifest must have, if it is known.

    Raises:
        ValueError: No signature, one of another key, or of other files.
    """
    if not (folder / MANIFEST).exists():
        read_manifest(folder)  # says what is missing; one that is back by then is checked as any other
    if not (folder / SIGNATURE).exists():
        raise ValueError(
            f"{folder} is not signed: it has no {SIGNATURE}, and public_key asks for it; nothing was loaded. Whoever "
            "made it writes one with ttref.release.sign(folder, private_key)"
        )
    try:
        content, hashes = limited(folder, SIGNATURE, MOST), _hashes(folder)
    except ValueError as error:
        raise refused(folder, one_line(error)) from error
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as private, contextlib.redirect_stdout(sys.stderr):
        Path(private, SIGNATURE).write_bytes(content)
        try:
            checker.set_hashing_config(hashes).verify(folder, Path(private, SIGNATURE))
        except Exception as error:  # of several packages, whatever is in the file
            if hashes.asked:
                wrong = _wrong(folder, hashes) or f"all have new hashes in {MANIFEST}"
                raise refused(folder, f"its files are not those that were signed: {wrong}") from error
            why = _short(error) or type(error).__name__
            raise ValueError(
                f"{SIGNATURE} in {folder} is not by the holder of that key, or was changed ({why}); nothing was loaded"
            ) from error
    found = hashes.found.get(MANIFEST)
    if found is None:
        raise refused(folder, f"the signature is over no {MANIFEST}")
    if sha256 not in (None, found):
        raise refused(folder, f"the sha256 of {MANIFEST} is not the one asked for: this is another release")
    return found


def _hashes(folder: Path) -> Any:
    """What model-signing hashes a folder with: all its files were hashed already, whatever a signature leaves out.

    ``found`` has the sha256 of each file; ``asked`` is True after a valid signature was compared with them.
    """
    hashing = _tool("hashing")
    known = hashing.Config().set_ignored_paths(paths=sorted(BESIDE)).hash(folder)

    class Hashes(hashing.Config):
        found = {about.identifier: about.digest.digest_hex for about in known.resource_descriptors()}
        asked = False

        def hash(self, *_: Any, **__: Any) -> Any:
            self.asked = True
            return known

    return Hashes()


def _wrong(folder: Path, hashes: Any) -> str:
    """The first file that is not what the manifest says, the manifest included; "" if all are."""
    try:
        manifest, name = read_manifest(folder)
    except ValueError:
        return MANIFEST
    wanted = {MANIFEST: name} | {file: about["sha256"] for file, about in manifest["files"].items()}
    return min((file for file, _ in hashes.found.items() ^ wanted.items()), default="")


def _tool(name: str) -> Any:
    """A module of model-signing, imported now; its absence is told with the line that installs it."""
    try:
        return importlib.import_module(f"model_signing.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "signatures need model-signing; install it with: python -m pip install model-signing pyopenssl",
            name=error.name,
        ) from error


@contextlib.contextmanager
def _reading(key: str | Path) -> Iterator[None]:
    """The errors of a key that cannot be read, or is of another kind, in words."""
    if not Path(key).is_file():
        raise FileNotFoundError(f"there is no key {key}")
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise ValueError(
            f"{key} is no key for this ({_short(error)}): an elliptic-curve key in PEM is needed, of P-256, P-384 or "
            "P-521, the private one to sign, with its password if it has one, and the public one to check"
        ) from error


def _short(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...")
