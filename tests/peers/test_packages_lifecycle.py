"""The example packages and the bundled one through their whole life at a site, as people type it.

check, sign, trust, push, approve by another person, shadow, activate, a second version, rollback,
retire: each with its leaf. And refused at the door when one byte, one file, the key or its date is
another than it should be.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from bridge import ambient
from bridge.cli import app
from bridge.errors import RadsealError, Refused
from models import bundled
from models.package import load

BUNDLED = "ct_lung_density"
NAMES = ["ct-lung-air", "brain-subcortical-18", BUNDLED]
VERA, ANNA, CHIEF = "vera", "anna", "chief"


class Site:
    """A site, its vendors' keys in files, and a person at its keyboard."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch, bench: Any) -> None:
        self.bench = bench
        self.desk = bench.Bench(folder)
        self.folder = folder
        self.seen = len(self.desk.leaves())
        environment.setenv("RADSEAL_SITE", str(folder / "site"))
        environment.setenv("LOGNAME", VERA)
        self.model("list")  # what we ship is registered when a site is first used
        (shipped,) = self.leaves()
        assert (shipped["type"], shipped["body"]["bundled"]) == ("model.registered", True)
        self.private, self.public = self.key("vendor")

    def key(self, name: str) -> tuple[Path, Path]:
        """Make a vendor's key; returns the files of its halves."""
        vendor = self.bench.Vendor()
        private, public = (self.folder / f"{name}.{kind}.pem" for kind in ("key", "pub"))
        private.write_bytes(vendor.private)
        public.write_bytes(vendor.public)
        return private, public

    def model(self, *words: object) -> str:
        """Type `radseal model WORDS`; raises what the command would say to standard error."""
        done = CliRunner().invoke(app, ["model", *map(str, words)])
        if isinstance(done.exception, RadsealError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    def leaves(self) -> list[dict[str, Any]]:
        """What the log holds since this was asked last."""
        found = self.desk.leaves()[self.seen :]
        self.seen += len(found)
        return found

    def said(self, *words: object, leaves: list[str]) -> list[dict[str, Any]]:
        """Type a command and read the bodies of its leaves, which are of these types."""
        told = self.model(*words).strip().splitlines()
        new = self.leaves()
        assert [one["type"] for one in new] == leaves
        print(f"$ radseal model {words[0]}: {' / '.join(told)}")
        for one in new:
            body = {k: v for k, v in one["body"].items() if k not in {"model", "package", "key"}}
            print(f"  {one['type']} {json.dumps(body)}")
        return [one["body"] for one in new]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, workbench: Any) -> Iterator[Site]:
    """One site for all: each model has an id of its own, and what is refused leaves nothing."""
    with pytest.MonkeyPatch.context() as environment:
        made = Site(tmp_path_factory.mktemp("site"), environment, workbench)
        yield made
        made.desk.close()


