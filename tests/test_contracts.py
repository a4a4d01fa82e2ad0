"""Every contract of [tool.importlinter] seen red: a break that it must name, made in a copy.

A gate counts only after it has been seen red; a contract without a break here fails too.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bridge", "models", "ledger")

# name of the contract up to the first ":" or "(" -> (file, line added to it, what is then said)
BREAKS = {
    "bridge stands on models and ledger; they know nothing of it or of each other": (
        "ledger/verify.py", "import bridge.study", "ledger.verify -> bridge.study",
    ),
    "rooms of bridge": ("bridge/utils.py", "", "bridge.utils"),
    "rooms of models": (
        "models/sandbox.py", "import models.child", "models.sandbox -> models.child",
    ),
    "rooms of ledger": ("ledger/tiles.py", "import ledger.log", "ledger.tiles -> ledger.log"),
    "decisions do no I/O": (
        "bridge/assemble.py", "import sqlite3", "bridge.assemble -> sqlite3",
    ),
    "the listener's process opens no database and decodes no pixels": (
        "bridge/intake/dimse.py", "import bridge.store.arrivals",
        "bridge.intake.dimse -> bridge.store.arrivals",
    ),
    "pixels and graphs of strangers are opened in the child process only": (
        "bridge/receive.py", "import models.decode", "bridge.receive -> models.decode",
    ),
    "screens ask the house through bridge.api.rooms": (
        "bridge/api/search.py", "import bridge.store.story",
        "bridge.api.search -> bridge.store.story",
    ),
    "pynetdicom": ("bridge/deliver.py", "import pynetdicom", "bridge.deliver -> pynetdicom"),
    "dbos": ("bridge/pipeline.py", "import dbos", "bridge.pipeline -> dbos"),
    "onnxruntime": ("models/tasks.py", "import onnxruntime", "models.tasks -> onnxruntime"),
    "onnx": ("models/package.py", "import onnx", "models.package -> onnx"),
    "highdicom": ("bridge/compose.py", "import highdicom", "bridge.compose -> highdicom"),
    "sqlalchemy": ("bridge/infer.py", "import sqlalchemy", "bridge.infer -> sqlalchemy"),
    "alembic": ("bridge/home.py", "import alembic", "bridge.home -> alembic"),
    "fastapi, starlette, uvicorn": (
        "bridge/front.py", "import fastapi", "bridge.front -> fastapi",
    ),
    "cryptography": (
        "bridge/record.py", "import cryptography.hazmat", "bridge.record -> cryptography",
    ),
    "structlog": ("bridge/receive.py", "import structlog", "bridge.receive -> structlog"),
    "pydantic_settings": (
        "bridge/files.py", "import pydantic_settings", "bridge.files -> pydantic_settings",
    ),
    "typer and rich": ("bridge/acts.py", "import rich", "bridge.acts -> rich"),
}  # fmt: skip

# Rooms that only pass a connection on: these names of sqlalchemy, and nothing that makes SQL.
PASSED_ON = {"Connection", "Engine"}
KEEPERS = ("bridge.store", "bridge.vault", "bridge.logstore", "bridge.engine")


def _contracts() -> list[dict[str, object]]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return list(tomllib.loads(text)["tool"]["importlinter"]["contracts"])


def _short(name: str) -> str:
    return re.split(r"[:(]", name)[0].strip()


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What import-linter says, by contract, of a copy in which every contract is broken once."""
    copy = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / package,
            ignore=lambda folder, names: [
                n for n in names if (Path(folder) / n).is_file() and not n.endswith(".py")
            ],
        )  # fmt: skip
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name, line, _ in BREAKS.values():
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(
        [*command, "--no-cache"], cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "250"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    parts = re.split(r"^(\S.*)\n-{3,}\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("contract", _contracts(), ids=lambda c: _short(str(c["name"])))
def test_a_contract_names_its_break(contract, said):
    name = str(contract["name"])
    assert _short(name) in BREAKS, "make a break for this contract, and see it red"
    assert re.search(rf"{re.escape(BREAKS[_short(name)][2])}\b", said.get(name, "kept"))


def test_every_break_belongs_to_a_contract():
    assert set(BREAKS) == {_short(str(contract["name"])) for contract in _contracts()}


def _nodes(room: str) -> list[ast.AST]:
    """Of a module, or of all modules of a package."""
    path = ROOT / room.replace(".", "/")
    files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return [n for f in files for n in ast.walk(ast.parse(f.read_text(encoding="utf-8")))]


def test_rooms_that_pass_a_connection_on_make_no_sql():
    (contract,) = [c for c in _contracts() if _short(str(c["name"])) == "sqlalchemy"]
    wrong = []
    for room in contract["allowed_importers"]:
        if room in KEEPERS:
            continue
        for node in _nodes(room):
            if isinstance(node, ast.ImportFrom) and node.module == "sqlalchemy":
                wrong += [f"{room}: {n.name}" for n in node.names if n.name not in PASSED_ON]
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("sqlalchemy."):
                wrong.append(f"{room}: {node.module}")
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in {"sqlalchemy", "sa"}
                and node.attr not in PASSED_ON
            ):
                wrong.append(f"{room}: sqlalchemy.{node.attr}")
    assert wrong == []


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


@pytest.mark.parametrize(
    ("folder", "also"), [("ledger", ("ledger", "cryptography")), ("bridge/consent", ())]
)
def test_what_an_auditor_lifts_out_needs_nothing_else(folder, also):
    """Offline proof and re-execution of consent: the standard library, and what is named."""
    own = folder.replace("/", ".")
    needs = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in _imported(path)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not name.startswith(own)
        and name.split(".")[0] not in also
    }
    assert needs == set()
