"""Online distillation: the proposer follows the verifier along the texts that it drafts for."""

from __future__ import annotations

from pathlib import Path

from specdec.core.errors import (
    Unfit,
    UserError,
    require,
    require_bool,
    require_int,
    require_kind,
    require_number,
)
from specdec.core.protocols import Proposer, SourceReader
from specdec.core.values import CandidateSource
from specdec.lm.hf import HFCausalLM
from specdec.online.anchor import AnchoredAdamW
from specdec.online.learner import REQUEST, STEP, Distiller, Timetable
from specdec.online.state import read_state
from specdec.online.student import Student, require_teachable
from specdec.online.texts import Texts
from specdec.training.loss.kl import KL
from specdec.training.objective import Loss, decay_groups


class OnlineDistillation:
    """How a draft model or heads learn from the verifier while decoding (Liu et al. 2310.07177).

    Every `every` decoding steps one step of AdamW lowers `loss` on `samples` stretches of the texts
    that were decoded last. Their tokens are what the verifier let pass or put in place of a draft
    token, and its distribution after each of them was computed when it verified. That is kept as
    the hidden state below the vocabulary head, a few hundred or thousand numbers in place of a
    whole distribution; the head is applied again when a stretch is learned. So the teacher is the
    verifier at temperature 1, before processors and filters, as it is in training: q is processed
    and sampled like p whatever the temperature.

    A lesson may take until `delay` steps later: a thread learns beside the one that decodes, and
    what it learned is handed over behind just that step, whenever it was ready. So the same command
    writes the same texts and proposals, however fast the machine is.

    Tokens are those of the committed text. What the verifier said behind a rejected token is left
    out: no text goes on there.

    Args:
        loss: of a token, or with heads of a step; None: KL.
        every: decoding steps between steps of the optimiser.
        delay: decoding steps that go on beside one, less than `every`; 0: they wait for it.
        samples: stretches a step of the optimiser reads.
        length: tokens of a stretch, at most.
        buffer_bytes: that texts and states may take; the oldest texts are forgotten.
        learning_rate, weight_decay: of AdamW.
        anchor: how strongly weights are pulled back to the proposer's own; see `AnchoredAdamW`.
        max_grad_norm: gradients are cut to; 0: they are not.
        decay: of heads: the loss of head i weighs decay^i.
        swap: when proposals are made with what was learned: as soon as each `step` of the optimiser
            is over, or when a `request` begins, so that a draft's cache holds cells of one set of
            weights where one request is in flight at a time.
        prompts: whether prompts are learned, too: the verifier has read them anyway, and they are
            more, and more varied, than what it writes.
        save_prompts: prompts after which a run keeps what was learned, to go on from there.
        path: a state of an earlier run, `learner.pt` in its folder, to go on from; None: from the
            proposer's own weights.
        seed: of the stretches that are drawn.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        loss: Loss | None = None,
        every: int = 4,
        delay: int = 0,
        samples: int = 8,
        length: int = 128,
        buffer_bytes: int = 16_000_000,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        anchor: float = 0.0,
        max_grad_norm: float = 1.0,
        decay: float = 0.8,
        swap: str = STEP,
        prompts: bool = True,
        save_prompts: int = 8,
        path: str | None = None,
        seed: int = 0,
    ):
        for name, value in (("every", every), ("samples", samples), ("save_prompts", save_prompts)):
            require_int(name, value, 1)
        require_int("delay", delay, 0)
        require(delay < every, "delay", delay, f"less than every={every}")
        require_int("length", length, 2)
        require_int("buffer_bytes", buffer_bytes, 1)
        require_int("seed", seed, 0)
        for name, value in (
            ("learning_rate", learning_rate),
            ("weight_decay", weight_decay),
            ("anchor", anchor),
            ("max_grad_norm", max_grad_norm),
        ):
            require_number(name, value, 0.0)
        require_number("decay", decay, 0.0, 1.0)
        require(learning_rate * anchor <= 1, "anchor", anchor, "at most 1 / learning_rate")
        require(swap in (STEP, REQUEST), "swap", swap, f"{STEP} or {REQUEST}")
        require_bool("prompts", prompts)
        require_kind("path", path, str | None, "a file learner.pt of an earlier run, or null")
        if path is not None:
            require(Path(path).is_file(), "path", path, "a file learner.pt of an earlier run")
        self.save_prompts = save_prompts
        self._loss = KL() if loss is None else loss
        self._decay, self._path = decay, path
        self._prompts, self._buffer_bytes = prompts, buffer_bytes
        self._timetable = Timetable(every, delay, samples, length, swap, max_grad_norm, seed)
        self._rates = learning_rate, weight_decay, anchor

    def require_fit(self, source: CandidateSource | None, called: str) -> None:
        """Refuse a kind of proposer that cannot learn so, before it is built.

        Raises:
            Unfit: `called` has no weights to train, or its loss is another.
        """
        require_teachable(source, called, self._loss)

    def teach(self, proposer: Proposer, verifier: HFCausalLM) -> Distiller:
        """Return what teaches a proposer, from its weights as they are, or those at `path`.

        Raises:
            UserError: it has nothing to train, the verifier cannot teach, or the state at `path` is
                of another proposer.
        """
        verifier.require_states("online")
        if isinstance(verifier, SourceReader):
            raise Unfit("online: the verifier has an encoder; only decoders teach while decoding")
        if self._prompts and verifier.prompt_mask is not None:
            why = "prompts that see themselves whole predict nothing; expected false"
            raise Unfit(f"online.prompts=true: {why}")
        student = Student.of(proposer, verifier, self._loss, self._decay)
        texts = Texts(self._buffer_bytes, self._prompts, student.layers)
        rate, decay, anchor = self._rates
        groups = decay_groups(student.trained, rate, decay)
        optimizer = AnchoredAdamW(groups, anchor, betas=(0.9, 0.95))
        learner = Distiller(student, texts, optimizer, self._timetable, verifier.device)
        if self._path is not None:
            self._go_on(learner, self._path)
        return learner

    def _go_on(self, learner: Distiller, path: str) -> None:
        try:
            learner.restore(read_state(Path(path)).learner)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"path={path!r}: no state of such a proposer's learner ({reason})"
            ) from None
