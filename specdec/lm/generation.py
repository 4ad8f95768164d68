"""What a checkpoint's `generation_config.json` asks for, and the processors that do it.

They are transformers' own logits processors, so that greedy text is that of `generate()`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process

from specdec.core.errors import UserError, first_line
from specdec.core.processing import OfPrompt, Processor, bound, processed
from specdec.core.protocols import SourceReader
from specdec.core.sampling import HEEDED, Sampling

stock: Any = logits_process  # whose annotations want LongTensor, which plain tensors are not

# What is no function of the tokens before, or is decided by more than one text, with the values
# that ask for nothing. Beam search, say, keeps several texts and emits what it finds best.
REFUSED: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "token_healing": (False,),
    "max_time": (),
    "watermarking_config": (),
}
# The same where texts are sampled: filters that `sampling` does not have.
REFUSED_IF_SAMPLED: Mapping[str, tuple[object, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}
# What a checkpoint recommends and `sampling` decides.
RECOMMENDED = ("temperature", "top_k", "top_p", "min_p")
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "encoder_repetition_penalty": (1,),
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "remove_invalid_values": (False,),
    **{name: ([],) for name in ("sequence_bias", "bad_words_ids", "suppress_tokens")},
    "begin_suppress_tokens": ([],),
}


def heeded(sampling: Sampling, verifier: object, end_ids: frozenset[int] = frozenset()) -> Sampling:
    """Return the sampling with whatever the verifier's checkpoint asks for, ready to be applied.

    Settings that `sampling` leaves open are those of the checkpoint, and all of them become
    processors; those that need to know of ends know of `end_ids`. Done twice it is done once.

    Raises:
        UserError: the checkpoint asks for what cannot be applied to single texts, a setting is none
            that transformers accepts, or a processor is no function of the tokens before.
    """
    config: Any = getattr(getattr(verifier, "model", None), "generation_config", None)
    if config is not None and sampling.from_checkpoint:
        _refuse(config, sampling)
        missing = [name for name in HEEDED if getattr(sampling, name) is None]
        sampling = replace(sampling, **{name: getattr(config, name, None) for name in missing})
    # From here on every setting is explicit.
    sampling = replace(sampling, from_checkpoint=False)
    own = sampling.processors
    if any(isinstance(each, Settings) for each in own):
        return sampling
    values = {name: value for name in HEEDED if _asks(name, value := getattr(sampling, name))}
    if not values and not own:
        return sampling
    device = getattr(verifier, "device", torch.device("cpu"))
    kind = SettingsBehindSource if isinstance(verifier, SourceReader) else Settings
    settings = kind(values, tuple(sorted(end_ids)), device)
    vocab_size = int(getattr(verifier, "vocab_size", 2))
    settings.require_usable(vocab_size)
    for each in own:
        _require_function(each, vocab_size, device)
    if isinstance(verifier, SourceReader):
        own = [each if isinstance(each, BehindSource) else BehindSource(each) for each in own]
    return replace(sampling, processors=(*([settings] if values else []), *own))


def end_ids_of(verifier: object) -> frozenset[int]:
    """Return the tokens that end a text, of a verifier that has some."""
    return getattr(verifier, "end_ids", frozenset[int]())


def notes(sampling: Sampling, verifier: object) -> list[str]:
    """Say which settings change logits, and what a checkpoint recommends that is not done.

    `sampling` is as `heeded` returns it.
    """
    found: list[str] = []
    for each in sampling.processors:
        if isinstance(each, Settings):
            found.append(f"logits are processed: {_listed(each.values)}")
    theirs = recommended(verifier) if sampling.temperature > 0 else {}
    ours = {name: getattr(sampling, name) for name in theirs}
    if ours != theirs:
        found.append(
            f"generation_config.json recommends {_listed(theirs)};"
            f" this samples with {_listed(ours)}"
        )
    return found


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def recommended(verifier: object) -> dict[str, object]:
    """Return the temperature and filters that a checkpoint recommends for sampled text."""
    config: Any = getattr(getattr(verifier, "model", None), "generation_config", None)
    if config is None or not config.do_sample:
        return {}
    found = {name: getattr(config, name, None) for name in RECOMMENDED}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Settings:
    """Settings by their names in transformers, all of which ask for something."""

    values: Mapping[str, Any]
    end_ids: tuple[int, ...]
    device: torch.device

    def for_prompt(self, prompt_ids: Sequence[int], budget: int) -> list[Processor]:
        """Make transformers' processors for a prompt, in the order of `generate()`."""
        return self._made(prompt_ids, prompt_ids, budget)

    def _made(
        self, read_ids: Sequence[int], prompt_ids: Sequence[int], budget: int
    ) -> list[Processor]:
        """Make them for a text that begins with `prompt_ids`, of whatever was read for it."""
        ends, length = list(self.end_ids), len(prompt_ids)
        prompt = torch.tensor([list(read_ids)], dtype=torch.int64, device=self.device)
        begins = length + (length == 1 and "forced_bos_token_id" in self.values)
        on = {"device": str(self.device)}
        make: Mapping[str, Callable[[Any], Processor]] = {
            # Transformers takes 2.0 and not 2; here numbers are values.
            "sequence_bias": lambda biases: stock.SequenceBiasLogitsProcessor(_floats(biases)),
            # Of transformers' own only the row of the prompt itself would be processed.
            "encoder_repetition_penalty": lambda penalty: (
                lambda ids, scores: stock.EncoderRepetitionPenaltyLogitsProcessor(
                    float(penalty), prompt.expand(len(ids), -1)
                )(ids, scores)
            ),
            "repetition_penalty": lambda penalty: stock.RepetitionPenaltyLogitsProcessor(
                float(penalty)
            ),
            "no_repeat_ngram_size": stock.NoRepeatNGramLogitsProcessor,
            "encoder_no_repeat_ngram_size": lambda size: stock.EncoderNoRepeatNGramLogitsProcessor(
                size, prompt
            ),
            "bad_words_ids": lambda ids: stock.NoBadWordsLogitsProcessor(ids, ends or None),
            "min_length": lambda least: stock.MinLengthLogitsProcessor(least, ends, **on),
            "min_new_tokens": lambda least: stock.MinNewTokensLengthLogitsProcessor(
                length, least, ends, **on
            ),
            "forced_bos_token_id": stock.ForcedBOSTokenLogitsProcessor,
            "forced_eos_token_id": lambda token: stock.ForcedEOSTokenLogitsProcessor(
                length + budget, token, **on
            ),
            "remove_invalid_values": lambda _: stock.InfNanRemoveLogitsProcessor(),
            "exponential_decay_length_penalty": lambda penalty: stock.ExponentialDecayLengthPenalty(
                tuple(penalty), ends, length
            ),
            "suppress_tokens": lambda ids: stock.SuppressTokensLogitsProcessor(ids, **on),
            "begin_suppress_tokens": lambda ids: stock.SuppressTokensAtBeginLogitsProcessor(
                ids, begins, **on
            ),
        }
        of_ends = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")
        names = [name for name in HEEDED if name in self.values]
        return [make[name](self.values[name]) for name in names if ends or name not in of_ends]

    def require_usable(self, vocab_size: int) -> None:
        """Refuse settings that transformers refuses, each by its name.

        Raises:
            UserError: which it is, and why.
        """
        scores = torch.zeros(1, vocab_size, device=self.device)
        input_ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        for name, value in self.values.items():
            one = replace(self, values={name: value})
            try:
                processed(one.for_prompt([0, 0], 1), input_ids, scores)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise UserError(f"sampling.{name}={value!r}: {first_line(error)}") from None


