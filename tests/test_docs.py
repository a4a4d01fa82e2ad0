"""What is written for people agrees with what the program is."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "bridge/README.md")
PACKAGES = ("bridge", "models", "ledger")
NOT_IN_TOML = {"folder"}  # fields of Site that are no key of site.toml

# Said in pieces, so that this file passes its own test.
MACHINE_PATHS = ("/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/", "/opt/" + "pypi", "/opt/" + "wheels")
REGISTRY_HOSTS = (
    *("py" + "pi.org", "python" + "hosted.org", "deb.debian" + ".org", "registry.npm" + "js.org"),
    *(
        "--index" + "-url",
        "extra-" + "index-url",
        "find" + "-links",
        "proxy.golang" + ".org",
        "test.py" + "pi",
    ),
    *("farm" + "-studio",),
)


def _text(*names: str) -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this folder is no git clone, so what is committed is not known")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# Commands


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the program as its words, groups left out, hidden ones left out."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path
        return
    for name, child in sorted(children.items()):
        if not child.hidden:
            yield from _commands(child, (*path, name))


@pytest.fixture(scope="module")
def program() -> Any:
    """The command line as click sees it."""
    typer = importlib.import_module("typer")
    return typer.main.get_command(importlib.import_module("bridge.cli").app)


def documented(path: tuple[str, ...], text: str) -> bool:
    """Whether some line says `radseal a b`; alternatives may stand as `a|b`."""
    for line in text.splitlines():
        for said in re.findall(r"radseal ([^`#]*)", line):
            first = said.split(" ", 1)[0].split("|")
            if path[0] in first and all(re.search(rf"(?<![\w-]){w}(?![\w-])", said) for w in path):
                return True
    return False


def test_every_command_is_in_a_readme(program):
    text = _text(*READMES)
    missing = [" ".join(path) for path in _commands(program) if not documented(path, text)]
    assert missing == [], f"say these in {' or '.join(READMES)}"


def test_every_command_explains_itself(program):
    runner = importlib.import_module("typer.testing").CliRunner()
    app = importlib.import_module("bridge.cli").app
    for path in _commands(program):
        shown = runner.invoke(app, [*path, "--help"])
        assert shown.exit_code == 0, (path, shown.output)
        assert "Usage:" in shown.output


@pytest.mark.parametrize("module", ["bridge.cli", "ledger"])
def test_help_runs_as_a_program(module):
    code = "from bridge.cli import main; main()" if module == "bridge.cli" else None
    command = [sys.executable, *(("-c", code) if code else ("-m", module)), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert "sage:" in shown.stdout


# Settings


def _keys(model: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of site.toml as its path: ("listener", "port"), ("sources", "name")."""
    pydantic = importlib.import_module("pydantic")
    for name, field in model.model_fields.items():
        if not path and name in NOT_IN_TOML:
            continue
        kinds = (field.annotation, *typing.get_args(field.annotation))
        tables = [k for k in kinds if isinstance(k, type) and issubclass(k, pydantic.BaseModel)]
        if tables:
            yield from _keys(tables[0], (*path, name))
        else:
            yield (*path, name)


def key_words(text: str) -> set[tuple[str, ...]]:
    """Every (table, word) that a ```toml block of a README names, comments included."""
    found: set[tuple[str, ...]] = set()
    for block in re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL):
        table: tuple[str, ...] = ()
        for line in block.splitlines():
            header = re.match(r"\s*\[{1,2}([\w.]+)\]{1,2}", line)
            if header:
                table = tuple(header[1].split("."))
                line = line[header.end() :]
            found |= {(*table, word) for word in re.findall(r"[a-z_][a-z0-9_]*", line)}
    return found


def test_every_setting_is_in_a_readme():
    text = _text(*READMES)
    said = key_words(text)
    site = importlib.import_module("bridge.site").Site
    missing = [".".join(key) for key in _keys(site) if key not in said]
    assert missing == [], f"say these in a toml block of {' or '.join(READMES)}"


# What must not be written


def _forbidden(text: str) -> list[str]:
    return [word for word in (*MACHINE_PATHS, *REGISTRY_HOSTS) if word in text]


def test_no_committed_file_names_a_machine_or_a_registry():
    wrong = {}
    for path in _tracked():
        found = _forbidden(path.read_bytes().decode("utf-8", errors="replace"))
        if found:
            wrong[path.relative_to(ROOT).as_posix()] = found
    assert wrong == {}


def test_no_committed_file_is_a_private_key_or_large():
    private = "PRIVATE" + " KEY-----"
    size = 2 * 1024 * 1024
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in _tracked()
        if path.stat().st_size > size or private.encode() in path.read_bytes()
    ]
    assert wrong == []


# Files that people and machines read first


