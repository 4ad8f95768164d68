"""Does a rule accept what it tells replay? Enumerated on small tables before it is believed.

For every text x and every depth k, P(x comes out and A >= k) must be p(x) times what replay makes
of the rule's shares. Of a rule that lets the text decide, each proposal is looked at alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.errors import first_line
from specdec.core.protocols import ReplayableRule, VerificationRule
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw
from specdec.proof.cases import SHAPES, Case, drafted
from specdec.proof.drafting import DRAFTERS, PASSES, Conditional, Parents, Tokens
from specdec.proof.known import remembering
from specdec.proof.lossless import ROUNDING
from specdec.proof.rounds import blocks_on, enumerated, off_by


def _flaw_of_form(rule: VerificationRule, draw: Draw | None) -> str | None:
    assert isinstance(rule, ReplayableRule)
    assert draw is not None
    for case in _cases(draw):
        try:
            form = rule.closed_form(draw)
            off = 0.0 if form is None else _survival_off_by(rule, form, case)
        except Exception as error:  # whatever foreign code raises, nobody can tell what it says
            return f"{case}: {type(error).__name__}: {first_line(error)}"
        if not off <= ROUNDING:  # what is no number is wrong, too
            return f"{case}: P(a text, and so many accepted) is off by {off:.3g}"
    return None


def _flaw_of_text(rule: VerificationRule, draw: Draw | None) -> str | None:
    assert draw is not None
    for case in _cases(draw):
        try:
            flaw = _undecided(rule, case)
        except Exception as error:  # likewise
            return f"{case}: {type(error).__name__}: {first_line(error)}"
        if flaw is not None:
            return f"{case}: {flaw}"
    return None


# What is wrong with a rule's `closed_form` of candidates so drawn, in a line; None: nothing.
flaw_of_form = remembering(_flaw_of_form)
# What is wrong with its saying that the text decides on them, likewise.
flaw_of_text = remembering(_flaw_of_text)


def _cases(draw: Draw) -> Iterator[Case]:
    for parents, table in SHAPES[draw]:
        # Third children without replacement: their shares need be right on average only.
        is_average = draw is Draw.WITHOUT_REPLACEMENT and max(map(parents.count, parents)) > 2
        if not is_average:
            yield Case(draw, parents, table, DRAFTERS[draw])


def _undecided(rule: VerificationRule, case: Case) -> str | None:
    """Say why not just those candidates are accepted that the text goes on with; None: they are."""
    for proposal, _ in drafted(case):
        blocks = blocks_on(rule, proposal, case)
        if off_by(blocks, case.table.p, case.length) > ROUNDING:
            return "the distribution of the text depends on the candidates"
        for block in blocks:
            reached = _reached(proposal.tree, block)
            if reached >= len(block):
                return f"accepts {len(block) - 1} of {reached} candidates of the text {block}"
    return None


def _reached(tree: CandidateTree, text: Tokens) -> int:
    """Return how many candidates a text goes on with; of equal siblings the first one counts."""
    node = ROOT
    for depth, token in enumerate(text):
        bearers = [child for child in tree.children[node] if tree.token_ids[child] == token]
        if not bearers:
            return depth
        node = bearers[0]
    return len(text)


def _survival_off_by(rule: VerificationRule, form: ClosedForm, case: Case) -> float:
    """Return by how much P(x, A >= k) is off at most."""
    along = _Along.of(case)
    blocks = enumerated(rule, case).blocks
    exact = [
        [_joint(blocks, text, case.table.p, depth) for depth in range(case.length)]
        for text in along.texts
    ]
    found = along.mass[:, None] * along.survival(form, case.parents)
    return float((found - torch.tensor(exact, dtype=torch.float64)).abs().max())


def _joint(blocks: dict[Tokens, float], text: Tokens, p: Conditional, depth: int) -> float:
    """Return P(the text is x and A >= depth), the rest of it completed with p."""
    rest, total = 1.0, 0.0
    for length in range(len(text), depth, -1):  # of what is emitted: one more than is accepted
        total += blocks.get(text[:length], 0.0) * rest
        rest *= float(p(text[: length - 1])[text[length - 1]])
    return total


@dataclass(frozen=True)
class _Along:
    """All texts of a case that p can come to, and both distributions along them."""

    texts: Sequence[Tokens]  # n
    p: Sequence[Tensor]  # per depth [n, V]
    q: Sequence[Tensor]  # per depth [n, V]: see `Proposal.draft_probs`

    @classmethod
    def of(cls, case: Case) -> "_Along":
        table, length = case.table, case.length
        every = product(range(len(table.p(()))), repeat=length)
        texts = [x for x in every if all(table.p(x[:d])[x[d]] > 0 for d in range(length))]
        p, q = (
            [torch.stack([row(x[:depth]) for x in texts]) for depth in range(length)]
            for row in (table.p, table.q)
        )
        if case.draw is Draw.FILTERED:
            q = [rows * (rows >= PASSES) for rows in q]
        return cls(texts, p, q)

    @property
    def mass(self) -> Tensor:  # [n] float64
        """How likely each text is."""
        return torch.stack([self._log_p(depth) for depth in range(len(self.p))]).sum(dim=0).exp()

    def survival(self, form: ClosedForm, parents: Parents) -> Tensor:  # [n, D + 1] float64
        """Return P(A >= k | x), as the shares have it."""
        depths = CandidateTree(parents, parents).depths
        places = [parents[:node].count(parent) for node, parent in enumerate(parents)]
        widths = [
            1 + max(place for place, d in zip(places, depths, strict=True) if d == depth)
            for depth in range(1, 1 + max(depths))
        ]
        shares = [
            form.shares(self._nodes(form, depth, k, widths[0], depth)).double()
            for depth, k in enumerate(widths, start=1)
        ]
        reached = [torch.ones(len(self.texts), dtype=torch.float64)]
        survival = [reached[0], *(torch.zeros_like(reached[0]) for _ in shares)]
        for node, parent in enumerate(parents[1:], start=1):
            depth = depths[node]
            reached.append(reached[parent] * shares[depth - 1][:, places[node]])
            survival[depth] = survival[depth] + reached[node]
        return torch.stack(survival, dim=1)

    def _nodes(
        self, form: ClosedForm, depth: int, num_children: int, num_paths: int, reads: int
    ) -> TextNodes:
        """Return the nodes above one depth of texts; `reads` depths of them know of each other."""
        path = range(reads if form.reads_path else 0)
        note = form.note
        return TextNodes(
            self.q[depth - 1],
            self._tokens(depth - 1),
            self._log_p(depth - 1),
            num_children,
            self.p[depth - 1] if form.needs_p else None,
            [self._log_q(d) - self._log_p(d) for d in path],
            torch.Generator().manual_seed(0),
            [note(self._nodes(form, d + 1, 1, num_paths, 0)) for d in path if note],
            num_paths if note else 1,
        )

    def _tokens(self, depth: int) -> Tensor:  # [n]
        return torch.tensor([text[depth] for text in self.texts])

    def _log_p(self, depth: int) -> Tensor:  # [n] float64
        return self._of_text(self.p[depth], depth)

    def _log_q(self, depth: int) -> Tensor:  # [n] float64
        return self._of_text(self.q[depth], depth)

    def _of_text(self, rows: Tensor, depth: int) -> Tensor:
        return rows.double().gather(1, self._tokens(depth)[:, None]).squeeze(1).log()
