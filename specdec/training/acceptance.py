"""Measure what heads and drafts are trained for: block efficiency on held-out prompts."""

import torch

from specdec.core.errors import require_int
from specdec.core.protocols import Proposer, TreePolicy
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.pairing import is_lossless
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.heads.base import Heads
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, block_efficiency
from specdec.metrics.estimate import Estimate
from specdec.training.objective import Batch
from specdec.verification.rejection import Rejection


class Acceptance:
    """Decode the beginnings of held-out samples, with the tree and sampling that are configured.

    A conversation's beginning is all before its first counted token; a text's its first
    `prompt_tokens` tokens. Token-level rejection decides.

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
    ):
        for name, value in (
            ("num_prompts", num_prompts),
            ("prompt_tokens", prompt_tokens),
            ("max_new_tokens", max_new_tokens),
        ):
            require_int(f"evaluation.{name}", value, 1)
        is_lossless(Rejection(), tree.draw, allow_lossy=False)
        self.tree = tree
        self.sampling = sampling
        self._num_prompts = num_prompts
        self._prompt_tokens = prompt_tokens
        self._max_new_tokens = max_new_tokens
        self._seed = seed

    def measure(
        self, verifier: HFCausalLM, proposer: Proposer, draft: Heads | HFCausalLM, held_out: Batch
    ) -> dict[str, float]:
        """Return tau = emitted tokens / verifier calls over the prompts of `held_out`.

        With its interval; see `named`. `draft` is what the proposer drafts with.
        """
        requests = self._requests(held_out)
        decoder = SpeculativeDecoder(
            verifier,
            proposer,
            Rejection(),
            self.sampling,
            Stopping.of(verifier, self._max_new_tokens),
            batch=len(requests),
            seed=self._seed,
        )
        # As decoding runs it: in the models' own types.
        with torch.autocast(verifier.device.type, enabled=False):
            traces = decoder.decode(requests)
        return named(block_efficiency(Tally.of(traces)))

    def _requests(self, held_out: Batch) -> list[Request]:
        requests: list[Request] = []
        for row, counted in zip(held_out.token_ids, held_out.counted, strict=True):
            first = int(counted.int().argmax())
            end = int(counted.nonzero()[-1]) + 1  # padding stands behind
            length = first or min(self._prompt_tokens, max(1, end // 2))
            requests.append(Request(f"held-out {len(requests)}", row[:length].tolist()))
        return requests[: self._num_prompts]


def named(tau: Estimate) -> dict[str, float]:
    """Name a block efficiency, and the ends of its interval if there is one, as they are logged."""
    assert tau.value is not None  # there is a text, so there is a step
    name = "eval_block_efficiency"
    if tau.low is None or tau.high is None:
        return {name: tau.value}
    return {name: tau.value, f"{name}_low": tau.low, f"{name}_high": tau.high}
