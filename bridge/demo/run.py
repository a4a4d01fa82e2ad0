"""`radseal demo`: the whole way on this machine, with a truth to compare against.

A site is made in a temporary folder and served by the same command that a hospital
runs. A fake modality sends three studies over real associations: a chest CT whose
anatomy is known voxel by voxel, one whose patient refused, one that no model wants.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom import Dataset
from rich.console import Console
from rich.table import Table

from bridge import ambient, grant, site
from bridge.consent.document import parse
from bridge.demo import phantom
from bridge.demo.pacs import FakePACS, free_port, send
from bridge.engine import EngineClient
from bridge.errors import RadsealError, Refused
from bridge.front import Front
from bridge.home import create, open_rooms, publish
from bridge.report import text as report_text
from bridge.report.identity import derived_uid
from bridge.rooms import Rooms
from bridge.store import story
from bridge.store.database import reading
from bridge.study import StudyState, StudyStory
from models import bundled, signature

__all__ = ["run"]

SEED = 7
MODEL = "org.radseal.ct-lung-density"
ORIGIN = "demo.radseal.example/log"
_OVER = {StudyState.DELIVERED, StudyState.DENIED, StudyState.UNWANTED, StudyState.FAILED,
         StudyState.ATTENTION}  # fmt: skip
_LIMITS = {"lung volume": ("%", 1.0), "mean lung density": ("HU", 5.0),
           "emphysema, LAA-950": ("point", 0.5), "15th percentile": ("HU", 10.0)}  # fmt: skip


@dataclass(frozen=True)
class _Demo:
    console: Console
    folder: Path
    pacs: FakePACS
    settings: site.Site

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def run(*, keep: bool) -> int:
    """Run the demo; 0 only if every figure is within its limit and every proof verified."""
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service ends as well
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="radseal-demo-"))
    pacs = FakePACS("DEMOPACS")
    try:
        demo = _Demo(console, folder, pacs, _prepare(folder / "site", pacs))
        demo.say(f"[bold]radseal demo[/bold] in {folder}")
        rooms = open_rooms(demo.settings, EngineClient(demo.settings.database_url), prepare=True)
        _ship_model(demo, rooms)
        with _served(demo) as process:
            ok = _story(demo, rooms)
            seconds = time.monotonic() - began
            verdict = "[green]all verified[/green]" if ok else "[red]NOT all verified[/red]"
            demo.say(f"\n{verdict} in {seconds:.0f} s")
            _where_next(demo, keep=keep)
            if keep:
                process.wait()
        return 0 if ok else 1
    except RadsealError as error:
        console.print(f"the demo failed: {error}", style="red", highlight=False, soft_wrap=True)
        log = folder / "serve.log"
        if log.exists():
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
            console.print("\n".join(last), highlight=False, markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        pacs.close()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, pacs: FakePACS) -> site.Site:
    create(folder, "Demo Hospital", ORIGIN)
    with (folder / "site.toml").open("w", encoding="utf-8") as file:
        file.write(
            f'name = "Demo Hospital"\norigin = "{ORIGIN}"\n'
            f'[listener]\nhost = "127.0.0.1"\nport = {free_port()}\n'
            f"[http]\nport = {free_port()}\n"
            "[completion]\nquiet_seconds = 1.5\n"
            '[patients]\nissuer = "RADSEAL-DEMO"\nissuer_system = "urn:oid:2.25.1"\n'
            '[[sources]]\nname = "modality"\nae_title = "DEMOCT"\n'
            f'[[destinations]]\nname = "pacs"\nae_title = "{pacs.ae_title}"\n'
            f'host = "127.0.0.1"\nport = {pacs.port}\n'
        )
    return site.read(folder)


def _ship_model(demo: _Demo, rooms: Rooms) -> None:
    """Be the vendor: a key made now, a signed package; then be the department."""
    demo.say("a vendor signs the model package; two people approve and activate it")
    package = demo.folder / "ct_lung_density"
    shutil.copytree(bundled.folder("ct_lung_density"), package,
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )  # fmt: skip
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signature.sign(package, private, Path(f"{package}.sig"))
    rooms.registrar.trust(public, "radseal", ambient.now())
    rooms.registrar.push(package, ambient.now(), by="vendor", progress=lambda _what: None)
    rooms.lifecycle.act(MODEL, "approve", ambient.now(), by="dr-approver")
    rooms.lifecycle.act(MODEL, "activate", ambient.now(), by="dr-approver")
    publish(rooms)


@contextmanager
def _served(demo: _Demo) -> Iterator[subprocess.Popen[bytes]]:
    log = (demo.folder / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge", "serve", "--site", str(demo.settings.folder)],
        stdout=log, stderr=log, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(lambda: b"pages" in (demo.folder / "serve.log").read_bytes(), process, 30)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def _wait(true: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        if process.poll() is not None:
            raise Refused("the service ended; the last lines of its log:")
        if time.monotonic() > until:
            raise Refused(f"no answer within {seconds:g} s")
        time.sleep(0.05)


def _uids(name: str) -> Callable[..., str]:
    def uid(*parts: str) -> str:
        return derived_uid("demo", name, *parts)

    return uid


def _refusal(patient: phantom.Patient, at: datetime) -> bytes:
    """Write the consent of a patient who wants no AI in his care (FHIR R4)."""
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREATDS"}
    return json.dumps({
        "resourceType": "Consent", "status": "active",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                              "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"identifier": {"system": "urn:oid:2.25.1", "value": patient.id}},
        "dateTime": at.isoformat(timespec="seconds"),
        "policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-basic-normal"}],
        "provision": {"type": "deny", "purpose": [coding]},
    }).encode()  # fmt: skip


def _story(demo: _Demo, rooms: Rooms) -> bool:
    """Send three studies, follow them, compare with the truth, verify; True if all is good."""
    at = ambient.now()
    demo.say("a phantom of a chest is made, with a label for every voxel")
    chest = phantom.chest_ct(SEED)
    refuser = phantom.Patient(name="Demo^Refused", id="DEMO-0002")
    document = _refusal(refuser, at)
    grant.keep(rooms, document, parse(document), None, by="demo")
    studies: dict[str, Sequence[Dataset]] = {
        "chest CT": phantom.to_datasets(chest, uid=_uids("a"), now=at),
        "refused": phantom.to_datasets(
            chest, uid=_uids("b"), now=at, patient=refuser, accession="DEMO-B-0002"
        )[:40],
        "unwanted": _magnetic(phantom.to_datasets(chest, uid=_uids("c"), now=at)[:4]),
    }
    listener = demo.settings.listener
    for name, datasets in studies.items():
        demo.say(f"the modality sends {name}: {len(datasets)} images by C-STORE")
        send(datasets, listener.port, listener.ae_title, "DEMOCT")
    uids = {name: str(datasets[0].StudyInstanceUID) for name, datasets in studies.items()}
    told = _follow(demo, rooms, uids)
    good = _compare(demo, told["chest CT"], phantom.truth(chest))
    good &= _refused(demo, told["refused"], StudyState.DENIED)
    good &= _refused(demo, told["unwanted"], StudyState.UNWANTED)
    good &= _prove(demo, rooms, told["chest CT"])
    return good


def _magnetic(datasets: list[Dataset]) -> list[Dataset]:
    for dataset in datasets:
        dataset.Modality = "MR"
    return datasets


def _follow(demo: _Demo, rooms: Rooms, uids: dict[str, str]) -> dict[str, StudyStory]:
    """Show each study's facts as they come, until all are over."""
    seen: set[tuple[str, datetime, str]] = set()
    told: dict[str, StudyStory] = {}
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for name, uid in uids.items():
            with reading(rooms.database) as connection:
                study_id = story.find(connection, uid)
                if study_id is None:
                    continue
                told[name] = story.story(connection, study_id)
            for line in told[name].lines:
                if (name, line.at, line.code) not in seen:
                    seen.add((name, line.at, line.code))
                    demo.say(f"  [dim]{name:>8}[/dim]  {line.stage:<8} {line.words}")
        if len(told) == len(uids) and all(t.line.state in _OVER for t in told.values()):
            return told
        time.sleep(0.1)
    raise Refused("the studies were not done within a minute; --keep leaves the site to look at")