@dataclass(frozen=True)
class SettingsBehindSource(Settings):
    """Those of a model with an encoder: they look at the decoder's text, as in `generate()`.

    What the encoder read matters to those alone that name it.
    """

    def for_prompt(self, prompt_ids: Sequence[int], budget: int) -> list[Processor]:
        """Make them for a source and the token that the text begins with."""
        *source, start = prompt_ids
        return _behind(len(source), self._made(source, [start], budget))


@dataclass(frozen=True)
class BehindSource:
    """A user's processor, or what makes some, that looks at the decoder's text."""

    processor: Processor | OfPrompt

    def for_prompt(self, prompt_ids: Sequence[int], budget: int) -> list[Processor]:
        """Bind it to a source and the token that the text begins with."""
        return _behind(len(prompt_ids) - 1, bound([self.processor], prompt_ids[-1:], budget))


def _behind(num_source: int, processors: Sequence[Processor]) -> list[Processor]:
    """Let processors see what stands behind the source."""

    def shortened(processor: Processor) -> Processor:
        return lambda input_ids, scores: processor(input_ids[:, num_source:], scores)

    return [shortened(each) for each in processors]


def _floats(biases: Any) -> Any:
    if not isinstance(biases, list):
        return biases
    return [[ids, float(bias)] for ids, bias in biases]


def _asks(name: str, value: object) -> bool:
    """Whether a setting changes any logits."""
    return value is not None and value not in NEUTRAL.get(name, ())


def _refuse(config: Any, sampling: Sampling) -> None:
    """Refuse what cannot be applied along the paths of a tree."""
    sampled = sampling.temperature > 0 and config.do_sample
    refused = {**REFUSED, **(REFUSED_IF_SAMPLED if sampled else {})}
    for name, neutral in refused.items():
        value = getattr(config, name, None)
        if value is not None and value not in neutral:
            raise UserError(
                f"generation_config.json: {name}={value} cannot be applied here; expected"
                " sampling.from_checkpoint=false, to decode without all that the file asks for"
            )


def _require_function(
    processor: Processor | OfPrompt, vocab_size: int, device: torch.device
) -> None:
    """Refuse a processor whose answer depends on more than the text before and its scores.

    Asked about four texts at once, one by one in another order, and again, it must say the same.
    """
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(vocab_size, (4, 6), generator=generator).to(device)
    scores = torch.randn(4, vocab_size, generator=generator).to(device)
    name = getattr(processor, "__qualname__", type(processor).__qualname__)

    def ask(*rows: int) -> Tensor:
        found = processed(bound([processor], [0], 8), texts[[*rows]], scores[[*rows]])
        if not isinstance(found, Tensor) or found.shape != (len(rows), vocab_size):
            raise TypeError("it must return scores of the shape that it is given")
        return found

    try:
        together, singly = ask(0, 1, 2, 3), [ask(row) for row in (2, 0, 3, 1)]
        again = ask(0, 1, 2, 3)
    except Exception as error:  # foreign code, whatever it raises
        raise UserError(
            f"sampling.processors: {name} cannot be used ({first_line(error)})"
        ) from None
    alone = torch.cat([singly[place] for place in (1, 3, 0, 2)])
    same = (torch.allclose(together, each, rtol=1e-4, equal_nan=True) for each in (again, alone))
    if not all(same):
        raise UserError(
            f"sampling.processors: {name} is no function of the tokens before and their scores"
            " alone: asked twice it says two things, and no rule is lossless with that"
        )
