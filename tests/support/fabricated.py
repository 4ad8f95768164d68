"""Run directories made by hand: what `decode` would have left, with every number chosen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.core.trace import PlainSteps, Trace
from specdec.metrics import Tally, summarize
from specdec.results.options import identity, known_by
from specdec.results.run_dir import RunDir, read_clock
from tests.support.metric_traces import make_trace, random_traces

MACHINE = {"device": "a machine", "num_threads": 2, "num_processes": 1}
FILES = {"prompts.path": "0123", "verifier.path": "4567"}


def make_config(proposer: str, gamma: int | None = None, **more: Any) -> dict[str, Any]:
    """Make the configuration of a run; `more` sets options by their last name."""
    node: dict[str, Any] = {"_target_": f"specdec.proposer.{proposer}.Class"}
    tree = {"_target_": "specdec.tree.chain.Chain", "gamma": gamma, "min_confidence": 0.0}
    draft = {"_target_": "specdec.lm.load.load", "path": "draft"}
    if proposer == "draft_model":
        node |= {"model": draft, "tree": tree}
    elif proposer == "ngram":
        node |= {"gamma": gamma, "max_ngram": 3}
    rule = more.get("rule", "rejection")
    return {
        "verifier": {"_target_": "specdec.lm.load.load", "path": more.get("verifier", "verifier")},
        "prompts": {"path": "prompts.jsonl", "limit": None},
        "sampling": {"_target_": "S", "temperature": more.get("temperature", 0.0), "top_p": 1.0},
        "proposer": node,
        "tree": tree,
        "draft": draft,
        "verification": {
            "rule": {"_target_": f"specdec.verification.{rule}.Rule"},
            "allow_lossy": False,
        },
        "judges": [],
        "max_new_tokens": 64,
        "stop_strings": None,
        "ignore_eos": False,
        "log_probs": False,
        "batch": more.get("batch", 1),
        "device": "cpu",
        "dtype": more.get("dtype", "float32"),
        "attention": None,
        "runtime": more.get("runtime", "eager"),
        "seed": more.get("seed", 0),
    }


def write_run(
    path: Path,
    config: dict[str, Any],
    traces: Sequence[Trace],
    provenance: dict[str, Any] | None = None,
    lossless: bool = True,
    plain_step: float | None = 1.01,
) -> Path:
    """Write a complete run directory; beside its texts plain steps took `plain_step` seconds."""
    whole = {**MACHINE, "files": FILES, **(provenance or {})}
    with RunDir(path, config, identity(known_by(config, whole["files"], {}))) as run_dir:
        run_dir.begin(whole, {})
        for trace in traces:
            run_dir.append(trace)
        if plain_step is not None:
            run_dir.keep_clock([plain_steps(trace, plain_step) for trace in traces])
        tally = Tally.of(traces, read_clock(path))
        run_dir.summarize(
            {"lossless": lossless, "peak_memory_bytes": 1 << 20, **summarize(tally)}, tally
        )
    return path


def plain_steps(trace: Trace, seconds: float) -> PlainSteps:
    """Make the clock of a text: four plain steps."""
    number = len(trace.output_ids)
    return PlainSteps(trace.prompt_id, trace.turn, 4, 4 * (seconds - 0.01), 4 * seconds, number)


def easy_traces(num_prompts: int, seed: int, depth: int = 4, num_steps: int = 20) -> list[Trace]:
    """Make traces of prompts in three categories; `depth` 0 proposes nothing."""
    traces = random_traces(num_prompts, num_steps, depth, seed) if depth else _plain(num_prompts)
    names = ("code", "math", "text")
    rows = [trace.to_row() for trace in traces]
    return [
        Trace.from_row({**row, "category": names[number % 3]}) for number, row in enumerate(rows)
    ]


def _plain(num_prompts: int) -> list[Trace]:
    from tests.support.metric_traces import make_step

    steps = [make_step(0, 0, seconds=(0.0, 1.0, 0.01)) for _ in range(40)]
    return [make_trace(f"prompt-{index}", *steps, prefill=0.5) for index in range(num_prompts)]


def write_status(path: Path, **changes: Any) -> None:
    """Change what a run directory says of its state."""
    file = path / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
