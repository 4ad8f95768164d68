"""Measure what heads and drafts are trained for: block efficiency on held-out prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.errors import require_int
from specdec.core.protocols import Proposer, TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.values import FINAL, Layer
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.pairing import is_lossless
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.heads.base import DraftHeads
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, block_efficiency
from specdec.metrics.estimate import Estimate
from specdec.training.held_texts import AT_ONCE, HeldTexts, OwnPrompts, named
from specdec.training.objective import Batch
from specdec.verification.rejection import Rejection


class Acceptance:
    """Decode the beginnings of held-out samples, with the tree and sampling that are configured.

    A conversation's beginning is all before its first counted token; a text's its first
    `prompt_tokens` tokens. Token-level rejection decides. With `prompts`, a file or a data set, or
    the first `prompts_limit` of them, acceptance is measured on those, and by category.

    Raises:
        UserError: a number out of its range, or a tree whose candidates that rule is not for.
    """

    def __init__(
        self,
        tree: TreePolicy,
        sampling: Sampling,
        num_prompts: int = 8,
        prompt_tokens: int = 64,
        max_new_tokens: int = 64,
        seed: int = 0,
        prompts: str | None = None,
        prompts_limit: int | None = None,
    ):
        for name, value in (
            ("num_prompts", num_prompts),
            ("prompt_tokens", prompt_tokens),
            ("max_new_tokens", max_new_tokens),
        ):
            require_int(name, value, 1)
        if prompts_limit is not None:
            require_int("prompts_limit", prompts_limit, 1)
        is_lossless(Rejection(), tree.draw, allow_lossy=False)
        self.tree = tree
        self.sampling = sampling
        self._num_prompts = num_prompts
        self._prompt_tokens = prompt_tokens
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        options = (prompts_limit, sampling, max_new_tokens, seed)
        self._own = None if prompts is None else OwnPrompts(prompts, *options)

    def prepare(self) -> None:
        """Read the prompts, if some are named.

        Raises:
            UserError: there are none.
        """
        if self._own is not None:
            self._own.prepare()

    def measure(
        self,
        verifier: HFCausalLM,
        proposer: Proposer,
        draft: DraftHeads | HFCausalLM,
        held_out: Batch,
    ) -> dict[str, float]:
        """Return tau = emitted tokens / verifier calls over the prompts of `held_out`.

        With its interval; see `named`. `draft` is what the proposer drafts with.
        """
        requests = self._requests(self.texts(verifier, held_out, layers_of(draft)))
        decoder = SpeculativeDecoder(
            verifier,
            proposer,
            Rejection(),
            self.sampling,
            Stopping.of(verifier, self._max_new_tokens),
            batch=min(len(requests), AT_ONCE),
            seed=self._seed,
        )
        # As decoding runs it: in the models' own types.
        with torch.autocast(verifier.device.type, enabled=False):
            traces = decoder.decode(requests)
        return named(by_category(Tally.of(traces)))

    def texts(self, verifier: HFCausalLM, held_out: Batch, layers: Sequence[Layer]) -> HeldTexts:
        """Return what acceptance is measured along, and the states of these layers."""
        if self._own is None:
            return HeldTexts.of_samples(held_out)
        return self._own.texts(verifier, layers)

    def _requests(self, texts: HeldTexts) -> list[Request]:
        rows = zip(texts.batch.token_ids, texts.batch.counted, strict=True)
        requests = [
            Request(name, self._beginning(*row), category, turn)
            for turn, (row, name, category) in enumerate(
                zip(rows, texts.prompt_ids, texts.categories, strict=True)
            )
        ]
        return requests[: self._num_prompts] if self._own is None else requests

    def _beginning(self, token_ids: Tensor, counted: Tensor) -> list[int]:
        first = int(counted.int().argmax())
        end = int(counted.nonzero()[-1]) + 1  # padding stands behind
        return token_ids[: first or min(self._prompt_tokens, max(1, end // 2))].tolist()


def layers_of(draft: DraftHeads | HFCausalLM) -> Sequence[Layer]:
    """Return the verifier's layers whose states are kept along texts, the last one at the end."""
    return draft.layers if isinstance(draft, DraftHeads) else (FINAL,)


def by_category(tally: Tally) -> dict[str, Estimate]:
    """Return the block efficiency of all prompts, "", and of each category if there are several."""
    kinds = sorted(set(tally.categories))
    parts = {kind: tally.where([own == kind for own in tally.categories]) for kind in kinds}
    found = {"": block_efficiency(tally)}
    if len(kinds) > 1:
        found |= {kind or "none": block_efficiency(part) for kind, part in parts.items()}
    return found
