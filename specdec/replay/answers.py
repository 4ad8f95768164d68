"""Answers to `Question`s from the laws at one depth of a step."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.replay import shares
from specdec.replay.arm import SIBLINGS
from specdec.replay.questions import SUBMITTED_BY, Question, Scores
from specdec.replay.ranks import ranks_of
from specdec.replay.survival import ahead
from specdec.replay.texts import Text, output_ids
from specdec.tree.filtered import Filtered


class Here:
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
