"""One tree of several: the candidates of proposers that know nothing of each other."""

from collections.abc import Sequence

from specdec.core.tree import ROOT, CandidateTree


def merged(trees: Sequence[CandidateTree], num_nodes: int | None) -> CandidateTree:
    """Merge trees of one root; a path that several have is in it once.

    Sound for point masses alone: a token that was drawn cannot be told any more from one that was
    chosen. Nodes come level by level, those of the first trees first; `num_nodes` is the most.
    """
    token_ids, parents = [trees[0].token_ids[ROOT]], [-1]
    known: dict[tuple[int, int], int] = {}  # by parent and token
    places = [{ROOT: ROOT} for _ in trees]  # of each tree's nodes
    for depth, number, node in sorted(
        (tree.depths[node], number, node)
        for number, tree in enumerate(trees)
        for node in range(1, len(tree.parents))
    ):
        assert depth > 0
        parent = places[number].get(trees[number].parents[node])
        if parent is None:  # there was no place for it
            continue
        key = parent, trees[number].token_ids[node]
        if key not in known:
            if num_nodes is not None and len(known) >= num_nodes:
                continue
            known[key] = len(token_ids)
            token_ids.append(key[1])
            parents.append(parent)
        places[number][node] = known[key]
    return CandidateTree(tuple(token_ids), tuple(parents))


def followed(tree: CandidateTree, token_ids: Sequence[int]) -> list[int]:
    """Return the nodes below the root along which a tree has these tokens, as far as it does."""
    path, node = list[int](), ROOT
    for token in token_ids:
        below = (child for child in tree.children[node] if tree.token_ids[child] == token)
        found = next(below, None)
        if found is None:
            break
        path.append(found)
        node = found
    return path
