"""Whether a receipt's checkpoint is part of a history that others have seen too.

A receipt carries the checkpoint of its moment, which witnesses cosign a little later. So the
log is asked for its newest checkpoint under the policy's quorum, and both must be of one tree.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.errors import Refused
from ledger import merkle
from ledger.checkpoint import Checkpoint
from ledger.errors import BadKey, LedgerError, ProofInvalid
from ledger.policy import Policy, Verdict
from ledger.source import CHECKPOINT_SIZE, Source, read_tile, source_of
from ledger.tiles import Hashes

__all__ = ["cosigned"]

_NAMES = ("checkpoint.witnessed", "checkpoint")


def cosigned(index: int, receipt: Verdict, policy: Policy, log: str | None) -> Mapping[str, int]:
    """Return when each witness saw the leaf's history, POSIX seconds; empty where none is asked.

    `index` is the leaf's, `receipt` the verdict on its checkpoint, `log` a folder or web
    address. Raises Refused where the policy's quorum is missing, and where the log's history
    is another than the receipt's, also without a quorum.
    """
    if log is None:
        if receipt.reached:
            return receipt.cosigned
        raise Refused(
            "not witnessed yet: the receipt was made before witnesses could cosign; bring the "
            "log that they saw with --log DIR|URL"
        )
    source = source_of(log)
    agreed = receipt if receipt.cosigned and receipt.reached else None
    published = _published(source, policy)
    if published[-1].checkpoint.size < receipt.checkpoint.size:
        raise Refused("the log has fewer leaves than when the receipt was made: it was rolled back")
    for verdict in published:
        if verdict.checkpoint.origin != receipt.checkpoint.origin:
            raise Refused(f"{log} is the log of {verdict.checkpoint.origin}")
        _one_tree(source, receipt.checkpoint, verdict.checkpoint)
        if verdict.reached and index < verdict.checkpoint.size and agreed is None:
            agreed = verdict
    if agreed is None:
        raise Refused(f"not witnessed yet: your policy asks for {policy.quorum}")
    return agreed.cosigned


def _published(source: Source, policy: Policy) -> list[Verdict]:
    """Give what the policy says of the log's checkpoints, the witnessed one first."""
    found = []
    for name in _NAMES:
        try:
            text = source.read(name, CHECKPOINT_SIZE).decode()
            found.append(policy.judge(text))
        except FileNotFoundError:
            continue
        except BadKey:
            raise
        except (UnicodeDecodeError, LedgerError) as error:
            raise Refused(f"the log's {name} does not verify: {error}") from None
    if not found:
        raise Refused("there is no log where --log leads: it holds no checkpoint")
    return found


def _one_tree(source: Source, one: Checkpoint, other: Checkpoint) -> None:
    """Raise Refused unless the smaller tree is the beginning of the larger one."""
    old, new = sorted((one, other), key=lambda point: point.size)
    hashes = Hashes(new.size, lambda tile: read_tile(source, tile)[1])
    try:
        path = merkle.consistency_proof(old.size, new.size, hashes.perfect)
        merkle.verify_consistency(old.size, new.size, old.root, new.root, path)
    except ProofInvalid:
        raise Refused(
            "the log's history is another than the receipt's: keep both, its keys are misused"
        ) from None