def _compare(demo: _Demo, told: StudyStory, truth: phantom.Truth) -> bool:
    measured = {
        what.split(": ")[-1]: float(value)
        for route in told.routes
        for what, value, _unit in route.measurements
    }
    rows = (
        ("lung volume", truth.lung_volume_ml, measured.get("Volume"), "mL"),
        ("mean lung density", truth.mean_density_hu,
         measured.get("Mean Attenuation Coefficient"), "HU"),
        ("emphysema, LAA-950", truth.laa950_percent, _starting(measured, "L"), "%"),
        ("15th percentile", truth.perc15_hu, _starting(measured, "15th"), "HU"),
    )  # fmt: skip
    table = Table("", "truth", "measured", "difference", "limit", box=None, title="\nTruth")
    good = True
    for name, true, found, unit in rows:
        kind, limit = _LIMITS[name]
        if found is None:
            table.add_row(name, f"{true:.1f} {unit}", "missing", "", "")
            good = False
            continue
        off = 100 * (found - true) / true if kind == "%" else found - true
        good &= abs(off) <= limit
        table.add_row(
            name, f"{true:.1f} {unit}", f"{found:.1f} {unit}", f"{off:+.2f} {kind}",
            f"{limit:g} {kind}" + ("" if abs(off) <= limit else "  MISSED"),
        )  # fmt: skip
    demo.console.print(table)
    return good


