"""A signature over a release: made with a private key, asked for with the public one, found wrong before all else."""

import base64
import json
import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from model_signing import hashing, signing, verifying
from releases import copied, dense, forged, released, resealed, same_state, small_dense, small_layers

from book.tools.notebooks import ROOT
from ttref.command import main
from ttref.release import load_release, rollback, save_release, sign, verify
from ttref.release.manifest import MANIFEST, MODEL, SIGNATURE

PRIVATE = pem.Encoding.PEM, pem.PrivateFormat.PKCS8
PUBLIC = pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo


def key_pair(folder, name, key, password=None):
    """Paths of a private and a public key in PEM."""
    secret = pem.NoEncryption() if password is None else pem.BestAvailableEncryption(password.encode())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(*PRIVATE, secret))
    public.write_bytes(key.public_key().public_bytes(*PUBLIC))
    return private, public


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A signed release in a folder with the keys of its maker and of somebody else; and the dense model."""
    folder = tmp_path_factory.mktemp("signed")
    model = small_dense()
    released(folder / "r", model, layers=small_layers(model))
    keys = [key_pair(folder, name, ec.generate_private_key(ec.SECP256R1())) for name in ("maker", "other")]
    assert sign(folder / "r", keys[0][0]) == folder / "r" / SIGNATURE
    return folder, model


def test_what_is_signed_is_loaded_verified_and_undone(place, tmp_path):
    folder, model = place
    public = folder / "maker.pub"
    small = load_release(folder / "r", small_dense(1), public_key=public)
    assert same_state(small, load_release(folder / "r", small_dense(2)))
    report = verify(folder / "r", model, public_key=str(public), progress=False)
    assert report.proved and report.names("signed") == [SIGNATURE] and "1 signature over all files" in report.summary
    assert verify(folder / "r", model, progress=False).names("signed") == []
    rollback(folder / "r", tmp_path / "dense", public_key=public)
    assert [path.name for path in (tmp_path / "dense").iterdir()] == [MODEL]


def test_the_release_keeps_its_name(place):
    """The signature is of the files, and no file that the manifest names."""
    folder, model = place
    name = verify(folder / "r", model, progress=False).sha256
    assert SIGNATURE not in json.loads((folder / "r" / MANIFEST).read_bytes())["files"]
    load_release(folder / "r", small_dense(), sha256=name, public_key=folder / "maker.pub")
    with pytest.raises(ValueError, match="is not the one asked for: this is another release"):
        load_release(folder / "r", small_dense(), sha256="0" * 64, public_key=folder / "maker.pub")


def refused(folder, place, says):
    """Neither loaded, undone nor verified; the model stays as it was."""
    kept, model = place
    public, fresh = kept / "maker.pub", small_dense(5)
    for change in (load_release, rollback):
        with pytest.raises(ValueError, match=says) as error:
            change(folder, fresh, public_key=public)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert same_state(fresh, small_dense(5))
    report = verify(folder, model, public_key=public, progress=False)
    assert not report.ok and not report.rows and len(report.problems) == 1


def test_no_signature(place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    (folder / SIGNATURE).unlink()
    refused(folder, place, "is not signed: it has no model.sig")


def test_a_signature_by_somebody_else(place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    sign(folder, place[0] / "other.pem")
    refused(folder, place, "model.sig in .* is not by the holder of that key, or was changed")


def test_a_signature_of_another_release(place, tmp_path):
    other = small_dense(1)
    _, _, folder = released(tmp_path / "r", other, layers=small_layers(other))
    (folder / SIGNATURE).write_bytes((place[0] / "r" / SIGNATURE).read_bytes())
    refused(folder, place, "its files are not those that were signed: .*manifest.json differs")


def payload(change):
    """Change what the signature says, and leave the rest of it."""

    def changed(folder):
        found = json.loads((folder / SIGNATURE).read_bytes())
        said = json.loads(base64.b64decode(found["dsseEnvelope"]["payload"]))
        change(said["predicate"])
        found["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
        (folder / SIGNATURE).write_text(json.dumps(found))

    return changed


def without_hint(folder):
    """As signatures of older versions are, for which model-signing prints a warning."""
    found = json.loads((folder / SIGNATURE).read_bytes())
    del found["verificationMaterial"]["publicKey"]
    (folder / SIGNATURE).write_text(json.dumps(found))


def linked(folder):
    (folder / SIGNATURE).rename(folder.parent / "elsewhere")
    (folder / SIGNATURE).symlink_to(folder.parent / "elsewhere")


SIGNATURES = {
    "empty": lambda folder: (folder / SIGNATURE).write_bytes(b""),
    "no JSON": lambda folder: (folder / SIGNATURE).write_bytes(b"\xff\xfe signature"),
    "a number": lambda folder: (folder / SIGNATURE).write_bytes(b"7"),
    "deep": lambda folder: (folder / SIGNATURE).write_bytes(b"[" * 100_000),
    "of other hashes": payload(lambda said: said["resources"][0].update(digest="00" * 32)),
    "of fewer files": payload(lambda said: said["resources"].pop()),
    "that leaves a file out": payload(lambda said: said["serialization"].update(ignore_paths=[MODEL])),
    "without a key": without_hint,
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_that_was_changed(name, place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    SIGNATURES[name](folder)
    refused(folder, place, "model.sig in .* is not by the holder of that key, or was changed")


def test_a_signature_elsewhere(place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    linked(folder)
    refused(folder, place, "model.sig is a link|symlink")
    (folder / SIGNATURE).unlink()
    (folder / SIGNATURE).write_bytes(b" " * (17 << 20))
    refused(folder, place, "model.sig has more than 16777216 bytes")


def flipped(folder):
    content = bytearray((folder / MODEL).read_bytes())
    content[-1] ^= 1
    (folder / MODEL).write_bytes(content)


def card_changed(folder):
    """With new hashes: what sha256= alone would find."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / "README.md").write_text("Trust me.")
    resealed(folder, manifest)


