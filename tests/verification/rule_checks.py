"""The checks themselves: used by the tests of the rules, and by those that plant bugs in them."""

from harness import Block, Play, completed, verified
from rule_cases import EXACT, Case, Pair
from toy import text_law, total_variation

from specdec.core.randomness import Stream
from specdec.decoding.stopping import Stopping
from specdec.verification.enumeration import outcomes

ENDS = [frozenset[int](), frozenset({0}), frozenset({2}), frozenset({0, 2})]


def check_text_law(case: Case, pair: Pair) -> None:
    """One round, completed with p, has p's law; and all outcomes have probability 1 together."""
    blocks = outcomes(case.play(pair.p, pair.q))
    total = sum(blocks.values())
    assert abs(total - 1) < EXACT, f"{case} {pair}: outcomes add up to {total}"
    law = completed(blocks, pair.p, case.length)
    found = total_variation(law, text_law(pair.p, case.length))
    assert found < EXACT, f"TV {found:.3e}: {case} does not emit p's law for the pair {pair}"


def check_pruned_law(case: Case, pair: Pair, budget: int, ends: frozenset[int]) -> None:
    """A round as the decoder plays it has the law of p's text, cut at an end or at the budget."""
    blocks = outcomes(_pruned_round(case, pair, budget, ends))
    longest = max(len(block.token_ids) for block in blocks)
    assert longest <= budget, f"{longest} tokens emitted with {budget} left"
    law = completed(blocks, pair.p, budget, ends)
    found = total_variation(law, text_law(pair.p, budget, ends))
    assert found < EXACT, f"TV {found:.3e} for {pair}, budget {budget}, ends {set(ends)}"


def _pruned_round(case: Case, pair: Pair, budget: int, ends: frozenset[int]) -> Play:
    """Prune, verify, cut the block at the end of the text."""

    def play(stream: Stream) -> Block:
        proposal = case.drafts(case.parents, pair.q, stream).pruned(budget - 1, ends)
        block = verified(case.rule, proposal, pair.p, stream)
        text, _ = Stopping(budget, ends).cut((), block.token_ids)
        return Block(tuple(text), min(block.num_accepted, len(text)))

    return play
