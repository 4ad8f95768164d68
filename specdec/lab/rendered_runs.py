"""The texts of a run directory, with the prompts that they continue."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.room import Room
from specdec.core.trace import Trace, request_id
from specdec.decoding.turns import rendered
from specdec.lab.arm import answers_of
from specdec.lab.identity import files_of
from specdec.lab.spec import ArmSpec, pick, with_options
from specdec.lm.hf import HFCausalLM
from specdec.prompts import Prompt, Rendering
from specdec.recording.texts import Text
from specdec.results.saved_options import read_options

LOOKED_AT = [f"{node}.{name}" for node in ("prompts", "verifier") for name in ("path", "revision")]


def read_spec(
    folder: Path, name: str = "config.yaml", changed: Mapping[str, Any] | None = None
) -> ArmSpec:
    """Read how a run was decoded, with other values for the options that are `changed`.

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else.
    """
    options = read_options(folder, name)
    try:
        return ArmSpec.of(with_options(options, changed or {}))
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder / name}: not the options of a run ({reason})") from None


def require_unchanged(run: Path, spec: ArmSpec) -> None:
    """Refuse texts whose prompts or verifier are no longer those that they came from.

    Raises:
        UserError: what lies there now is something else, by any byte.
    """
    try:
        known = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        then: dict[str, str] = known["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run / 'provenance.json'}: missing or damaged") from None
    names = pick(spec.options, LOOKED_AT)
    now = files_of(names)
    for name in [name for name in now if then.get(name) not in (None, now[name])]:
        raise UserError(f"{name}={names[name]!r}: has changed since the run {run}; decode anew")


def texts_of_run(traces: Sequence[Trace], spec: ArmSpec, verifier: HFCausalLM) -> list[Text]:
    """Render the prompts of a run again; see `texts_of`.

    Raises:
        UserError: the prompts are others than those that were decoded.
    """
    prompts, rendering = spec.prompts.load(), spec.prompts.rendering
    named = f"prompts.path={spec.prompts.path!r}"
    return texts_of(traces, prompts, rendering, verifier, spec.max_new_tokens, named)


def texts_of(
    traces: Sequence[Trace],
    prompts: Sequence[Prompt],
    rendering: Rendering,
    verifier: HFCausalLM,
    max_new_tokens: int,
    named: str = "prompts",
) -> list[Text]:
    """Render the prompts again, later turns after the answers that the run itself gave.

    What the verifier found of the tokens (`log_p`) is not known yet. Turns that ended at once have
    no text.

    Args:
        traces: of a run.
        prompts: that it decoded.
        rendering: how it read them.
        verifier: its verifier.
        max_new_tokens: of a text of the run, at most.
        named: how a complaint names the prompts.

    Raises:
        UserError: the prompts are others than those that were decoded.
    """
    texts: list[Text] = []
    for trace, prompt_ids in _with_prompts(traces, prompts, rendering, verifier, named):
        budget = min(max_new_tokens, Room.of(verifier).behind(len(prompt_ids)))
        texts.append(
            Text(
                trace.prompt_id,
                trace.category,
                trace.turn,
                tuple(prompt_ids),
                trace.output_ids,
                (),
                trace.finish_reason,
                budget,
                trace.sample,
            )
        )
    return texts


def _with_prompts(
    traces: Sequence[Trace],
    prompts: Sequence[Prompt],
    rendering: Rendering,
    verifier: HFCausalLM,
    named: str,
) -> Iterator[tuple[Trace, Sequence[int]]]:
    known = {prompt.key: prompt for prompt in prompts}
    answers = answers_of(traces, verifier)
    for trace in (trace for trace in traces if trace.output_ids):
        given, prompt = answers[trace.prompt_key][: trace.turn], known.get(trace.prompt_key)
        prompt_ids: Sequence[int] = ()
        if prompt is not None:
            prompt_ids = rendered(prompt, given, verifier, rendering).token_ids
        if len(prompt_ids) != trace.num_prompt_tokens:
            name = request_id(trace.prompt_id, trace.turn, trace.sample)
            raise UserError(
                f"{named}: has changed since the run: prompt {name}"
                f" had {trace.num_prompt_tokens} tokens, and has {len(prompt_ids)} now"
            )
        yield trace, prompt_ids
