"""What is kept of an arm's traces: its summary, the texts to look at, under which circumstances."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.core.trace import Trace
from specdec.decoding.turns import rendered
from specdec.lab.arm import Arm, answers_of
from specdec.lab.identity import content_of, materials_of, training_tokens_of
from specdec.lab.measured_on import measured_on
from specdec.lab.spec import ArmSpec
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, summarize
from specdec.prompts import Prompt
from specdec.results.options import options
from specdec.results.token_view import token_view
from specdec.results.tracking import track


def summary_of(arm: Arm, tally: Tally) -> dict[str, Any]:
    """Return an arm's metrics together with what a reader needs to judge them."""
    return {
        "arm": arm.name,
        "rule": arm.rule,
        "lossless": arm.decoder.lossless,
        **summarize(tally),
    }


def token_views(
    arm: Arm, prompts: Sequence[Prompt], traces: Sequence[Trace]
) -> list[dict[str, Any]]:
    """Return the rows of `tokens.jsonl`, of those texts whose candidates were kept."""
    by_key = {prompt.key: prompt for prompt in prompts}
    answers = answers_of(traces, arm.verifier)
    tokenizer: Any = arm.verifier.tokenizer
    show, piece = arm.verifier.show, tokenizer.convert_ids_to_tokens
    rows: list[dict[str, Any]] = []
    for trace in traces:
        if any(step.candidates for step in trace.steps):
            prompt, given = by_key[trace.prompt_key], answers[trace.prompt_key][: trace.turn]
            read = rendered(prompt, given, arm.verifier, arm.prompts.rendering).token_ids
            rows.append(token_view(trace, show(read), show, piece))
    return rows


def provenance_of(spec: ArmSpec, verifier: HFCausalLM) -> dict[str, Any]:
    """Collect under which circumstances an arm is measured."""
    circumstances = measured_on(verifier)
    circumstances["training_tokens"] = training_tokens_of(spec.proposer)
    known = materials_of(spec)
    # A verifier that was tuned for this run is none of its options.
    tuned = content_of(spec.verifier.path, "model", spec.verifier.revision)
    return {**circumstances, **known, "files": {"verifier.path": tuned, **known["files"]}}


def hand_to_tracker(spec: ArmSpec, folder: Path, summary: Mapping[str, Any], tally: Tally) -> None:
    """Hand results to the tracker; runs of one sweep or comparison are a group."""
    group = folder.resolve().parent.name
    track(spec.tracker, folder, options(spec.options), group, summary, tally)
