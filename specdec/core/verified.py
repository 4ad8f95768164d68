"""Verdicts on the trees of a batch, by rules that take it at once, and rules that take one tree."""

from collections.abc import Sequence
from typing import TypeGuard

from specdec.core.protocols import BatchedRule, VerificationRule
from specdec.core.shown import Shown
from specdec.core.values import Proposal, Verdict


def verified(rule: VerificationRule, shown: Shown) -> list[Verdict]:
    """Let a rule decide: on all trees at once if it can, else on one after the other."""
    if decides_together(rule):
        return _by_draw(rule, shown)
    return [
        rule.verify(proposal, probs[: len(proposal.tree.parents)], stream)
        for proposal, probs, stream in zip(shown.proposals, shown.probs, shown.streams, strict=True)
    ]


def decides_together(rule: object) -> TypeGuard[BatchedRule]:
    """Whether `verify_all` is what a rule does: no `verify` of its own stands below it."""
    for owner in (rule, *type(rule).__mro__):
        names = getattr(owner, "__dict__", {}).keys()
        if {"verify", "verify_all"} & names:
            return "verify_all" in names
    return False


def _by_draw(rule: BatchedRule, shown: Shown) -> list[Verdict]:
    """Keep apart what was drawn in unlike ways: a proposer may do now this and now that."""
    draws = {each.draw for each in shown.proposals if each.has_candidates}
    if len(draws) <= 1:
        return rule.verify_all(shown)
    places = _grouped(shown.proposals)
    found = {
        place: verdict
        for group in places
        for place, verdict in zip(group, rule.verify_all(shown.some(group)), strict=True)
    }
    return [found[place] for place in range(len(shown.proposals))]


def _grouped(proposals: Sequence[Proposal]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for place, proposal in enumerate(proposals):
        groups.setdefault(proposal.draw, []).append(place)
    return list(groups.values())
