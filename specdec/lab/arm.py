"""An arm: one proposer, one tree and one rule, built from a configuration and ready to decode."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.core.errors import UserError, require, require_int
from specdec.core.escapes import unescaped
from specdec.core.sampling import Sampling
from specdec.core.trace import PromptKey, Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request, require_samples
from specdec.decoding.stopping import Stopping
from specdec.decoding.turns import decode_turns, request_of
from specdec.lab.build import build
from specdec.lab.compatibility import (
    build_judges,
    calibration_notes,
    name_of_node,
    require_parts_fit,
)
from specdec.lab.identity import content_of, materials_of, training_tokens_of
from specdec.lab.prompt_options import PromptOptions, chosen, render
from specdec.lm.adapter import adapter_note
from specdec.lm.generation import heeded, notes
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, summarize
from specdec.prompts import Prompt, answer_of
from specdec.proposer.none import NoProposer
from specdec.results.options import options
from specdec.results.provenance import provenance
from specdec.results.token_view import token_view
from specdec.results.tracking import log_with, track

NODES = {
    "verifier": "verifier.path=MODEL",
    "draft": "draft.path=MODEL",
    "prompts": "prompts.path=FILE",
    "sampling": "sampling.temperature=0.7",
    "proposer": "one that --help names, proposer=ngram",
    "tree": "one that --help names, tree=chain",
    "verification": "one that --help names, verification=block",
    "verification.rule": "one that --help names, verification=block",
}


@dataclass
class Arm:
    """A decoder with the names that tables call it by."""

    name: str
    rule: str
    config: DictConfig
    verifier: HFCausalLM
    decoder: SpeculativeDecoder
    skipped: Sequence[str] = field(default=(), init=False)  # prompts that are left out, by id

    def provenance(self) -> dict[str, Any]:
        """Collect under which circumstances this arm is measured."""
        facts = provenance(self.verifier.device, self.config.dtype, self.verifier.attention)
        facts["training_tokens"] = training_tokens_of(self.config)
        known = materials_of(self.config)
        # A verifier that was tuned for this run is none of its options.
        verifier = self.config.verifier
        tuned = content_of(verifier.path, "model", verifier.get("revision"))
        return {**facts, **known, "files": {"verifier.path": tuned, **known["files"]}}

    def decode(
        self, prompts: Sequence[Prompt], looked_at: Collection[PromptKey] = ()
    ) -> Iterator[Trace]:
        """Decode prompts turn by turn; a later turn is asked after the arm's own answers.

        Of prompts that are `looked_at`, by key, the candidates are kept.
        """

        def request(prompt: Prompt, answers: Sequence[str]) -> Request:
            shown = prompt.key in looked_at
            return replace(self.request(prompt, answers), keep_candidates=shown)

        room = PromptOptions.of(self.config).room(self.verifier.max_length)
        yield from decode_turns(
            prompts, request, self.decoder.stream, self.verifier.tokenizer, room
        )

    def request(self, prompt: Prompt, answers: Sequence[str]) -> Request:
        """Render the turn that comes after `answers`."""
        return request_of(prompt, answers, self.verifier, PromptOptions.of(self.config).rendering)

    @property
    def proposes_nothing(self) -> bool:
        """Whether this is autoregressive decoding, which speed is compared with."""
        return isinstance(self.decoder.proposer, NoProposer)

    def token_views(
        self, prompts: Sequence[Prompt], traces: Sequence[Trace]
    ) -> list[dict[str, Any]]:
        """Return the rows of `tokens.jsonl`, of those texts whose candidates were kept."""
        by_key = {prompt.key: prompt for prompt in prompts}
        answers = before(traces, self.verifier)
        tokenizer: Any = self.verifier.tokenizer
        show, piece = self.verifier.show, tokenizer.convert_ids_to_tokens
        rows: list[dict[str, Any]] = []
        for trace in traces:
            if any(step.candidates for step in trace.steps):
                prompt, given = by_key[trace.prompt_key], answers[trace.prompt_key][: trace.turn]
                read = render(prompt, given, self.verifier, self.config).token_ids
                rows.append(token_view(trace, show(read), show, piece))
        return rows

    def track(self, folder: Path, summary: Mapping[str, Any], tally: Tally) -> None:
        """Hand results to the tracker; runs of one sweep or comparison are a group."""
        group = folder.resolve().parent.name
        track(self.config.tracker, folder, options(self.config), group, summary, tally)

    def choose(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """Return the prompts to decode; what is too long is left out, if that is asked for.

        Raises:
            UserError: one of them cannot be decoded, not even after empty answers.
        """
        told = PromptOptions.of(self.config)
        found = chosen(prompts, told, self.request, self.verifier.max_length)
        self.decoder.check(found.requests)
        self.skipped = found.skipped
        return found.prompts

    def warm_up(self, prompt: Prompt) -> None:
        """Decode a few tokens that are not recorded: first calls pay for what later ones reuse."""
        short = copy.copy(self.decoder)
        short.stopping = replace(short.stopping, max_new_tokens=8)
        short.decode([self.request(prompt, [])])


def before(traces: Sequence[Trace], verifier: HFCausalLM) -> dict[PromptKey, list[str]]:
    """Return the answers of every conversation, as later turns are asked after them, in order."""
    found: dict[PromptKey, list[str]] = {}
    for trace in sorted(traces, key=lambda trace: trace.turn):
        assert verifier.tokenizer is not None
        found.setdefault(trace.prompt_key, []).append(answer_of(trace, verifier.tokenizer))
    return found


def turn_size(batch: int) -> int:
    """How many prompts an arm decodes before something else is timed on the same ones."""
    # A batch needs a queue, so that new prompts can take the place of finished ones.
    return 1 if batch == 1 else 4 * batch


def looked_at(config: DictConfig, prompts: Sequence[Prompt]) -> set[PromptKey]:
    """Return the prompts whose candidates are to be recorded: the first ones, a sample of each."""
    firsts = [prompt.key for prompt in prompts if prompt.sample == 0]
    return set(firsts[: config.keep_candidates])


def check_options(config: DictConfig) -> None:
    """Build what is cheap to build, so that a bad option is refused before a model is loaded."""
    require_nodes(config)
    require_int("batch", config.batch, 1)
    require_int("seed", config.seed, 0)
    require_int("keep_candidates", config.keep_candidates, 0)
    require(isinstance(config.resume, bool), "resume", config.resume, "true or false")
    log_with(config.tracker)
    require_samples(PromptOptions.of(config).num_samples, build(config.sampling))
    lossy = config.verification.allow_lossy
    require(isinstance(lossy, bool), "verification.allow_lossy", lossy, "true or false")
    require_parts_fit(config)
    for name in ("min_new_tokens", "max_new_tokens"):
        if config[name] is not None:
            require_int(name, config[name], 0)
    for name in ("ignore_eos", "log_probs"):
        require(isinstance(config[name], bool), name, config[name], "true or false")
    strings = stop_strings_of(config)
    Stopping(config.max_new_tokens, frozenset(), strings or (), show=lambda ids: "")


def require_nodes(config: DictConfig) -> None:
    """Refuse `prompts=my.jsonl`, where `prompts.path=my.jsonl` is meant."""
    for name, example in NODES.items():
        node = OmegaConf.select(config, name)
        if not isinstance(node, DictConfig):
            raise UserError(f"{name}={node}: expected {example}")


def stop_strings_of(config: DictConfig) -> tuple[str, ...] | None:
    """Return the stop strings that are told, escapes resolved; None: they are the checkpoint's.

    Raises:
        UserError: they are no list of strings.
    """
    told: Any = config.stop_strings
    expected = 'a list, ["END"], or null for what the checkpoint says'
    require(told is None or isinstance(told, ListConfig), "stop_strings", told, expected)
    for each in told or ():
        require(isinstance(each, str), "stop_strings", told, expected)
    return None if told is None else tuple(map(unescaped, told))


def stopping_of(config: DictConfig, verifier: HFCausalLM) -> Stopping:
    """Build what ends a text."""
    strings = stop_strings_of(config)
    return Stopping.of(verifier, config.max_new_tokens, strings, config.ignore_eos)


def sampling_of(config: DictConfig, verifier: HFCausalLM) -> Sampling:
    """Build what tokens are drawn from, with all that the verifier's checkpoint asks for."""
    return heeded(build(config.sampling), verifier, stopping_of(config, verifier).end_ids)


