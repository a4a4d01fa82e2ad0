"""A whole radseal in a temporary folder for tests: made, supplied with models, served.

Everything goes through the front doors: the command line as people type it, the
DICOM port as a modality sees it, pages and JSON as a browser sees them. `served`
is the context manager; it ends the service (whole process group) on leaving.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import servers
from pydicom.uid import generate_uid

AE_TITLE, MODALITY = "RADSEAL", "MODALITY"
OVER = ("delivered", "denied", "unwanted", "failed", "attention")
_ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("RADSEAL_")}


@dataclass(frozen=True)
class Answer:
    """What an HTTP request gave."""

    status: int
    kind: str
    body: bytes


@dataclass(frozen=True)
class House:
    """A site that is being served on loopback."""

    folder: Path
    port: int
    http_port: int
    log: Path
    server: servers.Running | None = None
    _tokens: dict[str, str] = field(default_factory=dict)

    def radseal(
        self, *words: object, said: str | None = None, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this site; `said` is standard input, `code` the status it must have."""
        command = [sys.executable, "-m", "bridge", *map(str, words)]
        done = subprocess.run(
            command,
            input=said,
            stdin=subprocess.DEVNULL if said is None else None,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env={**_ENVIRONMENT, "RADSEAL_SITE": str(self.folder)},
        )
        if code is not None and done.returncode != code:
            last = done.stdout + done.stderr
            raise AssertionError(f"{words} ended with {done.returncode}: {last}")
        return done

    def why(self, uid: str) -> dict[str, Any]:
        """Return what `radseal why --json` says of a study."""
        return dict(json.loads(self.radseal("why", uid, "--json").stdout))

    def studies(self) -> list[dict[str, Any]]:
        """Return what `radseal studies --json` lists."""
        return list(json.loads(self.radseal("studies", "--json").stdout))

    def quarantine(self) -> list[dict[str, Any]]:
        """Return what `radseal quarantine list --json` lists."""
        return list(json.loads(self.radseal("quarantine", "list", "--json").stdout))

    def token(self, role: str) -> str:
        """Return a token with this role, made by `radseal token add`."""
        if role not in self._tokens:
            made = self.radseal("token", "add", f"test-{role}", "--role", role)
            self._tokens[role] = made.stdout.strip()
        return self._tokens[role]

    def get(self, path: str, *, role: str | None = "operator", accept: str = "*/*") -> Answer:
        """GET a page with a token of this role (None: as nobody)."""
        headers = {"Accept": accept}
        if role is not None:
            headers["Authorization"] = f"Bearer {self.token(role)}"
        url = f"http://{servers.HOST}:{self.http_port}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=30
            ) as answer:
                return Answer(answer.status, answer.headers.get_content_type(), answer.read())
        except urllib.error.HTTPError as refused:
            return Answer(refused.code, refused.headers.get_content_type(), refused.read())

    def story(self, uid: str) -> dict[str, Any] | None:
        """Return a study's story by HTTP (quicker than `why`); None while it is not known."""
        answer = self.get(f"/studies/{uid}.json")
        return json.loads(answer.body) if answer.status == 200 else None

    def state(self, uid: str) -> str:
        """Return where a study stands, "" while it is not known."""
        told = self.story(uid)
        return "" if told is None else str(told["line"]["state"])

    def until(self, uid: str, *states: str, generation: int = 1, seconds: float = 90) -> dict:
        """Wait until a study is over (or in one of `states`) and closed; return `why`."""

        def over() -> bool:
            told = self.story(uid)
            return (
                told is not None
                and told["line"]["generation"] >= generation
                and told["line"]["state"] in (states or OVER)
                and codes(told, generation=told["line"]["generation"]).count("study.closed") == 1
            )

        try:
            servers.wait_until(over, seconds=seconds, what=f"the end of study {uid}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.describe(uid)}") from None
        return self.why(uid)

    def describe(self, uid: str) -> str:
        """Return what is known of a study and the service's last lines, for a failure's text."""
        told = self.radseal("why", uid, code=None)
        last = self.log.read_text(errors="replace").splitlines()[-20:]
        return "\n".join([told.stdout, told.stderr, *last])

    def send(
        self, paths: Iterable[Path], *, calling: str = MODALITY, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Send files as they are by dcmtk's dcmsend, in one association where one is enough."""
        command = [
            servers.program("dcmsend", "dcmtk"),
            *("-v", "--decompress-never", "-aet", calling, "-aec", AE_TITLE),
            *(servers.HOST, str(self.port), *(str(path) for path in paths)),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        if code is not None and done.returncode != code:
            last = (done.stdout + done.stderr)[-2000:]
            raise AssertionError(f"dcmsend ended with {done.returncode}: {last}")
        return done

    def idle(self) -> bool:
        """Whether everything that was received is indexed."""
        return not any((self.folder / "instances" / "inbox").glob("*.dcm"))

    def memory_mb(self) -> dict[str, float]:
        """Return the resident memory of the service's processes, model children apart."""
        found = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError, ValueError, StopIteration):
                if os.getpgid(int(status.parent.name)) != self._group():
                    continue
                words = (status.parent / "cmdline").read_bytes().split(b"\0")
                kind = "listener" if b"bridge.intake.dimse" in words else "serve"
                if kind == "serve" and b"serve" not in words:
                    continue
                line = next(li for li in status.read_text().splitlines() if li.startswith("VmRSS"))
                found[kind] = int(line.split()[1]) / 1024
        return found

    def _group(self) -> int:
        return self.server.process.pid if self.server is not None else -1


def renamed(
    paths: Iterable[Path], folder: Path, uids: dict[str, str], **attributes: object
) -> list[Path]:
    """Copy files with new UIDs and these attributes, the pixel bytes as they are.

    Equal UIDs stay equal: `uids` maps old to new, is filled here, and joins further copies to the
    same study when it is given again.
    """
    folder.mkdir(parents=True)
    made = []
    for path in paths:
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            old = str(dataset[keyword].value)
            setattr(dataset, keyword, uids.setdefault(old, str(generate_uid())))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(folder / path.name)
        made.append(folder / path.name)
    return made


def study_of(path: Path) -> str:
    """Return a file's StudyInstanceUID."""
    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def codes(told: Mapping[str, Any], generation: int | None = None) -> list[str]:
    """Return the codes of a story's facts, in order of time."""
    return [
        line["code"]
        for line in told["lines"]
        if generation is None or line["generation"] == generation
    ]


def words(told: Mapping[str, Any], code: str) -> list[str]:
    """Return what a story says under a code."""
    return [line["words"] for line in told["lines"] if line["code"] == code]


def destination(name: str, ae_title: str, port: int, **more: object) -> dict[str, object]:
    """Return a [[destinations]] table on loopback."""
    return {"name": name, "ae_title": ae_title, "host": servers.HOST, "port": port, **more}


def source(name: str, ae_title: str, **more: object) -> dict[str, object]:
    """Return a [[sources]] table."""
    return {"name": name, "ae_title": ae_title, **more}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return json.dumps(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    raise TypeError(value)


def _table(head: str, values: Mapping[str, object]) -> str:
    return "\n".join([head, *(f"{key} = {_toml(value)}" for key, value in values.items()), ""])


def _settings(
    house: House,
    sources: Sequence[Mapping[str, object]],
    destinations: Sequence[Mapping[str, object]],
    tables: Mapping[str, Mapping[str, object]],
) -> str:
    listener = {"ae_title": AE_TITLE, "host": servers.HOST, "port": house.port}
    given = {"listener": listener, "http": {"port": house.http_port}, **tables}
    given["listener"] = {**listener, **tables.get("listener", {})}
    return "\n".join(
        [
            'name = "Test Hospital"\norigin = "test.radseal.example/log"',
            *(_table(f"[{name}]", values) for name, values in given.items()),
            *(_table("[[sources]]", one) for one in sources),
            *(_table("[[destinations]]", one) for one in destinations),
        ]
    )


def supply(house: House, package: Path, key: Path) -> str:
    """Trust, push, approve and activate a package; returns its id."""
    manifest = json.loads((package / "configs" / "metadata.json").read_text("utf-8"))
    identity = manifest["deployment"]["identity"]
    house.radseal("model", "trust", key, "--vendor", identity["vendor"])
    house.radseal("model", "push", package)
    house.radseal("model", "approve", identity["id"], "--by", "dr-approver")
    house.radseal("model", "activate", identity["id"], "--by", "dr-approver")
    return str(identity["id"])


@contextlib.contextmanager
def served(
    *,
    packages: Sequence[Path] = (),
    key: Path | None = None,
    sources: Sequence[Mapping[str, object]] = ({"name": "ct", "ae_title": MODALITY},),
    destinations: Sequence[Mapping[str, object]] = (),
    quiet_seconds: float = 2,
    tables: Mapping[str, Mapping[str, object]] | None = None,
    folder: Path | None = None,
    ports: tuple[int, int] | None = None,
) -> Iterator[House]:
    """Make a site with these packages (all signed by `key`), serve it, end it.

    `tables` are further tables of site.toml: {"patients": {"issuer": "GH"}}. With `ports` given,
    (DICOM, HTTP), others can be told of them before.
    """
    tables = {"completion": {"quiet_seconds": quiet_seconds}, **(tables or {})}
    with servers.own_folder("site", folder) as place:
        port, http_port = ports or (servers.free_port(), servers.free_port())
        house = House(place / "site", port, http_port, place / "serve.log")
        house.radseal("init", house.folder)
        text = _settings(house, sources, destinations, tables)
        (house.folder / "site.toml").write_text(text, encoding="utf-8")
        for package in packages:
            if key is None:
                raise ValueError("packages need the vendor's public key")
            supply(house, package, key)
        with serving(house) as running:
            yield running


@contextlib.contextmanager
def serving(house: House) -> Iterator[House]:
    """Serve a site that is there, until the block ends."""
    ready = f"http://{servers.HOST}:{house.http_port}/health/ready"
    command = [sys.executable, "-m", "bridge", "serve", "--site", str(house.folder)]
    with servers.running(
        command,
        house.log.parent,
        ready=lambda: servers.http_ok(ready),
        seconds=60,
        name="serve",
        env=_ENVIRONMENT,
    ) as server:
        yield House(house.folder, house.port, house.http_port, server.log, server, house._tokens)