@pytest.fixture
def copied(shared: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy a package, as this version, or as another one whose graph is other bytes."""

    def copy(name: str, version: str | None = None) -> Path:
        source = bundled.folder(name) if name == BUNDLED else shared / "models/packages" / name
        root = tmp_path / f"{name}-{version or 'own'}"
        shutil.copytree(source, root)
        if version is not None:
            model = onnx.load(str(root / "models/model.onnx"))
            model.doc_string = f"version {version}"
            data = model.SerializeToString()
            (root / "models/model.onnx").write_bytes(data)
            manifest = json.loads((root / "configs/metadata.json").read_text())
            manifest["version"] = version
            identity = manifest["deployment"]["identity"]
            identity["model_sha256"] = hashlib.sha256(data).hexdigest()
            (root / "configs/metadata.json").write_text(json.dumps(manifest))
        return root

    return copy


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_life(site: Site, copied: Callable[..., Path], name: str) -> None:
    first = copied(name)
    found = load(first)
    one, two = f"{found.id}@{found.version}", f"{found.id}@9.0.0"
    site.model("trust", site.public, "--vendor", found.vendor)
    if name == BUNDLED:  # pinned by our own code, not signed, and registered already
        assert "self-test: passed" in site.model("check", first)
    else:
        print(site.model("sign", first, "--key", site.private).strip())
        told = site.model("check", first, "--key", site.public)
        assert "self-test: passed" in told
        assert "signature: verified" in told
        print(told.strip())
        _delivered(site, first, one)
    with pytest.raises(Refused, match="cannot approve it; ask a second one"):
        site.model("approve", one, "--by", VERA)
    with pytest.raises(Refused):
        site.model("activate", one, "--by", ANNA)
    (body,) = site.said("approve", one, "--by", ANNA, leaves=["model.approved"])
    assert (body["model"], body["by"]) == (found.model_digest, ANNA)
    (body,) = site.said("shadow", one, "--by", ANNA, leaves=["model.activated"])
    assert body["mode"] == "shadow"
    (body,) = site.said("activate", one, "--by", ANNA, leaves=["model.activated"])
    assert body["mode"] == "active"

    second = copied(name, "9.0.0")
    _delivered(site, second, two)
    site.said("approve", two, "--by", ANNA, leaves=["model.approved"])
    site.said("activate", two, "--by", ANNA, leaves=["model.activated"])
    assert _live(site, found.id) == two
    out, back = site.said(
        "rollback", two, "--by", CHIEF, "--reason", "worse-recall",
        leaves=["model.suspended", "model.activated"],
    )  # fmt: skip
    assert (out["model"], out["reason"]) == (load(second).model_digest, "worse-recall")
    assert (back["model"], back["version"]) == (found.model_digest, found.version)
    assert _live(site, found.id) == one
    (body,) = site.said("retire", one, "--by", CHIEF, leaves=["model.retired"])
    assert (body["model"], body["by"]) == (found.model_digest, CHIEF)
    assert _live(site, found.id) == ""
    with pytest.raises(Refused):
        site.model("activate", one, "--by", ANNA)
    site.desk.verify()


def _delivered(site: Site, root: Path, name: str) -> None:
    """Push it, signed with the vendor's key; the leaf names its bytes and who brought it."""
    site.model("sign", root, "--key", site.private)
    (body,) = site.said("push", root, leaves=["model.registered"])
    said = load(root)
    assert f"{body['id']}@{body['version']}" == name
    assert (body["model"], body["package"]) == (said.model_digest, said.package_digest)
    assert (body["by"], body["bundled"], body["authn"]) == (VERA, False, "asserted")


def _live(site: Site, model: str) -> str:
    rows = [r for r in json.loads(site.model("list", "--json")) if r["id"] == model]
    return next((f"{r['id']}@{r['version']}" for r in rows if r["state"] == "active"), "")


WRONG = {
    "byte of the graph": "is not the digest of models/model.onnx",
    "byte of the graph, and its digest": "changed after signing",
    "byte of a page": "changed after signing",
    "one more": "not signed",
    "one fewer": "missing",
    "signature": "no readable signature",
    "key": "not trusted here",
    "date": "no longer trusted: it is trusted from 2020-01-01 00:00 until 2021-01-01 00:00 UTC",
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
@pytest.mark.parametrize("name", NAMES)
def test_refused_at_the_door(
    site: Site, copied: Callable[..., Path], name: str, wrong: str
) -> None:
    root = copied(name, "9.0.0")
    private, public = site.key(f"{name} {wrong}")
    dates = ("--from", "2020-01-01", "--until", "2020-12-31") if wrong == "date" else ()
    site.model("trust", public, "--vendor", load(root).vendor, *dates)
    site.model("sign", root, "--key", site.key("stranger")[0] if wrong == "key" else private)
    graph, page = root / "models/model.onnx", root / "docs/license.txt"
    if wrong.startswith("byte"):
        target = page if wrong.endswith("page") else graph
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        if wrong.endswith("digest"):
            manifest = root / "configs/metadata.json"
            old, new = (hashlib.sha256(d).hexdigest() for d in (target.read_bytes(), data))
            manifest.write_text(manifest.read_text().replace(old, new))
        target.write_bytes(data)
    elif wrong == "one more":
        (root / "docs/more.txt").write_text("x")
    elif wrong == "one fewer":
        page.unlink()
    elif wrong == "signature":
        Path(f"{root}.sig").unlink()
    site.leaves()
    with pytest.raises(Refused) as refused:
        site.model("push", root)
    print(f"{name} | {wrong} | {refused.value}")
    assert WRONG[wrong] in str(refused.value)
    assert site.leaves() == []


def test_what_we_ship_is_pinned(site: Site, copied: Callable[..., Path]) -> None:
    """One byte beside the graph is another package, whatever its manifest says."""
    root = copied(BUNDLED)
    (root / "docs/README.md").write_bytes((root / "docs/README.md").read_bytes() + b"\n")
    registrar, at = site.desk.rooms.registrar, ambient.now()
    with pytest.raises(Refused, match="not the one this release was made with"):
        registrar.push_bundled(
            root, bundled.DIGESTS[BUNDLED], at, by=VERA, progress=lambda _what: None
        )
    assert site.leaves() == []
