"""Systems that we call: one file per outside system."""
