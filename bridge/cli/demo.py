"""`radseal demo`: the whole way in half a minute."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running with its page.")] = False,
) -> None:
    """Show the whole way: a fake PACS, a signed model, a synthetic chest CT of known truth."""
    from bridge.demo.run import run

    raise typer.Exit(run(keep=keep))
