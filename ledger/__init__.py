"""An append-only, signed log of facts that a stranger can verify without us."""
