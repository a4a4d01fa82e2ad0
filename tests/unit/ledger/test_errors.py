"""The error tree: drawn, complete, never silent."""

from __future__ import annotations

import inspect

from ledger import errors


def test_every_error_is_drawn_exported_and_has_a_message():
    found = {
        name: thing
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, Exception)
    }
    assert set(errors.__all__) == {*found, "printable"}
    for name, kind in found.items():
        assert name in errors.__doc__
        assert issubclass(kind, errors.LedgerError)
        if kind is not errors.VerifyError:
            assert str(kind()) == inspect.getdoc(kind)
            assert str(kind("words")) == "words"
    refusal = errors.VerifyError("tile/0/000", "was changed")
    assert (refusal.where, refusal.what, str(refusal)) == (
        "tile/0/000", "was changed", "tile/0/000: was changed",
    )  # fmt: skip
