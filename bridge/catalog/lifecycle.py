"""What people do with a registered model: each act is a leaf, and says who, why and how proven.

An act reads the rows, says its leaves and writes the rows under the lock that uses are appended
under (bridge.permit), so that no run starts on an activation after it was suspended.

A newer version takes over by `previous`: what was routed to the older one still runs on its
activation. A rollback, and a self-test that fails, is `model.suspended`: what waits there for the
model does not start any more, and says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import Connection

from bridge.access import is_person, is_same_person
from bridge.catalog import proof
from bridge.errors import NotFound, Refused, WrongUse
from bridge.record import Recorder, Ref
from bridge.scope import Scope
from bridge.site import Models
from bridge.store import catalog
from bridge.store.catalog import ModelRow
from bridge.store.database import hold, writing
from bridge.store.decisions import CONSENT
from ledger.bodies import CODE, PREVIOUS
from ledger.statement import statement
from models import registry
from models.errors import IllegalTransition, ModelError
from models.registry import Act, State

__all__ = ["SYSTEM_ACTS", "Lifecycle", "suspension"]

SYSTEM_ACTS = "radseal"  # who acted, where the site itself did
_MODES = {Act.ACTIVATE: State.ACTIVE, Act.SHADOW: State.SHADOW}


def suspension(activated: str) -> str:
    """Name the fact that an activation was taken back: one for each, whoever says it first."""
    return f"model/suspended/{activated}"


@dataclass(frozen=True, slots=True)
class _Hand:
    """Who acts: a person, perhaps with a key, or nobody (the site itself)."""

    at: datetime
    by: str | None = None
    reason: str | None = None
    signer: proof.Signer | None = None

    @property
    def authn(self) -> str:
        return "proven" if self.signer is not None else "asserted"


class Lifecycle:
    """The acts on a site's models. `fit` says whether a model's self-test passed on this machine.

    Every act raises WrongUse for words that may not stand in a leaf, NotFound for an unknown
    model, and Refused, with what to do, for what this person or this state does not allow.
    """

    def __init__(
        self,
        database: sqlalchemy.Engine,
        recorder: Recorder,
        rules: Models,
        fit: Callable[[ModelRow], bool],
    ) -> None:
        self._database = database
        self._record = recorder
        self._rules = rules
        self._fit = fit

    def introduce(self, pem: bytes, person: str, at: datetime) -> str:
        """Let a person sign acts with the private half of this public key; returns its digest.

        Raises Refused for the key of another person: with it one would be two.
        """
        name = _named(person)
        key, canonical = proof.public_key(pem)
        with writing(self._database) as connection:
            for who, one in catalog.signer_keys(connection):
                if one == key and not is_same_person(who, name):
                    raise Refused("this key is another person's; each person needs an own one")
            catalog.add_signer_key(connection, name, key, canonical, at)
        return key

    def act(
        self,
        name: str,
        act: str,
        at: datetime,
        *,
        by: str,
        reason: str | None = None,
        scope: Scope | None = None,
        key: bytes | None = None,
    ) -> ModelRow:
        """Approve, activate, shadow or retire MODEL[@VERSION], the newest where none is said.

        `key` is the person's private key in PEM: then the leaf carries a signature. `scope`
        belongs to this activation; without it the model sees all studies.
        """
        acts: Mapping[str, Callable[[Connection, ModelRow, _Hand], None]] = {
            Act.APPROVE: self._approve,
            Act.ACTIVATE: lambda c, row, hand: self._use(c, row, Act.ACTIVATE, hand, scope or {}),
            Act.SHADOW: lambda c, row, hand: self._use(c, row, Act.SHADOW, hand, scope or {}),
            Act.RETIRE: self._retire,
        }
        if act not in acts:
            raise WrongUse(f"nobody can {act} a model so; possible: {', '.join(acts)}, rollback")
        with writing(self._database) as connection:
            hold(connection, CONSENT)
            hand = self._hand(connection, at, by, reason, key)
            row = catalog.named_models(connection, name)[0]
            try:
                acts[act](connection, row, hand)
            except IllegalTransition as error:
                raise Refused(str(error)) from None
            return catalog.named_models(connection, row.digest)[0]

    def rollback(
        self, name: str, at: datetime, *, by: str, reason: str | None = None,
        key: bytes | None = None,
    ) -> tuple[ModelRow, ModelRow | None]:  # fmt: skip
        """Take the live version out and bring back the one that was live before it.

        Without a live version, or with the shadow's named, the shadow is taken out. Returns what
        was taken out and what is live again: None where none was live before, or it may no longer
        be used. What is bad goes out of routing in any case.
        """
        with writing(self._database) as connection:
            hold(connection, CONSENT)
            hand = self._hand(connection, at, by, reason, key)
            row = _routed(catalog.named_models(connection, name), name)
            before = self._before(connection, row) if row.state == State.ACTIVE else None
            taken_back = row.leaf_of("activated")
            self._take_out(connection, row, Act.ROLLBACK, hand, hand.reason or "rollback")
            if before is not None:
                # Its own activation's scope holds again, whatever the newer one's was.
                self._use(connection, before, Act.ACTIVATE, hand, before.scope, taken_back)
                before = catalog.named_models(connection, before.digest)[0]
            return catalog.named_models(connection, row.digest)[0], before

    def suspend(self, digest: str, at: datetime, *, reason: str, words: str) -> bool:
        """Take a model out of routing without a person's word; False if it is not in routing.

        `reason` is the leaf's code, `words` the sentence that `model list` shows.
        """
        with writing(self._database) as connection:
            hold(connection, CONSENT)
            row = next(iter(catalog.find_models(connection, digest)), None)
            if row is None or row.state not in registry.ROUTED:
                return False
            self._take_out(connection, row, Act.SUSPEND, _Hand(at), reason, words)
        return True

    def _hand(
        self, connection: Connection, at: datetime, by: str, reason: str | None, key: bytes | None
    ) -> _Hand:
        name = _named(by)
        if reason is not None and not CODE.holds(reason):
            raise WrongUse("--reason: write a code without spaces, such as worse-recall")
        if key is None:
            if self._rules.proven:
                raise Refused("this site wants such acts signed: say --key with your private key")
            return _Hand(at, name, reason)
        signer = proof.signer(key)
        known = catalog.signer_keys(connection)
        if not any(is_same_person(who, name) and one == signer.key for who, one in known):
            raise Refused(
                f"this key is not known as {name}'s: radseal model trust PUBLIC.pem --person NAME"
            )
        return _Hand(at, name, reason, signer)

    def _approve(self, connection: Connection, row: ModelRow, hand: _Hand) -> None:
        approvers, by = row.approvers(proven=self._rules.proven), hand.by or ""
        registrant = next(a["by"] for a in row.acts if a["act"] == "registered")
        if is_same_person(by, registrant):
            raise Refused("the person who registered a model cannot approve it; ask a second one")
        needed = self._rules.approvals
        state = registry.approval(row.state, before=len(approvers), needed=needed)
        if any(is_same_person(by, one) for one in approvers):
            raise Refused(f"{by} approved it already, and {needed} persons must; ask another one")
        refs = [("model.registered", row.leaf_of("registered") or "")]
        leaf = self._say(row, "approved", hand, {}, refs)
        _write(connection, row, state, "approved", hand, leaf)

    def _use(
        self, connection: Connection, row: ModelRow, act: Act, hand: _Hand, scope: Scope,
        instead_of: str | None = None,
    ) -> None:  # fmt: skip
        """Put a model to use, live or as a shadow; the one that was there before makes room."""
        state = registry.transition(row.state, act)
        approvers, needed = len(row.approvers(proven=self._rules.proven)), self._rules.approvals
        if approvers < needed:
            raise Refused(f"approved by {approvers} of {needed} persons; ask another to approve it")
        if row.state not in registry.ROUTED and not self._is_fit(row):
            raise Refused("its self-test has not passed on this machine; see `radseal doctor`")
        others = [
            one for one in catalog.list_models(connection, state)
            if one.id == row.id and one.digest != row.digest
        ]  # fmt: skip
        replaced = [one.leaf_of("activated") for one in others]
        if row.state in registry.ROUTED:
            replaced.append(row.leaf_of("activated"))
        refs = [("model.approved", row.leaf_of("approved") or "")]
        refs += [(PREVIOUS, leaf) for leaf in (*replaced, instead_of) if leaf]
        said: dict[str, Any] = {"mode": _MODES[act].value}
        if act is Act.ACTIVATE:
            said |= self._trial(row, again=instead_of is not None)
        if scope:
            said["scope"] = {name: list(values) for name, values in scope.items()}
        leaf = self._say(row, "activated", hand, said, refs)
        for one in others:
            after = registry.transition(one.state, Act.SUPERSEDE)
            words = f"{row.version} took its place"
            _write(connection, one, after, "superseded", hand, leaf, reason=words,
                   successor=row.digest)  # fmt: skip
        _write(connection, row, state, "activated", hand, leaf, **said)

    def _is_fit(self, row: ModelRow) -> bool:
        """Whether its files are whole and its self-test passed on this machine and runtime."""
        try:
            return self._fit(row)
        except (ModelError, NotFound, Refused):
            return False

    def _trial(self, row: ModelRow, *, again: bool) -> dict[str, str]:
        """Name the report on the model's newest time as a shadow; Refused where one is missing.

        A version that comes back by a rollback (`again`) was live before and needs none.
        """
        acts = [act for act in row.acts if act["act"] in ("activated", "assessed")]
        began = [n for n, act in enumerate(acts) if act.get("mode") == State.SHADOW]
        since = acts[began[-1] :] if began else []
        reports = [str(act["report"]) for act in since if act.get("read")]
        if self._rules.trial and not reports and not again:
            raise Refused(
                "this site wants a shadow trial first: radseal model shadow, then model trial"
            )
        return {"report": reports[-1]} if reports else {}

    def _take_out(
        self, connection: Connection, row: ModelRow, act: Act, hand: _Hand, reason: str,
        words: str = "",
    ) -> None:  # fmt: skip
        state = registry.transition(row.state, act)
        activated = row.leaf_of("activated") or ""
        refs = [("model.activated", activated)]
        leaf = self._say(
            row, "suspended", hand, {"reason": reason}, refs, idem=suspension(activated)
        )
        # The leaf is this activation's only one: after a crash it may be another person's.
        said = self._record.body(leaf)
        by, why = said.get("by", SYSTEM_ACTS), said["reason"]
        words = words or f"rolled back by {by}" + f" ({why})" * (why != Act.ROLLBACK)
        _write(
            connection, row, state, "suspended", hand, leaf, reason=words, by=by,
            authn=said.get("authn", "asserted"),
        )  # fmt: skip

    def _retire(self, connection: Connection, row: ModelRow, hand: _Hand) -> None:
        state = registry.transition(row.state, Act.RETIRE)
        refs = [("model.registered", row.leaf_of("registered") or "")]
        leaf = self._say(row, "retired", hand, {}, refs)
        _write(connection, row, state, "retired", hand, leaf)

    def _before(self, connection: Connection, row: ModelRow) -> ModelRow | None:
        """Find the version that was live before this one and may be so again."""
        for one in catalog.find_models(connection, row.id):
            last = one.newest("superseded", "activated", "suspended")
            if (
                last is not None
                and last["act"] == "superseded"
                and last["successor"] == row.digest
                and (one.newest("activated") or {}).get("mode", State.ACTIVE) == State.ACTIVE
                and one.state == State.APPROVED
                and len(one.approvers(proven=self._rules.proven)) >= self._rules.approvals
                and self._is_fit(one)
            ):
                return one
        return None

    def _say(
        self, row: ModelRow, did: str, hand: _Hand, said: Mapping[str, Any], refs: Sequence[Ref],
        *, idem: str | None = None,
    ) -> str:  # fmt: skip
        """Append the act's leaf, signed where the person has a key."""
        kind, origin = f"model.{did}", self._record.log.origin
        body: dict[str, Any] = {
            "model": row.digest, "id": row.id, "version": row.version,
            **({"by": hand.by} if hand.by else {}),
            **({"reason": hand.reason} if hand.reason else {}), **said,
        }  # fmt: skip
        if idem is None:
            # What is said is part of the name: after a crash another person's act is another fact.
            # So is one that is proven now: a leaf that is only asserted does not stand for it.
            proven = {"key": hand.signer.key} if hand.signer else {}
            fact = json.dumps(body | proven, sort_keys=True)
            what = hashlib.sha256(fact.encode()).hexdigest()[:16]
            idem = f"model/{row.digest}/{len(row.acts)}/{did}/{what}"
        if hand.by is not None:
            body["authn"] = hand.authn
        if hand.signer is not None:
            line = statement(origin, kind, idem, body)
            body |= {
                "key": hand.signer.key, "statement": line, "signature": hand.signer.sign(line),
            }  # fmt: skip
        return self._record.say(kind, idem, body, refs=refs)


def _named(by: str) -> str:
    name = " ".join(by.split())
    if not is_person(name):
        raise WrongUse("--by: write who does this with letters, digits, space . @ -, at most 60")
    return name


def _routed(rows: Sequence[ModelRow], name: str) -> ModelRow:
    """Give the live one of these versions, else the shadow."""
    for state in registry.ROUTED:
        for row in rows:
            if row.state == state:
                return row
    raise Refused(f"{name} is neither live nor a shadow; see `radseal model list`")


def _write(
    connection: Connection, row: ModelRow, state: State, did: str, hand: _Hand, leaf: str,
    **more: Any,
) -> None:  # fmt: skip
    act = {
        "act": did, "by": hand.by or SYSTEM_ACTS, "authn": hand.authn, "at": hand.at.isoformat(),
        "leaf": leaf, **more,
    }  # fmt: skip
    catalog.set_model(connection, row.digest, state, [*row.acts, act])
