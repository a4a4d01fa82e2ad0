"""Write the vectors anew: `python tests/vectors/receipt_block/make.py` in the repository's folder."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]

import paper_results  # noqa: E402

from bridge import commitments  # noqa: E402
from bridge.report import content, receipt  # noqa: E402


def main() -> None:
    """Write composed.dcm, stamped.dcm, implicit.dcm and block.json."""
    with tempfile.TemporaryDirectory() as folder:
        made = paper_results.PaperResults(Path(folder))
        plain, stamped, proofs = made.plain["sr"], made.stamped["sr"], made.proofs("sr")
    key = paper_results.artifact_key(plain)
    ds = dcmread(BytesIO(plain))
    digest = content.content_digest(ds)
    said = {
        "vkeys": made.vkeys,
        "key": key.hex(),
        "proofs": proofs,
        "digest": receipt.Receipt(key, tuple(proofs)).digest().hex(),
        "content_digest": digest.hex(),
        "content_commitment": commitments.content_commitment(key, digest).hex(),
        "attributes": {
            tag: {
                "value": value.decode(),
                "commitment": commitments.attribute_commitment(key, tag, value).hex(),
            }
            for tag, value in content.attribute_digests(ds).items()
        },
        "sha256": {"composed.dcm": _sha256(plain), "stamped.dcm": _sha256(stamped)},
    }
    hop = dcmread(BytesIO(stamped))
    hop.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    (HERE / "composed.dcm").write_bytes(plain)
    (HERE / "stamped.dcm").write_bytes(stamped)
    hop.save_as(
        HERE / "implicit.dcm", enforce_file_format=True, implicit_vr=True, little_endian=True
    )
    (HERE / "block.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


main()
