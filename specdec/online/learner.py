"""The learner: it remembers what was committed, and begins a lesson when one is due."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from specdec.core.randomness import RandomStream
from specdec.core.values import Context, Layer
from specdec.online.lesson import Lessons
from specdec.online.student import Student
from specdec.online.texts import Stretches, Texts

STEP, REQUEST = "step", "request"


class Timetable(NamedTuple):
    """When and from how much is learned; see `OnlineDistillation`."""

    every: int
    delay: int  # less than `every`, so that lessons do not meet
    samples: int
    length: int
    swap: str
    max_grad_norm: float
    seed: int


class Distiller:
    """Teaches one proposer (`core.protocols.Learner`); what happens depends on steps, not on time.

    A lesson is a step of the optimiser. One that begins behind step n is over, and waited for if it
    is not, behind step n + `delay`, or when no request is in flight any more. With several requests
    in flight their texts are taken in the order of their rows, and all learn and draft with the
    same weights.
    """

    def __init__(
        self,
        student: Student,
        texts: Texts,
        optimizer: torch.optim.Optimizer,
        timetable: Timetable,
        device: torch.device,
    ):
        self.layers: Sequence[Layer] = student.layers
        self._student = student
        self._texts = texts
        self._optimizer = optimizer
        self._timetable = timetable
        self._device = device
        self._lessons = Lessons(device)
        self._is_ahead = False  # of what proposals are made with
        self.num_steps = 0  # of decoding
        self.num_updates = 0  # steps of the optimiser that were begun

    def begin(self, contexts: Sequence[Context]) -> None:
        """Remember prompts; under `request` proposals are made with what was learned by now."""
        if self._timetable.swap == REQUEST:
            self._end_lesson()
            self._hand_over()
        for context in contexts:
            self._texts.begin(context)

    def learn(self, contexts: Sequence[Context]) -> None:
        """Remember what was committed; begin the lesson that is due, end the one that is."""
        for context in contexts:
            self._texts.grow(context)
        self.num_steps += 1
        num_since = self.num_steps % self._timetable.every
        if num_since == 0:
            self._begin_lesson()
        if num_since == self._timetable.delay:
            self._end_lesson()

    def end(self) -> None:
        """Wait for the lesson that still runs."""
        self._end_lesson()

    def _begin_lesson(self) -> None:
        self._end_lesson()  # of decoding that was interrupted as it waited
        stream = RandomStream("online", self._timetable.seed, self.num_updates)
        with torch.inference_mode(False):  # no gradient goes through tensors of that mode
            batch = self._texts.sample(self._timetable.samples, self._timetable.length, stream)
        if batch is not None:
            self.num_updates += 1
            self._lessons.begin(partial(self._update, batch))

    def _update(self, batch: Stretches) -> None:
        self._optimizer.zero_grad()
        # The first token of a stretch is never predicted.
        loss = self._student.loss(*batch) / batch.counted[:, 1:].sum()
        loss.backward()
        if self._timetable.max_grad_norm > 0:
            weights = self._student.trained.parameters()
            nn.utils.clip_grad_norm_(weights, self._timetable.max_grad_norm)
        self._optimizer.step()

    def _end_lesson(self) -> None:
        if self._lessons.wait():
            self._is_ahead = True
            if self._timetable.swap == STEP:
                self._hand_over()

    def _hand_over(self) -> None:
        if self._is_ahead:
            self._student.hand_over()
            self._is_ahead = False

    def state(self) -> dict[str, Any]:
        """Return all that a later session needs to go on alike; no request is in flight.

        It stays as it is while this one learns on.
        """
        self._end_lesson()
        return {
            "weights": copy.deepcopy(self._student.trained.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "texts": self._texts.state(),
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            KeyError, RuntimeError, ValueError: it is of other weights.
        """
        self._end_lesson()
        self._student.trained.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._texts.restore(state["texts"], self._device)
        self.num_steps, self.num_updates = state["num_steps"], state["num_updates"]
        self._is_ahead = True
        self._hand_over()
