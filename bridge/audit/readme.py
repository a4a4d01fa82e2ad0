"""What a bundle says to the person who unpacks it; never how to trust what came with it."""

from __future__ import annotations

__all__ = ["COPY", "TEXT"]

COPY = "# A copy. Take the file that you trust from the hospital by another way.\n"

TEXT = """\
An audit bundle of radseal: the records of one imaging study in a hospital's signed log.

VERIFY IT with a verifier that you installed yourself, never with anything from this file,
and with the log's keys (or its policy) that the hospital gave you by another way:

    radseal verify bundle.zip --vkey ledger.vkey
    radseal verify bundle.zip --policy policy --images FOLDER
    python -m ledger verify bundle.zip --vkey ledger.vkey

The last one needs Python, the folder `ledger` of radseal and the package `cryptography`, and
nothing else. ledger.vkey and policy in this bundle are copies for comparison.

WHAT IT SHOWS when it verifies
- Each record is in the log at its index, under one signed checkpoint, as it was written.
- The records refer to each other as the rules ask: consent before use, a model that was
  approved and in use, results that are those of the run.
- The hospital recorded that it gave exactly this bundle away: access.disclosed.
- With disclosed/: the consent documents and requests are those that the decisions were made
  from (radseal verify executes them again and compares), the images that were read are those
  listed, and with --images the files that you hold are among them.

WHAT IT DOES NOT SHOW
- That nothing else was recorded: a later withdrawal, retirement or recall that was left out
  is not seen. Ask for the whole log, or for a newer bundle.
- That the log's operator showed everybody the same history, unless witnesses of your policy
  cosigned the checkpoint.
- Who the patient is. Records hold no names; disclosed/ does.

disclosed/study.key opens the commitments of this study and of no other. Keep the whole file
as confidential as the study itself.

Members: README.txt, MANIFEST (sha256sum -c MANIFEST), index.json (what each record is),
checkpoint, records/*.tlog-proof (C2SP tlog-proof, the record in its `extra` line), and what
was disclosed.
"""
