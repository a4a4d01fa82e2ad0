"""A study that was read by a running site, exported while it serves, verified by a stranger.

The stranger has a copy of ledger/, `cryptography`, the vkey and the bundle: no site, no radseal.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import servers
import ward as w

from ledger import archive, bundle

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

# What `pip install cryptography` brings along.
_ALONE = ("cryptography", "cffi", "pycparser", "_cffi_backend*", "typing_extensions.py")
GIVEN = ("--to", "authority", "--purpose", "HQUALIMP", "--by", "dr-records")


@dataclass(frozen=True)
class Exported:
    """A ward that serves, its study, and a bundle with everything disclosed."""

    ward: w.Ward
    uid: str
    path: Path

    @property
    def keys(self) -> Path:
        return self.ward.folder / "ledger.vkey"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Exported]:
    place, pacs, database_url = tmp_path_factory.mktemp("bundle"), w.PACS(), None
    if request.param == "postgresql":
        postgres = request.getfixturevalue("postgres")
        database_url = postgres.create()
    pacs.up()
    try:
        with w.ward(place, [pacs], database_url=database_url) as ward:
            ward.serve()
            sent = w.study(0)
            w.insist(sent, ward.port, until=time.monotonic() + 60)
            servers.wait_until(
                lambda: list(ward.states().values()) == ["delivered"], seconds=60, what="delivery"
            )
            uid, path = str(sent[0].StudyInstanceUID), place / "bundle.zip"
            words = ("--disclose", "study", "--with-artifacts")
            ward.radseal("audit", "export", uid, "-o", path, *GIVEN, *words)
            yield Exported(ward, uid, path)
            assert ward.quiet_log(), ward.last_words()
    finally:
        pacs.down()
        if database_url is not None:
            postgres.drop(database_url)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[..., Any]:
    """Run `python -m ledger` where nothing of ours but ledger/ can be imported."""
    folder = tmp_path_factory.mktemp("stranger")
    packages = Path(sysconfig.get_paths()["platlib"])
    for pattern in _ALONE:
        for found in packages.glob(pattern):
            (folder / found.name).symlink_to(found)
    shutil.copytree(root / "ledger", folder / "ledger", ignore=shutil.ignore_patterns("__py*"))

    def python(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-E", "-s", *map(str, words)],
            cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert python("-c", "import cryptography").returncode == 0
    for absent in ("bridge", "models", "pydicom", "sqlalchemy", "numpy"):
        assert python("-c", f"import {absent}").returncode == 1
    return lambda path, keys: python("-m", "ledger", "verify", path, "--vkey", keys)


def test_a_stranger_accepts_the_bundle(exported, stranger):
    done = stranger(exported.path, exported.keys)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("OK soak.radseal.example/log: ")


def test_radseal_verify_executes_consent_again_and_finds_the_images(exported, tmp_path):
    for number, one in enumerate(w.study(0)):
        one.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    told = json.loads(_verify(exported, "--images", tmp_path, "--json"))
    assert told["verified"]
    assert told["findings"] == []
    assert {one["verdict"] for one in told["checks"]} == {"same"}
    assert len([one for one in told["checks"] if one["where"].endswith(".dcm")]) == w.KINDS
    assert "3 of the 3 images listed are among your files" in told["notes"]


def _verify(exported: Exported, *words: object, path: Path | None = None, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "verify", str(path or exported.path),
         "--vkey", str(exported.keys), *map(str, words)],
        capture_output=True, text=True, timeout=60, check=False, cwd=exported.path.parent,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_log_of_the_serving_site_says_who_received_it(exported):
    assert exported.ward.verify().counts["access.disclosed"] >= 1
    told = json.loads(_verify(exported, "--json"))
    assert len(told["disclosures"]) == 1


def test_every_member_flipped_is_refused_by_both_and_named(exported, stranger, tmp_path):
    with archive.Archive(exported.path) as whole:
        members = {name: whole.read(name, 1 << 26) for name in whole.members}
    path = tmp_path / "bundle.zip"
    for name in _some(members):
        for sealed in (False, True):
            data = members[name]
            spoilt = {**members, name: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]}
            if sealed:
                spoilt["MANIFEST"] = bundle.manifest({
                    n: hashlib.sha256(d).digest() for n, d in spoilt.items() if n != "MANIFEST"
                })  # fmt: skip
            with path.open("wb") as file:
                archive.write(file, spoilt)
            where = (f"FAIL {name}: ", "FAIL MANIFEST: ") if sealed else (f"FAIL {name}: ",)
            last = stranger(path, exported.keys).stdout.splitlines()[-1]
            assert last.startswith(where), (name, last)
    assert "NOT verified" in _verify(exported, path=path, code=1)


def _some(members: dict[str, bytes]) -> list[str]:
    """One member of each kind, MANIFEST left out: to flip it is to seal it wrongly."""
    kinds = {name.rpartition("/")[0] or name: name for name in sorted(members)}
    return [name for name in kinds.values() if name != "MANIFEST"]


def test_the_bundle_of_another_hospital_is_refused(exported, stranger, tmp_path):
    other = tmp_path / "other.vkey"
    lines = exported.keys.read_text().splitlines()
    other.write_text(lines[0].replace("soak.", "sock.") + "\n")
    assert stranger(exported.path, other).returncode in (1, 2)
    assert _verify(exported, code=0)


def test_wrong_use_and_absent_studies_say_what_to_do(exported):
    ward, out = exported.ward, exported.path.parent / "none.zip"
    ward.radseal("audit", "export", exported.uid, "-o", exported.path, *GIVEN, code=2)
    assert "there already" in ward.errors
    ward.radseal("audit", "export", "1.2.3", "-o", out, *GIVEN, code=1)
    assert "radseal studies" in ward.errors
    words = ("--to", "x", "--purpose", "HRESCH")
    ward.radseal("audit", "export", exported.uid, "-o", out, *words, code=1)
    assert "not exported" in ward.errors
    assert not out.exists()
