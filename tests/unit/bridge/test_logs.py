"""bridge.logs: one JSON object a line, and nothing in it that could name a patient."""

from __future__ import annotations

import io
import json
import logging
import warnings

import pytest
import structlog

from bridge import logs


@pytest.fixture
def lines():
    stream = io.StringIO()
    before, config, levels = warnings.showwarning, structlog.get_config(), {}
    for name in ("pydicom", "pynetdicom", "highdicom", "uvicorn", "sqlalchemy", "alembic"):
        levels[name] = logging.getLogger(name).level
    logs.setup(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    warnings.showwarning = before
    structlog.configure(**config)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_an_event_is_one_json_line_with_time_and_level(lines):
    logs.get().info("study.sealed", study="abc", count=3)
    (line,) = lines()
    assert line["event"] == "study.sealed"
    assert line["study"] == "abc"
    assert line["count"] == 3
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")


def test_what_is_not_on_the_list_is_dropped_by_name(lines):
    logs.get().error("x", patient_name="Canary^Name", uid="1.2.3", study="abc")
    (line,) = lines()
    assert line["dropped"] == ["patient_name", "uid"]
    assert "Canary" not in json.dumps(line)
    assert line["study"] == "abc"


def test_an_exception_is_not_printed(lines):
    try:
        raise ValueError("Canary^Name")
    except ValueError:
        logs.get().exception("failed", code="ValueError")
    (line,) = lines()
    assert "Canary" not in json.dumps(line)
    assert "exc_info" in line["dropped"]


def test_a_librarys_warning_is_said_by_kind_and_place(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = logs._warned
        warnings.warn("Invalid value for VR DA: '19Canary'", UserWarning, stacklevel=1)
    (line,) = lines()
    assert line["event"] == "library.warned"
    assert line["code"] == "UserWarning"
    assert line["where"].startswith("test_logs.py:")
    assert "Canary" not in json.dumps(line)


@pytest.mark.parametrize(
    "name", ["pydicom", "pynetdicom.acse", "highdicom.sr", "uvicorn.error", "sqlalchemy.engine"]
)
def test_libraries_do_not_talk(lines, name, capsys):
    logging.getLogger(name).error("Canary^Name")
    assert not lines()
    assert "Canary" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["patient", "patient_id", "patient_name", "accession_number", "uid", "study_instance_uid"],
)
def test_the_list_names_no_patient_and_no_uid(name):
    assert name not in logs.ALLOWED
