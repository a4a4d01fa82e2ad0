"""Models: signed packages in, coded findings out; knows nothing of bridge or ledger."""
