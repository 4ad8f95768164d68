"""What is said before decoding: the verifier, notes, and the first prompt as it is read."""

from collections.abc import Sequence
from typing import Any

from specdec.decoding.turns import rendered
from specdec.lab.arm import Arm
from specdec.lab.compatibility import calibration_notes
from specdec.lab.spec import ArmSpec
from specdec.lm.adapter import adapter_note
from specdec.lm.generation import notes
from specdec.lm.hf import HFCausalLM
from specdec.prompts import Prompt


def announce(specs: Sequence[ArmSpec], arm: Arm, prompts: Sequence[Prompt]) -> None:
    """Say what is about to be decoded, and show the first prompt as the model gets it.

    Args:
        specs: of all arms.
        arm: one of them, built.
        prompts: that will be decoded.
    """
    verifier = arm.verifier
    kind = "tree" if verifier.no_trees is None else "chain"
    millions = verifier.model.num_parameters() / 1e6
    print(
        f"verifier {specs[0].verifier.path}: {verifier.model.config.model_type},"
        f" {millions:.1f} M parameters; proven: {kind} forwards equal plain forwards"
        f" (relative difference {verifier.tree_error:.0e})"
    )
    for note in dict.fromkeys(note for spec in specs for note in calibration_notes(spec)):
        print(note)
    for note in dict.fromkeys(note for spec in specs for note in adapter_notes(spec)):
        print(note)
    end = turn_end_note(verifier)
    for note in (*notes(arm.decoder.sampling, verifier), *([] if end is None else [end])):
        print(note)
    first = rendered(prompts[0], [], verifier, arm.prompts.rendering).token_ids
    print(f"{_counted(prompts)}; the first one ({len(first)} tokens) as the model reads it:")
    print("\n".join(f"  | {line}" for line in excerpt(verifier.show(first)).splitlines()))


def _counted(prompts: Sequence[Prompt]) -> str:
    number = len({prompt.prompt_id for prompt in prompts})
    each = len(prompts) // number
    return f"{number} prompts" if each == 1 else f"{number} prompts, {each} samples of each"


def excerpt(text: str) -> str:
    """Return a text's beginning and its end, where special tokens stand; all of a short one."""
    return text if len(text) <= 400 else f"{text[:100]} [...] {text[-300:]}"


def adapter_notes(spec: ArmSpec) -> list[str]:
    """Say where a verifier or a draft gets LoRA weights that were trained on another model."""
    draft = spec.proposer.draft_model
    models = {"verifier.adapter": spec.verifier}
    if draft is not None:
        models["draft.adapter"] = draft
    adapted = [(name, model, model.adapter) for name, model in models.items()]
    found = [adapter_note(adapter, model.path, name) for name, model, adapter in adapted if adapter]
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
