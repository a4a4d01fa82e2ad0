"""bridge.intake.dimse: the listener as the service starts it, called by real associations."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import servers
from bench import changed, images
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage, Verification

from bridge.files import calling_ae_of
from bridge.home import create

LISTED = '[[sources]]\nname = "ct1"\nae_title = "CT1"\n'


class Running:
    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        self.port = servers.free_port()
        create(folder, "Test", "a.example/log")
        accept, _, tables = settings.partition("\n")
        (folder / "site.toml").write_text(
            'name = "Test"\norigin = "a.example/log"\n'
            f'[listener]\nhost = "127.0.0.1"\nport = {self.port}\naccept = "{accept}"\n{tables}'
        )
        self.log = folder.parent / f"{folder.name}.log"
        self.process = subprocess.Popen(  # ends with its standard input
            [sys.executable, "-m", "bridge.intake.dimse", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
        )  # fmt: skip
        self.ready = self.process.stdout.readline()

    @property
    def inbox(self) -> list[Path]:
        return sorted((self.folder / "instances/inbox").glob("*.dcm"))

    @property
    def parts(self) -> list[Path]:
        return list((self.folder / "instances/parts").iterdir())

    def call(self, ae: str = "CT1", *contexts, called: str = "RADSEAL"):
        caller = AE(ae_title=ae)
        caller.requested_contexts = list(contexts) or [
            build_context(CTImageStorage, [ExplicitVRLittleEndian]), build_context(Verification),
        ]  # fmt: skip
        return caller.associate("127.0.0.1", self.port, ae_title=called)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.stdin.close()
        return self.process.wait(timeout=30)


@pytest.fixture
def listener(tmp_path):
    made = []

    def start(settings: str = "any\n") -> Running:
        made.append(Running(tmp_path / f"site{len(made)}", settings))
        assert made[-1].ready == f"ready {made[-1].port}\n"
        return made[-1]

    yield start
    for one in made:
        one.end()


def test_echo(listener):
    association = listener().call()
    assert association.send_c_echo().Status == 0
    association.release()


def test_an_image_is_in_the_inbox_as_it_was_sent_before_success_is_heard(listener):
    here = listener()
    association = here.call()
    for number, image in enumerate(images(3)):
        assert association.send_c_store(image).Status == 0
        assert len(here.inbox) == number + 1
    association.release()
    assert not here.parts
    got = dcmread(here.inbox[0])
    assert got == images(3)[0]
    assert got.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert calling_ae_of(here.inbox[0].stem) == "CT1"
    assert here.inbox[0].stat().st_mode & 0o077 == 0


def test_other_encodings_are_kept_as_sent(listener):
    here = listener()
    association = here.call("CT1", build_context(CTImageStorage, [ImplicitVRLittleEndian]))
    image = changed(images(1)[0])
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert association.send_c_store(image).Status == 0
    association.release()
    assert dcmread(here.inbox[0]).file_meta.TransferSyntaxUID == ImplicitVRLittleEndian


def test_only_listed_callers_may_send(listener):
    here = listener("listed\n" + LISTED)
    known, stranger = here.call("CT1"), here.call("CT2")
    assert known.is_established
    known.release()
    assert stranger.is_rejected


def test_a_site_that_lists_nobody_takes_nobody(listener):
    assert listener("listed\n").call("CT1").is_rejected


def test_accept_any_takes_everybody(listener):
    association = listener("any\n" + LISTED).call("WHOEVER")
    assert association.is_established
    association.release()


def test_a_listed_source_must_call_from_its_host(listener):
    elsewhere = LISTED + 'host = "192.0.2.1"\n'
    assert listener("listed\n" + elsewhere).call("CT1").is_rejected
    assert listener("any\n" + elsewhere).call("CT1").is_rejected
    here = listener("listed\n" + LISTED + 'host = "127.0.0.1"\n').call("CT1")
    assert here.is_established
    here.release()


def test_below_the_watermark_associations_are_refused_not_lost(listener):
    here = listener("any\n[storage]\nwatermark_mb = 1000000000\n")
    refused = here.call()
    assert refused.is_rejected
    assert not here.inbox


def test_an_aborted_sender_leaves_no_part(listener):
    here = listener()
    association = here.call()
    association.send_c_store(images(1)[0])
    association.abort()
    servers.wait_until(lambda: not here.parts, seconds=20, what="the parts are removed")
    assert len(here.inbox) == 1


def test_names_of_the_sender_are_not_logged(listener):
    here = listener("listed\n" + LISTED)
    here.call("CANARY")
    association = here.call()
    association.send_c_store(images(1)[0])
    association.release()
    here.end()
    text = here.log.read_text()
    for canary in ("Alpha", "A-1", "ACC-1", str(images(1)[0].StudyInstanceUID)):
        assert canary not in text


def test_it_ends_with_its_parent(listener):
    here = listener()
    assert here.end() == 0


def test_it_ends_although_a_sender_keeps_its_association(listener):
    here = listener()
    association = here.call()
    assert here.end() == 0
    servers.wait_until(lambda: association.is_aborted, seconds=20, what="the sender hears of it")


def test_it_ends_on_sigterm(listener):
    here = listener()
    here.process.send_signal(signal.SIGTERM)
    assert here.process.wait(timeout=30) == 0


def test_a_port_that_is_taken_is_a_sentence(listener, tmp_path):
    here = listener()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/site.toml").write_text((here.folder / "site.toml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "bridge.intake.dimse", str(tmp_path / "two")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{here.port} cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr
