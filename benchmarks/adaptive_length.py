"""Is pace=adaptive never slower than plain decoding, and near the best fixed depth in hindsight?

   python benchmarks/adaptive_length.py                         # about ten minutes on two cores
   python benchmarks/adaptive_length.py rounds=1 new_tokens=48  # a first look

Each cell is a draft, a temperature and a number of requests in flight. In each round all arms of a
cell decode the same prompts in turns, in one process: fixed depths once, plain decoding and a
controller that starts knowing nothing `pairs` times. Shown are the median over pairs of plain over
adaptive seconds per token (prefill excluded), and the regret: the median of adaptive over that of
the fastest fixed depth. Eight requests in flight get four times as many prompts, so that runs are
of some hundred steps each. What was measured stands in the file `output`; the same command goes on
where it was interrupted.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

import specdec as sd
from specdec.core.protocols import Pace, Proposer
from specdec.core.trace import Trace
from specdec.lm.hf import HFCausalLM
from specdec.zoo import ZOO_FOLDER

DEFAULTS = {
    "prompts": 8,
    "new_tokens": 96,
    "rounds": 1,
    "pairs": 3,
    "output": "outputs/adaptive_length.jsonl",
}
DEPTHS = (1, 2, 3, 4, 6, 8)
MOST = max(DEPTHS)
FLOOR, REGRET = 0.98, 0.03
PLAIN, ADAPTIVE = "none", "adaptive"
Rounds = dict[tuple[str, int], dict[str, list[float]]]  # by cell and number: seconds of each arm


@dataclass(frozen=True)
class Cell:
    """What is decoded: whose drafts, at which temperature, how many requests at once."""

    draft: str
    temperature: float
    batch: int

    @property
    def sampling(self) -> sd.Sampling:
        """The distribution; n-grams are given texts in which no two tokens come again."""
        size = 2 if self.draft == "ngram" else None
        return sd.Sampling(self.temperature, no_repeat_ngram_size=size)

    def __str__(self) -> str:
        return f"{self.draft}, T={self.temperature:g}, B={self.batch}"


CELLS = [
    Cell(draft, temperature, batch)
    for draft in ("zoo", "random", "ngram")
    for temperature in (0.0, 1.0)
    for batch in (1, 8)
]


def random_draft() -> HFCausalLM:
    """Return a model of the embedded draft's shape that has learnt nothing."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(ZOO_FOLDER / "draft")
    return HFCausalLM(AutoModelForCausalLM.from_config(config).eval())


class Bench:
    """The models and the prompts, and what is made of them."""

    def __init__(self, options: DictConfig):
        self.verifier = sd.load("zoo:verifier")
        self.drafts = {"zoo": sd.load("zoo:draft"), "random": random_draft()}
        self.prompts = sd.load_prompts("zoo:prompts")
        self.num_prompts, self.num_pairs = options.prompts, options.pairs
        self.stopping = sd.Stopping(options.new_tokens)

    def proposer(self, cell: Cell, depth: int) -> Proposer:
        """Draft to a depth; 0 is plain decoding."""
        if depth == 0:
            return sd.NoProposer()
        if cell.draft == "ngram":
            return sd.NGram(depth)
        return sd.DraftModel(self.drafts[cell.draft], sd.Chain(depth))

    def seconds_per_token(self, cell: Cell, depth: int, seed: int, pace: Pace | None) -> float:
        """Decode all prompts with one arm."""
        decoder = sd.SpeculativeDecoder(
            self.verifier,
            self.proposer(cell, depth),
            sd.Rejection(),
            cell.sampling,
            self.stopping,
            cell.batch,
            seed,
            pace=pace,
        )
        prompts = self.prompts[: self.num_prompts * min(4, cell.batch)]
        traces = decoder.decode(prompts)
        return _seconds(traces) / sum(len(trace.output_ids) for trace in traces)

    def round(self, cell: Cell, number: int) -> dict[str, list[float]]:
        """Decode with all arms in turns, the pairs one way and the other."""
        found: dict[str, list[float]] = {name: [] for name in (PLAIN, ADAPTIVE)}
        for pair in range(self.num_pairs):
            for name in (PLAIN, ADAPTIVE)[:: -1 if (number + pair) % 2 else 1]:
                depth, pace = (MOST, sd.Adaptive()) if name == ADAPTIVE else (0, None)
                found[name].append(self.seconds_per_token(cell, depth, number, pace))
        for depth in DEPTHS:
            found[str(depth)] = [self.seconds_per_token(cell, depth, number, None)]
        return found


def _seconds(traces: Sequence[Trace]) -> float:
    return sum(
        step.propose_seconds + step.verify_seconds + step.other_seconds
        for trace in traces
        for step in trace.steps
    )


def known(path: Path, options: dict[str, Any]) -> Rounds:
    """Read the rounds of earlier sessions with the same options, by cell and number."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        (row["cell"], row["round"]): row["seconds"] for row in rows if row["options"] == options
    }


def table(found: Rounds) -> Table:
    """Lay out the medians, a cell a line."""
    shown = Table(title="pace=adaptive: medians, and the range of pairs", title_justify="left")
    for name in ("cell", "best fixed", "its speedup", "speedup", "range", "regret", ""):
        shown.add_column(name, no_wrap=True)
    for cell in map(str, CELLS):
        rounds = [each for (name, _), each in found.items() if name == cell]
        if not rounds:
            continue
        arms = {arm: [each for one in rounds for each in one[arm]] for arm in rounds[0]}
        medians = {arm: statistics.median(some) for arm, some in arms.items()}
        best = min(medians.keys() - {ADAPTIVE}, key=lambda arm: medians[arm])
        pairs = [p / a for p, a in zip(arms[PLAIN], arms[ADAPTIVE], strict=True)]
        faster, lost = statistics.median(pairs), medians[ADAPTIVE] / medians[best] - 1
        kept = faster >= FLOOR and lost <= REGRET
        verdict = "" if kept else f"missed: {FLOOR:g} of none, {REGRET:.0%} of the best"
        its, reach = medians[PLAIN] / medians[best], f"{min(pairs):.2f} .. {max(pairs):.2f}"
        shown.add_row(cell, best, f"{its:.3f}", f"{faster:.3f}", reach, f"{lost:+.1%}", verdict)
    return shown


def main() -> None:
    """Measure what is missing, and show all."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    assert isinstance(options, DictConfig)
    path = Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    same = {name: options[name] for name in ("prompts", "new_tokens", "pairs")}
    found = known(path, same)
    missing = [
        (cell, number)
        for number in range(options.rounds)
        for cell in CELLS
        if (str(cell), number) not in found
    ]
    bench = Bench(options) if missing else None
    for cell, number in missing:
        assert bench is not None
        seconds = bench.round(cell, number)
        found[str(cell), number] = seconds
        row = {"cell": str(cell), "round": number, "options": same, "seconds": seconds}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = {name: [round(1e3 * each, 2) for each in some] for name, some in seconds.items()}
        print(cell, f"round {number}: ms a token", shown, flush=True)
    Console(width=120).print(table(found))


if __name__ == "__main__":
    main()