def _starting(measured: dict[str, float], prefix: str) -> float | None:
    return next((v for k, v in measured.items() if k.startswith(prefix)), None)


def _refused(demo: _Demo, told: StudyStory, state: StudyState) -> bool:
    reason = next((r.reason for r in told.routes if r.reason), told.line.state_words)
    ran = [line for line in told.lines if line.code == "inference.started"]
    demo.say(f"{told.line.state}: {reason}")
    return told.line.state is state and not ran


def _prove(demo: _Demo, rooms: Rooms, told: StudyStory) -> bool:
    """Show the SR as the PACS got it, and verify its receipt and the log by other processes."""
    made = [a for route in told.routes for a in route.artifacts]
    arrived = [a for a in made if a.sop_instance_uid in demo.pacs.received]
    demo.say(f"\nthe PACS received {', '.join(a.kind.value for a in arrived)}")
    report = next((a for a in arrived if a.kind == "sr"), None)
    if report is None:
        return False
    demo.say("\n" + report_text.as_text(demo.pacs.dataset(report.sop_instance_uid)))
    receipt = demo.folder / "sr.tlog-proof"
    receipt.write_text(Front(rooms, dict).receipt(report.sop_instance_uid), encoding="utf-8")
    folder = demo.settings.folder
    keys = str(folder / "ledger.vkey")
    good = True
    for what, target in (("receipt", receipt), ("log", folder / "ledger")):
        # A process of its own that gets nothing but the files and the keys.
        done = subprocess.run(
            [sys.executable, "-m", "ledger", "verify", str(target), "--vkey", keys],
            capture_output=True, text=True, check=False, cwd=Path(signature.__file__).parents[1],
        )  # fmt: skip
        last = (done.stdout.strip().splitlines() or ["no answer"])[-1]
        demo.say(f"{what} verified offline: {last}" if done.returncode == 0 else f"{what}: {last}")
        good &= done.returncode == 0
    good &= _verify_file(demo, report.sop_instance_uid, keys)
    return good and len(arrived) == len(made)


def _verify_file(demo: _Demo, sop_instance_uid: str, keys: str) -> bool:
    """Verify the SR as the PACS holds it: a process of its own, that file and the keys."""
    file = demo.folder / "sr.dcm"
    file.write_bytes(demo.pacs.received[sop_instance_uid])
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "verify", str(file), "--vkey", keys],
        capture_output=True, text=True, check=False, cwd=Path(signature.__file__).parents[1],
    )  # fmt: skip
    demo.say(f"\nthe SR out of the PACS, from its file alone: {done.stdout or done.stderr}")
    return done.returncode == 0


def _where_next(demo: _Demo, *, keep: bool) -> None:
    if keep:
        served = (demo.folder / "serve.log").read_text(encoding="utf-8", errors="replace")
        page = next((li for li in served.splitlines() if li.startswith("pages")), "")
        demo.say(f"\nleft running; {page}")
        demo.say(f"  radseal why STUDY_UID --site {demo.settings.folder}      Ctrl-C ends it")
    else:
        demo.say("next: `radseal demo --keep` leaves it running with its page; "
                 "`radseal init DIR` makes a site of your own")  # fmt: skip
