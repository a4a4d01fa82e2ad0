"""The READMEs' examples are run, and what they show is compared with what the program says.

Blocks are told apart by their language:

    console   `$ command` lines are run, in order, in one empty folder; `…` in the output stands
              for anything
    sh        commands for people; each `radseal …` must be one that the program understands
    toml      settings; they are read as a site.toml
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pydantic
import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", *(f"{name}/README.md" for name in ("bridge", "models", "ledger"))]
ALL_KEYS = "# every key of site.toml\n"


def blocks(language: str, *names: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    found: list[str] = []
    parser = CodeBlockParser(language, lambda example: found.append(str(example.parsed)))
    for name in names or READMES:
        for example in Sybil([parser], encoding="utf-8").parse(ROOT / name).examples():
            example.evaluate()
    return found


def shown(output: str) -> re.Pattern[str]:
    """A pattern for an output as a README shows it: `…` is anything, white space is one space."""
    parts = [re.escape(" ".join(part.split())) for part in output.split("…")]
    return re.compile(r"\s*" + r"[\s\S]*?".join(parts) + r"\s*")


def examples(block: str) -> list[tuple[str, str]]:
    """A console block as (command, output)."""
    return [
        (part.split("\n", 1)[0], part.split("\n", 1)[1] if "\n" in part else "")
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    ]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    start = {"radseal": ["-m", "bridge"], "python": []}[program]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=folder, capture_output=True, text=True,
        check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )  # fmt: skip


@pytest.mark.parametrize("readme", READMES)
def test_console_examples_say_what_is_shown(readme, tmp_path):
    for block in blocks("console", readme):
        for command, output in examples(block):
            done = run(command, tmp_path)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            said = " ".join(done.stdout.split())
            assert shown(output).fullmatch(said), f"{command}\n{done.stdout}"


def _known(words: list[str]) -> str | None:
    """What is wrong with a command line of ours, or None."""
    command: Any = importlib.import_module("typer").main.get_command(
        importlib.import_module("bridge.cli").app
    )
    words = list(words)
    while (children := getattr(command, "commands", None)) is not None:
        if not words or words[0] not in children:
            return f"no command {words[:1]}"
        command = children[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    unknown = [w for w in words if w.startswith("-") and w != "-" and w not in options]
    return f"no option {unknown}" if unknown else None


def _lines_of_ours() -> list[str]:
    lines = [line for block in blocks("sh") + blocks("console") for line in block.splitlines()]
    said = [re.sub(r"\s+#.*", "", line.removeprefix("$ ")) for line in lines]
    return [line for line in said if line.startswith("radseal ")]


def test_commands_for_people_are_commands():
    lines = _lines_of_ours()
    assert len(lines) > 3
    wrong = {line: fault for line in lines if (fault := _known(shlex.split(line)[1:]))}
    assert wrong == {}


def _read(text: str, folder: Path) -> Any:
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return importlib.import_module("bridge.site").read(folder)


def test_settings_shown_are_settings(tmp_path):
    found = blocks("toml", "README.md", "bridge/README.md")
    assert len(found) > 1
    for text in found:
        assert _read(text, tmp_path).name


def _off(model: type[pydantic.BaseModel], said: dict[str, Any], *skip: str) -> list[str]:
    """Keys of a table that are not shown, or are shown with another value than their default."""
    wrong = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, pydantic.BaseModel):
            wrong += [f"{name}.{one}" for one in _off(type(default), said.get(name, {}))]
        elif name in skip or default is None:
            continue
        elif field.is_required():
            wrong += [] if name in said else [f"{name} is missing"]
        elif said.get(name) != (list(default) if isinstance(default, tuple) else default):
            wrong.append(f"{name} is {default!r} when nobody sets it")
    return wrong


def test_the_list_of_settings_shows_every_default():
    site = importlib.import_module("bridge.site")
    (text,) = [block for block in blocks("toml", "README.md") if block.startswith(ALL_KEYS)]
    said = tomllib.loads(text)
    assert _off(site.Site, said, "folder", "sources", "destinations") == []
    assert _off(site.Source, said["sources"][0]) == []
    assert _off(site.Destination, said["destinations"][0]) == []
    assert _off(site.Source, {"ae_title": "X"})[:1] == ["name is missing"]


@pytest.mark.parametrize(
    "line", re.findall(r"`(RADSEAL_\w+=[^`]*)`", (ROOT / "README.md").read_text())
)
def test_the_environment_overrides(line, tmp_path, monkeypatch):
    key, value = shlex.split(line)[0].split("=", 1)
    monkeypatch.setenv(key, value)
    site = _read('name = "a"\norigin = "b/c"\n', tmp_path)
    path = key.removeprefix("RADSEAL_").lower().split("__")
    for part in path:
        site = getattr(site, part)
    assert str(site) == value or [s.name for s in site] == ["ct1"]


def test_an_example_that_is_wrong_is_seen():
    assert shown("a …\nc").fullmatch("a b c")
    assert not shown("a …\nc").fullmatch("a b d")
    assert examples("$ one\nsays\n$ two\n") == [("one", "says\n"), ("two", "")]
    assert _known(["model", "sign", "x", "--kye", "y"]) == "no option ['--kye']"
    assert _known(["modle"]) == "no command ['modle']"