def build_arm(config: DictConfig, verifier: HFCausalLM, name: str = "") -> Arm:
    """Build everything but the verifier, which the arms of a comparison share."""
    # Heads need the very model that they sit on, not another copy of it.
    given = {"verifier": verifier} if "verifier" in config.proposer else {}
    proposer = build(config.proposer, **given)
    rule = build(config.verification.rule)
    decoder = SpeculativeDecoder(
        verifier,
        proposer,
        rule,
        sampling=sampling_of(config, verifier),
        stopping=stopping_of(config, verifier),
        batch=config.batch,
        seed=config.seed,
        allow_lossy=config.verification.allow_lossy,
        judges=build_judges(config),
        log_probs=config.log_probs,
    )
    called, decides = (name_of_node(config, group) for group in ("proposer", "verification"))
    return Arm(name or called, decides, config, verifier, decoder)


def summary_of(arm: Arm, tally: Tally) -> dict[str, Any]:
    """Return an arm's metrics together with what a reader needs to judge them."""
    return {
        "arm": arm.name,
        "rule": arm.rule,
        "lossless": arm.decoder.lossless,
        **summarize(tally),
    }


def announce(arms: Sequence[Arm], prompts: Sequence[Prompt]) -> None:
    """Say what is about to be decoded, and show the first prompt as the model gets it."""
    arm = arms[0]
    verifier = arm.verifier
    millions = verifier.model.num_parameters() / 1e6
    print(
        f"verifier {arm.config.verifier.path}: {verifier.model.config.model_type},"
        f" {millions:.1f} M parameters; proven: tree forwards equal plain forwards"
        f" (relative difference {verifier.tree_error:.0e})"
    )
    told = [each.config for each in arms]
    for note in dict.fromkeys(note for each in told for note in calibration_notes(each)):
        print(note)
    for note in dict.fromkeys(note for each in told for note in adapter_notes(each)):
        print(note)
    end = turn_end_note(verifier)
    for note in (*notes(arm.decoder.sampling, verifier), *([] if end is None else [end])):
        print(note)
    first = render(prompts[0], [], verifier, arm.config).token_ids
    print(f"{_counted(prompts)}; the first one ({len(first)} tokens) as the model reads it:")
    print("\n".join(f"  | {line}" for line in excerpt(verifier.show(first)).splitlines()))


