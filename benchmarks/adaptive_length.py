"""Is pace=adaptive never slower than plain decoding, and near the best fixed depth in hindsight?

   python benchmarks/adaptive_length.py                # about ten minutes on two cores
   python benchmarks/adaptive_length.py new_tokens=48  # a first look

Each cell is a draft, a temperature and a number of requests in flight. All arms decode the same
prompts in one process: a single request in flight prompt by prompt in turns, eight of them all
prompts in turns. Plain decoding and the controller, which starts knowing nothing and goes on
learning from turn to turn, take `pairs` of these turns, fixed depths one. Shown are plain over
adaptive seconds per token (prefill excluded), the median and the quartiles over turns, and the
regret: adaptive over the fastest fixed depth.

Of eight requests in flight only those steps count that have eight. When no prompts are left, fewer
and fewer are in flight. Texts are of one length here, so that plain decoding ends all of them at
once and never pays for that, where whoever drafts does.

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
from specdec.prompts.load import Prompt
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
        turns = [[prompt] for prompt in prompts] if cell.batch == 1 else [prompts]
        for place, turn in enumerate(turns):
            for name in names[:: -1 if place % 2 else 1]:
                found[name].append(arms[name].seconds_per_token(turn))
        return found


class Watch:
    """Counts the seconds and tokens of the steps that have all requests in flight."""

    def __init__(self, pace: Pace, batch: int):
        self._pace, self._batch = pace, batch
        self._before = 0
        self.seconds, self.tokens = 0.0, 0

    @property
    def min_confidence(self) -> float:
        """That of the pace."""
        return self._pace.min_confidence

    def open(self, max_depth: int) -> None:
        """Begin to count anew; the pace goes on."""
        self._pace.open(max_depth)
        self.seconds, self.tokens = 0.0, 0

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
            self.seconds += sum(seconds[name] for name in ("propose", "verify", "other"))
            self.tokens += sum(len(each.token_ids) for each in contexts) - self._before
        self._pace.learn(contexts, proposals, verdicts, seconds)


@dataclass(frozen=True)
class Arm:
    """What decodes, and what is counted of it."""

    decoder: sd.SpeculativeDecoder
    watch: Watch

    def seconds_per_token(self, prompts: Sequence[Prompt]) -> float:
        """Decode prompts; the controller goes on where it was."""
        self.decoder.decode(list(prompts))
        return self.watch.seconds / self.watch.tokens


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
        medians = {arm: statistics.median(some) for arm, some in arms.items()}
        best = min(medians.keys() - {ADAPTIVE}, key=lambda arm: medians[arm])
        pairs = sorted(p / a for p, a in zip(arms[PLAIN], arms[ADAPTIVE], strict=True))
        faster, lost = statistics.median(pairs), medians[ADAPTIVE] / medians[best] - 1
        low, high = pairs[len(pairs) // 4], pairs[-1 - len(pairs) // 4]
        kept = faster >= FLOOR and lost <= REGRET
        verdict = "" if kept else f"missed: {FLOOR:g} of none, {REGRET:.0%} of the best"
        its, reach = medians[PLAIN] / medians[best], f"{low:.2f} .. {high:.2f}"
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
