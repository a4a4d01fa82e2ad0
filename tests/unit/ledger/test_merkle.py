"""RFC 6962 hashes and proofs against the reference vectors and a naive tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledger import merkle
from ledger.errors import ProofInvalid


@pytest.fixture
def tree(vectors: Path) -> dict[str, object]:
    return json.loads((vectors / "rfc6962" / "tree.json").read_text())


@pytest.fixture
def leaves(tree) -> list[bytes]:
    return [merkle.leaf_hash(bytes.fromhex(entry)) for entry in tree["entries"]]


def perfect_of(leaves):
    return lambda level, index: merkle.root(leaves[index << level : (index + 1) << level])


def test_roots_are_those_of_the_reference(tree, leaves):
    assert merkle.EMPTY.hex() == tree["empty"] == merkle.root([]).hex()
    assert [merkle.root(leaves[: n + 1]).hex() for n in range(8)] == tree["roots"]


def test_paths_are_those_of_the_reference(tree, leaves):
    roots = [bytes.fromhex(one) for one in tree["roots"]]
    perfect = perfect_of(leaves)
    for case in tree["inclusion"]:
        path = merkle.inclusion_proof(case["index"], case["size"], perfect)
        assert [one.hex() for one in path] == case["path"]
        merkle.verify_inclusion(
            leaves[case["index"]], case["index"], case["size"], path, roots[case["size"] - 1]
        )
    for case in tree["consistency"]:
        path = merkle.consistency_proof(case["old"], case["new"], perfect)
        assert [one.hex() for one in path] == case["path"]
        merkle.verify_consistency(
            case["old"], case["new"], roots[case["old"] - 1], roots[case["new"] - 1], path
        )


def test_an_inclusion_proof_holds_for_one_leaf_at_one_place_only(leaves):
    root, perfect = merkle.root(leaves), perfect_of(leaves)
    for index in range(8):
        path = merkle.inclusion_proof(index, 8, perfect)
        for place in range(8):
            for candidate in range(8):
                if (place, candidate) == (index, index):
                    merkle.verify_inclusion(leaves[candidate], place, 8, path, root)
                else:
                    with pytest.raises(ProofInvalid):
                        merkle.verify_inclusion(leaves[candidate], place, 8, path, root)


@pytest.mark.parametrize(("index", "size"), [(8, 8), (-1, 8), (0, 0)])
def test_a_leaf_outside_the_tree_has_no_proof(index, size, leaves):
    with pytest.raises(ProofInvalid):
        merkle.inclusion_proof(index, size, perfect_of(leaves))
    with pytest.raises(ProofInvalid):
        merkle.verify_inclusion(leaves[0], index, size, [], merkle.root(leaves))


def test_a_path_of_the_wrong_length_is_refused(leaves):
    root, path = merkle.root(leaves), merkle.inclusion_proof(3, 8, perfect_of(leaves))
    for wrong in (path[:-1], [*path, path[0]]):
        with pytest.raises(ProofInvalid, match=r"too (long|short)"):
            merkle.verify_inclusion(leaves[3], 3, 8, wrong, root)


def test_a_changed_history_is_inconsistent(leaves):
    other = [merkle.leaf_hash(b"other"), *leaves[1:]]
    for old in range(1, 8):
        path = merkle.consistency_proof(old, 8, perfect_of(leaves))
        with pytest.raises(ProofInvalid):
            merkle.verify_consistency(old, 8, merkle.root(other[:old]), merkle.root(leaves), path)
        for wrong in (path[:-1], [*path, path[-1]], []):
            with pytest.raises(ProofInvalid):
                merkle.verify_consistency(
                    old, 8, merkle.root(leaves[:old]), merkle.root(leaves), wrong
                )


def test_edges_of_consistency(leaves):
    root = merkle.root(leaves)
    merkle.verify_consistency(0, 8, merkle.EMPTY, root, [])
    merkle.verify_consistency(8, 8, root, root, [])
    for old, older, path in ((0, root, []), (8, merkle.EMPTY, []), (0, merkle.EMPTY, [root])):
        with pytest.raises(ProofInvalid):
            merkle.verify_consistency(old, 8, older, root, path)
    with pytest.raises(ProofInvalid):
        merkle.verify_consistency(9, 8, root, root, [])
    with pytest.raises(ProofInvalid):
        merkle.consistency_proof(9, 8, perfect_of(leaves))
    assert merkle.consistency_proof(0, 8, perfect_of(leaves)) == []
