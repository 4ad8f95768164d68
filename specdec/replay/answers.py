"""Answers to `Question`s from the laws at one depth of a step."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specdec.core.ordering import likeliest, ranks_of
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.recording.texts import Text, output_ids
from specdec.replay import shares
from specdec.replay.arm import SIBLINGS
from specdec.replay.ended import Nodes, ended, stuck
from specdec.replay.questions import TOLD, Question, Scores
from specdec.replay.stops import Stops
from specdec.replay.survival import ahead
from specdec.tree.filtered import Filtered


class Here:
    """The laws at one depth of a step at each of B x T places, and the tokens there."""

    def __init__(
        self,
        texts: Sequence[Text],
        depth: int,
        p: Tensor | None,
        logits: Tensor,
        stops: Stops | None = None,
    ):
        self._texts = texts
        self._stops = stops
        self._shape = logits.shape[:2]
        self._logits = logits.flatten(0, 1)  # [n, V]
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
                answer = None  # without p only less is known
                if self._p is not None or not (question.needs_rows and question.kind in TOLD):
                    answer = self._answer(question, q, generator, scores)
                if answer is not None:
                    yield question, answer.view(*self._shape, -1)

    def _answer(
        self,
        question: Question,
        q: Tensor | None,
        generator: torch.Generator | None,
        scores: Scores,
    ) -> Tensor | None:  # [n, K]
        if question.kind == "ranks":
            ranks = ranks_of(self._logits.float(), self._token_ids)
            numbers = torch.arange(question.width, device=ranks.device)
            return (ranks[:, None] == numbers).double()
        if question.kind == "likeliest":
            return likeliest(self._logits.float(), question.width)
        assert q is not None
        if question.kind in ("ended", "stuck"):
            return self._ended(question, q)
        if question.kind == "support":
            return (q > 0).sum(dim=-1, keepdim=True)
        if question.draw is Draw.SINGLE:
            return self._single(question, q, scores)[:, None]
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

    def _ended(self, question: Question, q: Tensor) -> Tensor | None:  # [n, K] or [n, 1]
        p = q if self._p is None else self._p
        nodes = Nodes(
            question.rule, question.draw, p, q, self._token_ids, question.width, self._is_end
        )
        if question.kind == "ended":
            return ended(nodes)
        found = stuck(nodes, question.inner)
        return None if found is None else found[:, None]

    @cached_property
    def _is_end(self) -> Tensor:  # [n or 1, V] bool
        """Mark the tokens that end the texts here."""
        assert self._stops is not None
        return self._stops.behind(self._texts, self._logits.device).flatten(0, 1)

    def _single(self, question: Question, q: Tensor, scores: Scores) -> Tensor:  # [n]
        if question.passing is not None:
            q = Filtered.passed(q, *question.passing)
        if question.kind == "passes block":
            assert self._p is not None
            return shares.passes_block(self._p, q, scores.clipped(question).flatten().to(q.dtype))
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
