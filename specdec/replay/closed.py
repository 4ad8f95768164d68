"""Replay in closed form: candidates of a fixed shape, drawn from laws that the text decides on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec.core.errors import Unfit
from specdec.core.protocols import CausalLM
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.decoding.stopping import Stopping
from specdec.lm.generation import end_ids_of, heeded
from specdec.replay import shares
from specdec.replay.laws import Laws
from specdec.replay.ranks import ranks_of
from specdec.replay.renewal import Replayed
from specdec.replay.submitted import Known, submitted
from specdec.replay.survival import ahead, behind, clipped, of_block, of_tree
from specdec.replay.texts import Text, batches, logits_along, output_ids, processed
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import FixedTree

CELLS_AT_ONCE = 1 << 25  # numbers of one tensor of laws

# What a rule looks at where one token is drawn: its ratio, its q, or all ratios of a path together.
CHAINS = {"rejection": "ratio", "kseq": "ratio", "top_plus_one": "ratio", "match": "match"}
CHAINS |= {"block": "block", "traversal": "block"}
SIBLINGS: Mapping[tuple[str, Draw], shares.Shares] = {
    ("rejection", Draw.IID): shares.rejection_iid,
    ("rejection", Draw.WITHOUT_REPLACEMENT): shares.rejection_without_replacement,
    ("kseq", Draw.IID): shares.kseq,
    ("top_plus_one", Draw.TOP_PLUS_ONE): shares.top_plus_one,
    ("match", Draw.IID): shares.match_iid,
    ("match", Draw.WITHOUT_REPLACEMENT): shares.match_without_replacement,
    ("match", Draw.TOP_PLUS_ONE): shares.match_top_plus_one,
}
LIMITED = {Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE}  # no more children than q has tokens
NEED_ROWS = {"rejection", "kseq"}  # of p, at nodes with several draws
SUBMITTED_BY = {"passes", "passes block", "ended"}  # the same of what is told if p is known
# The laws [T, V] that a text was drawn from, given V; None where not all of them is known.
Rows = Callable[[Text, int], Tensor | None]


@dataclass(frozen=True)
class Arm:
    """A tree, and the rule that decides on it.

    Raises:
        Unfit: no closed form is known for this rule and these candidates.
    """

    tree: FixedTree
    rule: str  # as the command line calls it
    temperature: float | None = None  # of the draft; None: the verifier's

    def __post_init__(self) -> None:
        draw, rule = self.tree.draw, self.rule
        known = draw is Draw.DETERMINISTIC and rule in ("rejection", "match")
        known |= draw in (Draw.SINGLE, Draw.FILTERED) and rule in CHAINS
        if not known and (rule, draw) not in SIBLINGS:
            raise Unfit(
                f"verification={rule}: no closed form is known for {draw.value} candidates;"
                " decode them"
            )

    @property
    def num_drafted(self) -> list[int]:
        """The nodes down to each depth, from 0, where all of them are submitted."""
        depths = [len(path) for path in self.tree.nodes]
        return [sum(d <= depth for d in depths) for depth in range(self.tree.max_depth + 1)]

    def width(self, depth: int) -> int:
        """The most children at a depth."""
        return 1 + max(path[-1] for path in self.tree.nodes if len(path) == depth)

    def may_lack(self, sampling: Sampling) -> bool:
        """Whether a filter may leave a law fewer tokens than a node has children."""
        if self.tree.draw not in LIMITED:
            return False
        sampling = sampling.at(self.temperature)
        widest = 1 + max(path[-1] for path in self.tree.nodes)
        if sampling.temperature == 0 or sampling.top_p < 1 or sampling.min_p > 0:
            return widest > 1
        return 0 < sampling.top_k < widest


@dataclass(frozen=True)
class Question:
    """What is computed once for all arms that ask it: shares, or for blocks log ratios."""

    # ranks, ratio, match, block, or a rule on siblings. Of candidates that are submitted: support,
    # how many tokens q has; passes, ended, passes block: see `shares`; passes match and ended
    # match, the same where the verifier's draw decides; ended ranks, where all are known.
    kind: str
    draw: Draw
    width: int
    temperature: float | None
    passing: tuple[float, int] | None = None  # FILTERED: least probability, and top-k
    depth: int = 0  # where the answer depends on the tokens above: how deep
    rule: str = ""  # ended: whose refusals

    @classmethod
    def of(cls, arm: Arm, depth: int) -> "Question":
        """Say what an arm wants to know at a depth."""
        tree, draw = arm.tree, arm.tree.draw
        width = arm.width(depth)
        if draw is Draw.DETERMINISTIC:
            return cls("ranks", draw, width, None)
        if draw in (Draw.SINGLE, Draw.FILTERED):
            passing = tree.passing if isinstance(tree, Filtered) else None
            return cls(CHAINS[arm.rule], Draw.SINGLE, 1, arm.temperature, passing)
        return cls(arm.rule, draw, width, arm.temperature)

    @classmethod
    def of_submitted(cls, arm: Arm, depth: int) -> "Question | None":
        """Say what an arm wants to know of the candidates that are submitted; None: nothing."""
        tree = arm.tree
        if tree.draw in LIMITED:
            return cls("support", tree.draw, 1, arm.temperature)
        if not isinstance(tree, Filtered):
            return None
        told = CHAINS[arm.rule]
        if told == "block" and depth > 1:
            kind = "passes block"
            return cls(kind, Draw.SINGLE, 1, arm.temperature, tree.passing, depth)
        kind = "passes match" if told == "match" else "passes"
        return cls(kind, Draw.SINGLE, 1, arm.temperature, tree.passing)

    @classmethod
    def of_ends(cls, arm: Arm, depth: int) -> "Question | None":
        """Say what an arm wants to know of candidates that end a text; None: nothing."""
        draw, width = arm.tree.draw, arm.width(depth)
        if depth == arm.tree.max_depth:
            return None
        if draw is Draw.DETERMINISTIC:
            return cls("ended ranks", draw, width, None)
        if arm.tree.max_depth > 2 or draw not in (Draw.SINGLE, Draw.IID):
            return None
        if arm.rule == "match":
            return cls("ended match", draw, width, arm.temperature)
        rule = "kseq" if arm.rule == "kseq" else "rejection"  # of one draw that is every rule
        return cls("ended", draw, width, arm.temperature, rule=rule)

    @property
    def needs_rows(self) -> bool:
        """Whether p is wanted of tokens that the text does not have."""
        siblings = self.draw is not Draw.SINGLE and self.kind in NEED_ROWS
        return siblings or self.kind in SUBMITTED_BY


class Scores:
    """The answers along one batch of texts, by question and depth."""

    def __init__(self, num_depths: int | None):
        self._num_depths = num_depths
        self._found: dict[tuple[Question, int], Tensor] = {}
        self._sure: dict[int, Tensor] = {}

    def add(self, question: Question, depth: int, answer: Tensor) -> None:
        """Note [B, T, K] of the tokens at `depth` of a step at each place."""
        self._found[question, depth] = answer

    def note_confidence(self, depth: int, confidence: Tensor) -> None:
        """Note the largest probability [B, T] of the law there, at temperature 1."""
        self._sure[depth] = confidence

    def at(self, question: Question, depth: int) -> Tensor:  # [B, T, K]
        """Return an answer; one law for all depths is the law of the token itself."""
        if self._num_depths is None:
            return ahead(self._found[question, 1], depth)
        return self._found[question, depth]

    def told(self, question: Question | None, depth: int) -> Tensor | None:  # [B, T, K]
        """Return an answer, if it was asked for and could be given."""
        place = 1 if self._num_depths is None else depth
        if question is None or (question, place) not in self._found:
            return None
        return self.at(question, depth)

    def clipped(self, question: Question) -> Tensor:  # [B, T]
        """Return `Block`'s c above the depth of a question, where its answer will stand."""
        block = replace(question, kind="block", depth=0)
        c = clipped([self.at(block, depth)[..., 0] for depth in range(1, question.depth)])
        return behind(c, question.depth) if self._num_depths is None else c

    def confident(self, threshold: float, depth: int) -> Tensor:  # [B, T] bool
        """Return whether drafting goes on to a depth."""
        if self._num_depths is None:
            return ahead(self._sure[1], depth) >= threshold
        return self._sure[depth] >= threshold