def test_links_in_readmes_lead_somewhere():
    broken = []
    for path in (ROOT / name for name in ("README.md", *(f"{p}/README.md" for p in PACKAGES))):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not target.startswith("mailto:"):
                there = (path.parent / target).resolve()
                if not there.exists():
                    broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def test_changelog_speaks_of_this_version():
    version = tomllib.loads(_text("pyproject.toml"))["project"]["version"]
    text = _text("CHANGELOG.md")
    assert "## Unreleased" in text or f"## {version}" in text


def _locked(name: str) -> dict[str, set[str]]:
    """Package -> versions pinned in a lock (several where markers divide it)."""
    text = _text(name)
    assert "://" not in text, "a lock carries no address"
    assert not re.search(r"^\s*-(?!-hash)", text, flags=re.MULTILINE), "a lock carries no options"
    found: dict[str, set[str]] = {}
    for block in re.split(r"\n(?=\S)", text):
        pinned = re.match(r"([a-z0-9.-]+)(?:\[[^]]*])?==(\S+)", block)
        assert pinned, f"not pinned: {block[:60]!r}"
        assert "--hash=sha256:" in block, f"no hash: {pinned[1]}"
        found.setdefault(pinned[1], set()).add(pinned[2])
    return found


def _wanted(requirements: list[str]) -> set[str]:
    names = [re.match(r"[A-Za-z0-9._-]+", one) for one in requirements]
    return {re.sub(r"[._-]+", "-", name[0]).lower() for name in names if name}


def test_locks_pin_everything_that_the_project_asks_for():
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    runtime, dev = _locked("requirements.lock"), _locked("requirements-dev.lock")
    again = "run `make lock`"
    assert _wanted(project["dependencies"]) - set(runtime) == set(), again
    assert _wanted(project["optional-dependencies"]["dev"]) - set(dev) == set(), again
    assert {name: dev.get(name) for name in runtime} == runtime, again


# docker-compose.yml


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml, parsed."""
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load(_text("docker-compose.yml")))


def test_compose_file_is_one_that_docker_accepts():
    command = ["docker", "compose"]
    try:
        there = subprocess.run([*command, "version"], capture_output=True, check=False)
    except FileNotFoundError:
        there = None
    if there is None or there.returncode:
        pytest.skip("`docker compose` is not on this machine; the file's shape is checked below")
    command += ["-f", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr


def test_compose_file_holds_three_services_that_fit_together(compose):
    services = compose["services"]
    assert {"radseal", "orthanc", "postgres"} <= set(services)
    for name, service in services.items():
        assert "image" in service or "build" in service, name
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service.get("networks", [])) <= set(compose["networks"])
        named = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert {v for v in named if not v.startswith(("/", "."))} <= set(compose["volumes"])
        image = service.get("image", "x:1")
        assert ":" in image, f"{name}: say the tag"
        assert not image.endswith(":latest"), f"{name}: say the tag"


def test_compose_file_runs_radseal_without_rights(compose):
    radseal = compose["services"]["radseal"]
    assert radseal["read_only"] is True
    assert radseal["cap_drop"] == ["ALL"]
    assert radseal["security_opt"] == ["no-new-privileges:true"]
    assert radseal["tmpfs"]
    dockerfile = radseal["build"]["dockerfile_inline"]
    assert "--require-hashes" in dockerfile
    assert re.search(r"^USER (?!0|root)", dockerfile, flags=re.MULTILINE)
    assert [p for p in radseal["ports"] if "8080" in p and not p.startswith("127.0.0.1:")] == []


def test_whoever_installs_from_a_lock_takes_what_it_says_and_nothing_else():
    """A lock is complete; a resolver over it asks the index for newer releases and then fails."""
    for name in ("Makefile", "README.md", "docker-compose.yml"):
        installs = re.findall(r"install .*-r \S*requirements\S*", _text(name))
        assert installs, name
        for command in installs:
            assert "--no-deps --require-hashes" in command, f"{name}: {command}"


# The readers above, seen red


def test_an_undocumented_command_is_seen():
    text = "radseal model trust PEM | list\nradseal retry|cancel STUDY"
    assert documented(("cancel",), text)
    assert documented(("model", "list"), text)
    assert not documented(("model", "sign"), text)
    assert not documented(("list",), text)


def test_an_undocumented_setting_is_seen():
    said = key_words("```toml\nname = 1\n[http]\nport = 2 # tls_cert\n[[sources]]\nask = 1\n```")
    assert {("name",), ("http", "tls_cert"), ("sources", "ask")} <= said
    assert ("listener", "port") not in said


def test_a_machine_path_is_seen():
    assert _forbidden("see /wo" + "rk/x and py" + "pi.org") == ["/wo" + "rk/", "py" + "pi.org"]
