"""Lines of [ledger] witnesses: what they mean, and what is said of wrong ones."""

from __future__ import annotations

import hashlib

import pytest

from bridge import quorum
from bridge.errors import SettingsError
from ledger import note
from ledger.errors import MalformedPolicy
from ledger.policy import Policy


def key(name, kind=note.Ed25519Cosigner):
    seed = hashlib.sha256(name.encode()).digest()
    return note.vkey(kind.generate(f"w.{name}.example", lambda _: seed))


def line(name, url=None, kind=note.Ed25519Cosigner):
    return f"witness {name} {key(name, kind)} {url or f'https://{name}.example/witness'}"


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_without_a_quorum_more_than_half_must_agree(count, needed):
    names = [f"w{n}" for n in range(count)]
    policy = quorum.of_lines([line(name) for name in names])
    assert policy.satisfied(dict.fromkeys(names[:needed], 1))
    assert not policy.satisfied(dict.fromkeys(names[: needed - 1], 1))


def test_groups_and_a_quorum_are_the_sites_choice():
    policy = quorum.of_lines(
        [line("north"), "# a comment", "", line("south"), "group either any north south",
         "quorum either"]
    )  # fmt: skip
    assert policy.satisfied({"south": 1})
    assert quorum.of_lines([line("north"), "quorum none"]).satisfied({})
    assert quorum.of_lines([]) == Policy((), (), (), "none")


def test_the_sites_policy_is_read_by_every_verifier():
    log = note.vkey(note.Ed25519Signer.generate("log.example/one", lambda n: b"x" * n))
    text = str(quorum.of_site([log], quorum.of_lines([line("north"), line("south")])))
    assert text.splitlines()[0] == f"log {log}"
    assert Policy.parse(text).quorum == quorum.MAJORITY
    assert str(quorum.of_site([log], quorum.of_lines([]))) == f"log {log}\nquorum none\n"


def test_two_keys_at_one_address_are_one_partner():
    second = line("north-pq", "https://north.example/witness/", note.MLDSA44Signer)
    found = quorum.partners(quorum.of_lines([line("north"), second, line("south")]))
    assert [(one.name, one.url, len(one.keys)) for one in found] == [
        ("north", "https://north.example/witness", 2),
        ("south", "https://south.example/witness", 1),
    ]


LOG = note.vkey(note.Ed25519Signer.generate("log.example/one", lambda n: b"x" * n))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x"], "line 1"),
        (["witness"], "witness <name> <vkey>"),
        (["witness a"], "witness <name> <vkey>"),
        ([f"witness a {key('a')}"], "is missing"),
        ([line("a", "ftp://a.example")], "http"),
        ([line("a", "https://user@a.example")], "no user"),
        ([line("a", "https://a.example/?x=1")], "no ?"),
        ([line("a", "https://a.example:99999")], "port"),
        ([line("A")], "lower case"),
        ([line("a").replace("witness a ", "witness ../a ")], "lower case"),
        ([line("a"), line("a")], "taken|listed"),
        ([line("a", "http://b/"), line("a", "http://c/").replace(" a ", " b ")], "listed"),
        ([f"witness a {LOG} https://a.example"], "type"),
        ([f"log {LOG}"], "own keys are known"),
        ([line("a"), "group g any a"], "quorum line"),
        ([line("a"), "group g 2 a", "quorum g"], "2 of 1"),
        ([line("a"), "quorum b"], "neither"),
        ([line("a") + "\nquorum none"], "one line"),
    ],
)
def test_a_wrong_line_is_named(lines, said):
    with pytest.raises(MalformedPolicy, match=said):
        quorum.of_lines(lines)
    with pytest.raises(SettingsError, match=r"ledger\.witnesses"):
        quorum.asked(lines)
