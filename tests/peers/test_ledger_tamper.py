"""The tamper matrix: what strangers and we refuse, and what place we name.

Each row changes one thing. `BY` says who must refuse it: everybody whose mathematics can see
it. Where a stranger reads more leniently than the specification, its name is missing with a
reason, and we refuse alone.
"""

from __future__ import annotations

import base64
import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paper_log as paper
import pytest
import strangers as judges
import tall_log as tall
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import note, verify
from ledger.checkpoint import Checkpoint
from ledger.errors import (
    Damaged,
    Malformed,
    RolledBack,
    SignatureInvalid,
    VerifyError,
)
from ledger.log import open_log

pytestmark = pytest.mark.peer

GO, RUST, SIGSTORE, MLDSA = "go x/mod", "metamorphic", "sigstore", "go mldsa"
TREES = {GO, RUST, SIGSTORE}  # who reads entries and tiles
TEXTS = {*TREES, MLDSA}  # who reads the signed text
SIZE, TALL = 600, 65_537


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[int, Path]:
    """Two honest logs: small enough to read whole, and one with a full tile at level 1."""
    place = tmp_path_factory.mktemp("tamper")
    site, found = paper.Site(place), {}
    with site.sequencer():
        for size in (90, 300, 580, SIZE, TALL):
            tall.raise_to(site, size)
            found[size] = tall.linked(site.folder, place / str(size))
    site.store.close()
    return found


def refused_by(folder: Path, strangers, files=()) -> set[str]:
    """Who does not accept it."""
    names = set()
    for stranger in strangers.values():
        try:
            stranger.accept(folder, paper.VKEYS, files)
        except judges.Refused:
            names.add(stranger.name)
    return names


def our_refusal(folder: Path) -> VerifyError:
    with pytest.raises(VerifyError) as refusal:
        verify.verify_log(folder, paper.VKEYS)
    return refusal.value


def replace(path: Path, data: bytes) -> None:
    """Other bytes under a name whose old bytes may be linked elsewhere."""
    path.unlink()
    path.write_bytes(data)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]


# --- files under tile/ ---------------------------------------------------------------------

FILES = {  # file -> what it is
    "tile/entries/000": "a full bundle",
    "tile/entries/002.p/88": "the last, partial bundle",
    "tile/0/000": "full, level 0",
    "tile/0/002.p/88": "partial, level 0",
    "tile/1/000.p/2": "partial, level 1",
}
CHANGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit of the second entry or hash": lambda data: flipped(data, 40),
    "the last bit": lambda data: flipped(data, len(data) - 1),
    "one byte less": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "nothing in it": lambda _: b"",
    "missing": lambda _: None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused_by_all_and_named_by_us(name, change, logs, strangers, tmp_path):
    folder = tall.linked(logs[SIZE], tmp_path / "log")
    data = CHANGES[change]((folder / name).read_bytes())
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    assert refused_by(folder, strangers) == TREES
    assert our_refusal(folder).where == name


def test_two_entries_that_change_places_are_refused_by_all(logs, strangers, tmp_path):
    folder, name = tall.linked(logs[SIZE], tmp_path / "log"), "tile/entries/001"
    data = (folder / name).read_bytes()
    length = 2 + int.from_bytes(data[:2], "big")
    second = 2 + int.from_bytes(data[length : length + 2], "big")
    end = length + second
    replace(folder / name, data[length:end] + data[:length] + data[end:])
    assert refused_by(folder, strangers) == TREES
    assert our_refusal(folder).where == name


def test_two_tiles_that_change_places_are_refused_by_all(logs, strangers, tmp_path):
    for level in ("0", "entries"):
        folder = tall.linked(logs[SIZE], tmp_path / level)
        first, second = (folder / f"tile/{level}/00{number}" for number in (0, 1))
        one, other = first.read_bytes(), second.read_bytes()
        replace(first, other)
        replace(second, one)
        assert refused_by(folder, strangers) == TREES
        assert our_refusal(folder).where == f"tile/{level}/000"


@pytest.mark.parametrize(
    "name",
    ["tile/entries/000", "tile/0/000", "tile/0/256.p/1", "tile/1/000", "tile/1/001.p/1"],
)
def test_a_changed_file_of_a_tall_log(name, logs, strangers, tmp_path):
    folder = tall.linked(logs[TALL], tmp_path / "log")
    if not (folder / name).exists():
        name = "tile/2/000.p/1"
    data = (folder / name).read_bytes()
    replace(folder / name, flipped(data, min(40, len(data) - 1)))
    assert refused_by(folder, strangers) == TREES
    assert our_refusal(folder).where == name


