"""What the verifier finds of the tokens of texts: how likely each was, and which were likelier."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.processing import along
from specdec.core.protocols import CausalLM
from specdec.core.sampling import Sampling
from specdec.lm.generation import end_ids_of, heeded
from specdec.recording.reading import LOGITS_AT_ONCE, longest_first, read
from specdec.recording.texts import Text

# The share of tokens that rounding may push over the edge of top-p, top-k or min-p.
ROUNDED_AWAY = 1e-2
SMALLEST = torch.finfo(torch.float32).tiny
# Of a token that the distribution read here does not have, in nats.
LEAST_LOG_P = torch.tensor(math.log(SMALLEST), dtype=torch.float32).item()
COMPLETE = 1 - 1e-6  # the mass from which on the kept tokens are all there are


class Scored(NamedTuple):
    """A text of T tokens, with the K likeliest tokens of the distribution of each."""

    text: Text
    top_ids: Tensor  # [T, K] int32, likeliest first; 0 where there are fewer than K
    top_log_p: Tensor  # [T, K] float32, nats; -inf there
    logsumexp: Tensor  # [T] float32: of the raw logits, nats

    @property
    def has_rows(self) -> bool:
        """Whether no distribution of the text has more tokens than are kept."""
        whole = self.top_log_p.double().exp().sum(dim=1) >= COMPLETE
        if self.top_log_p.shape[1]:
            whole |= self.top_log_p[:, -1].isneginf()
        return bool(whole.all())

    def rows(self, vocab_size: int) -> Tensor | None:  # [T, V] float32
        """Rebuild the distributions of the tokens; None if `has_rows` does not hold.

        The text's own token has what `log_p` says, also where rounding took it out of the
        distribution.
        """
        if not self.has_rows:
            return None
        probs = torch.zeros(len(self.top_ids), vocab_size)
        # Added, because token 0 stands also where there is none: with nothing.
        probs.scatter_add_(1, self.top_ids.long(), self.top_log_p.exp())
        own_ids = torch.tensor(self.text.output_ids, dtype=torch.int64)[:, None]
        own = torch.tensor(self.text.log_p, dtype=torch.float32).exp().clamp(min=SMALLEST)
        return probs.scatter_(1, own_ids, own[:, None])


def score(
    texts: Sequence[Text], verifier: CausalLM, sampling: Sampling, top_k: int, batch: int = 16
) -> Iterator[Scored]:
    """Yield texts with what the verifier finds of each token, longest first; on the CPU.

    The texts' own `log_p` may be empty: it is computed here, by reading them (teacher forcing). A
    token that the distribution does not have gets `LEAST_LOG_P`, so that no logarithm is infinite.

    Raises:
        UserError: more than one in a hundred of all tokens are such, or one is not even of the
            vocabulary.
    """
    sampling = heeded(sampling, verifier, end_ids_of(verifier))
    largest = max((max(text.output_ids, default=0) for text in texts), default=0)
    if largest >= verifier.vocab_size:
        raise UserError(
            f"token {largest} is beyond the verifier's vocabulary of {verifier.vocab_size}: these"
            " are not its texts"
        )
    num_tokens = sum(len(text.output_ids) for text in texts)
    num_impossible = 0
    for some in longest_first(texts, batch):
        found, num = _score_batch(some, verifier, sampling, top_k)
        num_impossible += num
        # Of all tokens, those to come included: the verdict of the end, as soon as it is certain.
        if num_impossible > ROUNDED_AWAY * num_tokens:
            shown = ", ".join(f"{name}={value}" for name, value in sampling.to_row().items())
            raise UserError(
                f"sampling: {num_impossible} or more of {num_tokens} tokens are impossible at"
                f" {shown}: these texts do not have this verifier's distribution at this sampling"
            )
        yield from found


class _Findings(NamedTuple):
    """What is found of n neighbouring tokens, on the CPU."""

    log_p: Tensor  # [n] float32
    top_ids: Tensor  # [n, K] int32
    top_log_p: Tensor  # [n, K] float32
    logsumexp: Tensor  # [n] float32
    impossible: Tensor  # [n] bool

    @classmethod
    def of(
        cls, logits: Tensor, token_ids: Sequence[int], sampling: Sampling, top_k: int
    ) -> "_Findings":
        """Look n tokens up in the logits before each of them, [n, V]."""
        probs = sampling.warp(logits)
        vocab_size = probs.shape[1]
        tokens = torch.tensor(token_ids, dtype=torch.int64, device=probs.device)
        own = probs.gather(1, tokens[:, None])[:, 0]
        top = probs.topk(min(top_k, vocab_size), dim=1)
        missing = (0, top_k - top.values.shape[1])
        top_p = torch.nn.functional.pad(top.values, missing)
        top_ids = torch.nn.functional.pad(top.indices, missing).masked_fill(top_p == 0, 0)
        found = (
            own.log().float().clamp(min=LEAST_LOG_P),
            top_ids.int(),
            top_p.log().float(),
            logits.to(probs.dtype).logsumexp(dim=1).float(),
            ~(own > 0),  # NaN is no probability either
        )
        return cls(*(each.cpu() for each in found))


def _score_batch(
    texts: Sequence[Text], verifier: CausalLM, sampling: Sampling, top_k: int
) -> tuple[list[Scored], int]:
    """Score some texts; returns also how many of their tokens are impossible."""
    nothing = _Findings.of(torch.zeros(0, verifier.vocab_size), (), sampling, top_k)
    pieces = [[nothing] for _ in texts]
    for piece in read(texts, [verifier], LOGITS_AT_ONCE):
        (logits,) = piece.logits
        text = texts[piece.text]
        known = sampling.of_prompt(text.prompt_ids, text.budget)
        logits = along(known, text.prompt_ids, text.output_ids, logits, piece.start)
        token_ids = text.output_ids[piece.start : piece.start + len(logits)]
        pieces[piece.text].append(_Findings.of(logits, token_ids, sampling, top_k))
    joined = [_Findings(*map(torch.cat, zip(*found, strict=True))) for found in pieces]
    scored = [
        Scored(
            replace(text, log_p=tuple(found.log_p.tolist())),
            found.top_ids,
            found.top_log_p,
            found.logsumexp,
        )
        for text, found in zip(texts, joined, strict=True)
    ]
    return scored, sum(int(found.impossible.sum()) for found in joined)
