"""Who may bring a model, and what is looked at before the site has it. Each is a leaf."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy
from cryptography.hazmat.primitives import serialization

from bridge.catalog.upload import unpacked
from bridge.errors import NotAllowed, NotFound, Refused, WrongUse
from bridge.files import fsync_folder
from bridge.record import Recorder
from bridge.store import catalog
from bridge.store.catalog import ModelRow, VendorKey
from bridge.store.database import hold, reading, writing
from bridge.store.decisions import CONSENT
from bridge.turns import Turns
from models import machine, package, registry, sandbox, signature
from models.errors import ModelError, RunFailed
from models.package import Package

__all__ = ["Registrar", "dates"]

LIMITS = sandbox.Limits()
_LEAST_DIGITS = 8


def dates(key: VendorKey) -> str:
    """Say from when and until when a key is trusted, in UTC."""
    since = f"from {key.since.astimezone(UTC):%Y-%m-%d %H:%M}"
    if key.until is None:
        return f"{since} UTC on"
    return f"{since} until {key.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _in_date(key: VendorKey, at: datetime) -> None:
    """Raise Refused for a key outside its dates: the signature is good, its time is not."""
    if key.trusted(at):
        return
    when = "not trusted yet" if at < key.since else "no longer trusted"
    raise Refused(
        f"signed with {key.vendor}'s key {key.key_sha256[:16]}, which is {when}: it is trusted "
        f"{dates(key)}; sign with a key that is in date, or change its dates by `radseal model "
        "trust PEM --vendor NAME --from DATE --until DATE`"
    )


class Registrar:
    """Vendors' keys, and packages verified, admitted and registered."""

    def __init__(self, database: sqlalchemy.Engine, folder: Path, recorder: Recorder) -> None:
        self._database = database
        self._folder = folder
        self._record = recorder

    def trust(
        self,
        pem: bytes,
        vendor: str,
        at: datetime,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> VendorKey:
        """Trust a vendor's public key from `since` (default: now) until `until`, or without end.

        Said again, the new dates replace the old ones; without dates a key that is trusted stays
        as it is. Raises WrongUse if it is no key, or if it would be trusted at no time.
        """
        try:
            key = serialization.load_pem_public_key(pem)
        except ValueError:
            raise WrongUse("this is no public key in PEM; ask the vendor for *.pub.pem") from None
        canonical = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        if until is not None and until <= (since or at):
            raise WrongUse(
                "--until lies before the key would be trusted; give a later date, or untrust it"
            )
        said = VendorKey(
            vendor, signature.key_hint(canonical), canonical.decode(), since or at, until
        )
        with writing(self._database) as connection:
            known = [k for k in catalog.vendor_keys(connection, vendor)
                     if k.key_sha256 == said.key_sha256 and k.trusted(at)]  # fmt: skip
            if known and since is None and until is None:
                return known[0]
            catalog.trust_vendor_key(connection, said)
        return said

    def untrust(self, key: str, at: datetime) -> list[VendorKey]:
        """Trust a key no longer, by the first digits of its SHA-256; models that it signed stay.

        Raises NotFound for no such key, Refused where the digits name several.
        """
        with writing(self._database) as connection:
            found = [
                k for k in catalog.vendor_keys(connection) if k.key_sha256.startswith(key.lower())
            ]
            if not found or len(key) < _LEAST_DIGITS:
                raise NotFound(
                    f"no trusted key begins with {key[:64]}; give at least {_LEAST_DIGITS} digits "
                    "of the number that `radseal model trust` printed"
                )
            if len({k.key_sha256 for k in found}) > 1:
                raise Refused(f"several keys begin with {key}; give more digits")
            catalog.untrust_vendor_key(connection, found[0].key_sha256, at)
        return found

    def push(
        self,
        root: Path,
        at: datetime,
        *,
        by: str,
        progress: Callable[[str], None],
        vendor: str | None = None,
        authn: str = "asserted",
    ) -> ModelRow:
        """Verify, admit and register a package folder with its signature beside it.

        Raises Refused with the first fault in words: file, key and fix; NotAllowed where it is
        of another vendor than `vendor`.
        """
        try:
            found = package.load(root)
            if vendor not in (None, found.vendor):
                raise NotAllowed("the package names another vendor than your token does")
            with reading(self._database) as connection:
                keys = catalog.vendor_keys(connection, found.vendor)
            progress("signature")
            signed = signature.verify(root, Path(f"{root}.sig"), [k.pem.encode() for k in keys])
        except ModelError as error:
            raise Refused(str(error)) from None
        _in_date(next(k for k in keys if k.key_sha256 == signed.key_hint), at)
        return self._register(
            found, root, at, by=by, progress=progress, key=signed.key_hint, authn=authn
        )

    def bring(
        self, chunks: Iterable[bytes], at: datetime, *, by: str, vendor: str | None, most: int
    ) -> ModelRow:
        """Register what arrives as a zip of at most `most` bytes; `vendor` None: of any vendor.

        Raises NotAllowed for another vendor's package, and what `push` and `unpacked` raise.
        """
        with unpacked(chunks, self._folder / "models", most) as root:
            return self.push(
                root, at, by=by, vendor=vendor, authn="token", progress=lambda _what: None
            )

    def push_bundled(
        self, root: Path, digest: str, at: datetime, *, by: str, progress: Callable[[str], None]
    ) -> ModelRow:
        """Register a package that we ship, pinned by its digest in our code."""
        found = package.load(root)
        if found.package_digest != digest:
            raise Refused("the bundled package is not the one this release was made with")
        return self._register(found, root, at, by=by, progress=progress, key=None)

    def _register(
        self,
        found: Package,
        root: Path,
        at: datetime,
        *,
        by: str,
        progress: Callable[[str], None],
        key: str | None,
        authn: str = "asserted",
    ) -> ModelRow:
        with reading(self._database) as connection:
            known = _known(connection, found)
        if known is None:
            _admit(found, progress)
        folder = self._keep(found, root)  # also of a known one: its files may be damaged
        if known is not None:
            return known
        with writing(self._database) as connection:
            hold(connection, CONSENT)  # of two pushes at once one says the leaf and writes the row
            known = _known(connection, found)
            if known is not None:
                return known
            catalog.take_ownership(connection, found.id, found.vendor)
            row = self._say(found, folder, at, by=by, key=key, authn=authn)
            if not catalog.add_model(connection, row):
                raise Refused(f"{found.id}@{found.version} was registered meanwhile; look again")
            mark = machine.mark(found.providers)
            catalog.note_selftest(connection, found.model_digest, mark, at)
        return row

    def _say(
        self, found: Package, folder: str, at: datetime, *, by: str, key: str | None, authn: str
    ) -> ModelRow:
        """Append the leaf and give the row that it makes."""
        leaf = self._record.say(
            "model.registered", f"model/{found.model_digest}/{found.package_digest}/registered",
            {
                "model": found.model_digest, "id": found.id, "version": found.version,
                "vendor": found.vendor, "package": found.package_digest, "by": by,
                "size": found.model_path.stat().st_size, "bundled": key is None, "authn": authn,
                **({"key": key} if key else {}),
            },
        )  # fmt: skip
        # A crash may have left the leaf without its row: who it names is the registrant, not
        # whoever pushes it again, or the former could approve what he brought.
        said = self._record.body(leaf)
        return ModelRow(
            found.model_digest, found.id, found.version, found.name, found.vendor,
            registry.State.REGISTERED, found.package_digest, folder, at,
            [{"act": "registered", "by": said.get("by", by), "authn": said.get("authn", authn),
              "at": at.isoformat(), "leaf": leaf}],
        )  # fmt: skip

    def _keep(self, found: Package, root: Path) -> str:
        """Copy a package into the site, unless it is there and whole; one copy at a time."""
        name = f"models/{found.package_digest[:32]}"
        target = self._folder / name
        with Turns(self._folder / ".locks").keeping():
            if not _is_whole(target, found):
                part = target.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                part.parent.mkdir(exist_ok=True, mode=0o700)
                shutil.copytree(root, part, symlinks=False)
                shutil.rmtree(target, ignore_errors=True)
                part.rename(target)
                fsync_folder(target.parent)
        return name


def _known(connection: sqlalchemy.Connection, found: Package) -> ModelRow | None:
    """Give the row of a package that is registered; raises Refused where a name is taken.

    Another vendor and its models are not named: a vendor sees its own.
    """
    if catalog.owner(connection, found.id) not in (None, found.vendor):
        raise Refused(f"the id {found.id} belongs to another vendor; choose another id")
    known = catalog.find_models(connection, f"{found.id}@{found.version}")
    twins = catalog.find_models(connection, found.model_digest)
    if known and known[0].package_digest != found.package_digest:
        raise Refused(
            f"{found.id}@{found.version} is registered with other files; raise the version"
        )
    if twins and not known:
        own = twins[0].vendor == found.vendor
        whose = f"{twins[0].id}@{twins[0].version}" if own else "another vendor"
        raise Refused(
            f"its model.onnx is that of {whose}; a new version "
            "needs a model of its own, because leaves name models by their digest"
        )
    return known[0] if known else None


def _is_whole(folder: Path, found: Package) -> bool:
    """Whether a folder holds this very package, every file by its digest."""
    try:
        return package.load(folder).package_digest == found.package_digest
    except ModelError:
        return False


def _admit(found: Package, progress: Callable[[str], None]) -> None:
    """Look at the graph and run its self-test, in a child; raises Refused with the first fault."""
    progress("structure")
    try:
        faults = sandbox.admit(found, LIMITS)
    except RunFailed as error:
        raise Refused(f"the model could not even be read: {error}") from None
    for fault in faults:
        if not fault.warning:
            raise Refused(f"{fault.file}: {fault.key}: {fault.text}; {fault.fix}")
    progress("self-test")
    verdict = sandbox.selftest(found, LIMITS)
    if not verdict.passed:
        raise Refused(f"the self-test failed: {verdict.text}")
