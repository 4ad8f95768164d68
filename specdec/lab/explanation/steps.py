"""From what was seen of a step to what is told of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from specdec.core.on_host import floats, integers
from specdec.core.trace import Step
from specdec.core.tree import ROOT
from specdec.core.values import Proposal
from specdec.lab.explanation.spelling import Spelt
from specdec.lab.explanation.watched_rule import Heard, Judged
from specdec.lab.explanation.watched_tree import Growth, Path
from specdec.results.explanation import Candidate, Decision, ExplainedStep, Fate, Likely, Outlook


@dataclass(frozen=True)
class Telling:
    """How much is told, and in which words."""

    spelt: Spelt
    num_likely: int  # tokens of each distribution
    is_greedy: bool  # whether nothing is left to chance


def explained(
    telling: Telling, before: Sequence[int], step: Step, judged: Judged, growth: Growth
) -> ExplainedStep:
    """Tell one step; `before` are the tokens of the text at its start, the prompt included."""
    proposal, verdict, spelt = judged.proposal, judged.verdict, telling.spelt
    tree = proposal.tree
    drafted = draft_probs_of(proposal, growth)
    accepted = spelt.tokens([tree.token_ids[node] for node in verdict.path])
    own = spelt.token(verdict.next_token) if step.emitted > step.accepted else ""
    others = left_out(proposal, growth)
    decisions = () if telling.is_greedy else tuple(_decisions(judged.heard, spelt))
    return ExplainedStep(
        num_tokens=len(before),
        before=spelt.end_of(before),
        draft_calls=step.draft_calls,
        draft_says=tuple(_of_draft(telling, proposal, drafted)),
        left_out=tuple(" ".join(spelt.tokens(path)) for path in others[: telling.num_likely]),
        num_left_out=len(others),
        withheld=proposal.withheld,
        candidates=tuple(_candidates(judged, drafted, spelt)),
        verifier_says=tuple(_of_verifier(telling, judged)),
        decisions=decisions,
        accepted=accepted,
        own=own,
        own_kind=step.outcome.value,
        expected_accepted=step.expected_accepted,
        overlap=step.overlap[0] if step.overlap else None,
    )


def path_of(proposal: Proposal, node: int) -> Path:
    """Return the draft tokens between the text and a node, its own included."""
    tree = proposal.tree
    return tuple(tree.token_ids[each] for each in tree.path_to(node))


def draft_probs_of(proposal: Proposal, growth: Growth) -> Mapping[Path, Tensor]:  # [V] each
    """Return q after each node that has one: as the rule has it, else as the tree was shown it."""
    rows = proposal.draft_probs
    if rows is None:
        return growth.draft_probs
    children = proposal.tree.children
    return {
        path_of(proposal, node): row
        for node, row in enumerate(rows)
        if children[node] or node == ROOT
    }


def left_out(proposal: Proposal, growth: Growth) -> list[Path]:
    """Return candidates that were grown, and that the verifier does not read."""
    read = {path_of(proposal, node) for node in range(1, len(proposal.tree.parents))}
    return [path for path in dict.fromkeys(growth.grown) if path not in read]


def _of_draft(
    telling: Telling, proposal: Proposal, drafted: Mapping[Path, Tensor]
) -> Iterator[Outlook]:
    """Tell q after the text, and after each draft token that has children."""
    for node, children in enumerate(proposal.tree.children):
        path = path_of(proposal, node)
        if path in drafted and (children or node == ROOT):
            token_ids = [proposal.tree.token_ids[child] for child in children]
            yield _outlook(telling, path, drafted[path], token_ids)


def _of_verifier(telling: Telling, judged: Judged) -> Iterator[Outlook]:
    """Tell p after the text, and after each accepted token."""
    tree = judged.proposal.tree
    for node in (ROOT, *judged.verdict.path):
        children = [tree.token_ids[child] for child in tree.children[node]]
        path = path_of(judged.proposal, node)
        yield _outlook(telling, path, judged.verifier_probs[node], children)


def _outlook(telling: Telling, path: Path, probs: Tensor, candidates: Sequence[int]) -> Outlook:
    values, token_ids = probs.topk(min(telling.num_likely, len(probs)))
    pairs = zip(integers(token_ids), floats(values), strict=True)
    return Outlook(
        after=telling.spelt.tokens(path),
        likely=tuple(
            Likely(telling.spelt.token(token), value, token in candidates)
            for token, value in pairs
            if value > 0
        ),
        possible=int((probs > 0).sum()),
    )


def _candidates(
    judged: Judged, drafted: Mapping[Path, Tensor], spelt: Spelt
) -> Iterator[Candidate]:
    proposal = judged.proposal
    tree, path = proposal.tree, set(judged.verdict.path)
    for node, parent in enumerate(tree.parents[1:], start=1):
        token = tree.token_ids[node]
        row = drafted.get(path_of(proposal, parent))
        yield Candidate(
            node=node,
            parent=parent,
            text=spelt.token(token),
            draft=None if row is None else float(row[token]),
            verifier=float(judged.verifier_probs[parent, token]),
            fate=_fate(node, parent, path),
        )


def _fate(node: int, parent: int, accepted: set[int]) -> Fate:
    if node in accepted:
        return "accepted"
    return "refused" if parent == ROOT or parent in accepted else "out of reach"


def _decisions(heard: Sequence[Heard], spelt: Spelt) -> Iterator[Decision]:
    for each in heard:
        if each.token_id is not None:
            yield Decision(each.number, None, spelt.token(each.token_id))
        else:
            assert each.chance is not None
            answer = "yes" if each.number < each.chance else "no"
            yield Decision(each.number, min(1.0, each.chance), answer)
