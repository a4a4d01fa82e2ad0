"""C-STORE instances a second: dcmtk storescp, Orthanc and radseal, side by side in one run.

    make bench
    python tests/benchmarks/intake.py --rounds 3 --radseal 'radseal serve --site {site}'

The sender is dcmtk's storescu, once with 1 and once with 4 associations at the same time, with
TCP_NODELAY=1 on every end (without it both ends wait 40 ms a message). All receivers get the same
files in the same round, new UIDs each round, and the order of receivers rotates. What counts is
the ratio within a run: the table shows medians and the ratios to Orthanc and to storescp.
radseal and Orthanc acknowledge after fsync; storescp does not fsync at all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import servers
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
SITE_ENVIRONMENT = {
    "RADSEAL_LISTENER__HOST": "127.0.0.1",
    "RADSEAL_LISTENER__ACCEPT": "any",
    "RADSEAL_COMPLETION__QUIET_SECONDS": "3600",  # intake alone: nothing is read meanwhile
    "RADSEAL_COMPLETION__MAX_WAIT_SECONDS": "7200",
}


@dataclass(frozen=True)
class Kind:
    """What is sent: `side` x `side` pixels of 16 bits, `count` instances a round."""

    name: str
    sop_class: str
    modality: str
    side: int
    count: int


@dataclass(frozen=True)
class Receiver:
    """A started receiver: its name, where it listens."""

    name: str
    ae_title: str
    port: int


def kinds(scale: float) -> list[Kind]:
    """The two loads of the table: 512² CT (524 kB) and small MR (39 kB)."""
    return [
        Kind("CT 512² 524 kB", CTImageStorage, "CT", 512, max(8, int(80 * scale))),
        Kind("MR 140² 39 kB", MRImageStorage, "MR", 140, max(8, int(400 * scale))),
    ]


def write(kind: Kind, seed: int, folders: list[Path]) -> None:
    """Write one study of `kind`, dealt evenly over `folders`; UIDs follow from `seed`."""
    root = f"2.25.{seed + 10**9}"
    pixels = bytes((i * 7 + seed) & 0xFF for i in range(4096)) * (kind.side**2 * 2 // 4096 + 1)
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = kind.sop_class, kind.modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{root}.1", f"{root}.1.1"
    ds.PatientID, ds.PatientName, ds.StudyDate = f"BENCH{seed}", "Bench^Intake", "20260101"
    ds.StudyTime, ds.AccessionNumber = "120000", ""
    ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.7, 0.7]
    ds.Rows = ds.Columns = kind.side
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    ds.PixelData = pixels[: kind.side**2 * 2]
    for number in range(1, kind.count + 1):
        ds.SOPInstanceUID, ds.InstanceNumber = f"{root}.1.1.{number}", number
        ds.ImagePositionPatient = [0, 0, number]
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folders[number % len(folders)] / f"{number:05}.dcm"
        ds.save_as(path, enforce_file_format=True)


def send(receiver: Receiver, folders: list[Path]) -> float:
    """Send each folder in an association of its own, all at once; return the seconds it took."""
    storescu = servers.program("storescu", "dcmtk")
    began = time.perf_counter()
    where = [servers.HOST, str(receiver.port)]
    senders = [
        subprocess.Popen(
            [storescu, "-aec", receiver.ae_title, "+sd", *where, str(folder)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for folder in folders
    ]
    said = [sender.communicate()[1].decode(errors="replace") for sender in senders]
    seconds = time.perf_counter() - began
    for sender, text in zip(senders, said, strict=True):
        if sender.returncode or "E:" in text:
            raise SystemExit(f"storescu to {receiver.name} failed:\n{text[-2000:]}")
    return seconds


@contextlib.contextmanager
def a_storescp() -> Iterator[Receiver]:
    """dcmtk's storescp, one process an association."""
    with servers.storescp(environment={"TCP_NODELAY": "1"}) as peer:
        yield Receiver("storescp", peer.ae_title, peer.port)


@contextlib.contextmanager
def an_orthanc() -> Iterator[Receiver]:
    """Orthanc with its defaults (SQLite index, synchronous storage)."""
    os.environ["TCP_NODELAY"] = "1"  # Orthanc's DICOM side is dcmtk as well
    with servers.orthanc() as peer:
        yield Receiver("Orthanc", peer.ae_title, peer.port)


