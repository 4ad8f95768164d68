"""Held-out texts that acceptance is measured along: samples, or answers to prompts of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from specdec.core.errors import UserError
from specdec.core.room import Room
from specdec.core.sampling import Sampling
from specdec.core.values import Layer
from specdec.decoding.request import Request
from specdec.decoding.turns import decode_turns, request_of
from specdec.lm.hf import HFCausalLM
from specdec.metrics.estimate import Estimate
from specdec.prompts import Prompt, load_prompts
from specdec.results.progress import Progress
from specdec.training.data.last_hidden import is_frozen, with_hidden
from specdec.training.data.samples import padded
from specdec.training.objective import Batch
from specdec.training.writer import writer

TAU = "eval_block_efficiency"
AT_ONCE = 16  # prompts


@dataclass(frozen=True)
class HeldTexts:
    """N texts; what they continue does not count. Texts of one prompt are one unit of intervals."""

    batch: Batch  # [N, T]
    prompt_ids: Sequence[str]  # [N]
    categories: Sequence[str]  # [N]

    @classmethod
    def of_samples(cls, batch: Batch) -> "HeldTexts":
        """Take each sample for a prompt of its own."""
        number = len(batch.token_ids)
        return cls(batch, [f"held-out {row}" for row in range(number)], [""] * number)


class OwnPrompts:
    """Prompts of a file or a data set, answered by the verifier that is measured with.

    A verifier that stays as it is answers once; one that is tuned, at each evaluation.
    """

    def __init__(
        self, path: str, limit: int | None, sampling: Sampling, max_new_tokens: int, seed: int
    ):
        self._path, self._limit = path, limit
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._known: HeldTexts | None = None

    def prepare(self) -> None:
        """Read the prompts.

        Raises:
            UserError: there are none, or they cannot be decoded.
        """
        _ = self._prompts

    @cached_property
    def _prompts(self) -> Sequence[Prompt]:
        return load_prompts(self._path, self._limit, option="evaluation.prompts")

    def texts(self, verifier: HFCausalLM, layers: Sequence[Layer]) -> HeldTexts:
        """Return the prompts' turns with their answers, those without a token left out."""
        known = self._known
        if known is None or not is_frozen(verifier):
            known = self._answered(verifier)
            batch = known.batch.to(verifier.device)
            self._known = known = replace(known, batch=with_hidden(verifier, batch, layers))
        return known

    def _answered(self, verifier: HFCausalLM) -> HeldTexts:
        requests: dict[tuple[str, int], Request] = {}

        def request(prompt: Prompt, answers: Sequence[str]) -> Request:
            found = request_of(prompt, answers, verifier)
            requests[found.prompt_id, found.turn] = found
            return found

        decoder = writer(verifier, self._sampling, self._max_new_tokens, AT_ONCE, self._seed)
        rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        owners: list[Request] = []
        number = sum(prompt.num_turns for prompt in self._prompts)
        room = Room.of(verifier).too_long
        turns = (self._prompts, request, decoder.stream, verifier.tokenizer, room)
        with Progress(number, "answer", "prompt") as bar:
            for trace in decode_turns(*turns):
                bar.update()
                if trace.output_ids:
                    owners.append(requests[trace.prompt_id, trace.turn])
                    rows.append(_row(owners[-1].token_ids, trace.output_ids))
        if not rows:
            raise UserError(f"evaluation.prompts={self._path!r}: the verifier answers none of them")
        names, categories = [o.prompt_id for o in owners], [o.category for o in owners]
        return HeldTexts(padded(rows), names, categories)


def _row(prompt: Sequence[int], answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    counted = torch.arange(len(prompt) + len(answer)) >= len(prompt)
    return torch.tensor([*prompt, *answer]), counted


def named(by_category: Mapping[str, Estimate]) -> dict[str, float]:
    """Name block efficiencies, and the ends of their intervals if there are any, as logged.

    That of all texts has the name "" among the categories.
    """
    found: dict[str, float] = {}
    for category, tau in by_category.items():
        name = f"{TAU}/{category}" if category else TAU
        ends = {} if tau.low is None or tau.high is None else {"low": tau.low, "high": tau.high}
        assert tau.value is not None  # there is a text, so there is a step
        found |= {name: tau.value, **{f"{name}_{end}": value for end, value in ends.items()}}
    return found
