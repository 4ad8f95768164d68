"""An arm: one proposer, one tree and one rule, ready to decode prompts."""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from specdec.core.errors import require, require_kind
from specdec.core.escapes import unescaped
from specdec.core.protocols import Pace, Proposer
from specdec.core.room import Room
from specdec.core.sampling import Sampling
from specdec.core.trace import PromptKey, Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.decoding.turns import decode_turns, request_of
from specdec.lab.identity import draft_of
from specdec.lab.option_names import named_options
from specdec.lab.prompt_options import PromptOptions, chosen
from specdec.lab.spec import ArmSpec, is_fixed
from specdec.lm.generation import heeded
from specdec.lm.hf import HFCausalLM
from specdec.online.learner import Distiller
from specdec.prompts import Prompt, answer_of
from specdec.proposer.none import NoProposer

WARM_UP_TOKENS = 8


@dataclass
class Arm:
    """A decoder, the names that tables call it by, and how prompts are read to it."""

    name: str
    rule: str
    verifier: HFCausalLM
    decoder: SpeculativeDecoder
    prompts: PromptOptions
    keep_candidates: int = 0  # first prompts whose candidates are recorded
    skipped: Sequence[str] = field(default=(), init=False)  # prompts that are left out, by id

    def decode(
        self, prompts: Sequence[Prompt], looked_at: Collection[PromptKey] = ()
    ) -> Iterator[Trace]:
        """Decode prompts turn by turn; a later turn is asked after the arm's own answers.

        Of prompts that are `looked_at`, by key, the candidates are kept.
        """

        def request(prompt: Prompt, answers: Sequence[str]) -> Request:
            shown = prompt.key in looked_at
            return replace(self.request(prompt, answers), keep_candidates=shown)

        room = self.prompts.room(Room.of(self.verifier).too_long)
        yield from decode_turns(
            prompts, request, self.decoder.stream, self.verifier.tokenizer, room
        )

    def request(self, prompt: Prompt, answers: Sequence[str]) -> Request:
        """Render the turn that comes after `answers`."""
        return request_of(prompt, answers, self.verifier, self.prompts.rendering)

    @property
    def proposes_nothing(self) -> bool:
        """Whether this is autoregressive decoding, which speed is compared with."""
        return isinstance(self.decoder.proposer, NoProposer)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is random."""
        return self.decoder.sampling.temperature == 0

    @property
    def turn_size(self) -> int:
        """How many prompts it decodes before something else is timed on the same ones."""
        # A batch needs a queue, so that new prompts can take the place of finished ones.
        return 1 if self.decoder.batch == 1 else 4 * self.decoder.batch

    def choose(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """Return the prompts to decode; what is too long is left out, if that is asked for.

        Raises:
            UserError: one of them cannot be decoded, not even after empty answers.
        """
        found = chosen(prompts, self.prompts, self.request, Room.of(self.verifier).too_long)
        self.decoder.check(found.requests)
        self.skipped = found.skipped
        return found.prompts

    def looked_at(self, prompts: Sequence[Prompt]) -> set[PromptKey]:
        """Return the prompts whose candidates are recorded: the first ones, a sample of each."""
        firsts = [prompt.key for prompt in prompts if prompt.sample == 0]
        return set(firsts[: self.keep_candidates])

    def warm_up(self, prompt: Prompt) -> None:
        """Decode a few tokens that are not recorded: first calls pay for what later ones reuse."""
        short = copy.copy(self.decoder)
        short.learner = None  # what is not recorded is not learned from
        short.stopping = replace(short.stopping, max_new_tokens=WARM_UP_TOKENS)
        short.decode([self.request(prompt, [])])


def answers_of(traces: Sequence[Trace], verifier: HFCausalLM) -> dict[PromptKey, list[str]]:
    """Return the answers of every conversation, as later turns are asked after them, in order."""
    found: dict[PromptKey, list[str]] = {}
    for trace in sorted(traces, key=lambda trace: trace.turn):
        assert verifier.tokenizer is not None
        found.setdefault(trace.prompt_key, []).append(answer_of(trace, verifier.tokenizer))
    return found


def stop_strings_of(spec: ArmSpec) -> tuple[str, ...] | None:
    """Return the stop strings that were given, escapes resolved; None: they are the checkpoint's.

    Raises:
        UserError: they are no list of strings.
    """
    given = spec.stop_strings
    if given is None:
        return None
    expected = 'a list, ["END"], or null for what the checkpoint says'
    require_kind("stop_strings", given, list, expected)
    require(all(map(_is_text, given)), "stop_strings", given, expected)
    return tuple(map(unescaped, given))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def stopping_of(spec: ArmSpec, verifier: HFCausalLM) -> Stopping:
    """Build what ends a text."""
    return Stopping.of(verifier, spec.max_new_tokens, stop_strings_of(spec), spec.ignore_eos)


def sampling_of(spec: ArmSpec, verifier: HFCausalLM) -> Sampling:
    """Build what tokens are drawn from, with all that the verifier's checkpoint asks for."""
    return heeded(spec.sampling.build(), verifier, stopping_of(spec, verifier).end_ids)


def _learner(spec: ArmSpec, proposer: Proposer, verifier: HFCausalLM) -> Distiller | None:
    """Build what teaches the proposer, if anything does."""
    if spec.online is None:
        return None
    with named_options(spec.online.names):
        return spec.online.build().teach(proposer, verifier)


def build_pace(spec: ArmSpec) -> Pace:
    """Build what chooses the depth of each step.

    Raises:
        UserError: it is given costs of other proposers than the arm's.
    """
    if spec.pace.get("costs_path") is None or spec.pace.get("draft") is not None:
        return spec.pace.build()
    tree = spec.tree.build() if spec.proposer.grows_trees else None
    return spec.pace.build(draft=draft_of(spec.proposer).known_by, tree=tree)


def build_arm(spec: ArmSpec, verifier: HFCausalLM, name: str = "") -> Arm:
    """Build everything but the verifier, which the arms of a comparison share.

    Raises:
        UserError: one of the parts refuses its options, or they do not go together.
    """
    proposer = spec.proposer.build_for(verifier)
    decoder = SpeculativeDecoder(
        verifier,
        proposer,
        spec.rule.build(),
        sampling=sampling_of(spec, verifier),
        stopping=stopping_of(spec, verifier),
        batch=spec.batch,
        seed=spec.seed,
        allow_lossy=spec.allow_lossy,
        judges={judge: part.build() for judge, part in spec.judges.items()},
        log_probs=spec.log_probs,
        experts=spec.experts,
        learner=_learner(spec, proposer, verifier),
        pace=None if is_fixed(spec) else build_pace(spec),
    )
    called = name or spec.proposer.name
    return Arm(called, spec.rule.name, verifier, decoder, spec.prompts, spec.keep_candidates)
