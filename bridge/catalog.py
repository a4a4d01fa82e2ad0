"""The site's models: admitted, kept in the site folder, opened again when a run needs them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import sqlalchemy
from cryptography.hazmat.primitives import serialization

from bridge.access import is_same_person
from bridge.errors import NotFound, Refused, WrongUse
from bridge.files import fsync_folder
from bridge.record import Recorder
from bridge.store import catalog
from bridge.store.catalog import ModelRow
from bridge.store.database import reading, writing
from models import package, registry, sandbox, signature
from models.errors import ModelError, RunFailed
from models.package import Package

__all__ = ["Catalog"]

LIMITS = sandbox.Limits()


class Catalog:
    """Vendors' keys and models of a site; every change is a leaf."""

    def __init__(self, database: sqlalchemy.Engine, folder: Path, recorder: Recorder) -> None:
        self._database = database
        self._folder = folder
        self._record = recorder
        self._open: dict[str, Package] = {}
        self._lock = threading.Lock()

    def package(self, digest: str) -> Package:
        """Give a registered package by its model digest, its files checked against the row."""
        with self._lock:
            if digest not in self._open:
                with reading(self._database) as connection:
                    row = next(iter(catalog.find_models(connection, digest)), None)
                if row is None:
                    raise NotFound("no model has this digest; see `radseal model list`")
                opened = package.load(self._folder / row.folder)
                if opened.model_digest != digest or opened.package_digest != row.package_digest:
                    raise Refused("the package's files changed after registration; push it again")
                self._open[digest] = opened
            return self._open[digest]

    def active(self) -> list[tuple[ModelRow, Package]]:
        """List the models in routing whose files can be used; `broken` lists the others."""
        return [(row, found) for row, found in self._routed() if isinstance(found, Package)]

    def broken(self) -> list[tuple[ModelRow, str]]:
        """List the models in routing whose files cannot be used, and why: they hold up no other."""
        return [(row, found) for row, found in self._routed() if isinstance(found, str)]

    def _routed(self) -> Iterator[tuple[ModelRow, Package | str]]:
        with reading(self._database) as connection:
            rows = catalog.list_models(connection, registry.State.ACTIVE)
        for row in rows:
            try:
                yield row, self.package(row.digest)
            except (ModelError, Refused) as error:
                yield row, f"it cannot be used: {error}"

    def activated(self, digest: str) -> str:
        """Give the leaf that put a model into routing; raises Refused once it is retired."""
        with reading(self._database) as connection:
            row = next(iter(catalog.find_models(connection, digest)), None)
        if row is not None and row.state == registry.State.RETIRED:
            raise Refused("the model was retired before it could run on this study")
        leaf = None if row is None else row.leaf_of("activated")
        if leaf is None:
            raise NotFound("this model was never activated")
        return leaf

    def trust(self, pem: bytes, vendor: str, at: datetime) -> str:
        """Trust a vendor's public key; returns its SHA-256. Raises WrongUse if it is no key."""
        try:
            key = serialization.load_pem_public_key(pem)
        except ValueError:
            raise WrongUse("this is no public key in PEM; ask the vendor for *.pub.pem") from None
        canonical = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = signature.key_hint(canonical)
        with writing(self._database) as connection:
            catalog.add_vendor_key(connection, vendor, digest, canonical.decode(), at)
        return digest

    def push(
        self, root: Path, at: datetime, *, by: str, progress: Callable[[str], None]
    ) -> ModelRow:
        """Verify, admit and register a package folder with its signature beside it.

        Raises Refused with the first fault in words: file, key and fix.
        """
        try:
            found = package.load(root)
            with reading(self._database) as connection:
                keys = catalog.vendor_keys(connection, found.vendor, at)
            progress("signature")
            signed = signature.verify(root, Path(f"{root}.sig"), keys)
        except ModelError as error:
            raise Refused(str(error)) from None
        return self._register(found, root, at, by=by, progress=progress, key=signed.key_hint)

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
    ) -> ModelRow:
        known = self._claim(found)
        if known is not None:
            return known
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
        folder = self._keep(found, root)
        leaf = self._record.say(
            "model.registered", f"model/{found.model_digest}/{found.package_digest}/registered",
            {
                "model": found.model_digest, "id": found.id, "version": found.version,
                "vendor": found.vendor, "package": found.package_digest, "by": by,
                "size": found.model_path.stat().st_size, "bundled": key is None,
                **({"key": key} if key else {}),
            },
        )  # fmt: skip
        row = ModelRow(
            found.model_digest, found.id, found.version, found.name, found.vendor,
            registry.State.REGISTERED, found.package_digest, folder, at,
            [{"act": "registered", "by": by, "authn": "asserted", "at": at.isoformat(),
              "leaf": leaf}],
        )  # fmt: skip
        with writing(self._database) as connection:
            if not catalog.add_model(connection, row):
                raise Refused(f"{found.id}@{found.version} was registered meanwhile; look again")
        return row

    def _claim(self, found: Package) -> ModelRow | None:
        """Give the row of a package that is registered; raises Refused where a name is taken."""
        with writing(self._database) as connection:
            owner = catalog.take_ownership(connection, found.id, found.vendor)
            if owner != found.vendor:
                raise Refused(f"the id {found.id} belongs to {owner}; choose another id")
            known = catalog.find_models(connection, f"{found.id}@{found.version}")
            twins = catalog.find_models(connection, found.model_digest)
            if known and known[0].package_digest != found.package_digest:
                raise Refused(
                    f"{found.id}@{found.version} is registered with other files; raise the version"
                )
            if twins and not known:
                raise Refused(
                    f"its model.onnx is that of {twins[0].id}@{twins[0].version}; a new version "
                    "needs a model of its own, because leaves name models by their digest"
                )
        return known[0] if known else None

    def _keep(self, found: Package, root: Path) -> str:
        name = f"models/{found.package_digest[:32]}"
        target = self._folder / name
        if not target.exists():
            part = target.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(exist_ok=True, mode=0o700)
            shutil.copytree(root, part, symlinks=False)
            part.rename(target)
            fsync_folder(target.parent)
        return name

    def act(self, name: str, act: str, at: datetime, *, by: str) -> ModelRow:
        """Approve, activate or retire a model; a second person approves what one registered."""
        with reading(self._database) as connection:
            rows = catalog.find_models(connection, name)
        if not rows:
            raise NotFound(f"no model is called {name}; see `radseal model list`")
        row = rows[0]
        registrant = next(a["by"] for a in row.acts if a["act"] == "registered")
        if act == "approve" and is_same_person(by, registrant):
            raise Refused("the person who registered a model cannot approve it; ask a second one")
        try:
            state = registry.transition(registry.State(row.state), registry.Act(act))
        except ModelError as error:
            raise Refused(str(error)) from None
        leaf = self._leaf(row, act, by)
        acts = [
            *row.acts,
            {"act": _PAST[act], "by": by, "authn": "asserted", "at": at.isoformat(), "leaf": leaf},
        ]
        with writing(self._database) as connection:
            if act == "activate":
                for other in catalog.list_models(connection, registry.State.ACTIVE):
                    if other.id == row.id and other.digest != row.digest:
                        catalog.set_model(
                            connection, other.digest, registry.State.APPROVED, other.acts
                        )
            catalog.set_model(connection, row.digest, state, acts)
        return row

    def _leaf(self, row: ModelRow, act: str, by: str) -> str:
        rel = {"approve": "model.registered", "activate": "model.approved",
               "retire": "model.registered"}[act]  # fmt: skip
        stands_on = row.leaf_of("approved") if rel == "model.approved" else None
        if stands_on is None:
            rel, stands_on = "model.registered", row.leaf_of("registered")
        return self._record.say(
            f"model.{_PAST[act]}", f"model/{row.digest}/{len(row.acts)}/{act}",
            {"model": row.digest, "id": row.id, "version": row.version, "by": by,
             "authn": "asserted"},
            refs=[(rel, stands_on or "")],
        )  # fmt: skip


_PAST: Mapping[str, str] = {"approve": "approved", "activate": "activated", "retire": "retired"}
