"""Starts real outside programs for tests: Orthanc, dcmtk's storescp, PostgreSQL.

Each is a context manager: own temporary folder, own free loopback ports, ready
when the `with` block begins, ended (whole process group) when it closes. A
missing program raises `MissingError` with the Debian package to install; the
fixtures of conftest.py turn that into a skip, and into a failure under CI.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
_POSTGRES_BINARIES = Path("/usr/lib/postgresql")
_INITDB = [
    "-U",
    "radseal",
    "-A",
    "trust",
    "-E",
    "UTF8",
    "--locale=C",
    "--no-sync",
    "--no-instructions",
]


class MissingError(RuntimeError):
    """A program that a test needs is not on this machine."""


class StartError(RuntimeError):
    """A server ended, or stayed silent, before it was ready."""


def program(name: str, package: str, *, outside_venv: bool = True) -> str:
    """Return the path of `name`; raises MissingError naming the Debian package."""
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if outside_venv:  # the virtualenv carries programs of equal names from other builds
        places = [place for place in places if ".venv" not in place]
    found = shutil.which(name, path=os.pathsep.join([*places, "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise MissingError(f"{name} is not installed: apt-get install {package}")
    return found


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], *, seconds: float = 30.0, what: str = "it") -> None:
    """Poll `true` until it holds; raises TimeoutError saying `what` did not happen."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)


@dataclass
class Running:
    """A started program with the file that holds what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """Return all it printed so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End it at once, as `kill -9` of the whole group does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    *,
    ready: Callable[[], bool],
    seconds: float = 30.0,
    end: signal.Signals = signal.SIGTERM,
    name: str | None = None,
    **popen: Any,
) -> Iterator[Running]:
    """Start `command` in a process group of its own, wait for `ready`, end it on leaving."""
    log = folder / f"{name or Path(command[0]).name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **popen,
        )
    server = Running(process, log)
    try:
        _await_ready(server, ready, seconds)
        yield server
    finally:
        _end(process, end)


