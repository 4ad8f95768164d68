"""The texts of a run directory, with the prompts that they continue."""

import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from specdec.core.errors import UserError
from specdec.core.trace import Trace, request_id
from specdec.lab.arm import before
from specdec.lab.identity import files_of
from specdec.lab.prompt_options import build_prompts, render
from specdec.lm.hf import HFCausalLM
from specdec.recording.texts import Text


def read_config(folder: Path, name: str = "config.yaml") -> DictConfig:
    """Read how a run was decoded.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    file = folder / name
    try:
        found = OmegaConf.load(file)
    except OSError:
        raise UserError(f"{folder}: no {name} in that folder") from None
    except YAMLError as error:
        raise UserError(f"{file}: damaged ({error})".replace("\n", " ")) from None
    if not isinstance(found, DictConfig) or "sampling" not in found:
        raise UserError(f"{file}: not the configuration of a run")
    return found


def require_unchanged(run: Path, config: DictConfig) -> None:
    """Refuse texts whose prompts or verifier are no longer those that they came from.

    Raises:
        UserError: what lies there now is something else, by any byte.
    """
    try:
        facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        before: dict[str, str] = facts["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run / 'provenance.json'}: missing or damaged") from None
    names = [f"{node}.{name}" for node in ("prompts", "verifier") for name in ("path", "revision")]
    told = {name: OmegaConf.select(config, name) for name in names}
    now = files_of(told)
    for name in [name for name in now if before.get(name) not in (None, now[name])]:
        raise UserError(f"{name}={told[name]!r}: has changed since the run {run}; decode anew")


def texts_of(traces: Sequence[Trace], config: DictConfig, verifier: HFCausalLM) -> list[Text]:
    """Render the prompts again, later turns after the answers that the run itself gave.

    What the verifier found of the tokens (`log_p`) is not known yet. Turns that ended at once have
    no text.

    Raises:
        UserError: the prompts are others than those that were decoded.
    """
    prompts = {prompt.key: prompt for prompt in build_prompts(config)}
    answers = before(traces, verifier)
    texts: list[Text] = []
    for trace in (trace for trace in traces if trace.output_ids):
        given, prompt = answers[trace.prompt_key][: trace.turn], prompts.get(trace.prompt_key)
        prompt_ids = () if prompt is None else render(prompt, given, verifier, config).token_ids
        if len(prompt_ids) != trace.num_prompt_tokens:
            name = request_id(trace.prompt_id, trace.turn, trace.sample)
            raise UserError(
                f"prompts.path={config.prompts.path!r}: has changed since the run: prompt {name}"
                f" had {trace.num_prompt_tokens} tokens, and has {len(prompt_ids)} now"
            )
        room = verifier.max_length - len(prompt_ids)
        texts.append(
            Text(
                trace.prompt_id,
                trace.category,
                trace.turn,
                tuple(prompt_ids),
                trace.output_ids,
                (),
                trace.finish_reason,
                min(config.max_new_tokens, room),
                trace.sample,
            )
        )
    return texts