@contextlib.contextmanager
def a_radseal(command: str, make: str) -> Iterator[Receiver]:
    """radseal as `command` starts it, on a new site that `make` made."""
    with servers.own_folder("bench") as place:
        site, port, http = place / "site", servers.free_port(), servers.free_port()
        words = {"site": str(site), "port": str(port), "http": str(http)}
        environment = {
            **ENVIRONMENT,
            **SITE_ENVIRONMENT,
            "RADSEAL_LISTENER__PORT": str(port),
            "RADSEAL_HTTP__PORT": str(http),
        }
        if make:
            subprocess.run(shlex.split(make.format(**words)), check=True, env=environment)
        with servers.running(
            shlex.split(command.format(**words)),
            place,
            ready=lambda: servers.echoes("RADSEAL", port),
            seconds=60,
            env=environment,
        ):
            yield Receiver("radseal", "RADSEAL", port)


def measure(
    starts: dict[str, Callable[[], AbstractContextManager[Receiver]]],
    load: list[Kind],
    rounds: int,
    associations: list[int],
) -> dict[tuple[str, int, str], list[float]]:
    """Return instances a second by (kind, associations, receiver), one number a round."""
    rates: dict[tuple[str, int, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(start()) for start in starts.values()]
        for number in range(rounds + 1):  # round 0 warms up and is not counted
            for kind in load:
                for at_once in associations:
                    with tempfile.TemporaryDirectory(prefix="radseal-bench-") as made:
                        folders = [Path(made, str(i)) for i in range(at_once)]
                        for folder in folders:
                            folder.mkdir()
                        write(kind, number * 1000 + load.index(kind) * 100 + at_once, folders)
                        turn = number % len(receivers)
                        for receiver in receivers[turn:] + receivers[:turn]:
                            rate = kind.count / send(receiver, folders)
                            if number:
                                key = (kind.name, at_once, receiver.name)
                                rates.setdefault(key, []).append(rate)
    return rates


def machine() -> str:
    """One line that says where this was measured."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    kind = ["stat", "-f", "-c", "%T", tempfile.gettempdir()]
    disk = subprocess.run(kind, capture_output=True, text=True, check=False).stdout.strip()
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return f"{os.cpu_count()} x {cpu}; {disk} in {tempfile.gettempdir()}; commit {commit or '-'}"


def show(rates: dict[tuple[str, int, str], list[float]], rounds: int) -> None:
    """Print the table: median instances a second, and the ratios within this run."""
    print(f"\n{machine()}\nmedian of {rounds} rounds, instances a second (min-max)\n")
    print(
        f"{'load':16} {'assoc.':>6}  {'receiver':9} {'inst/s':>16} {'x Orthanc':>10} {'x scp':>7}"
    )
    for (kind, at_once, name), found in sorted(rates.items()):
        middle = statistics.median(found)
        print(f"{kind:16} {at_once:6}  {name:9}", end=" ")
        print(f"{f'{middle:.0f} ({min(found):.0f}-{max(found):.0f})':>16}", end=" ")
        for other, width in (("Orthanc", 10), ("storescp", 7)):
            against = rates.get((kind, at_once, other))
            ratio = f"{middle / statistics.median(against):.2f}" if against else "-"
            print(f"{ratio:>{width}}", end=" ")
        print()


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 21))
    parser.add_argument("--scale", type=float, default=1.0, help="0.1 for a quick look")
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--only", nargs="+", choices=["storescp", "Orthanc", "radseal"])
    parser.add_argument(
        "--make",
        default="radseal init {site} --name Benchmark --origin bench.local/intake",
        help="makes the site; '' for none",
    )
    parser.add_argument(
        "--radseal",
        default="radseal serve --site {site}",
        help="starts radseal's listener; {site}, {port} and {http} are filled in",
    )
    said = parser.parse_args()
    starts: dict[str, Callable[[], AbstractContextManager[Receiver]]] = {
        "storescp": a_storescp,
        "Orthanc": an_orthanc,
        "radseal": lambda: a_radseal(said.radseal, said.make),
    }
    wanted = {name: start for name, start in starts.items() if name in (said.only or starts)}
    try:
        rates = measure(wanted, kinds(said.scale), said.rounds, said.associations)
    except servers.MissingError as missing:
        raise SystemExit(str(missing)) from None
    show(rates, said.rounds)


if __name__ == "__main__":
    main()