def _await_ready(server: Running, ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        status = server.process.poll()
        if status is not None or time.monotonic() > deadline:
            state = "is silent" if status is None else f"ended with status {status}"
            last = "\n".join(server.text().splitlines()[-15:])
            raise StartError(f"{server.process.args!r} {state} before it was ready:\n{last}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes], end: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):  # children that outlived their parent
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def own_folder(name: str, folder: Path | None = None) -> Iterator[Path]:
    """Give `folder`, or a new temporary folder that is removed on leaving."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    made = Path(tempfile.mkdtemp(prefix=f"radseal-{name}-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def echoes(ae_title: str, port: int) -> bool:
    """Whether a DICOM peer answers C-ECHO on this port."""
    command = [program("echoscu", "dcmtk"), "-to", "3", "-aec", ae_title, HOST, str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def http_ok(url: str) -> bool:
    """Whether a GET of this loopback address answers 2xx."""
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return bool(200 <= answer.status < 300)
    except (OSError, urllib.error.URLError):
        return False


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc: a real PACS with a REST interface to look inside."""

    ae_title: str
    port: int
    http_port: int
    folder: Path
    server: Running
    host: str = HOST

    @property
    def url(self) -> str:
        """Root of its REST interface, without a closing slash."""
        return f"http://{self.host}:{self.http_port}"

    def get(self, path: str) -> Any:
        """GET `path` ("/instances") and return the parsed JSON."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        """GET `path` and return the bytes."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return bytes(answer.read())

    def post(self, path: str, body: object) -> Any:
        """POST `body` (bytes as they are, anything else as JSON) and return the parsed JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def delete(self, path: str) -> None:
        """DELETE `path` ("/patients/ID")."""
        request = urllib.request.Request(self.url + path, method="DELETE")
        with urllib.request.urlopen(request, timeout=60):
            pass

    def find(self, level: str = "Instance", **query: str) -> list[dict[str, Any]]:
        """Return the resources of `level` whose tags match `query` (keywords of DICOM)."""
        found = self.post("/tools/find", {"Level": level, "Query": query, "Expand": True})
        return list(found)

    def files(self, **query: str) -> list[bytes]:
        """Return the DICOM files whose tags match `query`, as stored."""
        return [self.read(f"/instances/{one['ID']}/file") for one in self.find(**query)]


@contextlib.contextmanager
def orthanc(
    *,
    ae_title: str = "ORTHANC",
    modalities: Mapping[str, tuple[str, int]] | None = None,
    options: Mapping[str, object] | None = None,
    port: int | None = None,
    http_port: int | None = None,
    folder: Path | None = None,
) -> Iterator[Orthanc]:
    """Run an Orthanc that accepts everybody on loopback.

    `modalities` maps a name to (AE title, port) of peers that it may call (C-MOVE, C-STORE,
    storage commitment). `options` overrides its configuration. With `port` and `folder` given it
    can be stopped and started again as the same PACS.
    """
    binary = program("Orthanc", "orthanc")
    with own_folder("orthanc", folder) as place:
        port, http_port = port or free_port(), http_port or free_port()
        configuration = {
            "Name": "radseal test",
            "StorageDirectory": str(place / "storage"),
            "IndexDirectory": str(place / "index"),
            "HttpPort": http_port,
            "HttpBindAddresses": [HOST],
            "DicomPort": port,
            "DicomAet": ae_title,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomCheckModalityHost": False,
            "UnknownSopClassAccepted": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StableAge": 1,
            "ExecuteLuaEnabled": False,
            "Plugins": [],
            "DicomModalities": {
                name: [title, HOST, number] for name, (title, number) in (modalities or {}).items()
            },
            **(options or {}),
        }
        path = place / "orthanc.json"
        path.write_text(json.dumps(configuration, indent=1))
        system = f"http://{HOST}:{http_port}/system"
        with running(
            [binary, str(path)],
            place,
            ready=lambda: http_ok(system) and echoes(ae_title, port),
            name="orthanc",
        ) as server:
            yield Orthanc(ae_title, port, http_port, place, server)


@dataclass(frozen=True)
class StoreSCP:
    """A running storescp: takes every C-STORE and writes one file an instance."""

    ae_title: str
    port: int
    received: Path
    server: Running
    host: str = HOST

    def files(self) -> list[Path]:
        """Return the files received so far, in order of their names."""
        return sorted(path for path in self.received.rglob("*") if path.is_file())


@contextlib.contextmanager
def storescp(
    *,
    ae_title: str = "PACS",
    options: Sequence[str] = ("+xa",),
    port: int | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[StoreSCP]:
    """Run dcmtk's storescp, one child process an association, any transfer syntax."""
    binary = program("storescp", "dcmtk")
    with own_folder("storescp", folder) as place:
        port = port or free_port()
        received = place / "received"
        received.mkdir(exist_ok=True)
        command = [binary, "--fork", "-aet", ae_title, "-od", str(received), *options, str(port)]
        with running(
            command,
            place,
            ready=lambda: echoes(ae_title, port),
            env={**os.environ, **(environment or {})},
        ) as server:
            yield StoreSCP(ae_title, port, received, server)


@dataclass(frozen=True)
class PostgreSQL:
    """A running PostgreSQL cluster of its own; the user is `radseal`, without a password."""

    port: int
    folder: Path
    server: Running
    host: str = HOST
    _made: list[str] = field(default_factory=list)

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy address of a database of this cluster."""
        return f"postgresql+psycopg://radseal@{self.host}:{self.port}/{database}"

    def create(self, prefix: str = "test") -> str:
        """Create an empty database and return its address."""
        name = f"{prefix}_{len(self._made) + 1}"
        self._made.append(name)
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, ending its connections."""
        name = urllib.parse.urlsplit(url).path.lstrip("/")
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside a transaction and return its rows, if any."""
        import psycopg

        where = f"postgresql://radseal@{self.host}:{self.port}/{database}"
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def _postgres_binaries() -> Path:
    for folder in sorted(_POSTGRES_BINARIES.glob("*/bin"), reverse=True):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return Path(program("initdb", "postgresql")).parent


def _unprivileged() -> dict[str, Any]:
    """Popen arguments that run as somebody else where we are root (initdb refuses root)."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            person = pwd.getpwnam(name)
            return {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}
    raise MissingError("PostgreSQL refuses to run as root and there is no user postgres or nobody")


@contextlib.contextmanager
def postgres(
    *,
    options: Mapping[str, str] | None = None,
    port: int | None = None,
    folder: Path | None = None,
) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL cluster on loopback; `options` are its settings (`fsync` is off).

    A `folder` given must be reachable by the user `postgres` where tests run as root; with `port`
    and `folder` it can be stopped and started again with its data.
    """
    binaries, person = _postgres_binaries(), _unprivileged()
    with own_folder("postgres", folder) as place:
        data = place / "data"
        if person:
            os.chown(place, person["user"], person["group"])
        if not (data / "PG_VERSION").exists():
            made = subprocess.run(
                [str(binaries / "initdb"), "-D", str(data), *_INITDB],
                capture_output=True,
                text=True,
                check=False,
                cwd=place,
                **person,
            )
            if made.returncode:
                raise StartError(f"initdb: {made.stderr}")
        port = port or free_port()
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "200",
            **(options or {}),
        }
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        ready = [str(binaries / "pg_isready"), "-q", "-h", HOST, "-p", str(port)]
        with running(
            command,
            place,
            ready=lambda: subprocess.run(ready, check=False).returncode == 0,
            end=signal.SIGINT,  # "fast" shutdown: does not wait for clients
            cwd=place,
            **person,
        ) as server:
            yield PostgreSQL(port, place, server)