def replay(
    texts: Sequence[Text],
    laws: Laws,
    arms: Mapping[str, Arm],
    sampling: Sampling,
    verifier: CausalLM | None,
    vocab_size: int,
    seed: int = 0,
    rows: Rows | None = None,
    stopping: Stopping | None = None,
) -> dict[str, list[Replayed]]:
    """Replay all arms that draw from the same laws, in one pass over the texts.

    Only arms that must know p of tokens that the text does not have ask for `rows`, such as a
    recording has, and let the `verifier` read texts of which there are none. Nothing is submitted
    below an end token or a stop string of `stopping`; a text that one ended says so by itself.
    """
    told = stopping or Stopping(end_ids=end_ids_of(verifier))
    sampling = heeded(sampling, verifier, told.end_ids)
    found: dict[str, list[Replayed]] = {name: [] for name in arms}
    limit = max(1, CELLS_AT_ONCE // vocab_size)
    ends = _Ends.of(texts, told)
    for number, batch in enumerate(batches(texts, limit)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        with torch.inference_mode():
            scores = score(
                batch,
                laws,
                list(arms.values()),
                sampling,
                verifier,
                vocab_size,
                generator,
                rows,
                ends.token_ids,
            )
        for name, arm in arms.items():
            survival = survival_of(arm, scores)
            first = _from_first(batch, laws, survival)
            reads_path = laws.reads_path or bool(sampling.processors)
            known = _known_of(arm, scores, batch, sampling, survival, ends.some, reads_path)
            found[name].append(Replayed.of(batch, survival, first, submitted(arm.tree, known)))
    return found


@dataclass(frozen=True)
class _Ends:
    some: bool  # whether some tokens end a text
    token_ids: frozenset[int]  # which, wherever they stand; none where that is not known

    @classmethod
    def of(cls, texts: Sequence[Text], stopping: Stopping) -> "_Ends":
        """Which token completes a stop string depends on the text: nobody looks at all of them."""
        reasons = {text.finish_reason for text in texts}
        some = bool(stopping.end_ids or stopping.stop_strings or reasons & {"eos", "stop"})
        is_told = not stopping.stop_strings and "stop" not in reasons
        return cls(some, stopping.end_ids if is_told else frozenset())


def _from_first(texts: Sequence[Text], laws: Laws, survival: Tensor) -> Tensor | None:  # [B, T]
    """Return the depth of the candidates: none before the laws begin."""
    firsts = [laws.first_start(text) for text in texts]
    if not any(firsts):
        return None
    place = torch.arange(survival.shape[1], device=survival.device)
    begun = place >= torch.tensor(firsts, device=survival.device)[:, None]
    return begun * (survival.shape[2] - 1)


def score(
    texts: Sequence[Text],
    laws: Laws,
    arms: Sequence[Arm],
    sampling: Sampling,
    verifier: CausalLM | None,
    vocab_size: int,
    generator: torch.Generator | None = None,
    rows: Rows | None = None,
    end_ids: frozenset[int] = frozenset(),
) -> Scores:
    """Answer all questions of all arms along a batch of texts."""
    wanted = _questions(arms, laws.num_depths, bool(end_ids))
    p = None
    if any(question.needs_rows for several in wanted.values() for question in several):
        p = _known(texts, rows, vocab_size)
        if p is None and verifier is not None:
            logits = logits_along(verifier, texts, vocab_size)
            p = sampling.warp(processed(texts, sampling, logits))
    scores = Scores(laws.num_depths)
    sure = any(arm.tree.min_confidence > 0 for arm in arms)
    for depth, logits in enumerate(laws.along(texts, vocab_size), start=1):
        if depth not in wanted:
            break
        if sure:
            scores.note_confidence(depth, logits.float().softmax(dim=-1).amax(dim=-1))
        here = _Here(texts, depth, p, processed(texts, sampling, logits, depth), end_ids)
        # One by one: some answers build on those that were added before.
        for question, answer in here.answers(wanted[depth], sampling, generator, scores):
            scores.add(question, depth, answer)
    return scores


def _known(texts: Sequence[Text], rows: Rows | None, vocab_size: int) -> Tensor | None:
    """Return p [B, T, V] along the texts, 0 behind their ends, if it is known of all of them."""
    if rows is None:
        return None
    found: list[Tensor] = []
    for text in texts:
        law = rows(text, vocab_size)
        if law is None:
            return None
        found.append(law)
    return pad_sequence(found, batch_first=True)


def _questions(
    arms: Sequence[Arm], num_depths: int | None, ends: bool
) -> dict[int, list[Question]]:
    """List what is asked at each depth, by all arms; at depth 1 alone if that serves all."""
    found: dict[int, dict[Question, None]] = {}
    for arm in arms:
        for depth in range(1, arm.tree.max_depth + 1):
            place = 1 if num_depths is None else depth
            asked = [Question.of(arm, depth), Question.of_submitted(arm, depth)]
            asked += [Question.of_ends(arm, depth)] if ends else []
            found.setdefault(place, {}).update({each: None for each in asked if each is not None})
    return {depth: list(questions) for depth, questions in found.items()}


class _Here:
    """The laws at one depth of a step at each of B x T places, and the tokens there."""

    def __init__(
        self,
        texts: Sequence[Text],
        depth: int,
        p: Tensor | None,
        logits: Tensor,
        end_ids: frozenset[int],
    ):
        self._shape = logits.shape[:2]
        self._logits = logits.flatten(0, 1)  # [n, V]
        self._end_ids = sorted(each for each in end_ids if each < logits.shape[-1])
        tokens = output_ids(texts, logits.device)
        self._token_ids = ahead(tokens, depth).flatten()
        # Behind the end of a text anything will do but what is no number.
        log_p = torch.zeros(self._shape, dtype=torch.float64)
        for row, text in enumerate(texts):
            log_p[row, : len(text.log_p)] = torch.tensor(text.log_p, dtype=torch.float64)
        self._log_p = ahead(log_p.to(logits.device), depth).flatten()
        self._p = None if p is None else ahead(p.to(logits.device), depth).flatten(0, 1)

    def answers(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        generator: torch.Generator | None,
        scores: Scores,
    ) -> Iterator[tuple[Question, Tensor]]:
        """Answer the questions, temperature by temperature: one set of laws exists at a time."""
        for temperature in dict.fromkeys(question.temperature for question in questions):
            mine = [question for question in questions if question.temperature == temperature]
            sampled = [each for each in mine if each.draw is not Draw.DETERMINISTIC]
            q = sampling.at(temperature).warp(self._logits) if sampled else None
            for question in mine:
                if question.kind in SUBMITTED_BY and self._p is None:
                    continue  # without it only less is known
                if question.kind in ("ended", "passes block"):
                    assert q is not None
                    answer = self._submitted(question, q, scores)
                else:
                    answer = self._answer(question, q, generator)
                yield question, answer.view(*self._shape, -1)

    def _answer(
        self, question: Question, q: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:  # [n, K]
        if question.kind == "ranks":
            ranks = ranks_of(self._logits.float(), self._token_ids)
            numbers = torch.arange(question.width, device=ranks.device)
            return (ranks[:, None] == numbers).double()
        if question.kind == "ended ranks":
            return self._ended_ranks(question.width)
        assert q is not None
        if question.kind == "ended match":
            return q[:, self._end_ids].double().sum(dim=1, keepdim=True).expand(-1, question.width)
        if question.kind == "support":
            return (q > 0).sum(dim=-1, keepdim=True)
        if question.draw is Draw.SINGLE:
            return self._single(question, q)[:, None]
        # Rules that look at p of the text's token alone find it here, too.
        p = q.new_zeros(q.shape) if self._p is None else self._p
        assert self._p is not None or not question.needs_rows, "p of other tokens is wanted"
        if not question.needs_rows:
            own = self._log_p.exp().to(q.dtype)
            p = q.new_zeros(q.shape).scatter_(1, self._token_ids[:, None], own[:, None])
        rule = SIBLINGS[question.kind, question.draw]
        options: dict[str, Any] = {}
        if question.draw is Draw.WITHOUT_REPLACEMENT:
            options["generator"] = generator
        return rule(p, q, self._token_ids, question.width, **options).double()

    def _submitted(self, question: Question, q: Tensor, scores: Scores) -> Tensor:  # [n, K]
        assert self._p is not None
        if question.kind == "passes block":
            assert question.passing is not None
            c = scores.clipped(question).flatten().to(q.dtype)
            passing = Filtered.passed(q, *question.passing)
            return shares.passes_block(self._p, passing, c)[:, None]
        is_end = torch.zeros(q.shape[-1], dtype=torch.bool, device=q.device)
        is_end[self._end_ids] = True
        num, kseq = question.width, question.rule == "kseq"
        rule, covered = (
            (shares.kseq, shares.covered_by_kseq(self._p, q, num))
            if kseq
            else (shares.rejection_iid, shares.covered_by_rejection(self._p, q, num))
        )
        accepted = rule(self._p, q, self._token_ids, num)
        return shares.ended(covered, q, self._token_ids, accepted, is_end)

    def _ended_ranks(self, width: int) -> Tensor:  # [n, K]
        """Mark the likeliest tokens that end a text."""
        numbers = torch.arange(width, device=self._logits.device)
        found = torch.zeros(len(self._logits), width, device=numbers.device)
        for token in self._end_ids:
            ranks = ranks_of(self._logits.float(), torch.full_like(self._token_ids, token))
            found += ranks[:, None] == numbers
        return found.double()

    def _single(self, question: Question, q: Tensor) -> Tensor:  # [n]
        if question.passing is not None:
            q = Filtered.passed(q, *question.passing)
        if question.kind == "passes match":
            return q.double().sum(dim=-1)
        if question.kind == "passes":
            assert self._p is not None
            return shares.passes(self._p, q, self._token_ids)
        q_x = shares.at(q, self._token_ids).double()
        if question.kind == "match":
            return q_x
        if question.kind == "block":
            return q_x.log() - self._log_p
        return shares.single(self._log_p.exp(), q_x)


def _known_of(
    arm: Arm,
    scores: Scores,
    texts: Sequence[Text],
    sampling: Sampling,
    survival: Tensor,  # [B, T, D + 1]
    ends: bool,
    reads_path: bool,
) -> Known:
    """Collect what decides on the candidates of an arm."""
    depths = range(1, arm.tree.max_depth + 1)
    told = [_column(scores.told(Question.of_submitted(arm, depth), depth)) for depth in depths]
    like = scores.at(Question.of(arm, 1), 1)
    is_limited, is_filtered = arm.tree.draw in LIMITED, isinstance(arm.tree, Filtered)
    is_full = not arm.may_lack(sampling)
    if is_limited and is_full:  # a draft whose laws have tokens enough along the texts is taken
        is_full = all(  # to have them beside the texts, too
            bool((each >= arm.width(depth)).where(_inside(texts, depth, each), True).all())
            for depth, each in zip(depths, told, strict=True)
            if each is not None
        )
    return Known(
        sure=[_goes_on(arm, scores, depth, like) for depth in depths],
        passes=_passes(arm, told, survival) if is_filtered else None,
        support=told[0] if is_limited else None,
        is_full=is_full,
        ends=ends,
        ended=[scores.told(Question.of_ends(arm, depth), depth) for depth in depths],
        reads_path=reads_path,
    )


def _column(answer: Tensor | None) -> Tensor | None:  # [B, T, 1] -> [B, T]
    return None if answer is None else answer[..., 0]


def _passes(arm: Arm, told: Sequence[Tensor | None], survival: Tensor) -> list[Tensor | None]:
    """Return P(a drawn token passes | the text, A >= d - 1) of filtered chains, each [B, T].

    For blocks, where it was not accepted, that is told apart from depth 2 on.
    """
    found: list[Tensor | None] = []
    for depth, each in enumerate(told, start=1):
        if each is not None and depth > 1 and CHAINS[arm.rule] == "block":
            above, here = survival[..., depth - 1], survival[..., depth]
            accepted = shares.single(above, here)
            each = accepted + (1 - accepted) * each
        found.append(each)
    return found


def _inside(texts: Sequence[Text], depth: int, like: Tensor) -> Tensor:  # [B, T] bool
    """Mark the places from which a text goes on to a depth."""
    place = torch.arange(like.shape[1], device=like.device)
    lengths = torch.tensor([[len(text.output_ids)] for text in texts], device=like.device)
    return place + depth <= lengths


def survival_of(arm: Arm, scores: Scores) -> Tensor:  # [B, T, D + 1]
    """Put the answers of one arm together."""
    tree, depths = arm.tree, range(1, arm.tree.max_depth + 1)
    answers = [scores.at(Question.of(arm, depth), depth) for depth in depths]
    sure = [_goes_on(arm, scores, depth, answers[0]) for depth in depths]
    if Question.of(arm, 1).kind == "block":
        return of_block([answer[..., 0] for answer in answers], sure)
    told = [answer * on[..., None] for answer, on in zip(answers, sure, strict=True)]
    return of_tree(tree.nodes, told)


def _goes_on(arm: Arm, scores: Scores, depth: int, like: Tensor) -> Tensor:  # [B, T] bool
    if arm.tree.min_confidence > 0:
        return scores.confident(arm.tree.min_confidence, depth)
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
