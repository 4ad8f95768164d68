"""Are a run's texts lossless? `python experiments/check.py run=outputs/decode/RUN`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from specdec.command.entry import Entry
from specdec.core.errors import UserError, require, require_int, require_number
from specdec.core.trace import Trace, request_id
from specdec.lab.arm import before, sampling_of
from specdec.lab.build import build
from specdec.lab.prompt_options import build_prompts, render
from specdec.lab.rendered_runs import require_unchanged
from specdec.lm.hf import HFCausalLM
from specdec.metrics.pit import MIN_TOKENS, Uniformity, uniformity
from specdec.recording.pit_values import Decoded, transforms
from specdec.report.uniformity_table import print_uniformity
from specdec.results.progress import Progress
from specdec.results.run_dir import read_traces

EXIT_NOT_LOSSLESS = 1
FILES = ("config.yaml", "traces.jsonl")
# The share of tokens that rounding may push over the edge of top-p, top-k or min-p when a forward
# of many tokens is compared with another; a sampler that leaves its law does so far more often.
ROUNDED_AWAY = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}


def task(config: DictConfig) -> None:
    """Score and test every run, print the table, exit with 1 if one is not lossless."""
    check_options(config)
    runs = {str(path): run_config(path, config) for path in run_folders(config.run)}
    found = {name: tested(Path(name), each, config) for name, each in runs.items()}
    verdicts = {
        name: is_lossless(found[name], config.false_alarm, runs[name].dtype) for name in runs
    }
    print_uniformity(found, verdicts)
    lossy = [name for name, verdict in verdicts.items() if not verdict]
    if lossy:
        print(f"error: not lossless: {', '.join(lossy)}", file=sys.stderr)
        sys.exit(EXIT_NOT_LOSSLESS)
    print(f"lossless, as far as these tokens tell (false alarms: {config.false_alarm:g} per run)")


def check_options(config: DictConfig) -> None:
    """Refuse what is wrong before a model is loaded."""
    if OmegaConf.is_missing(config, "run"):
        raise UserError("run: missing; expected run=DIR, a run directory")
    require_int("batch", config.batch, 1)
    require_int("seed", config.seed, 0)
    named = OmegaConf.select(config, "draft.path")
    is_path = "path" in config.draft and (named is None or isinstance(named, str))
    require(is_path, "draft.path", named, "a folder or Hub id")
    require_number("false_alarm", config.false_alarm, 0.0, 1.0)


def run_folders(value: object) -> list[Path]:
    """List the run directories that are meant: a folder of a comparison stands for its arms'."""
    values = list(value) if isinstance(value, ListConfig) else [value]
    folders: list[Path] = []
    for each in values:
        require(isinstance(each, str) and bool(each), "run", each, "a run directory")
        folder = Path(str(each))
        is_run = all((folder / name).is_file() for name in FILES)
        found = [path.parent for path in folder.glob("*/traces.jsonl")]
        below = sorted(path for path in found if (path / "config.yaml").is_file())
        if not is_run and not below:
            raise UserError(f"run={str(folder)!r}: no {' and '.join(FILES)} in that folder")
        folders += [folder] if is_run else below
    require(bool(folders), "run", values, "at least one run directory")
    return folders


def run_config(folder: Path, config: DictConfig) -> DictConfig:
    """Read how a run was decoded, with the device and the type that were asked for here.

    Raises:
        UserError: it was decoded at temperature 0.
    """
    try:
        found = OmegaConf.load(folder / "config.yaml")
    except YAMLError as error:
        raise UserError(f"{folder / 'config.yaml'}: damaged ({error})".replace("\n", " ")) from None
    if not isinstance(found, DictConfig) or "sampling" not in found:
        raise UserError(f"{folder / 'config.yaml'}: not the configuration of a run")
    for name in ("device", "dtype"):
        if config[name] is not None:
            found[name] = found.verifier[name] = found.draft[name] = config[name]
    if config.draft.path is not None:
        found.draft.path, found.draft.revision = config.draft.path, None
    if found.sampling.temperature == 0:
        raise UserError(
            f"run={str(folder)!r}: decoded at temperature 0, where nothing is random; compare its"
            " texts with those of proposer=none (compare says whether they are the same)"
        )
    return found


def tested(folder: Path, run_config: DictConfig, config: DictConfig) -> Uniformity:
    """Score all tokens of a run and test where they fell.

    Raises:
        UserError: there are too few of them.
    """
    require_unchanged(folder, run_config)
    traces = read_traces(folder)
    num_tokens = sum(len(trace.output_ids) for trace in traces)
    if num_tokens < MIN_TOKENS:
        raise UserError(
            f"run={str(folder)!r}: {num_tokens} tokens; expected at least {MIN_TOKENS} to test"
        )
    draft = build(run_config.draft) if config.draft.path or has_draft_model(run_config) else None
    verifier = build(run_config.verifier)
    texts = decoded_texts(traces, run_config, verifier)
    longest = max(len(text.prompt_ids) + len(text.output_ids) for text in texts)
    if draft is not None and longest > draft.max_length:
        print(f"{folder}: texts of {longest} tokens, of which the draft reads {draft.max_length}")
        draft = None
    sampling = sampling_of(run_config, verifier)
    scored = transforms(texts, verifier, sampling, config.seed, config.batch, draft)
    numbers: list[Any] = []
    with Progress(len(texts), "score", "text") as bar:
        for text in scored:
            numbers.append(text.numpy())
            bar.update()
    by_draft = None if draft is None else [text[1] for text in numbers]
    return uniformity([text[0] for text in numbers], by_draft)


def has_draft_model(run_config: DictConfig) -> bool:
    """Whether a run's candidates came from its draft model."""
    return "model" in run_config.proposer


def decoded_texts(
    traces: Sequence[Trace], config: DictConfig, verifier: HFCausalLM
) -> list[Decoded]:
    """Render the prompts again, later turns after the answers that the run itself gave.

    Turns that ended at once have no text.

    Raises:
        UserError: the prompts are others than those that were decoded.
    """
    prompts = {prompt.key: prompt for prompt in build_prompts(config)}
    answers = before(traces, verifier)
    texts: list[Decoded] = []
    for trace in (trace for trace in traces if trace.output_ids):
        name = request_id(trace.prompt_id, trace.turn, trace.sample)
        given, prompt = answers[trace.prompt_key][: trace.turn], prompts.get(trace.prompt_key)
        prompt_ids = () if prompt is None else render(prompt, given, verifier, config).token_ids
        if len(prompt_ids) != trace.num_prompt_tokens:
            raise UserError(
                f"prompts.path={config.prompts.path!r}: has changed since the run: prompt {name}"
                f" had {trace.num_prompt_tokens} tokens, and has {len(prompt_ids)} now"
            )
        budget = min(config.max_new_tokens, verifier.max_length - len(prompt_ids))
        texts.append(Decoded(name, prompt_ids, trace.output_ids, budget))
    return texts


def is_lossless(found: Uniformity, false_alarm: float, dtype: str) -> bool:
    """Say whether a run passes."""
    few_impossible = found.num_impossible <= ROUNDED_AWAY[dtype] * found.num_tokens
    return few_impossible and found.p_value >= false_alarm


ENTRY = Entry(task)
