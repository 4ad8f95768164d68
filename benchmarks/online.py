"""What online distillation gains after a shift of domain, what it costs, and what it forgets.

    python benchmarks/online.py folder=outputs/online          # an hour on two busy cores
    python benchmarks/online.py folder=outputs/online \
        'arms.anchored=[online=distil,online.anchor=30]'
    python benchmarks/online.py folder=outputs/online proposer=chained \
        'options=[proposer.force=true]'

A verifier of both domains is made first: the embedded one, trained on with Python's manual and with
code. Its draft knows code alone. Prompts come in three phases: code, fresh prose of the manual, and
code again (`online_texts.py`). Each arm decodes them in that order by itself, once with each seed,
in a run directory that an interrupted run goes on in. A seed is that of the learner, of what is
sampled, and of the prompts: no two have prompts of prose in common.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from online_texts import PHASES, page_of, prompts_of, write_data
from rich.console import Console
from rich.table import Table

from specdec.core.jsonl import write_jsonl
from specdec.core.trace import Trace
from specdec.metrics import Tally, block_efficiency
from specdec.metrics.estimate import Estimate, paired_difference, paired_ratio
from specdec.report.write import write_report
from specdec.results.run_dir import read_traces

STILL = "still"
DEFAULTS = {
    "folder": "???",
    "train_steps": 200,
    "proposer": "draft_model",
    "options": [],  # of all arms
    "code": 8,  # prompts of the first and of the last phase
    "prose": 36,  # prompts in between
    "prompt_characters": 600,
    "new_tokens": 64,
    "temperature": 0.0,
    "batch": 1,
    "seeds": [0, 1, 2, 3, 4],
    "arms": {STILL: [], "online": ["online=distil"]},  # and what it is that they do
}
WHERE = ("proposer", "temperature", "batch")  # what names the folder of the runs
Runs = Mapping[int, Sequence[Trace]]  # by seed


def train(options: DictConfig) -> Path:
    """Train the verifier of both domains, unless it is there; interrupted, it goes on."""
    folder = Path(options.folder)
    output = folder / "verifier"
    if (output / "config.json").is_file():
        return output
    both, held_out = write_data(folder)
    command = [
        *(sys.executable, "experiments/train.py", "train=lm", "train.init_path=zoo:verifier"),
        *(f"data.path={both}", f"data.held_out_path={held_out}", f"output={output}"),
        *("train.block_length=256", "trainer.per_device_train_batch_size=16"),
        *("trainer.learning_rate=1e-3", f"max_steps={options.train_steps}"),
        *("trainer.warmup_steps=20", "trainer.mixed_precision=bf16", "trainer.save_best=false"),
        *("trainer.eval_steps=100", "trainer.save_steps=50"),
    ]
    subprocess.run(command, check=True)
    return output


def decode(options: DictConfig, verifier: Path, arm: str, seed: int, output: Path) -> None:
    """Decode the prompts of a seed with one arm, unless that was done."""
    prompts = Path(options.folder) / f"prompts_{seed}.jsonl"
    numbers = options.code, options.prose, options.prompt_characters
    write_jsonl(prompts, prompts_of(seed, *numbers))
    command = [
        *(sys.executable, "experiments/decode.py", f"proposer={options.proposer}"),
        *(f"verifier.path={verifier}", f"prompts.path={prompts}", f"batch={options.batch}"),
        *(f"max_new_tokens={options.new_tokens}", f"sampling.temperature={options.temperature}"),
        *(f"seed={seed}", *options.options, *options.arms[arm], f"output={output}"),
    ]
    subprocess.run(command, check=True)


def in_phase(traces: Sequence[Trace], phase: str, half: int | None) -> Sequence[Trace]:
    """Return the texts of a phase, or of a half of it, named after their pages."""
    some = [trace for trace in traces if trace.category == phase]
    middle = len(some) // 2
    kept = some if half is None else (some[:middle], some[middle:])[half]
    return [replace(trace, prompt_id=page_of(trace.prompt_id)) for trace in kept]


def shown(estimate: Estimate, digits: int = 3) -> str:
    """Write a number with its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    ends = f"{estimate.low:.{digits}f}, {estimate.high:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{ends}]"


def gains(runs: Mapping[str, Runs]) -> Table:
    """Compare arms phase by phase over all seeds, paired; intervals are over pages and modules."""
    table = Table(
        *("arm", "phase", "pages", "texts", "tau still", "tau", "difference", "ratio"),
        *("ratio of each seed", "seconds"),
    )
    parts = [("", None), (", first half", 0), (", second half", 1)]
    for arm in (name for name in runs if name != STILL):
        for phase in PHASES:
            for said, half in parts if phase == "prose" else parts[:1]:
                add_row(table, arm, f"{phase}{said}", phase, half, runs)
    return table


def add_row(
    table: Table, arm: str, said: str, phase: str, half: int | None, runs: Mapping[str, Runs]
) -> None:
    """Add what an arm comes to in one phase."""
    by_seed = [
        [Tally.of(in_phase(traces, phase, half)) for traces in (runs[arm][seed], runs[STILL][seed])]
        for seed in runs[arm]
    ]
    texts = [
        [trace for traces in runs[name].values() for trace in in_phase(traces, phase, half)]
        for name in (arm, STILL)
    ]
    own, still = (Tally.of(some) for some in texts)
    sums = [tally.sums("num_emitted", "num_steps") for tally in (own, still)]
    seconds = [tally.sums("decode_seconds", "num_steps") for tally in (own, still)]
    table.add_row(
        *(arm, said, str(own.num_prompts), str(len(texts[0]))),
        *(shown(block_efficiency(still)), shown(block_efficiency(own))),
        *(shown(paired_difference(*sums)), shown(paired_ratio(*sums))),
        " ".join(f"{ratio_of(*pair):.2f}" for pair in by_seed),
        f"{paired_ratio(*seconds).value:.2f} a step",
    )


def ratio_of(own: Tally, still: Tally) -> float:
    """Divide the block efficiency of one arm by that of another."""
    first, second = (each.total("num_emitted") / each.total("num_steps") for each in (own, still))
    return first / second


def learning_share(runs: Runs) -> float:
    """Return the share of the steps' seconds that decoding waited for lessons."""
    tally = Tally.of([trace for traces in runs.values() for trace in traces])
    return tally.total("learn_seconds") / tally.total("decode_seconds")


def main() -> None:
    """Train, decode and compare what the command line names."""
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)
    OmegaConf.set_struct(options.arms, False)
    options.merge_with_cli()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    verifier = train(options)
    place = folder / "_".join(str(options[name]) for name in WHERE)
    runs: dict[str, dict[int, Sequence[Trace]]] = {arm: {} for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            decode(options, verifier, arm, seed, place / str(seed) / arm)
            runs[arm][seed] = read_traces(place / str(seed) / arm)
        write_report(place / str(seed))
    if options.temperature == 0:
        texts = [[[t.output_ids for t in some] for some in of.values()] for of in runs.values()]
        print("all arms wrote the same texts:", all(each == texts[0] for each in texts))
    Console(width=200).print(gains(runs))
    for arm in (name for name in runs if name != STILL):
        share = learning_share(runs[arm])
        print(f"{arm}: {share:.0%} of the steps' seconds are waits for lessons")
    print(f"tau over time: {place}/SEED/plots/tau_over_time.png")


if __name__ == "__main__":
    main()
