"""bridge.peers.dicom: outcomes are values; a strange peer is an ordinary day."""

from __future__ import annotations

import socket
import threading

import pytest
import servers
from bench import images
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.sop_class import CTImageStorage

from bridge.peers import dicom
from bridge.peers.dicom import Peer


def peer(pacs, **changes) -> Peer:
    said = {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port, "calling": "US"}
    return Peer(**(said | changes))


def files(folder, count: int = 2):
    made = []
    for image in images(count):
        path = folder / f"{image.InstanceNumber}.dcm"
        image.save_as(path, enforce_file_format=True)
        made.append((str(image.SOPInstanceUID), path))
    return made


def nobody() -> Peer:
    return Peer("X", "127.0.0.1", servers.free_port(), "US")


@pytest.fixture
def mute(monkeypatch):
    """A port that takes a connection and never says a word."""
    monkeypatch.setattr(dicom, "TIMEOUT", 1.0)
    server = socket.create_server(("127.0.0.1", 0))
    held = []
    thread = threading.Thread(target=lambda: held.append(server.accept()), daemon=True)
    thread.start()
    yield Peer("MUTE", "127.0.0.1", server.getsockname()[1], "US")
    server.close()
    for connection, _ in held:
        connection.close()


# C-ECHO


def test_echo(archive):
    assert dicom.echo(peer(archive())) == (True, "answers")


def test_echo_to_nobody():
    ok, words = dicom.echo(nobody())
    assert not ok
    assert "does not answer" in words


def test_echo_to_a_mute_peer(mute):
    assert dicom.echo(mute)[0] is False


# C-FIND


def test_counts(archive):
    pacs = archive()
    pacs.series = {"1.2": (3, "CT"), "1.3": (1, "PR")}
    counted = dicom.counts(peer(pacs), "1.1")
    assert counted.series == {"1.2": 3, "1.3": 1}
    assert counted.modalities == {"1.2": "CT", "1.3": "PR"}


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC000, 0xFE00])
def test_an_error_at_the_end_tells_nothing(archive, status):
    pacs = archive()
    pacs.series, pacs.find_status = {"1.2": (3, "CT")}, status
    assert dicom.counts(peer(pacs), "1.1") is None


@pytest.mark.parametrize("count", [None, b"", b"many ", b"-3"])
def test_a_count_that_is_none_tells_nothing(archive, count):
    pacs = archive()
    pacs.series = {"1.2": (3, "CT"), "1.3": (count, "CT")}
    assert dicom.counts(peer(pacs), "1.1") is None


def test_no_series_tells_nothing(archive):
    assert dicom.counts(peer(archive()), "1.1") is None


def test_nobody_and_a_mute_peer_tell_nothing(mute):
    assert dicom.counts(nobody(), "1.1") is None
    assert dicom.counts(mute, "1.1") is None


def test_a_peer_that_does_not_find(archive):
    pacs = archive()
    pacs._server.ae.supported_contexts = [
        cx for cx in pacs._server.ae.supported_contexts if "Find" not in cx.abstract_syntax.name
        and "FIND" not in cx.abstract_syntax.name
    ]  # fmt: skip
    assert dicom.counts(peer(pacs), "1.1") is None


# C-STORE


def test_store(archive, tmp_path):
    pacs = archive()
    sent = dicom.store(peer(pacs), files(tmp_path))
    assert {one.outcome for one in sent.values()} == {"stored"}
    assert pacs.uids() == set(sent)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, "stored"),
        (0xB000, "stored"),
        (0xB006, "stored"),
        (0xB007, "stored"),
        (0xA700, "transient"),
        (0xA701, "transient"),
        (0x0110, "transient"),
        (0x0213, "transient"),
        (0xA900, "permanent"),
        (0xC000, "permanent"),
        (0xC123, "permanent"),
        (0x0117, "permanent"),
        (0x0122, "permanent"),
        (0x0124, "permanent"),
    ],
)
def test_a_verdict_on_each_status(status, outcome):
    said = Dataset()
    said.Status = status
    verdict = dicom._verdict(said)
    assert verdict.outcome == outcome
    assert f"0x{status:04X}" in verdict.words


def test_no_answer_is_tried_again():
    assert dicom._verdict(Dataset()).outcome == "transient"


def test_store_to_nobody_is_tried_again(tmp_path, mute):
    for target in (nobody(), mute):
        sent = dicom.store(target, files(tmp_path))
        assert {one.outcome for one in sent.values()} == {"transient"}


def test_what_is_no_dicom_file_is_said_and_keeps_nothing_else_back(archive, tmp_path):
    (tmp_path / "README").write_text("x" * 400)
    (tmp_path / "empty").write_bytes(b"")
    pacs = archive()
    some = [*files(tmp_path), ("readme", tmp_path / "README"), ("empty", tmp_path / "empty")]
    sent = dicom.store(peer(pacs), some)
    assert len(pacs.received) == 2
    assert sent["readme"].outcome == sent["empty"].outcome == "permanent"
    assert "no DICOM file" in sent["readme"].words
    assert dicom.store(nobody(), some[2:])["readme"].outcome == "permanent"
    assert dicom.store(nobody(), []) == {}


def test_a_class_that_is_not_taken_is_final_and_said(archive, tmp_path):
    pacs = archive(takes=["1.2.840.10008.5.1.4.1.1.88.33"])
    sent = dicom.store(peer(pacs), files(tmp_path))
    assert {one.outcome for one in sent.values()} == {"permanent"}
    assert all("does not take CT Image Storage" in one.words for one in sent.values())


def test_a_peer_that_takes_only_implicit_gets_that(archive, tmp_path):
    pacs = archive()
    for context in pacs._server.ae.supported_contexts:
        if context.abstract_syntax == CTImageStorage:
            context.transfer_syntax = [ImplicitVRLittleEndian]
    sent = dicom.store(peer(pacs), files(tmp_path))
    assert {one.outcome for one in sent.values()} == {"stored"}
    assert {d.file_meta.TransferSyntaxUID for d in pacs.received} == {ImplicitVRLittleEndian}
    assert pacs.received[0].PixelData == images(2)[0].PixelData


def test_a_peer_that_dies_in_the_middle(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "TIMEOUT", 3.0)
    pacs = archive()
    real = pacs._store

    def store(event):
        if pacs.received:
            event.assoc.abort()
        return real(event)

    pacs._server._handlers[dicom.evt.EVT_C_STORE] = (store, None)
    sent = dicom.store(peer(pacs), files(tmp_path, 4))
    outcomes = [one.outcome for one in sent.values()]
    assert outcomes[0] == "stored"
    assert outcomes[-1] == "transient"
