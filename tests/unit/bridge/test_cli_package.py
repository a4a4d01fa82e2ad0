"""radseal model new and check: what whoever makes a package types, without a site."""

from __future__ import annotations

import json

import pytest
from bench import ANNA, Vendor, changed, every, images, tiny, write_package

from bridge import ambient, rehearsal
from bridge.errors import NotFound
from models.errors import RunFailed
from models.package import load


@pytest.fixture
def root(tmp_path):
    return write_package(tmp_path / "pkg")


def lay(folder, datasets):
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{len(list(folder.iterdir()))}-{number}.dcm",
                        enforce_file_format=True)  # fmt: skip
    return folder


def test_new_from_a_graph_and_check_names_what_is_open(radseal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "new"
    (tmp_path / "model.onnx").write_bytes(tiny.threshold_graph().SerializeToString())
    words = ("new", "--id", "com.acme.x", "--vendor", "Acme", "--onnx", "model.onnx")
    told = radseal("model", "new", *words)
    assert "test_data_set_0 is recorded" in told.out
    assert "TODO configs/metadata.json: intended_use" in told.out
    assert (root / "selftest/test_data_set_0/output_0.pb").exists()
    said = radseal("model", "check", root, code=1).out
    assert "FAULT configs/metadata.json: deployment.preprocess[0].op" in said
    assert "signature: unsigned" in said
    again = radseal("model", "new", root, "--id", "com.acme.x", "--vendor", "Acme", code=1)
    assert "not empty" in again.err


def test_new_without_a_graph(radseal, tmp_path):
    radseal("model", "new", tmp_path / "p", "--id", "a.b", "--vendor", "v", "--kind", "multilabel")
    manifest = json.loads((tmp_path / "p/configs/metadata.json").read_text())
    assert manifest["deployment"]["outputs"][0]["kind"] == "multilabel"
    assert "models/model.onnx: is missing" in radseal("model", "check", tmp_path / "p", code=1).out


@pytest.mark.parametrize(
    "words",
    [("--id", "../x", "--vendor", "v"), ("--id", "a.b", "--vendor", " "),
     ("--id", "a.b", "--vendor", "v", "--kind", "magic")],
)  # fmt: skip
def test_new_with_names_that_no_package_may_have(radseal, tmp_path, words):
    radseal("model", "new", tmp_path / "p", *words, code=2)
    assert not (tmp_path / "p").exists()


def test_new_from_what_is_no_graph(radseal, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"x")
    words = ("--id", "a.b", "--vendor", "v", "--onnx")
    assert "not an ONNX file" in radseal(
        "model", "new", tmp_path / "p", *words, tmp_path / "x.onnx", code=1
    ).err  # fmt: skip
    assert "no file" in radseal("model", "new", tmp_path / "p", *words, tmp_path / "y", code=1).err


def test_check_says_all_faults_and_the_card(radseal, root):
    (root / "docs/model-card.xml").write_text("<Card><Warnings>None known</Warnings></Card>")
    vendor = Vendor()
    vendor.sign(root)
    (root.parent / "v.pem").write_bytes(vendor.public)
    told = radseal("model", "check", root, "--key", root.parent / "v.pem").out
    assert "self-test: passed" in told
    assert "signature: verified" in told
    assert "card: Warnings: None known" in told
    (root / "docs/model-card.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    assert "FAULT docs/model-card.xml: holds a document type" in radseal(
        "model", "check", root, code=1
    ).out  # fmt: skip
    write_package(root, {"version": "../", "deployment": {"surprise": 1, "layout": "sideways"}})
    broken = radseal("model", "check", root, code=1).out
    assert broken.count("FAULT") == 3
    assert "self-test: not run" in broken


def test_check_on_files_shows_the_choice_the_findings_and_the_report(radseal, root, tmp_path):
    fits = images(4)
    other = every(images(2, series="other", seed=1), Modality="MR", SeriesNumber=7)
    folder = lay(tmp_path / "study", [*fits, *other])
    (folder / "notes.txt").write_text("not DICOM")
    told = radseal("model", "check", root, folder).out
    assert "left out: notes.txt" in told
    assert "series 7 (MR): Modality is MR, wanted CT" in told
    assert "selected for the role image" in told
    assert "4 files" in told
    assert "finding: Threshold" in told
    assert f"Bright, {4 * 8 * 8} voxels" in told
    assert "mL" in told
    assert "peak memory" in told
    assert "onnxruntime" in told
    assert "Imaging Measurement Report" in told
    assert "Finding: Bright" in told
    assert "FAULT" not in told
    assert not any(part in told for part in (*ANNA.name.split("^"), ANNA.id, "ACC-1"))


def test_files_that_the_model_does_not_want(root, tmp_path):
    one = lay(tmp_path / "mr", every(images(2), Modality="MR"))
    second = [changed(d, StudyInstanceUID="2.25.77") for d in every(images(1), Modality="US")]
    tried = rehearsal.on(load(root), [lay(one, second)], ambient.now)
    told = "\n".join(tried.lines)
    assert not tried.ran
    assert "study 2 of 2" in told
    assert told.count("not selected") == 2
    assert "wanted CT" in told


def test_files_that_are_not_there_or_no_images(root, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(NotFound, match="folder of them"):
        rehearsal.on(load(root), [tmp_path / "notes.txt"], ambient.now)
    with pytest.raises(NotFound, match="neither"):
        rehearsal.on(load(root), [tmp_path / "nowhere"], ambient.now)


def test_a_run_that_fails_is_said(root, tmp_path, monkeypatch):
    def fail(**_words):
        raise RunFailed("timeout", "no answer within 1 seconds")

    monkeypatch.setattr("models.sandbox.run", fail)
    tried = rehearsal.on(load(root), [lay(tmp_path / "s", images(2))], ambient.now)
    assert not tried.ran
    assert tried.lines[-1] == "FAILED (timeout): no answer within 1 seconds"


def test_import_takes_a_bundle_and_lists_what_is_left(radseal, root, tmp_path):
    manifest = json.loads((root / "configs/metadata.json").read_text())
    del manifest["deployment"]
    (root / "configs/metadata.json").write_text(json.dumps(manifest))
    told = radseal("model", "import", root, tmp_path / "taken").out
    assert "left: there is no configs/inference.json" in told
    assert "TODO configs/metadata.json: deployment.identity.id" in told
    said = radseal("model", "check", tmp_path / "taken", code=1).out
    assert "deployment.identity.vendor: is not filled in yet" in said
    radseal("model", "import", root, tmp_path / "c", "--id", "../x", code=2)
    assert "not there" in radseal("model", "import", tmp_path / "x.zip", tmp_path / "d", code=1).err