def _counted(prompts: Sequence[Prompt]) -> str:
    number = len({prompt.prompt_id for prompt in prompts})
    each = len(prompts) // number
    return f"{number} prompts" if each == 1 else f"{number} prompts, {each} samples of each"


def excerpt(text: str) -> str:
    """Return a text's beginning and its end, where special tokens stand; all of a short one."""
    return text if len(text) <= 400 else f"{text[:100]} [...] {text[-300:]}"


def adapter_notes(config: DictConfig) -> list[str]:
    """Say where a verifier or a draft gets LoRA weights that were trained on another model."""
    nodes = [config.verifier, *([config.draft] if "model" in config.proposer else [])]
    fields = [(node, node.field.replace(".path", ".adapter")) for node in nodes]
    adapted = [(node, field) for node, field in fields if node.get("adapter")]
    found = [adapter_note(node.adapter, node.path, field) for node, field in adapted]
    return [note for note in found if note is not None]


def turn_end_note(verifier: HFCausalLM) -> str | None:
    """Say that texts go on behind what the tokenizer alone calls an end; None if it does not."""
    tokenizer: Any = verifier.tokenizer
    end = None if tokenizer is None else tokenizer.eos_token_id
    if tokenizer is None or end is None or not verifier.end_ids or end in verifier.end_ids:
        return None
    spelt = tokenizer.convert_ids_to_tokens(end)
    return (
        f"note: texts go on behind {spelt}, the tokenizer's end: the model's generation"
        f""" configuration does not name it; 'stop_strings=["{spelt}"]' ends them there"""
    )
