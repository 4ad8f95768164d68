"""A folder of runs as a sweep would leave it, and texts that nobody should write."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from specdec.core.trace import Step, Trace
from specdec.report.collect import collect
from specdec.report.collection import Collection, Setting
from specdec.report.comparison import Compared, compared
from tests.support.fabricated import easy_traces, make_config, write_run
from tests.support.metric_traces import make_step, make_trace

Results = list[tuple[Setting, Sequence[Compared]]]
EVIL = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>&amp;"


def write_sweep(
    folder: Path,
    gammas: Sequence[int] = (1, 2, 4),
    temperatures: Sequence[float] = (0.0, 1.0),
    proposers: Sequence[str] = ("ngram", "draft_model"),
) -> Path:
    """Write a baseline and chains of several lengths, at several temperatures."""
    for temperature in temperatures:
        config = make_config("none", temperature=temperature)
        write_run(folder / f"none-{temperature}", config, easy_traces(6, 0, depth=0))
        for number, proposer in enumerate(proposers):
            for gamma in gammas:
                config = make_config(proposer, gamma, temperature=temperature)
                traces = easy_traces(6, 10 * gamma + number + int(100 * temperature), gamma)
                write_run(folder / f"{proposer}-{gamma}-{temperature}", config, traces)
    return folder


def write_lossy(folder: Path, variation: float = 0.25) -> Path:
    """Write a lossy arm at temperature 1, whose tokens are `variation` off."""
    step = make_step(2, 2, seconds=(0.1, 1.0, 0.01), divergence=((variation, 2 * variation),) * 3)
    config = make_config("draft_model", 2, temperature=1.0, rule="typical")
    return write_run(folder, config, _of_all_categories([step, step]), lossless=False)


def write_trained(
    folder: Path, joint: bool = False, seeds: Sequence[int] = (0,), num_prompts: int = 3
) -> Path:
    """Write runs of heads that were trained for 400 and 600 steps; joint ones tune a verifier."""
    for steps, tokens in ((400, 194_131), (600, 291_200)):
        for seed in seeds:
            config = make_config("medusa", seed=seed)
            trained = {"output": "trained", "max_steps": steps}
            provenance: dict[str, Any] = {"training_tokens": tokens}
            if joint:
                config["verifier"]["path"] = "trained/verifier"
                trained["verifier.path"] = "original"
                digests = {"prompts.path": "0123", "verifier.path": f"{tokens}abcdef"}
                provenance["files"] = digests
            traces = easy_traces(num_prompts, steps + seed, 2)
            path = folder / f"{steps}-{seed}"
            write_run(path, {**config, "training": trained}, traces, provenance)
    return folder


def write_replayed(folder: Path, recording: str = "recordings/mine") -> Path:
    """Write what a replay comes to: chains of two lengths, and no seconds at all."""
    for gamma in (1, 2):
        traces = _of_all_categories([make_step(gamma, gamma), make_step(0, gamma)])
        config = make_config("draft_model", gamma)
        write_run(folder / f"{gamma}", config, traces, {"replayed": recording})
    traces = _of_all_categories([make_step(0, 0)] * 3)
    write_run(folder / "none", make_config("none"), traces, {"replayed": recording})
    return folder


def _of_all_categories(steps: Sequence[Step]) -> list[Trace]:
    names = ("code", "math", "text")  # as easy_traces has them
    traces = [make_trace(f"prompt-{index}", *steps) for index in range(6)]
    return [replace(trace, category=names[i % 3]) for i, trace in enumerate(traces)]


def judged_traces() -> list[Trace]:
    """Make traces whose candidates a second rule was shown."""
    return _of_all_categories([make_step(1, 2, expected=1.25, judged={"block": 1.5})])


def gathered(folder: Path, force: bool = False) -> tuple[Collection, Results]:
    """Read a folder and compare its arms."""
    collection = collect(folder, force)
    return collection, [(setting, compared(setting)) for setting in collection.settings]


def make_text(
    arm: str, prompt_id: str = "first", evil: str = EVIL, turn: int = 0
) -> dict[str, Any]:
    """Make a text of two steps: two accepted tokens and a bonus, then one recovered."""
    tokens = [
        {"text": "def", "kind": "accepted", "depth": 1, "rejected": []},
        {"text": evil, "kind": "accepted", "depth": 2, "rejected": [" one", evil]},
        {"text": "\n", "kind": "bonus", "depth": 3, "rejected": []},
        {"text": "   ", "kind": "recovered", "depth": 1, "rejected": ["\t"]},
    ]
    prompt = f"{prompt_id}: {evil}"
    return {"arm": arm, "prompt_id": prompt_id, "turn": turn, "prompt": prompt, "tokens": tokens}
