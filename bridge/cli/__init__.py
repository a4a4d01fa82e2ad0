"""The command line: `radseal …`. Errors go to standard error as one sentence; exit 0, 1 or 2.

0   done, or checked and good
1   checked and failed
2   wrong use: a bad argument, a bad site.toml
"""

from __future__ import annotations

import os
import sys

import typer

from bridge.cli import (
    audit,
    consent,
    demo,
    erase,
    keep,
    model,
    package,
    proof,
    site,
    study,
    trial,
    witness,
)
from bridge.errors import RadsealError, SettingsError, WrongUse
from bridge.store.database import AWAY
from ledger.errors import LedgerError
from models.errors import ModelError

__all__ = ["app", "main"]

app = typer.Typer(
    name="radseal", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Puts AI into the radiology workflow and proves what it did.",
)  # fmt: skip
site.register(app)
study.register(app)
proof.register(app)
erase.register(app)
keep.register(app)
package.register(model.app)
trial.register(model.app)
app.add_typer(model.app, name="model")
app.add_typer(consent.app, name="consent")
app.add_typer(keep.ledger, name="ledger")
app.add_typer(keep.key, name="key")
app.add_typer(audit.app, name="audit")
app.add_typer(study.quarantine, name="quarantine")
app.add_typer(site.token, name="token")
app.add_typer(site.peer, name="peer")
app.add_typer(witness.app, name="witness")
app.command("demo")(demo.demo)


def main() -> None:
    """Run a command; an error of ours becomes one sentence and an exit code."""
    os.umask(0o077)  # what we write is for this account only
    try:
        app()
    except (SettingsError, WrongUse) as error:
        sys.stderr.write(f"radseal: {error}\n")
        raise SystemExit(2) from None
    except AWAY:
        # Its own words name hosts, files and statements; the sentence says where to look.
        sys.stderr.write(
            "radseal: the database does not answer; check [database] url, that its server runs and "
            "that its disk is not full\n"
        )
        raise SystemExit(1) from None
    except (RadsealError, LedgerError, ModelError) as error:
        sys.stderr.write(f"radseal: {error}\n")
        raise SystemExit(1) from None
