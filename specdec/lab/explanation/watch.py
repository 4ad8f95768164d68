"""Look on while a decoder works: its rule and its tree remember what they see."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from specdec.decoding.decoder import SpeculativeDecoder
from specdec.lab.explanation.watched_rule import Judged, WatchedRule
from specdec.lab.explanation.watched_tree import Growth, WatchedTree
from specdec.proposer.tree_proposer import TreeProposer


@dataclass
class Watch:
    """What was seen of each step, in their order."""

    steps: list[tuple[Judged, Growth]] = field(default_factory=list[tuple[Judged, Growth]])


@contextmanager
def watching(decoder: SpeculativeDecoder) -> Generator[Watch]:
    """Yield what will be seen of a decoder's steps, one request in flight; nothing is changed."""
    assert decoder.batch == 1, "of several requests in flight only one would be seen"
    watch, rule = Watch(), decoder.rule
    grower = decoder.proposer if isinstance(decoder.proposer, TreeProposer) else None
    tree = None if grower is None else WatchedTree(grower.tree)

    def see(judged: Judged) -> None:
        watch.steps.append((judged, Growth() if tree is None else tree.taken()))

    decoder.rule = WatchedRule(rule, see)
    if grower is not None and tree is not None:
        grower.tree = tree
    try:
        yield watch
    finally:
        decoder.rule = rule
        if grower is not None and tree is not None:
            grower.tree = tree.tree
