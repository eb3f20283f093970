"""Who made a release: a signature over all its files, made with a private key and checked with the public one, offline.

Hashes tell that a release was not damaged; whoever changes it can write new ones. A signature tells that the holder of
a key wrote it. The format is that of model-signing (OpenSSF): its command line reads what is written here, and what it
writes is read here, as sha256 of whole files, in which it signs unless told otherwise. Nothing is asked of a network.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..atomic import settle
from ..shards import one_line
from .folders import flush, recovered
from .manifest import BESIDE, MANIFEST, SIGNATURE, escaped, limited, read_manifest, refused

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
    hashes = _hashes(folder)
    manifest, name = read_manifest(folder)
    files = {MANIFEST: name} | {file: about["sha256"] for file, about in manifest["files"].items()}
    if wrong := _differing(_by_name(hashes), files, "is not in the manifest"):
        raise refused(folder, wrong)
    # Beside the folder: what a killed process leaves within would be a foreign file of the release.
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as private:
        maker.set_hashing_config(_Given(hashes)).sign(folder, written := Path(private, SIGNATURE))
        flush(written)
        os.replace(written, folder / SIGNATURE)
        settle(folder)
    return folder / SIGNATURE


def checks_with(public_key: str | Path) -> Any:
    """What checks signatures with a key, for :func:`signed_sha256`.

    Raises:
        ModuleNotFoundError, FileNotFoundError, ValueError: As :func:`sign`.
    """
    config = _tool("verifying").Config()
    with _reading(public_key):
        return config.use_elliptic_key_verifier(public_key=Path(public_key))


def signed_sha256(folder: Path, verifier: Any, sha256: str | None = None) -> str:
    """The sha256 of the manifest in a folder whose files are all signed, and none other in it.

    What tools leave beside a release (``manifest.BESIDE``) may be signed or not, and is not looked at.

    Args:
        folder: The release.
        verifier: From :func:`checks_with`.
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
    said = _said(folder, verifier)
    found = _by_name(_hashes(folder))
    if wrong := _differing(found, said, "is not signed"):
        raise refused(folder, f"its files are not those that were signed: {wrong}")
    if MANIFEST not in found:
        raise refused(folder, f"the signature is over no {MANIFEST}")
    if sha256 not in (None, found[MANIFEST]):
        raise refused(folder, f"the sha256 of {MANIFEST} is not the one asked for: this is another release")
    return found[MANIFEST]


class _Given:
    """Hashes that are known already, as model-signing asks for them; it compares with them only what the key signed."""

    def __init__(self, hashes: Any = None) -> None:
        self.hashes, self.signed = hashes, None

    def hash(self, *_: Any, **__: Any) -> Any:
        return self if self.hashes is None else self.hashes

    def add_ignored_paths(self, **_: Any) -> None:
        """Nothing: which files a release has is not for a signature to say."""

    def __eq__(self, signed: object) -> bool:
        self.signed = signed
        return True

    __hash__ = None


def _said(folder: Path, verifier: Any) -> dict[str, str]:
    """The files of a release that its signature is over, each with its sha256; the signature is by that key."""
    from cryptography.exceptions import InvalidSignature

    try:
        content = limited(folder, SIGNATURE, MOST)
    except ValueError as error:
        raise refused(folder, one_line(error)) from error
    given = _Given()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as private, contextlib.redirect_stdout(sys.stderr):
        Path(private, SIGNATURE).write_bytes(content)
        try:
            verifier.set_hashing_config(given).verify(folder, Path(private, SIGNATURE))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InvalidSignature) as error:
            why = one_line(error) or type(error).__name__
            raise ValueError(
                f"{SIGNATURE} in {folder} is not by the holder of that key, or was changed ({why}); nothing was loaded"
            ) from error
    if given.signed is None:
        raise RuntimeError("this version of model-signing does not tell what was signed; install model-signing 1.1")
    way = [one_line(given.signed.serialization_type.get(name), 20) for name in ("hash_type", "method")]
    if way != ["sha256", "files"]:
        raise ValueError(
            f"{SIGNATURE} in {folder} is over {' of '.join(way)}, and what is read here is sha256 of files; nothing "
            "was loaded. ttref.release.sign(folder, private_key) writes such a signature, and so does model-signing, "
            "unless told otherwise"
        )
    return _by_name(given.signed)


def _hashes(folder: Path) -> Any:
    """What model-signing finds in a folder, but for what tools leave beside a release."""
    # One after the other, because a link is refused before what lies behind it is listed.
    files = (itertools.chain([path], path.rglob("*")) for path in sorted(folder.iterdir()) if path.name not in BESIDE)
    try:
        hashing = _tool("hashing").Config().set_ignored_paths(paths=sorted(BESIDE))
        return hashing.hash(folder, files_to_hash=itertools.chain.from_iterable(files))
    except ValueError as error:
        raise refused(folder, one_line(error)) from error


def _by_name(hashes: Any) -> dict[str, str]:
    """The sha256 of each file but those that tools leave beside a release."""
    found = {about.identifier: about.digest.digest_hex for about in hashes.resource_descriptors()}
    return {name: digest for name, digest in found.items() if name.split("/")[0] not in BESIDE}


def _differing(found: Mapping[str, str], wanted: Mapping[str, str], more: str) -> str:
    """What is wrong with the files that were found, the first three in words; "" if nothing is."""
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    said = [
        f"{escaped(name)} {'is missing' if name not in found else more if name not in wanted else 'differs'}"
        for name in names[:3]
    ]
    return "; ".join([*said, f"and {len(names) - 3} more"] if len(names) > 3 else said)


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
            f"{key} is no key for this ({one_line(error)}): an elliptic-curve key in PEM is needed, of P-256, P-384 or "
            "P-521, the private one to sign, with its password if it has one, and the public one to check"
        ) from error
