"""bridge.catalog.registrar: crashes and neighbours between a package's copy, leaf and row."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from bench import MODEL, tiny

from bridge import ambient
from bridge.errors import Refused
from bridge.store import catalog
from bridge.store.database import reading
from models import package, sandbox
from models.errors import ModelError


class Killed(Exception):
    """What a kill -9 is to a test."""


def of(vendor: str, **identity: str) -> dict[str, Any]:
    """Change a package's manifest: another vendor's."""
    return {"deployment": {"identity": {"vendor": vendor, **identity}}}


def rows(desk):
    with reading(desk.rooms.database) as connection:
        return catalog.find_models(connection, MODEL)


def registered(desk):
    return [one["body"] for one in desk.leaves() if one["type"] == "model.registered"
            and one["body"]["id"] == MODEL]  # fmt: skip


@pytest.mark.fault
def test_after_a_crash_between_leaf_and_row_the_leaf_names_the_registrant(desk):
    root = desk.package()
    with mock.patch.object(catalog, "add_model", side_effect=Killed), pytest.raises(Killed):
        desk.push(root, by="anna")
    assert [one["by"] for one in registered(desk)] == ["anna"]
    desk.push(root, by="bert")
    assert len(registered(desk)) == 1
    with pytest.raises(Refused, match="second one"):
        desk.rooms.lifecycle.act(MODEL, "approve", ambient.now(), by="Anna")
    desk.rooms.lifecycle.act(MODEL, "approve", ambient.now(), by="bert")
    desk.verify()


def test_a_package_that_is_refused_takes_no_id(desk):
    failed = sandbox.SelfTest(False, "it is off by 3")
    with (
        mock.patch.object(sandbox, "admit", return_value=[]),
        mock.patch.object(sandbox, "selftest", return_value=failed),
        pytest.raises(Refused, match="off by 3"),
    ):
        desk.rooms.registrar.push(
            desk.package(of("squatter")), ambient.now(), by="x", progress=lambda _: None
        )
    assert desk.push(desk.package(name="own")).vendor == "test"


def test_a_refusal_names_no_other_vendor(desk):
    desk.push(desk.package())
    graph = tiny.threshold_graph(above=91.0)
    roots = [
        desk.package(of("other") | {"version": "9.0.0"}, name="same-id", model=graph),
        desk.package(of("other", id="other.one"), name="same-graph"),
    ]
    for root in roots:
        with pytest.raises(Refused, match="another vendor") as refused:
            desk.push(root)
        told = str(refused.value)
        assert "belongs to test" not in told
        assert f"{MODEL}@1.2.3" not in told


def test_pushing_again_mends_files_that_changed(desk):
    root = desk.package()
    row = desk.push(root)
    kept = desk.settings.folder / row.folder
    (kept / "models" / "model.onnx").write_bytes(b"rotten")
    with pytest.raises(ModelError):
        desk.rooms.catalog.package(row.digest)
    assert desk.push(root) == row
    assert desk.rooms.catalog.package(row.digest).package_digest == row.package_digest


def test_two_pushes_at_once_are_one_leaf_and_one_row(desk):
    root, meet = desk.package(), threading.Barrier(2)
    found: list[object] = []

    def admit(_package: object, _limits: object) -> list[object]:
        meet.wait(10)  # both have looked, and neither is registered
        return []

    def push(by: str) -> None:
        found.append(
            desk.rooms.registrar.push(root, ambient.now(), by=by, progress=lambda _what: None)
        )

    with (
        mock.patch.object(sandbox, "admit", admit),
        mock.patch.object(sandbox, "selftest", return_value=sandbox.SelfTest(True, "")),
    ):
        threads = [threading.Thread(target=push, args=(by,)) for by in ("anna", "bert")]
        for one in threads:
            one.start()
        for one in threads:
            one.join(20)
    (row,) = rows(desk)
    assert found == [row, row]
    (leaf,) = registered(desk)
    assert leaf["by"] == row.acts[0]["by"]
    left = [path.name for path in (desk.settings.folder / "models").iterdir()]
    assert not [name for name in left if name.endswith(".part")]
    folder: Path = desk.settings.folder / row.folder
    assert package.load(folder).package_digest == row.package_digest
