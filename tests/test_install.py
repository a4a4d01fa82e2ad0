"""A plain install (a wheel, not editable, no clone beside it) is the whole product."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a virtualenv that holds our wheel; dependencies are this one's."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder / "venv", with_pip=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*wheel, str(ROOT)], check=True)
    (found,) = folder.glob("*.whl")
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "--quiet", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(found)], check=True)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A path inside a .pth file is taken without the .pth files that lie there: not our clone.
    dependencies = site_packages / "dependencies.pth"
    dependencies.write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return folder / "venv" / "bin"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RADSEAL"))}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=240,
        env={**clean, "COLUMNS": "200"},
    )  # fmt: skip


def test_the_programs_are_there_and_come_from_the_wheel(installed, tmp_path):
    said = run([str(installed / "radseal"), "--help"], tmp_path)
    assert said.returncode == 0, said.stderr
    said = run([str(installed / "python"), "-m", "ledger", "--help"], tmp_path)
    assert said.returncode == 0, said.stderr
    where = run(
        [str(installed / "python"), "-c", "import bridge; print(bridge.__file__)"], tmp_path
    )
    assert str(installed.parent) in where.stdout


@pytest.mark.peer
def test_the_demo_runs_in_an_empty_folder_and_says_what_the_readme_shows(installed, tmp_path):
    done = run([str(installed / "radseal"), "demo"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    excerpt = re.search(r"```\n\$ make demo\n(.*?)```", readme, flags=re.DOTALL)
    assert excerpt
    said, at = " ".join(done.stdout.split()), 0
    for piece in re.split(r"[…\n]", excerpt[1]):
        words = " ".join(piece.split())
        assert words in said[at:], f"the README shows {words!r}, the demo does not say it there"
        at = said.index(words, at) + len(words)
