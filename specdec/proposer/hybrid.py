"""Several proposers in one: the most promising drafts, or their candidates are merged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specdec.core.errors import Unfit, require, require_int, require_number
from specdec.core.members import require_members
from specdec.core.narrowing import is_mapping, is_sequence
from specdec.core.outcome import Outcome
from specdec.core.plug_ins import plug_in_name
from specdec.core.protocols import Onlooker, Proposer, TreeFinisher
from specdec.core.tree import ROOT
from specdec.core.values import (
    CandidateSource,
    Context,
    Draw,
    Draws,
    Layer,
    Proposal,
    Verdict,
    each_draw,
    united,
)
from specdec.proposer.merging import followed, merged
from specdec.proposer.outlook import Outlook, trust_in_copies

SWITCH, MERGE = "switch", "merge"
ALL = -1  # in place of the number of a part


class Hybrid:
    """Ask several proposers, the cheapest first, and propose what promises most.

    `mode=switch`: parts that look up what they propose are asked in turn, and each of their
    proposals is weighed against what the parts behind it promise; the first that promises no less
    is proposed. A part with a model is asked once it is chosen, before it has drawn a token. What a
    part promises is predicted from what the request accepted so far (`Outlook`): the past and the
    length of a match, and nothing that is drawn in this step. So each step is one of a single part,
    and lossless where the rule is so for the draws of all parts.

    `mode=merge`: all parts are asked, and one tree has the candidates of all of them. Only for
    deterministic parts: of point masses a union is one of point masses, while a drawn token among
    others would no longer come from its q.

    Each part lives in a world of its own: after a commit it is told of the text as far as its own
    candidates were followed, and one token more; what was emitted besides it finds in `token_ids`
    when it is next asked. Hidden states are kept for it until then.

    Args:
        parts: proposers, the cheapest first.
        mode: switch or merge.
        costs: what a proposal of each part costs, in steps of plain decoding; expected tokens are
            held against it. None: nothing, so that tokens per step are what counts.
        num_nodes: of a merged tree, the most draft tokens; None: all that there are.

    Raises:
        UserError: there are fewer than two parts, or one is no proposer; an option is not what it
            should be; or one of the merged parts draws its candidates (Unfit).
    """

    source = CandidateSource.PARTS

    def __init__(
        self,
        parts: Sequence[Proposer],
        mode: str = SWITCH,
        costs: Sequence[float] | None = None,
        num_nodes: int | None = None,
    ):
        require_hybrid(parts, mode, costs, num_nodes)
        for part in parts:
            require_members(part, "proposer")
        self.parts = list(parts)
        self.mode = mode
        require_mergeable(mode, self.draw)
        self._costs = [0.0] * len(self.parts) if costs is None else list(costs)
        self._num_nodes = num_nodes
        self._looked_up = [n for n, part in enumerate(self.parts) if is_looked_up(part)]
        self._rows: dict[int, _PartsOfRow] = {}

    @property
    def draw(self) -> Draws:
        """In the ways of all parts."""
        return united(part.draw for part in self.parts)

    @property
    def max_depth(self) -> int:
        """That of the deepest part."""
        return max(part.max_depth for part in self.parts)

    @property
    def layers(self) -> Sequence[Layer]:
        """Those that any part reads."""
        return tuple(dict.fromkeys(layer for part in self.parts for layer in part.layers))

    @property
    def branches(self) -> bool:
        """Whether merged trees may have branches, which those of the parts have not."""
        return self.mode == MERGE

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Open all parts."""
        self._rows = {}
        for part in self.parts:
            part.open(num_rows, capacity, vocab_size)

    def reset(self, contexts: Sequence[Context]) -> None:
        """Begin these requests, about which nothing is known yet."""
        for context in contexts:
            self._rows[context.row] = _PartsOfRow(self.parts, context.sampling.temperature)
        for part in self.parts:
            part.reset(contexts)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Let the most promising part draft for each request, or all of them."""
        for context in contexts:
            self._rows[context.row].begin(context)
        chosen = self._merged(contexts) if self.mode == MERGE else self._switched(contexts)
        return [chosen[context.row] for context in contexts]

    def _merged(self, contexts: Sequence[Context]) -> dict[int, Proposal]:
        for number in range(len(self.parts)):
            self._ask(number, contexts)
        return {row: self._union(self._rows[row]) for row in _rows(contexts)}

    def _union(self, row: "_PartsOfRow") -> Proposal:
        found = list(row.proposed.values())
        calls = [each.num_draft_calls for each in found]
        return Proposal(
            merged([each.tree for each in found], self._num_nodes),
            num_draft_calls=None if None in calls else sum(filter(None, calls)),
            matched=max((each.matched or 0 for each in found), default=0) or None,
        )

    def _switched(self, contexts: Sequence[Context]) -> dict[int, Proposal]:
        for number in self._looked_up:
            self._ask(number, contexts)
        for context in contexts:
            promises = [self._promise(number, context) for number in range(len(self.parts))]
            self._rows[context.row].chosen = promises.index(max(promises))
        for number in range(len(self.parts)):
            if number not in self._looked_up:  # it is chosen before it has drawn anything
                self._ask(number, [c for c in contexts if self._rows[c.row].chosen == number])
        return {row: self._rows[row].proposed[self._rows[row].chosen] for row in _rows(contexts)}

    def _ask(self, number: int, contexts: Sequence[Context]) -> None:
        """Let a part propose; it sees the hidden states that it has not seen yet."""
        shown = [self._rows[each.row].shown_to(number, each) for each in contexts]
        proposals = self.parts[number].propose(shown) if shown else []
        for context, proposal in zip(contexts, proposals, strict=True):
            self._rows[context.row].proposed[number] = proposal

    def _promise(self, number: int, context: Context) -> float:
        """Return the tokens that a step emits by a part's candidates, for what it costs."""
        row, proposal = self._rows[context.row], self._rows[context.row].proposed.get(number)
        if proposal is None:
            matched, depth = None, min(self.parts[number].max_depth, context.max_depth)
        else:
            matched, depth = proposal.matched, max(proposal.tree.depths)
        return (1 + row.outlooks[number].expected(matched, depth)) / (1 + self._costs[number])

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Tell each part what became of its candidates, and learn from it."""
        pairs = list(zip(contexts, verdicts, strict=True))
        seen = {each.row: self._rows[each.row].seen(each, verdict) for each, verdict in pairs}
        for number, part in enumerate(self.parts):
            due = [seen[row][number] for row in _rows(contexts) if number in seen[row]]
            if due:
                part.update([context for context, _ in due], [verdict for _, verdict in due])
            if isinstance(part, Onlooker):
                self._look_on(number, part, contexts)
        for context, verdict in pairs:
            row = self._rows[context.row]
            if self.mode == SWITCH:
                row.learn(self.parts, context, verdict)
            row.proposed = {}  # it may not be asked in the next step

    def _look_on(self, number: int, part: Onlooker, contexts: Sequence[Context]) -> None:
        """Show a part what the others proposed."""
        for context in contexts:
            row = self._rows[context.row]
            others = [each for other, each in row.proposed.items() if other != number]
            part.look_on([context] * len(others), others, [row.start] * len(others))


class _PartsOfRow:
    """What is known of one request."""

    def __init__(self, parts: Sequence[Proposer], temperature: float):
        trust = trust_in_copies(temperature)
        self.outlooks = [Outlook(trust if is_looked_up(part) else 1.0) for part in parts]
        self.proposed: dict[int, Proposal] = {}  # in this step, by the number of the part
        self.chosen = ALL
        self.start = 0  # tokens of the text at the start of the step
        self._looked_up = [is_looked_up(part) for part in parts]
        self._unseen: list[dict[Layer, list[Tensor]]] = [
            {layer: [] for layer in part.layers} for part in parts
        ]
        self._open: list[_Open] = []

    def begin(self, context: Context) -> None:
        """Begin a step; hidden states wait until the part that reads them is asked."""
        self.proposed, self.chosen, self.start = {}, ALL, len(context.token_ids)
        for unseen in self._unseen:
            for layer, states in unseen.items():
                states.append(context.features[layer])

    def shown_to(self, number: int, context: Context) -> Context:
        """Return the context as a part sees it: with its own layers, and all that it has missed."""
        unseen = self._unseen[number]
        features: Mapping[Layer, Tensor] = {n: torch.cat(each) for n, each in unseen.items()}
        for states in unseen.values():
            states.clear()
        return replace(context, features=features)

    def seen(self, context: Context, verdict: Verdict) -> dict[int, tuple[Context, Verdict]]:
        """Return what each part that was asked is due: the text as far as it had foreseen it."""
        return {
            number: (context, verdict) if number == self.chosen else self._foreseen(number, context)
            for number in self.proposed
        }

    def _foreseen(self, number: int, context: Context) -> tuple[Context, Verdict]:
        emitted = context.token_ids[self.start :]
        tree = self.proposed[number].tree
        path = followed(tree, emitted[:-1])
        end = self.start + len(path) + 1
        node = path[-1] if path else ROOT
        outcome = Outcome.RECOVERED if tree.children[node] else Outcome.BONUS
        verdict = Verdict(tuple(path), emitted[len(path)], outcome)
        return replace(context, token_ids=context.token_ids[:end]), verdict

    def learn(self, parts: Sequence[Proposer], context: Context, verdict: Verdict) -> None:
        """Learn how far candidates are accepted: of looked-up ones also if they were not shown.

        Whether those would have been is read off the text, as soon as it is long enough.
        """
        for number, proposal in self.proposed.items():
            if not self._looked_up[number]:
                depth = min(parts[number].max_depth, context.max_depth)
                self.outlooks[number].learn(None, depth, len(verdict.path))
            elif proposal.has_candidates:
                self._open.append(_Open(number, proposal, self.start))
        self._open = [each for each in self._open if not self._closed(each, context.token_ids)]

    def _closed(self, question: "_Open", token_ids: Sequence[int]) -> bool:
        tree, behind = question.proposal.tree, token_ids[question.start :]
        path = followed(tree, behind)
        node = path[-1] if path else ROOT
        if len(path) == len(behind) and tree.children[node]:
            return False  # the text may still follow it
        depth = max(tree.depths)
        self.outlooks[question.part].learn(question.proposal.matched, depth, len(path))
        return True


@dataclass(frozen=True)
class _Open:
    """Candidates of a part behind the first `start` tokens: how far does the text follow them?"""

    part: int
    proposal: Proposal
    start: int


def is_looked_up(part: object) -> bool:
    """Whether what a part proposes costs next to nothing, and is not drawn: it can be asked first.

    So its class says: its source is text, or nothing at all.
    """
    source = getattr(part, "source", None)
    return source in (CandidateSource.TEXT, CandidateSource.NOTHING)


def require_hybrid(parts: object, mode: object, costs: object, num_nodes: object) -> None:
    """Refuse options that are not those of a hybrid.

    Raises:
        UserError: with the option and its value.
    """
    some = list(parts) if is_sequence(parts) else []
    expected = "two proposers or more, each once"
    finishing = next((each for each in some if isinstance(each, TreeFinisher)), None)
    what = "proposers with layers of their own: the verifier's are run for one proposer alone"
    require(finishing is None, "parts", type(finishing).__name__, what)
    alike = len({id(each) for each in some}) < len(some)
    shown = [_called(each) for each in some] if is_sequence(parts) else parts
    require(len(some) > 1 and not alike, "parts", shown, expected)
    require(mode in (SWITCH, MERGE), "mode", mode, f"{SWITCH} or {MERGE}")
    if costs is not None:
        prices = list(costs) if is_sequence(costs) else []
        require(len(prices) == len(some), "costs", costs, f"a number for each of {len(some)} parts")
        require(mode == SWITCH, "costs", costs, "null: a merged tree is of all parts")
        for price in prices:
            require_number("costs", price, 0.0)
    if num_nodes is not None:
        require_int("num_nodes", num_nodes, 1)
        require(mode == MERGE, "num_nodes", num_nodes, "null: it is of mode=merge")


def _called(part: object) -> str:
    """Name a part as its class does, or as a command line does that has its options."""
    if is_mapping(part):
        return plug_in_name(str(part.get("_target_")))
    return type(part).__name__


def require_mergeable(mode: str, draws: Draws) -> None:
    """Refuse to merge what is drawn.

    Raises:
        Unfit: some candidates are.
    """
    drawn = [d.value for d in each_draw(draws) if d is not None and d is not Draw.DETERMINISTIC]
    if mode == MERGE and drawn:
        raise Unfit(
            f"mode={mode!r}: {', '.join(drawn)} candidates keep their distribution only"
            " among themselves; expected parts that choose the likeliest, tree=sparse,"
            " tree=dynamic or tree=best_first, or mode=switch"
        )


def _rows(contexts: Sequence[Context]) -> Iterator[int]:
    return (context.row for context in contexts)
