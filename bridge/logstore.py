"""The ledger's store on PostgreSQL: many nodes append, one at a time sequences.

The twin of `ledger.store.SqliteStore` with the same promises, in a schema of its own.
A session advisory lock says who sequences; the compare-and-swap of the head is the fence
behind it: a sequencer that was paused and lost its session loses the race and signs
nothing that others see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ledger.errors import LostRace, StorageFailed, WrongOrigin
from ledger.merkle import EMPTY
from ledger.store import Appended, Facts, Head, Last, Row
from ledger.together import Together

__all__ = ["PostgresStore", "has_schema", "head_in"]

_METADATA = sa.MetaData(schema="ledger")

_LOG = sa.Table(
    "log",
    _METADATA,
    sa.Column("one", sa.SmallInteger, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("checkpoint", sa.Text, nullable=False),
)

_LEAVES = sa.Table(
    "leaves",
    _METADATA,
    sa.Column("seq", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("idem", sa.Text, nullable=False, unique=True),
    sa.Column("leaf_hash", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("idx", sa.BigInteger, unique=True),
    sa.Column("data", sa.LargeBinary),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, index=True),
    sa.Column("study", sa.Text, index=True),
)
sa.Index("leaves_pending", _LEAVES.c.seq, postgresql_where=_LEAVES.c.idx.is_(None))
sa.Index("leaves_bytes", _LEAVES.c.idx, postgresql_where=_LEAVES.c.data.is_not(None))

_Leaf = Mapping[str, Any]
_INSERT = (
    postgresql.insert(_LEAVES)
    .on_conflict_do_nothing(index_elements=["idem"])
    .returning(_LEAVES.c.idem)
)
_ROW = (_LEAVES.c.leaf_hash, _LEAVES.c.idx, _LEAVES.c.data)


_SHUT = (
    "CREATE FUNCTION {schema}.shut() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'the log is closed'; END $$",
    "CREATE TRIGGER shut BEFORE INSERT ON {schema}.leaves"
    " FOR EACH STATEMENT EXECUTE FUNCTION {schema}.shut()",
)


def head_in(db: sa.Connection) -> Head:
    """Return the newest signed state that a connection sees."""
    found = db.execute(sa.select(_LOG.c.size, _LOG.c.root, _LOG.c.checkpoint)).first()
    return Head(found.size, bytes(found.root), found.checkpoint) if found else Head()


def has_schema(url: str, schema: str) -> bool:
    """Whether a log lives in this schema."""
    engine = sa.create_engine(url, hide_parameters=True)
    try:
        return sa.inspect(engine).has_schema(schema)
    except sa.exc.SQLAlchemyError as error:
        raise _failed(error) from None
    finally:
        engine.dispose()


class PostgresStore:
    """`ledger.store.Store` behind a PostgreSQL URL (postgresql+psycopg://…).

    Makes its schema on first use; a closed log has one of its own. Appends that arrive together
    are committed together. Errors of the database come out as StorageFailed, without statement
    or values.
    """

    def __init__(self, url: str, schema: str = "ledger") -> None:
        self._schema = schema
        opened = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True)
        sa.event.listen(opened, "connect", _durable)
        self._engine = opened.execution_options(schema_translate_map={"ledger": schema})
        self._appends = Together[_Leaf, Appended](self._append)
        self._claim: sa.Connection | None = None
        self._key = int.from_bytes(
            hashlib.sha256(b"radseal/ledger").digest()[:8], "big", signed=True
        )
        with self._transaction() as db:
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(self._key ^ 1)))
            db.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
            _METADATA.create_all(db)

    def close(self) -> None:
        """Close the connections."""
        self.release()
        self._engine.dispose()

    def pin(self, origin: str) -> Head | None:
        """See `Store`."""
        first = {"one": 1, "origin": origin, "size": 0, "root": EMPTY, "checkpoint": ""}
        with self._transaction() as db:
            made = db.execute(
                postgresql.insert(_LOG).values(first).on_conflict_do_nothing().returning(_LOG.c.one)
            ).first()
            db.execute(
                sa.update(_LOG).where(~sa.exists(sa.select(_LEAVES.c.seq))).values(origin=origin)
            )
            bound = db.execute(sa.select(_LOG.c.origin)).scalar_one()
        if bound != origin:
            raise WrongOrigin(f"the log belongs to {bound}, not to {origin}")
        return None if made is not None else self.head()

    def append(self, idem: str, data: bytes, leaf_hash: bytes, facts: Facts) -> Appended:
        """See `Store`."""
        return self._appends.ask({
            "idem": idem, "data": data, "leaf_hash": leaf_hash, "type": facts.type,
            "time": facts.time, "subject": facts.subject, "study": facts.study,
        })  # fmt: skip

    def _append(self, leaves: Sequence[_Leaf]) -> list[Appended]:
        # In order of their keys: two nodes that insert the same ones wait, and do not deadlock.
        first = {leaf["idem"]: leaf for leaf in reversed(leaves)}
        rows = [first[idem] for idem in sorted(first)]
        with self._transaction() as db:
            fresh = set(db.execute(_INSERT, rows).scalars())
        told = []
        for leaf in leaves:
            if leaf is first[leaf["idem"]] and leaf["idem"] in fresh:
                told.append(Appended(leaf["leaf_hash"], leaf["data"], fresh=True))
            else:
                stored = self.find(idem=leaf["idem"])
                if stored is None:
                    raise StorageFailed
                told.append(Appended(stored.leaf_hash, stored.data, fresh=False))
        return told

    def assign(self, limit: int) -> int:
        """See `Store`."""
        with self._transaction() as db:
            return _assign(db, limit)

    def assigned(self, start: int, limit: int) -> Sequence[Row]:
        """See `Store`."""
        asked = sa.select(*_ROW).where(_LEAVES.c.idx >= start)
        return self._rows(asked.order_by(_LEAVES.c.idx).limit(limit))

    def head(self) -> Head:
        """See `Store`."""
        with self._transaction() as db:
            return head_in(db)

    def advance(self, old: Head, new: Head) -> None:
        """See `Store`."""
        swap = (
            sa.update(_LOG)
            .where(_LOG.c.size == old.size, _LOG.c.root == old.root)
            .values(size=new.size, root=new.root, checkpoint=new.text)
        )
        with self._transaction() as db:
            if db.execute(swap).rowcount != 1:
                raise LostRace

    def find(self, *, leaf_hash: bytes | None = None, idem: str | None = None) -> Row | None:
        """See `Store`."""
        by_hash = leaf_hash is not None
        asked = _LEAVES.c.leaf_hash == leaf_hash if by_hash else _LEAVES.c.idem == idem
        rows = self._rows(sa.select(*_ROW).where(asked))
        return rows[0] if rows else None

    def select(
        self, *, type: str | None = None, subject: str | None = None, study: str | None = None
    ) -> Sequence[Row]:
        """See `Store`."""
        asked = sa.select(*_ROW).order_by(_LEAVES.c.seq)
        for column, value in (("type", type), ("subject", subject), ("study", study)):
            if value is not None:
                asked = asked.where(_LEAVES.c[column] == value)
        return self._rows(asked)

    def discard(self, below: int) -> None:
        """See `Store`."""
        with self._transaction() as db:
            db.execute(
                sa.update(_LEAVES)
                .where(_LEAVES.c.data.is_not(None), _LEAVES.c.idx < below)
                .values(data=None)
            )

    def shut(self, last: Last | None) -> None:
        """See `Store`: the schema is renamed from here on by `put_away`."""
        with self._transaction() as db:
            shut = sa.select(sa.func.to_regprocedure(f"{self._schema}.shut()").is_not(None))
            if db.execute(shut).scalar_one():
                return
            # Waits for appends under way, and no other begins until this one has ended them all.
            db.execute(sa.text(f"LOCK {self._schema}.leaves IN SHARE ROW EXCLUSIVE MODE"))
            if last is not None:
                db.execute(_INSERT, [{
                    "idem": last.idem, "data": last.data, "leaf_hash": last.leaf_hash,
                    "type": last.facts.type, "time": last.facts.time,
                    "subject": last.facts.subject, "study": last.facts.study,
                }])  # fmt: skip
            _assign(db, None)
            for statement in _SHUT:
                db.execute(sa.text(statement.format(schema=self._schema)))

    def put_away(self, schema: str) -> None:
        """Rename the log's schema, so that a new log can have its place; raises StorageFailed."""
        with self._transaction() as db:
            db.execute(sa.text(f"ALTER SCHEMA {self._schema} RENAME TO {schema}"))

    def claim(self) -> bool:
        """See `Store`: a lock of this session, gone with the connection."""
        if self._claim is not None:
            return False
        try:
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            held = connection.execute(
                sa.select(sa.func.pg_try_advisory_lock(self._key))
            ).scalar_one()
        except sa.exc.SQLAlchemyError as error:
            raise _failed(error) from None
        if not held:
            connection.close()
            return False
        self._claim = connection
        return True

    def release(self) -> None:
        """See `Store`."""
        connection, self._claim = self._claim, None
        if connection is not None:
            connection.invalidate()  # the session ends, and its lock with it
            connection.close()

    def _rows(self, asked: sa.Select[Any]) -> list[Row]:
        with self._transaction() as db:
            found = db.execute(asked).all()
        return [
            Row(bytes(one.leaf_hash), one.idx, None if one.data is None else bytes(one.data))
            for one in found
        ]

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as db:
                yield db
        except sa.exc.SQLAlchemyError as error:
            raise _failed(error) from None


def _assign(db: sa.Connection, limit: int | None) -> int:
    pending = (
        sa.select(
            _LEAVES.c.seq,
            (sa.func.row_number().over(order_by=_LEAVES.c.seq) - 1).label("place"),
        )
        .where(_LEAVES.c.idx.is_(None))
        .order_by(_LEAVES.c.seq)
        .limit(limit)
        .subquery()
    )
    db.execute(sa.select(_LOG.c.one).with_for_update())  # one assigns at a time
    last = db.execute(sa.select(sa.func.max(_LEAVES.c.idx))).scalar_one()
    start = 0 if last is None else last + 1
    return db.execute(
        sa.update(_LEAVES).where(_LEAVES.c.seq == pending.c.seq).values(idx=pending.c.place + start)
    ).rowcount


def _failed(error: sa.exc.SQLAlchemyError) -> StorageFailed:
    return StorageFailed(f"the ledger's database did not take it ({type(error).__name__})")


def _durable(connection: Any, _record: object) -> None:
    """Make commits wait for the disk, even where the database does not by default."""
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")
    connection.commit()