# --- the checkpoint --------------------------------------------------------------------------

KEY = paper.signers()[0]


def resigned(text: str) -> str:
    """A text that the log's own Ed25519 key signed: a hostile operator's."""
    line = note.Line(KEY.name, KEY.key_id, KEY.sign(text.encode(), 0))
    return text + "\n" + str(line)


def trailing_bits(text: str) -> str:
    """The same bytes in another spelling of base64: bits that no decoder uses."""
    head = text.rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = head[:-1] + alphabet[alphabet.index(head[-1]) ^ 1] + "=" * (len(text) - len(head))
    assert base64.b64decode(other) == base64.b64decode(text)
    assert other != text
    return other


@dataclass(frozen=True)
class Honest:
    """A checkpoint to spoil: its text, its lines (Ed25519's first), another size's root."""

    text: str
    rows: list[str]
    root: str


@dataclass(frozen=True)
class Row:
    """One spoiled checkpoint: how, and who refuses it besides us."""

    spoil: Callable[[Honest], str]
    by: set[str]
    why: str = ""


def lines_of(text: str, lines: list[str]) -> str:
    return text + "\n" + "".join(lines)


def body(text: str, place: int, value: str) -> str:
    rows = text.split("\n")
    rows[place] = value
    return "\n".join(rows)


def respelled(row: str) -> str:
    start, name, value = row.rstrip("\n").split(" ")
    return f"{start} {name} {trailing_bits(value)}\n"


def broken(row: str, place: int) -> str:
    start, name, value = row.rstrip("\n").split(" ")
    raw = flipped(base64.b64decode(value), place)
    return f"{start} {name} {base64.b64encode(raw).decode()}\n"


