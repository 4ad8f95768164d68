"""What online distillation gains after a shift of domain, what it costs, and what it forgets.

    python benchmarks/online.py folder=outputs/online          # an hour on two busy cores
    python benchmarks/online.py folder=outputs/online proposer=chained arms=[still,online]

A verifier of both domains is made first: the embedded one, trained on with the text of Python's
manual (`pydoc topics`, which every Python brings along) and with code. Its draft knows code alone.
Prompts come in three phases: code, the manual's held-out pages, and code again. Each arm decodes
them in that order by itself, in a run directory that an interrupted run goes on in.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from specdec.core.jsonl import write_jsonl
from specdec.core.trace import Trace
from specdec.metrics import Tally, block_efficiency
from specdec.metrics.estimate import Estimate, paired_difference, paired_ratio
from specdec.report.write import write_report
from specdec.results.run_dir import read_clock, read_traces
from specdec.zoo import ZOO_FOLDER
from specdec.zoo.stdlib import training_files

DEFAULTS = {
    "folder": "???",
    "train_steps": 450,
    "proposer": "draft_model",
    "proposer_options": [],
    "code": 10,  # prompts of the first and of the last phase
    "prose": 56,  # prompts in between
    "prompt_characters": 600,
    "new_tokens": 64,
    "temperature": 0.0,
    "seed": 0,
    "arms": ["still", "online"],
    "online": [],  # options of online=distil, ["online.every=2"]
}
PHASES = ("code", "prose", "code again")
HELD_OUT = sorted(topics)[1::3]  # pages that the verifier is never trained on


def write_data(folder: Path) -> tuple[Path, Path]:
    """Write what the verifier is trained on, as much code as prose, and the held-out pages."""
    prose = [topics[name] for name in sorted(topics) if name not in HELD_OUT]
    files = training_files()
    random.Random(0).shuffle(files)
    code: list[str] = []
    for file in files:
        if sum(map(len, code)) < sum(map(len, prose)):
            code.append(file.read_text(encoding="utf-8", errors="replace"))
    both, held_out = folder / "both.jsonl", folder / "held_out.jsonl"
    write_jsonl(both, [{"text": text} for text in [*prose, *code]])
    write_jsonl(held_out, [{"text": topics[name]} for name in HELD_OUT])
    return both, held_out


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
        *("trainer.warmup_steps=40", "trainer.mixed_precision=bf16", "trainer.save_best=false"),
        *("trainer.eval_steps=150", "trainer.save_steps=50"),
    ]
    subprocess.run(command, check=True)
    return output


def paragraphs(length: int) -> Iterator[tuple[str, str]]:
    """Yield the beginnings of stretches of the held-out pages, page after page, and their names."""
    rows: list[list[tuple[str, str]]] = []
    for name in HELD_OUT:
        blocks, page = topics[name].split("\n\n"), list[tuple[str, str]]()
        while blocks:
            text = ""
            while blocks and len(text) < length:
                text += blocks.pop(0) + "\n\n"
            if len(text) >= length:
                page.append((f"{name}:{len(page)}", text[:length]))
        rows.append(page)
    for number in range(max(map(len, rows))):
        yield from (page[number] for page in rows if number < len(page))


def write_prompts(options: DictConfig) -> Path:
    """Write the prompts of all phases, in order."""
    zoo = [json.loads(line) for line in (ZOO_FOLDER / "prompts.jsonl").read_text().splitlines()]
    code = [(row["id"], row["prompt"][: options.prompt_characters]) for row in zoo]
    random.Random(0).shuffle(code)
    prose = list(paragraphs(options.prompt_characters))[: options.prose]
    phases = code[: options.code], prose, code[options.code : 2 * options.code]
    file = Path(options.folder) / "prompts.jsonl"
    rows = [
        {"id": f"{name}", "category": phase, "prompt": text}
        for phase, some in zip(PHASES, phases, strict=True)
        for name, text in some
    ]
    write_jsonl(file, rows)
    return file


def decode(options: DictConfig, arm: str, verifier: Path, prompts: Path) -> Path:
    """Decode all prompts with one arm, unless that was done."""
    output = Path(options.folder) / options.proposer / arm
    learning = [] if arm == "still" else ["online=distil", *options.online]
    command = [
        *(sys.executable, "experiments/decode.py", f"proposer={options.proposer}"),
        *(f"verifier.path={verifier}", f"prompts.path={prompts}", *options.proposer_options),
        *(f"max_new_tokens={options.new_tokens}", f"sampling.temperature={options.temperature}"),
        *(f"seed={options.seed}", *learning, f"output={output}"),
    ]
    subprocess.run(command, check=True)
    return output


def shown(estimate: Estimate, digits: int = 3) -> str:
    """Write a number with its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    ends = f"{estimate.low:.{digits}f}, {estimate.high:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{ends}]"


def tally_of(traces: Sequence[Trace], run: Path, phase: str, part: slice = slice(None)) -> Tally:
    """Add up a part of a phase's texts, which stand in the order of the prompts."""
    some = [trace for trace in traces if trace.category == phase][part]
    return Tally.of(some, read_clock(run))


def gains(runs: Mapping[str, Path]) -> Table:
    """Compare the arms phase by phase, and halves of phases; paired over prompts."""
    traces = {arm: read_traces(run) for arm, run in runs.items()}
    first, *others = runs
    table = Table("arm", "phase", "prompts", "tau still", "tau", "difference", "ratio", "seconds")
    for arm in others:
        for phase in PHASES:
            half = len([trace for trace in traces[arm] if trace.category == phase]) // 2
            parts = {
                "all": slice(None),
                "first half": slice(half),
                "second half": slice(half, None),
            }
            for name, part in parts.items():
                still, own = (tally_of(traces[n], runs[n], phase, part) for n in (first, arm))
                sums = [tally.sums("num_emitted", "num_steps") for tally in (own, still)]
                seconds = paired_ratio(
                    *(tally.sums("decode_seconds", "num_steps") for tally in (own, still))
                )
                table.add_row(
                    *(arm, f"{phase}, {name}", str(own.num_prompts)),
                    *(shown(block_efficiency(still)), shown(block_efficiency(own))),
                    *(shown(paired_difference(*sums)), shown(paired_ratio(*sums))),
                    f"{seconds.value:.2f} a step",
                )
    return table


def learning_share(run: Path) -> float:
    """Return the share of the steps' seconds in which the proposer learned."""
    tally = Tally.of(read_traces(run))
    return tally.total("learn_seconds") / tally.total("decode_seconds")


def main() -> None:
    """Train, decode and compare what the command line asks for."""
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)
    options.merge_with_cli()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    verifier, prompts = train(options), write_prompts(options)
    runs = {arm: decode(options, arm, verifier, prompts) for arm in options.arms}
    same = [[trace.output_ids for trace in read_traces(run)] for run in runs.values()]
    if options.temperature == 0:
        print("all arms wrote the same texts:", all(texts == same[0] for texts in same))
    Console(width=160).print(gains(runs))
    for arm, run in runs.items():
        if arm != "still":
            print(f"{arm}: {learning_share(run):.0%} of the steps' seconds went into learning")
    write_report(folder / options.proposer)
    print(f"tau over time: {folder / options.proposer / 'plots' / 'tau_over_time.png'}")


if __name__ == "__main__":
    main()
