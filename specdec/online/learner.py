"""The learner: it remembers what was committed, and takes a step of AdamW when one is due."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from specdec.core.randomness import RandomStream
from specdec.core.values import Context, Layer
from specdec.online.student import Student
from specdec.online.texts import Texts

STEP, REQUEST = "step", "request"


class Timetable(NamedTuple):
    """When and from how much is learned; see `OnlineDistillation`."""

    every: int
    samples: int
    length: int
    swap: str
    max_grad_norm: float
    seed: int


class Distiller:
    """Teaches one proposer (`core.protocols.Learner`); what happens depends on steps, not on time.

    With several requests in flight their texts are taken in the order of their rows, and all learn
    and draft with the same weights.
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
        self._is_ahead = False  # of what proposals are made with
        self.num_steps = 0  # of decoding
        self.num_updates = 0  # steps of the optimiser

    def begin(self, contexts: Sequence[Context]) -> None:
        """Remember prompts; proposals of these requests are made with what was learned by now."""
        self._hand_over()
        for context in contexts:
            self._texts.begin(context)

    def learn(self, contexts: Sequence[Context]) -> None:
        """Remember what was committed, and learn when a step of the optimiser is due."""
        for context in contexts:
            self._texts.grow(context)
        self.num_steps += 1
        if self.num_steps % self._timetable.every:
            return
        # Decoding runs in inference mode, whose tensors no gradient goes through.
        with torch.inference_mode(False), torch.enable_grad():
            self._update()
        if self._timetable.swap == STEP:
            self._hand_over()

    def _update(self) -> None:
        stream = RandomStream("online", self._timetable.seed, self.num_updates)
        batch = self._texts.sample(self._timetable.samples, self._timetable.length, stream)
        if batch is None:
            return
        self._optimizer.zero_grad()
        # The first token of a stretch is never predicted.
        loss = self._student.loss(*batch) / batch.counted[:, 1:].sum()
        loss.backward()
        if self._timetable.max_grad_norm > 0:
            weights = self._student.trained.parameters()
            nn.utils.clip_grad_norm_(weights, self._timetable.max_grad_norm)
        self._optimizer.step()
        self.num_updates += 1
        self._is_ahead = True

    def _hand_over(self) -> None:
        if self._is_ahead:
            self._student.hand_over()
            self._is_ahead = False

    def state(self) -> dict[str, Any]:
        """Return all that a later session needs to go on alike; no request is in flight."""
        return {
            "weights": self._student.trained.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "texts": self._texts.state(),
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            KeyError, RuntimeError, ValueError: it is of other weights.
        """
        self._student.trained.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._texts.restore(state["texts"], self._device)
        self.num_steps, self.num_updates = state["num_steps"], state["num_updates"]
        self._is_ahead = True
        self._hand_over()
