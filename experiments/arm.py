"""An arm: one proposer, one tree and one rule, built from a configuration and ready to decode."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from specdec.experiments.app import build
from specdec.experiments.fit import build_judges, calibration_notes, name_of_node, require_parts_fit
from specdec.experiments.naming import content_of, materials_of, training_tokens_of

from specdec.core.errors import UserError, require, require_int
from specdec.core.trace import Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.decoding.turns import beforehand, decode_turns, rendered
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, summarize
from specdec.prompts import Prompt, Rendered, load_prompts
from specdec.proposer.none import NoProposer
from specdec.report.options import options
from specdec.report.provenance import provenance
from specdec.report.token_view import token_view
from specdec.report.tracking import log_with, track

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

    def provenance(self) -> dict[str, Any]:
        """Collect under which circumstances this arm is measured."""
        facts = provenance(self.verifier.device, self.config.dtype, self.verifier.attention)
        facts["training_tokens"] = training_tokens_of(self.config)
        known = materials_of(self.config)
        # A verifier that was tuned for this run is none of its options.
        tuned = content_of(self.config.verifier.path, "model")
        return {**facts, **known, "files": {"verifier.path": tuned, **known["files"]}}

    def decode(self, prompts: Sequence[Prompt], looked_at: Collection[str] = ()) -> Iterator[Trace]:
        """Decode prompts turn by turn; a later turn is asked after the arm's own answers.

        Of prompts that are `looked_at`, by id, the candidates are kept.
        """

        def request(prompt: Prompt, answers: Sequence[str]) -> Request:
            shown = prompt.prompt_id in looked_at
            return replace(self.request(prompt, answers), keep_candidates=shown)

        yield from decode_turns(prompts, request, self.decoder.stream)

    def request(self, prompt: Prompt, answers: Sequence[str]) -> Request:
        """Render the turn that comes after `answers`."""
        token_ids = render(prompt, answers, self.verifier, self.config).token_ids
        return Request(prompt.prompt_id, token_ids, prompt.category, len(answers))

    @property
    def proposes_nothing(self) -> bool:
        """Whether this is autoregressive decoding, which speed is compared with."""
        return isinstance(self.decoder.proposer, NoProposer)

    def token_views(
        self, prompts: Sequence[Prompt], traces: Sequence[Trace]
    ) -> list[dict[str, Any]]:
        """Return the rows of `tokens.jsonl`, of those texts whose candidates were kept."""
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        answers = {(trace.prompt_id, trace.turn): trace.output_text for trace in traces}
        rows: list[dict[str, Any]] = []
        for trace in traces:
            if any(step.candidates for step in trace.steps):
                before = [answers[trace.prompt_id, turn] for turn in range(trace.turn)]
                text = render(by_id[trace.prompt_id], before, self.verifier, self.config).text
                rows.append(token_view(trace, text, lambda token: self.verifier.show([token])))
        return rows

    def track(self, folder: Path, summary: Mapping[str, Any], tally: Tally) -> None:
        """Hand results to the tracker; runs of one sweep or comparison are a group."""
        group = folder.resolve().parent.name
        track(self.config.tracker, folder, options(self.config), group, summary, tally)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that cannot be decoded, before any is: not even after empty answers."""
        self.decoder.check(beforehand(prompts, self.request))

    def warm_up(self, prompt: Prompt) -> None:
        """Decode a few tokens that are not recorded: first calls pay for what later ones reuse."""
        short = copy.copy(self.decoder)
        short.stopping = replace(short.stopping, max_new_tokens=8)
        short.decode([self.request(prompt, [])])


def render(
    prompt: Prompt, answers: Sequence[str], verifier: HFCausalLM, config: DictConfig
) -> Rendered:
    """Render the turn that comes after `answers` as the verifier reads it."""
    return rendered(prompt, answers, verifier, config.prompts.chat_template)


def build_prompts(config: DictConfig) -> list[Prompt]:
    """Read the prompts; long before any model is loaded, since this may fail."""
    prompts = config.prompts
    return load_prompts(prompts.path, prompts.limit, prompts.split)


def turn_size(batch: int) -> int:
    """How many prompts an arm decodes before something else is timed on the same ones."""
    # A batch needs a queue, so that new prompts can take the place of finished ones.
    return 1 if batch == 1 else 4 * batch


def looked_at(config: DictConfig, prompts: Sequence[Prompt]) -> set[str]:
    """Return the prompts whose candidates are to be recorded, by id."""
    return {prompt.prompt_id for prompt in prompts[: config.keep_candidates]}


def check_options(config: DictConfig) -> None:
    """Build what is cheap to build, so that a bad option is refused before a model is loaded."""
    require_nodes(config)
    require_int("batch", config.batch, 1)
    require_int("seed", config.seed, 0)
    require_int("keep_candidates", config.keep_candidates, 0)
    require(isinstance(config.resume, bool), "resume", config.resume, "true or false")
    log_with(config.tracker)
    build(config.sampling)
    lossy = config.verification.allow_lossy
    require(isinstance(lossy, bool), "verification.allow_lossy", lossy, "true or false")
    require_parts_fit(config)
    strings: Any = config.stop_strings
    require(isinstance(strings, ListConfig), "stop_strings", strings, 'a list, ["END"]')
    Stopping(config.max_new_tokens, frozenset(), tuple(strings), lambda ids: "")


def require_nodes(config: DictConfig) -> None:
    """Refuse `prompts=my.jsonl`, where `prompts.path=my.jsonl` is meant."""
    for name, example in NODES.items():
        node = OmegaConf.select(config, name)
        if not isinstance(node, DictConfig):
            raise UserError(f"{name}={node}: expected {example}")


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
        sampling=build(config.sampling),
        stopping=Stopping.of(verifier, config.max_new_tokens, config.stop_strings),
        batch=config.batch,
        seed=config.seed,
        allow_lossy=config.verification.allow_lossy,
        judges=build_judges(config),
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
    for note in dict.fromkeys(note for each in arms for note in calibration_notes(each.config)):
        print(note)
    first = render(prompts[0], [], verifier, arm.config)
    shown = first.text[-400:]
    print(f"{len(prompts)} prompts; the first one ({len(first.token_ids)} tokens) ends in:")
    print("\n".join(f"  | {line}" for line in shown.splitlines()))