CHECKPOINTS = {
    "origin": Row(lambda h: lines_of("x" + h.text, h.rows), TEXTS),
    "size": Row(lambda h: lines_of(body(h.text, 1, "599"), h.rows), TEXTS),
    "size beyond": Row(lambda h: lines_of(body(h.text, 1, "601"), h.rows), TEXTS),
    "root": Row(lambda h: lines_of(body(h.text, 2, h.root), h.rows), TEXTS),
    "another origin, signed": Row(lambda h: resigned(body(h.text, 0, "other.example")), TEXTS),
    "another root, signed": Row(lambda h: resigned(body(h.text, 2, h.root)), TEXTS),
    "another size, signed": Row(lambda h: resigned(body(h.text, 1, "599")), TEXTS),
    "an empty log's root is not another's, signed": Row(
        lambda h: resigned(body(h.text, 1, "0")), {GO, MLDSA},
        "the others check leaves only, and an empty log has none",
    ),
    "a size of 2^63, signed": Row(
        lambda h: resigned(body(h.text, 1, str(1 << 63))), TEXTS
    ),
    "leading zero in the size, signed": Row(
        lambda h: resigned(body(h.text, 1, "0600")), {RUST, MLDSA},
        "Go's ParseInt and Python's int take it",
    ),
    "a plus before the size, signed": Row(
        lambda h: resigned(body(h.text, 1, "+600")), {RUST, MLDSA},
        "Go's ParseInt and Python's int take it",
    ),
    "non-canonical base64 of the root, signed": Row(
        lambda h: resigned(body(h.text, 2, trailing_bits(h.text.split("\n")[2]))), {RUST, MLDSA},
        "Go's and Python's base64 ignore the trailing bits",
    ),
    "carriage returns, signed": Row(
        lambda h: resigned(h.text.replace("\n", "\r\n")), TEXTS
    ),
    "an extension line, signed": Row(
        lambda h: resigned(h.text + "more\n"), {GO, MLDSA},
        "the specification allows what we do not use",
    ),
    "a flipped bit in the Ed25519 signature": Row(
        lambda h: lines_of(h.text, [broken(h.rows[0], 20), h.rows[1]]), TREES
    ),
    "a flipped bit in the ML-DSA signature": Row(
        lambda h: lines_of(h.text, [h.rows[0], broken(h.rows[1], 20)]), {MLDSA}
    ),
    "another time in the ML-DSA line": Row(
        lambda h: lines_of(h.text, [h.rows[0], broken(h.rows[1], 11)]), {MLDSA}
    ),
    "a flipped bit in the Ed25519 key id": Row(
        lambda h: lines_of(h.text, [broken(h.rows[0], 1), h.rows[1]]), TREES
    ),
    "no Ed25519 line": Row(lambda h: lines_of(h.text, [h.rows[1]]), TREES),
    "no ML-DSA line": Row(lambda h: lines_of(h.text, [h.rows[0]]), {MLDSA}),
    "no lines": Row(lambda h: h.text + "\n", TEXTS),
    "no blank line": Row(lambda h: h.text + "".join(h.rows), TEXTS),
    "no final newline": Row(lambda h: lines_of(h.text, h.rows)[:-1], TEXTS),
    "carriage returns everywhere": Row(
        lambda h: lines_of(h.text, h.rows).replace("\n", "\r\n"), TEXTS
    ),
    "two spaces in a line": Row(
        lambda h: lines_of(h.text, [h.rows[0].replace(" ", "  ", 1), h.rows[1]]), TEXTS
    ),
    "a hyphen for the dash": Row(
        lambda h: lines_of(h.text, [h.rows[0].replace("—", "-"), h.rows[1]]), TEXTS
    ),
    "non-canonical base64 of a signature": Row(
        lambda h: lines_of(h.text, [respelled(h.rows[0]), h.rows[1]]), {RUST, MLDSA},
        "Go's and Python's base64 ignore the trailing bits",
    ),
    "no padding of a signature": Row(
        lambda h: lines_of(h.text, [h.rows[0].replace("=\n", "\n"), h.rows[1]]), TEXTS
    ),
    "a good line and a bad one of the same key": Row(
        lambda h: lines_of(h.text, [broken(h.rows[0], 20), *h.rows]), TREES
    ),
    "nothing": Row(lambda _: "", TEXTS),
    "half of it": Row(lambda h: lines_of(h.text, h.rows)[: len(h.text) + 60], TEXTS),
    "twice": Row(lambda h: lines_of(h.text, h.rows) * 2, TEXTS),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_spoiled_checkpoint(name, logs, strangers, tmp_path):
    folder, row = tall.linked(logs[SIZE], tmp_path / "log"), CHECKPOINTS[name]
    text, found = note.parse((folder / "checkpoint").read_text())
    other = (logs[580] / "checkpoint").read_text().split("\n")[2]
    spoiled = row.spoil(Honest(text, [str(line) for line in found], other))
    replace(folder / "checkpoint", spoiled.encode())
    assert refused_by(folder, strangers) == row.by
    assert our_refusal(folder).where == "checkpoint"
    assert row.why or row.by >= TREES or row.by == {MLDSA}


def test_what_the_logs_own_key_signed_is_refused_for_its_spelling(logs):
    """Not for a signature that is missing: with its one key the honest text is accepted."""
    text = note.parse((logs[SIZE] / "checkpoint").read_text())[0]
    key = note.Verifier.from_vkey(paper.VKEYS[0])
    assert note.open_note(resigned(text), [key]).text == text
    assert verify.open_checkpoint(resigned(text), paper.VKEYS[:1])[0].size == SIZE
    other = (logs[580] / "checkpoint").read_text().split("\n")[2]
    for name, row in CHECKPOINTS.items():
        if name.endswith("signed") and not name.startswith(("another", "a size of")):
            with pytest.raises(Malformed):
                verify.open_checkpoint(row.spoil(Honest(text, [], other)), paper.VKEYS[:1])


# --- keys --------------------------------------------------------------------------------------


def test_other_keys_are_refused_by_all(logs, strangers):
    keys = [note.vkey(signer) for signer in paper.signers(name="other")]
    for stranger in strangers.values():
        with pytest.raises(judges.Refused):
            stranger.accept(logs[SIZE], keys)
    with pytest.raises(VerifyError, match="no key that you trust"):
        verify.verify_log(logs[SIZE], keys)


def colliding(number: int) -> note.Ed25519Signer:
    """Two keys of this name whose four-byte ids are equal; found by trying."""
    seed = hashlib.sha256(b"collision/%d" % number).digest()
    return note.Ed25519Signer(paper.ORIGIN, Ed25519PrivateKey.from_private_bytes(seed))


def test_a_key_whose_id_collides_is_no_substitute(logs, strangers, tmp_path):
    honest, attacker = colliding(75_621), colliding(156_767)
    assert honest.key_id == attacker.key_id
    assert honest.public != attacker.public
    folder = tall.linked(logs[SIZE], tmp_path / "log")
    text = note.parse((folder / "checkpoint").read_text())[0]
    for signer, accepted in ((honest, True), (attacker, False)):
        replace(folder / "checkpoint", note.sign_note(text, [signer], 0).encode())
        for name in sorted(TREES):
            stranger, keys = strangers[name], [note.vkey(honest), paper.VKEYS[1]]
            if accepted:
                stranger.accept(folder, keys)
            else:
                with pytest.raises(judges.Refused):
                    stranger.accept(folder, keys)
        if not accepted:
            with pytest.raises(VerifyError, match="does not verify"):
                verify.verify_log(folder, [note.vkey(honest)])
    with pytest.raises(SignatureInvalid):
        verify.open_checkpoint(note.sign_note(text, [attacker], 0), [note.vkey(honest)])
    honestly = note.sign_note(text, [honest], 0)
    assert verify.open_checkpoint(honestly, [note.vkey(honest)])[0].size == SIZE


# --- histories ---------------------------------------------------------------------------------


def forked(place: Path, honest: Path, size: int) -> Path:
    """The same log up to 580 leaves, signed by the same keys, another history after."""
    site = paper.Site(place)
    with site.sequencer():
        tall.raise_to(site, 580)
        site.number += 10_000  # other leaves
        tall.raise_to(site, 10_000 + size)
    site.store.close()
    assert (site.folder / "tile/0/000").read_bytes() == (honest / "tile/0/000").read_bytes()
    return site.folder


@pytest.mark.parametrize("size", [SIZE, SIZE - 10, SIZE + 10], ids=["same", "shorter", "longer"])
def test_a_split_view_verifies_alone_and_is_caught_by_any_kept_checkpoint(
    size, logs, strangers, tmp_path
):
    folder = forked(tmp_path, logs[SIZE], size)
    assert refused_by(folder, strangers) == set()  # two histories, each consistent in itself
    assert verify.verify_log(folder, paper.VKEYS).size == size
    kept = [logs[SIZE] / "checkpoint"]
    assert refused_by(folder, strangers, kept) == {GO, RUST}  # sigstore compares no trees
    assert not continues(folder, kept[0])
    older = [logs[580] / "checkpoint"]  # from before the fork: both continue it
    assert refused_by(folder, strangers, older) == set()
    assert continues(folder, older[0])


def continues(folder: Path, kept: Path) -> bool:
    """Whether our own verifier finds the kept tree at the beginning of this log."""
    try:
        verify.audit(folder, paper.VKEYS, saved=kept.read_text())
    except VerifyError as error:
        if not error.where.endswith("checkpoint"):
            raise
        return False
    return True


def test_files_and_database_rolled_back_together_are_caught_by_a_kept_checkpoint(logs, strangers):
    assert refused_by(logs[580], strangers) == set()
    kept = [logs[SIZE] / "checkpoint"]
    assert refused_by(logs[580], strangers, kept) == {GO, RUST}
    assert not continues(logs[580], kept[0])
    assert continues(logs[SIZE], logs[580] / "checkpoint")


@pytest.mark.parametrize("what", ["files", "database"])
def test_one_of_the_two_rolled_back_is_refused_by_the_sequencer(what, tmp_path):
    (tmp_path / "site").mkdir()
    site = paper.Site(tmp_path / "site")
    site.fill(99)
    site.publish()
    site.store.close()
    old = shutil.copytree(tmp_path / "site", tmp_path / "old")
    site = site.reopen()
    site.fill(200)
    site.publish()
    site.store.close()
    if what == "files":
        shutil.rmtree(site.folder)
        shutil.copytree(old / "ledger", site.folder)
    else:
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            (tmp_path / "site" / name).unlink(missing_ok=True)
            if (old / name).exists():
                shutil.copy(old / name, tmp_path / "site" / name)
    again = site.reopen()
    with pytest.raises(Damaged if what == "files" else RolledBack) as refusal:
        again.publish()
    assert ("is missing" in str(refusal.value)) is (what == "files")
    again.store.close()


def test_a_published_checkpoint_over_a_new_database_is_refused(logs, tmp_path):
    folder = tall.linked(logs[SIZE], tmp_path / "ledger")
    site = paper.SqliteStore(tmp_path / "ledger.db")
    with pytest.raises(RolledBack):
        open_log(folder, site, paper.ORIGIN, paper.signers())
    site.close()


# --- receipts ----------------------------------------------------------------------------------


def spoiled_receipts(text: str) -> Iterator[tuple[str, str]]:
    head, _ = text.split("\n\n", 1)
    rows = head.split("\n")
    data = flipped(base64.b64decode(rows[1].removeprefix("extra ")), 100)
    yield "leaf", "\n".join([rows[0], f"extra {base64.b64encode(data).decode()}", *rows[2:]])
    for place in range(3, len(rows)):
        value = base64.b64encode(flipped(base64.b64decode(rows[place]), 5)).decode()
        yield f"hash {place - 3}", "\n".join([*rows[:place], value, *rows[place + 1 :]])
    yield "index", "\n".join([*rows[:2], "index 7", *rows[3:]])
    yield "index beyond", "\n".join([*rows[:2], "index 90", *rows[3:]])
    yield "one hash less", "\n".join(rows[:-1])
    yield "one hash more", "\n".join([*rows, rows[-1]])
    yield "two hashes changed places", "\n".join([*rows[:3], rows[4], rows[3], *rows[5:]])


def test_a_spoiled_receipt_is_refused_by_all(logs, strangers, tmp_path):
    log, size = logs[90], 90
    index, entry, path = list(judges.Reader(log, size).leaves(size))[33]
    text = (log / "checkpoint").read_text()
    honest = str(verify.Proof(entry, index, tuple(path), text))
    file = tmp_path / "x.tlog-proof"
    file.write_text(honest)
    assert refused_by(log, strangers, [file]) == set()
    verify.verify_proof(honest, paper.VKEYS)
    seen = 0
    for name, head in spoiled_receipts(honest):
        spoiled = head + "\n\n" + text
        assert spoiled != honest, name
        file.write_text(spoiled)
        assert refused_by(log, strangers, [file]) == TREES, name
        with pytest.raises(VerifyError, match="proof: "):
            verify.verify_proof(spoiled, paper.VKEYS)
        seen += 1
    assert seen == 13
    point = str(Checkpoint.parse(note.parse(text)[0]))
    file.write_text(honest.replace(point, point.replace("\n90\n", "\n91\n", 1)))
    assert refused_by(log, strangers, [file]) == TEXTS


# --- any byte ----------------------------------------------------------------------------------


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Other bytes: a bit, a byte, a run, a piece cut out, doubled or moved."""
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 64))
    kinds = (
        lambda: flipped(data, at),
        lambda: data[:at] + chance.randbytes(1) + data[at + 1 :],
        lambda: data[:at] + chance.randbytes(end - at) + data[end:],
        lambda: data[:at] + bytes(end - at) + data[end:],
        lambda: data[:at] + data[end:],
        lambda: data[:end] + data[at:],
        lambda: data[:at] + data[at:end][::-1] + data[end:],
        lambda: data[:at],
        lambda: data + chance.randbytes(end - at),
    )
    while (spoiled := chance.choice(kinds)()) == data:
        at = chance.randrange(len(data))
        end = min(len(data), at + chance.randrange(1, 64))
    return spoiled


def mutate(folder: Path, chance: random.Random, *, read_by_all: bool) -> str:
    """Change one file under tile/, or the signed text; its name."""
    files = sorted(path for path in (folder / "tile").rglob("*") if path.is_file())
    if read_by_all:  # of the partial tiles only the last ones
        files = [folder / name for name in FILES] + [folder / "tile/0/001"]
    path = chance.choice([*files, folder / "checkpoint"])
    data = path.read_bytes()
    if path.name == "checkpoint":
        cut = data.index(b"\n\n") + 1
        replace(path, mutated(data[:cut], chance) + data[cut:])
    else:
        replace(path, mutated(data, chance))
    return path.relative_to(folder).as_posix()


def test_no_mutation_is_accepted_by_us_and_its_file_is_named(logs, tmp_path):
    chance, seen = random.Random(20260102), set()
    for number in range(200):
        folder = tall.linked(logs[SIZE], tmp_path / str(number))
        name = mutate(folder, chance, read_by_all=False)
        seen.add(name)
        assert our_refusal(folder).where == name
        shutil.rmtree(folder)
    assert seen == {  # older, shorter editions of the last tiles still lie there
        *FILES, "checkpoint", "tile/0/001", "tile/entries/001",
        "tile/0/002.p/68", "tile/entries/002.p/68", "tile/1/000.p/1",
    }  # fmt: skip


def test_no_mutation_is_accepted_by_strangers(logs, strangers, tmp_path):
    chance = random.Random(20260103)
    for number in range(40):
        folder = tall.linked(logs[SIZE], tmp_path / str(number))
        name = mutate(folder, chance, read_by_all=True)
        assert refused_by(folder, strangers) >= TREES, name
        shutil.rmtree(folder)