FILES = {
    "a bit": (flipped, MODEL),
    "a forged core": (lambda folder: forged(folder, lambda tensors, _: tensors["1.cores.0"].mul_(2)), MANIFEST),
    "a forged card": (card_changed, MANIFEST),
    "a file less": (lambda folder: (folder / "README.md").unlink(), "README.md"),
    "a file more": (lambda folder: (folder / "more.py").write_text("x"), "more.py"),
    "a folder more": (lambda folder: ((folder / "more").mkdir(), (folder / "more" / "a").touch()), "more/a"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_those_that_were_signed(name, place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    change, says = FILES[name]
    change(folder)
    refused(folder, place, f"its files are not those that were signed: .*{says}")
    if "forged" not in name:
        with pytest.raises(ValueError, match="is no release of ttref, or was changed"):
            sign(folder, place[0] / "other.pem")


def left_by_tools(folder):
    """What nothing here reads, of kinds that model-signing refuses."""
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    for name in (".cache", ".git"):
        (folder / name).mkdir()
        (folder / name / "log").touch()
        (folder / name / "link").symlink_to(folder / "nowhere")
        os.mkfifo(folder / name / "pipe")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_tools_leave_in_a_folder_needs_no_signature(place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    left_by_tools(folder)
    load_release(folder, small_dense(), public_key=place[0] / "maker.pub")
    sign(folder, place[0] / "other.pem")
    load_release(folder, small_dense(), public_key=place[0] / "other.pub")


def test_what_changes_after_the_check_is_refused(place, tmp_path, monkeypatch):
    from ttref.release import loading

    folder = copied(place[0] / "r", tmp_path / "r")
    other = small_dense(1)
    released(tmp_path / "other", other, layers=small_layers(other))

    def checked_then_changed(*arguments, signed=loading.signed_sha256):
        found = signed(*arguments)
        for path in (tmp_path / "other").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return found

    monkeypatch.setattr(loading, "signed_sha256", checked_then_changed)
    with pytest.raises(ValueError, match="this is another release"):
        load_release(folder, small_dense(), public_key=place[0] / "maker.pub")


def by_model_signing(folder, private, settings=None):
    """Signed as by its command line, which leaves the signature's own path out."""
    (folder / SIGNATURE).unlink()
    settings = (settings or hashing.Config()).set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=True)
    made = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(settings)
    made.sign(folder, folder / SIGNATURE)


def test_model_signing_itself_reads_and_writes_the_same(place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    public = place[0] / "maker.pub"
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / SIGNATURE)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "log").touch()  # is signed too
    by_model_signing(folder, place[0] / "maker.pem")
    for change in (lambda: None, (folder / ".cache" / "log").unlink):
        change()
        load_release(folder, small_dense(), public_key=public)
    flipped(folder)
    refused(folder, place, "its files are not those that were signed: model.safetensors differs")


@pytest.mark.parametrize("way, says", [
    ({"hashing_algorithm": "blake2"}, "is over blake2b of files, and what is read here is sha256 of files"),
    ({"shard_size": 1000}, "is over sha256 of shards, and what is read here is sha256 of files"),
], ids=["blake2", "shards"])  # fmt: skip
def test_other_hashes_than_those_of_files_are_named(way, says, place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    config = hashing.Config()
    settings = config.use_shard_serialization(**way) if "shard_size" in way else config.use_file_serialization(**way)
    by_model_signing(folder, place[0] / "maker.pem", settings)
    refused(folder, place, says)


def test_a_file_that_was_left_out_is_told(place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    card = (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    by_model_signing(folder, place[0] / "maker.pem")
    (folder / "README.md").write_bytes(card)
    refused(folder, place, "its files are not those that were signed: README.md is not signed")


@pytest.mark.skipif(os.name == "nt", reason="this system refuses such names")
def test_names_of_files_are_told_in_plain_letters(place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    (folder / f"\x1b[2J\n{'long' * 50}").touch()
    refused(folder, place, r"those that were signed: \\x1b\[2J\\nlonglong[a-z]* is not signed")
    (folder / "evil\x1b[2J").symlink_to(folder / MODEL)
    refused(folder, place, r"evil\?\[2J")


@pytest.mark.parametrize("error", [MemoryError, ModuleNotFoundError])
def test_what_is_no_fault_of_the_signature_is_not_said_of_it(error, place, monkeypatch):
    def verify(*_):
        raise error("of this machine")

    monkeypatch.setattr(verifying.Config, "verify", verify)
    with pytest.raises(error, match="of this machine"):
        load_release(place[0] / "r", small_dense(), public_key=place[0] / "maker.pub")


@pytest.mark.skipif(os.name == "nt", reason="this system flushes no folders")
def test_a_signature_is_on_the_disk_before_it_has_its_name(place, tmp_path, monkeypatch):
    folder, events = copied(place[0] / "r", tmp_path / "r"), []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append(os.fstat(number).st_ino), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("renamed"), replace(a, b)))
    sign(folder, place[0] / "maker.pem")
    written, renamed, last = events
    assert (written, renamed, last) == ((folder / SIGNATURE).stat().st_ino, "renamed", folder.stat().st_ino)


def test_nothing_of_this_machine_is_in_a_signature(place):
    found = json.loads((place[0] / "r" / SIGNATURE).read_bytes())
    said = base64.b64decode(found["dsseEnvelope"]["payload"]).decode()
    assert str(place[0]) not in said and str(place[0].parent) not in json.dumps(found)


@pytest.mark.parametrize("curve", [ec.SECP384R1, ec.SECP521R1])
def test_other_curves_and_keys_with_a_password(curve, place, tmp_path):
    folder = copied(place[0] / "r", tmp_path / "r")
    private, public = key_pair(tmp_path, "key", ec.generate_private_key(curve()), "a secret")
    before = (folder / SIGNATURE).read_bytes()
    for password in (None, "another"):
        with pytest.raises(ValueError, match="is no key for this"):
            sign(folder, private, password=password)
    assert (folder / SIGNATURE).read_bytes() == before
    sign(folder, private, password="a secret")
    load_release(folder, small_dense(), public_key=public)


def test_keys_of_another_kind(place, tmp_path):
    folder, model = place
    others = {"rsa": rsa.generate_private_key(65537, 2048), "ed": ed25519.Ed25519PrivateKey.generate()}
    others["bitcoin"] = ec.generate_private_key(ec.SECP256K1())
    pairs = [key_pair(tmp_path, name, key) for name, key in others.items()]
    (tmp_path / "text").write_text("no key")
    pairs += [(folder / "maker.pub", folder / "maker.pem"), (tmp_path / "text", tmp_path / "text")]
    for private, public in pairs:
        with pytest.raises(ValueError, match="is no key for this .* an elliptic-curve key in PEM is needed"):
            sign(folder / "r", private)
        with pytest.raises(ValueError, match="is no key for this .* an elliptic-curve key in PEM is needed"):
            load_release(folder / "r", small_dense(), public_key=public)
        with pytest.raises(ValueError, match="is no key for this"):  # of the caller, not of the release
            verify(folder / "r", model, public_key=public, progress=False)
    for change in (lambda key: sign(folder / "r", key), lambda key: load_release(folder / "r", public_key=key)):
        with pytest.raises(FileNotFoundError, match="there is no key"):
            change(tmp_path / "nothing")


def test_what_is_no_release_is_said_as_ever(place, tmp_path):
    for change in (lambda path: sign(path, place[0] / "maker.pem"),
                   lambda path: load_release(path, dense(), public_key=place[0] / "maker.pub")):  # fmt: skip
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            change(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="has no manifest.json"):
            change(tmp_path)


def test_a_manifest_that_comes_and_goes_is_no_way_around_the_signature(place, tmp_path, monkeypatch):
    """Missing when the signature is looked at, there when the manifest is read."""
    folder = copied(place[0] / "r", tmp_path / "r")
    (folder / MANIFEST).unlink()
    monkeypatch.setattr("ttref.release.signing.read_manifest", lambda folder: ({"files": {}}, "ab"))
    with pytest.raises(ValueError, match="its files are not those that were signed"):
        load_release(folder, small_dense(), public_key=place[0] / "maker.pub")


def test_a_new_release_in_its_place_has_no_signature(place, tmp_path):
    folder, model = copied(place[0] / "r", tmp_path / "r"), place[1]
    released(folder, model, layers=small_layers(model))
    assert not (folder / SIGNATURE).exists() and save_release.__doc__.count("signature")


def test_the_command_line(place, tmp_path, capsys):
    from safetensors.torch import save_file

    folder, model = place
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    call = ["verify", str(folder / "r"), "--source", str(tmp_path / "model.safetensors"), "--public-key"]
    assert main([*call, str(folder / "maker.pub")]) == 0 and "signature over all files" in capsys.readouterr().out
    assert main([*call, str(folder / "other.pub")]) == 1 and "not by the holder" in capsys.readouterr().out
    assert main([*call, str(folder / "maker.pem")]) == 3 and "is no key for this" in capsys.readouterr().err
    back = ["rollback", str(folder / "r"), str(tmp_path / "dense"), "--public-key"]
    assert main([*back, str(folder / "other.pub")]) == 3 and not (tmp_path / "dense").exists()
    assert main([*back, str(folder / "maker.pub")]) == 0


@pytest.mark.parametrize("lacking", ["model_signing", "OpenSSL"])
def test_without_the_package_the_install_line_is_told(lacking, place, tmp_path):
    folder, _ = place
    code = (
        "import sys; sys.modules[sys.argv.pop()] = None\n"
        "from ttref.command import main; from ttref.release import sign\n"
        "assert main(['verify', sys.argv[1], '--source', sys.argv[1], '--public-key', sys.argv[2]]) == 4\n"
        "sign(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(folder / "r"), str(folder / "maker.pem"), lacking]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    line = "signatures need model-signing; install it with: python -m pip install model-signing pyopenssl"
    assert f"ttref: {line}" in done.stderr and done.stderr.rstrip().endswith(f"ModuleNotFoundError: {line}")
