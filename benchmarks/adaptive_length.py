"""Is pace=adaptive never slower than plain decoding, and near the best fixed depth in hindsight?

   python benchmarks/adaptive_length.py                # about ten minutes on two cores
   python benchmarks/adaptive_length.py new_tokens=48  # a first look

Each cell is a draft, a temperature and a number of requests in flight. All arms decode the same
prompts in one process, as many of them at a time as are in flight, and take turns: plain decoding
and the controller, which starts knowing nothing and goes on learning, `pairs` times, fixed depths
once. Shown are plain over adaptive seconds per token (prefill excluded), median and quartiles over
turns, and the regret: the median of adaptive over the fixed depth that took least in all.

Only those steps count that have all requests in flight. Texts are of one length here, so that plain
decoding ends all of them at once and never pays for fewer and fewer, where whoever drafts does. A
step that takes more than five times as long as most of its arm counts as five: the machine stalls.

What was measured stands in the file `output`; the same command goes on where it was interrupted.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
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
from specdec.core.values import Context, Proposal, Verdict
from specdec.lm.hf import HFCausalLM
from specdec.pacing.fixed import Fixed
from specdec.zoo import ZOO_FOLDER

DEFAULTS = {
    "prompts": 8,  # of one request in flight, and five times as many of eight
    "new_tokens": 96,
    "rounds": 1,
    "pairs": 2,
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

    def arm(self, cell: Cell, name: str, seed: int) -> "Arm":
        """Return what decodes under a name: plain decoding, a fixed depth or the controller."""
        depth = {PLAIN: 0, ADAPTIVE: MOST}.get(name) if not name.isdecimal() else int(name)
        assert depth is not None
        watch = Watch(sd.Adaptive() if name == ADAPTIVE else Fixed(), cell.batch)
        decoder = sd.SpeculativeDecoder(
            self.verifier,
            self.proposer(cell, depth),
            sd.Rejection(),
            cell.sampling,
            self.stopping,
            cell.batch,
            seed,
            pace=watch,
        )
        return Arm(decoder, watch)

    def round(self, cell: Cell, number: int) -> dict[str, list[float]]:
        """Decode with all arms in turns, every other turn in the opposite order."""
        names = [*[PLAIN, ADAPTIVE] * self.num_pairs, *map(str, DEPTHS)]
        arms = {name: self.arm(cell, name, number) for name in names}
        found: dict[str, list[float]] = {name: [] for name in arms}
        prompts = self.prompts[: self.num_prompts if cell.batch == 1 else 5 * self.num_prompts]
        for place in range(0, len(prompts), cell.batch):
            for arm in arms.values():
                arm.watch.begin()
            for name in names[:: -1 if place // cell.batch % 2 else 1]:
                arms[name].decoder.decode(prompts[place : place + cell.batch])
            for name, arm in arms.items():
                found[name].append(arm.watch.seconds_per_token())
        return found


class Watch:
    """Counts the seconds and tokens of the steps that have all requests in flight."""

    def __init__(self, pace: Pace, batch: int):
        self._pace, self._batch = pace, batch
        self._before = 0
        self._steps: list[tuple[float, int]] = []  # seconds and tokens

    @property
    def min_confidence(self) -> float:
        """That of the pace."""
        return self._pace.min_confidence

    def begin(self) -> None:
        """Count anew; the pace goes on."""
        self._steps = []

    def seconds_per_token(self) -> float:
        """Return the mean, where a stall of the machine counts as five usual steps."""
        most = 5 * statistics.median(seconds for seconds, _ in self._steps)
        total = sum(min(most, seconds) for seconds, _ in self._steps)
        return total / sum(tokens for _, tokens in self._steps)

    def open(self, max_depth: int) -> None:
        """Tell the pace."""
        self._pace.open(max_depth)

    def depths(self, contexts: Sequence[Context]) -> Sequence[int]:
        """Return those of the pace."""
        self._before = sum(len(each.token_ids) for each in contexts)
        return self._pace.depths(contexts)

    def learn(
        self,
        contexts: Sequence[Context],
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        seconds: Mapping[str, float],
    ) -> None:
        """Count the step, and let the pace learn from it."""
        if len(contexts) == self._batch:
            took = sum(seconds[name] for name in ("propose", "verify", "other"))
            tokens = sum(len(each.token_ids) for each in contexts) - self._before
            self._steps.append((took, tokens))
        self._pace.learn(contexts, proposals, verdicts, seconds)


@dataclass(frozen=True)
class Arm:
    """What decodes, and what is counted of it."""

    decoder: sd.SpeculativeDecoder
    watch: Watch


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
    shown = Table(title="pace=adaptive: medians and quartiles over turns", title_justify="left")
    for name in ("cell", "best fixed", "its speedup", "speedup", "quartiles", "regret", ""):
        shown.add_column(name, no_wrap=True)
    for cell in map(str, CELLS):
        rounds = [each for (name, _), each in found.items() if name == cell]
        if not rounds:
            continue
        arms = {arm: [each for one in rounds for each in one[arm]] for arm in rounds[0]}
        best = min(arms.keys() - {ADAPTIVE}, key=lambda arm: sum(arms[arm]))
        turns = sorted(p / a for p, a in zip(arms[PLAIN], arms[ADAPTIVE], strict=True))
        faster, low, high = (
            statistics.median(turns),
            turns[len(turns) // 4],
            turns[-1 - len(turns) // 4],
        )
        its = statistics.median(p / b for p, b in zip(arms[PLAIN], arms[best], strict=True))
        lost = statistics.median(a / b - 1 for a, b in zip(arms[ADAPTIVE], arms[best], strict=True))
        kept = faster >= FLOOR and lost <= REGRET
        verdict = "" if kept else f"missed: {FLOOR:g} of none, {REGRET:.0%} of the best"
        reach = f"{low:.2f} .. {high:.2f}"
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
