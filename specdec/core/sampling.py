"""From logits to the distribution of the next token; greedy decoding is the limit T -> 0 of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specdec.core.errors import (
    UserError,
    require,
    require_bool,
    require_int,
    require_number,
    require_share,
)
from specdec.core.narrowing import is_sequence
from specdec.core.ordering import ascending
from specdec.core.processing import OfPrompt, Processor, bound

# Settings of transformers' `GenerationConfig` that are functions of the tokens before, in the order
# in which `generate()` applies them; the names are theirs.
HEEDED = (
    *("sequence_bias", "encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: processors, temperature, then top-k, then top-p, then min-p.

    The order is that of transformers' logits processors. `temperature=0` is greedy decoding: all
    mass on the arg max. `top_k=0`, `top_p=1` and `min_p=0` switch a filter off.

    The settings of `HEEDED` change logits by the tokens before, as in `generate()`; None is what
    the checkpoint's `generation_config.json` says, or nothing if `from_checkpoint` is off.
    `processors` are further ones, in the order in which they are applied behind those; see
    `specdec.core.processing`.

    Args:
        temperature: divides the logits; 0: greedy.
        top_k: only so many of the likeliest tokens; 0: all.
        top_p: the likeliest tokens of so much probability together.
        min_p: tokens of at least so much of the largest probability.
        sequence_bias: added to the logits of token sequences, [[[5, 7], -2.0]].
        encoder_repetition_penalty: of tokens that the prompt lacks.
        repetition_penalty: of tokens that came before (Keskar et al. 2019); 1 is none.
        no_repeat_ngram_size: no n-gram comes again; 0: it may.
        encoder_no_repeat_ngram_size: no n-gram of the prompt comes again.
        bad_words_ids: sequences that are never written.
        min_length: tokens, the prompt included.
        min_new_tokens: tokens before a text may end.
        forced_bos_token_id: behind a prompt of one token.
        forced_eos_token_id: the last token of the budget.
        remove_invalid_values: logits that are not numbers become numbers.
        exponential_decay_length_penalty: [from which token, base]: ends become likelier.
        suppress_tokens: tokens that are never written.
        begin_suppress_tokens: tokens that do not come first.
        from_checkpoint: whether settings that are None are the checkpoint's.
        processors: further logits processors, behind those above.

    Raises:
        UserError: a value is out of its range, or a processor is none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    sequence_bias: Sequence[Any] | None = None  # pairs of tokens and what is added: [[[5, 7], -2]]
    encoder_repetition_penalty: float | None = None  # of tokens that the prompt lacks
    repetition_penalty: float | None = None  # Keskar et al. 2019; 1 is none
    no_repeat_ngram_size: int | None = None  # 0: n-grams may come again
    encoder_no_repeat_ngram_size: int | None = None  # of the prompt's n-grams
    bad_words_ids: Sequence[Sequence[int]] | None = None
    min_length: int | None = None  # tokens, the prompt included
    min_new_tokens: int | None = None
    forced_bos_token_id: int | None = None  # behind a prompt of one token
    forced_eos_token_id: int | Sequence[int] | None = None  # as the last token of the budget
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: Sequence[float] | None = None  # [from which token, base]
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    from_checkpoint: bool = True
    processors: Sequence[Processor | OfPrompt] = ()

    def __post_init__(self) -> None:
        require_number("temperature", self.temperature, 0.0)
        require_int("top_k", self.top_k, 0)
        require_share("top_p", self.top_p)
        require_number("min_p", self.min_p, 0.0, 1.0)
        require_bool("from_checkpoint", self.from_checkpoint)
        _require_processors(self.processors)
        for name in HEEDED:
            # Plain lists, whatever a configuration made of them.
            object.__setattr__(self, name, _listed(getattr(self, name)))
        object.__setattr__(self, "processors", tuple(self.processors))

    def at(self, temperature: float | None) -> "Sampling":
        """Return the same with another temperature, or itself for None."""
        return self if temperature is None else replace(self, temperature=temperature)

    @property
    def is_greedy(self) -> bool:
        """Whether every distribution has one token, so that a prompt has one text."""
        return self.temperature == 0 or self.top_k == 1

    def of_prompt(self, prompt_ids: Sequence[int], budget: int) -> tuple[Processor, ...]:
        """Return what is applied to the logits of a text of up to `budget` tokens."""
        return bound(self.processors, prompt_ids, budget)

    def to_row(self) -> dict[str, Any]:
        """Return plain values; of processors, what they are called and hold."""
        row = {name: value for name, value in vars(self).items() if name != "processors"}
        return {**row, "processors": [_described(each) for each in self.processors]}

    def warp(self, logits: Tensor) -> Tensor:  # [..., V] -> [..., V] float32
        """Return the probabilities of the next token; computed in fp32 whatever the model's type.

        Float64 logits stay float64, which the exact tests use.
        """
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.temperature == 0:
            winners = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits).scatter_(-1, winners, 1.0)
        if self.temperature != 1:
            # The largest logit becomes 0 first, so that no temperature is too small to divide by.
            logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(
                self.temperature, torch.finfo(logits.dtype).tiny
            )
        if 0 < self.top_k < logits.shape[-1]:
            logits = _keep_top_k(logits, self.top_k)
        probs = logits.softmax(dim=-1)
        if self.top_p < 1:
            probs = _keep_top_p(probs, self.top_p)
        if self.min_p > 0:
            probs = _keep_min_p(probs, self.min_p)
        return probs


def _require_processors(processors: object) -> None:
    """Refuse what is no list of logits processors."""
    require(is_sequence(processors), "processors", processors, "a list of logits processors")
    assert is_sequence(processors)
    for each in processors:
        if isinstance(each, type) or not (callable(each) or isinstance(each, OfPrompt)):
            raise UserError(f"processors: {each!r} is no logits processor")


def _listed(value: object) -> object:
    return [_listed(each) for each in value] if is_sequence(value) else value


def _described(processor: object) -> str:
    named: Any = processor if hasattr(processor, "__qualname__") else type(processor)
    held = sorted(getattr(processor, "__dict__", {}).items())
    arguments = ", ".join(f"{name}={_shown(value)}" for name, value in held)
    return f"{named.__module__}.{named.__qualname__}({arguments})"


def _shown(value: object) -> str:
    """Spell what a processor holds: another one by what it is, and not by where it lies."""
    return _described(value) if callable(value) else repr(value)


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Drop what is below the k-th largest logit; ties with it stay (Fan et al. 2018)."""
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def _keep_top_p(probs: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches p (Holtzman et al. 2020).

    Of equally likely tokens those of smaller ids stay, so that the result depends on nothing else.
    """
    ordered = ascending(probs)
    num_dropped = (ordered.cumsum(dim=-1) <= 1 - p).sum(dim=-1, keepdim=True)
    num_dropped = num_dropped.clamp_(max=probs.shape[-1] - 1)
    least = ordered.gather(-1, num_dropped)
    kept, tied = probs > least, probs == least
    num_tied = probs.shape[-1] - num_dropped - kept.sum(dim=-1, keepdim=True)
    kept |= tied & (tied.cumsum(dim=-1) <= num_tied)
    probs = probs.masked_fill(~kept, 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def _keep_min_p(probs: Tensor, min_p: float) -> Tensor:
    """Drop what is less likely than min_p times the likeliest token (Nguyen et al. 2024)."""
    probs = probs.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def draw(probs: Tensor, uniforms: Tensor | float) -> Tensor:  # [..., V], [..., n] -> [..., n] int64
    """Draw n tokens from each distribution: invert its sums at `uniforms` in [0, 1), in float64.

    With 24-bit sums a token in the tail of a large vocabulary would never be drawn. The weights
    need not sum to one. A token of weight zero is never returned; V is, where a weight is NaN.
    One float is n = 1.
    """
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    # Below the total even after rounding: uniforms are at most 1 - 2^-53, half a unit in the last
    # place of 1, and where the total lies further above its power of two the gap is more than that.
    targets = cumulative[..., -1:] * uniforms
    return torch.searchsorted(cumulative, targets, right=True)
