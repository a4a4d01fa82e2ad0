"""Signatures: ours, the standard tool's, and what breaks them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from models import signature
from models.errors import PackageError, SignatureError
from models.package import load

CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


def pair(curve: ec.EllipticCurve | None = None) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
def test_what_we_sign_we_verify(make_package: Callable[..., Path], curve: ec.EllipticCurve) -> None:
    root = make_package()
    private, public = pair(curve)
    sig = Path(f"{root}.sig")
    made = signature.sign(root, private, sig)
    signed = signature.verify(root, sig, [pair()[1], public])
    assert signed == made
    assert signed.package_digest == load(root).package_digest
    assert signature.state(root, sig, [public]).startswith("verified")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda r: (r / "configs/metadata.json").write_bytes(b"{}"), "changed after signing"),
        (lambda r: (r / "docs/extra.txt").write_text("x"), "not signed"),
        (lambda r: (r / "selftest/test_data_set_0/input_0.pb").unlink(), "missing"),
    ],
)
def test_any_other_byte_is_refused(
    make_package: Callable[..., Path], break_it: Callable[[Path], object], words: str
) -> None:
    root = make_package()
    private, public = pair()
    sig = Path(f"{root}.sig")
    signature.sign(root, private, sig)
    break_it(root)
    with pytest.raises(SignatureError, match=words):
        signature.verify(root, sig, [public])
    assert "not verified" in signature.state(root, sig, [public])


def test_a_stranger_and_a_forger_are_refused(make_package: Callable[..., Path]) -> None:
    root = make_package()
    (private, public), (_, other) = pair(), pair()
    sig = Path(f"{root}.sig")
    assert signature.state(root, sig, [public]) == "unsigned"
    signature.sign(root, private, sig)
    with pytest.raises(SignatureError, match="not trusted"):
        signature.verify(root, sig, [other])
    forged = sig.read_text().replace(signature.key_hint(public), signature.key_hint(other))
    sig.write_text(forged)
    with pytest.raises(SignatureError, match="does not fit"):
        signature.verify(root, sig, [other])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a":1,"a":2}', "[" * 9000, "\xff"])
def test_a_file_that_is_no_bundle(make_package: Callable[..., Path], text: str) -> None:
    root = make_package()
    sig = Path(f"{root}.sig")
    sig.write_text(text, encoding="latin-1")
    with pytest.raises(SignatureError):
        signature.verify(root, sig, [pair()[1]])


def test_other_kinds_of_key(make_package: Callable[..., Path]) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(SignatureError, match="ECDSA"):
        signature.key_hint(public)
    with pytest.raises(SignatureError):
        signature.sign(make_package(), b"no key", Path("nowhere.sig"))


def test_links_and_unsigned_names_are_refused(make_package: Callable[..., Path]) -> None:
    root = make_package()
    (root / ".gitignore").write_text("*")
    with pytest.raises(PackageError, match="left out"):
        load(root)
    (root / ".gitignore").unlink()
    (root / "docs/link").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match="symbolic link"):
        load(root)


@pytest.mark.peer
def test_the_standard_tool_agrees_both_ways(
    make_package: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    root = make_package()
    private, public = pair()
    (tmp_path / "k.pem").write_bytes(private)
    (tmp_path / "p.pem").write_bytes(public)
    tool = [sys.executable, "-m", "model_signing"]
    ours, theirs = tmp_path / "ours.sig", tmp_path / "theirs.sig"
    signature.sign(root, private, ours)
    subprocess.run(
        [*tool, "verify", "key", str(root), "--signature", str(ours),
         "--public_key", str(tmp_path / "p.pem")], check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        [*tool, "sign", "key", str(root), "--signature", str(theirs),
         "--private_key", str(tmp_path / "k.pem")], check=True, capture_output=True,
    )  # fmt: skip
    assert signature.verify(root, theirs, [public]).package_digest == load(root).package_digest


def test_the_example_packages_verify(shared: Path) -> None:
    folder = shared / "models/packages"
    pems = [p.read_bytes() for p in (folder / "keys").iterdir()]
    for name in ("ct-lung-air", "brain-subcortical-18"):
        signed = signature.verify(folder / name, folder / f"{name}.sig", pems)
        assert signed.package_digest == load(folder / name).package_digest
