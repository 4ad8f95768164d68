"""What an n-gram proposer within the draft model saves: forwards of the draft, and seconds.

    python benchmarks/cascade.py [--limit PROMPTS] [--tokens TOKENS] [--rounds ROUNDS]

The draft model alone and the same model in a cascade draft chains of equal length, in turns on the
same prompts; of seconds only ratios are printed. The chains have one distribution, so tau differs
by chance alone, and at temperature 0 not at all.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

import specdec as sd
from specdec.core.protocols import Proposer

LINE = "    parser.add_argument('--{name}', type=int, default={number}, help='the {name}')\n"
NAMES = ("width", "height", "depth", "length", "count", "limit", "start", "end", "step", "size")


def repetitive() -> list[str]:
    """Return prompts that go on as they began."""
    lines = [LINE.format(name=name, number=number) for number, name in enumerate(NAMES)]
    return ["def main():\n" + "".join(lines[first : first + 5]) for first in range(len(NAMES) - 4)]


def fresh() -> list[str]:
    """Return the prompts of the zoo, their first turns."""
    return [prompt.turns[0][-1].content for prompt in sd.load_prompts("zoo:prompts")]


@dataclass
class Counts:
    """What a number of texts came to."""

    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    calls: int = 0  # of the draft model

    def add(self, traces: Sequence[sd.Trace]) -> float:
        """Count some texts; return the seconds that a token took to be drafted."""
        steps = [step for trace in traces for step in trace.steps]
        drafted = sum(step.drafted for step in steps)
        self.tokens += sum(len(trace.output_ids) for trace in traces)
        self.steps += len(steps)
        self.drafted += drafted
        self.calls += sum(step.draft_calls or 0 for step in steps)
        return sum(step.propose_seconds for step in steps) / max(1, drafted)


def row_of(
    verifier: sd.HFCausalLM,
    arms: Sequence[Proposer],
    prompts: Sequence[str],
    temperature: float,
    given: argparse.Namespace,
) -> str:
    """Decode with both in turns; return the measured columns of a row."""
    counts, ratios = [Counts() for _ in arms], list[float]()
    for seed in range(given.rounds):
        for prompt in prompts[: given.limit]:
            seconds = [
                count.add(
                    sd.generate(
                        verifier,
                        arm,
                        [prompt],
                        sampling=sd.Sampling(temperature),
                        max_new_tokens=given.tokens,
                        seed=seed,
                    )
                )
                for arm, count in zip(arms, counts, strict=True)
            ]
            ratios.append(seconds[1] / seconds[0])
    alone, cascade = (count.tokens / count.steps for count in counts)
    per_call = counts[1].drafted / counts[1].calls
    return f"{alone:.2f} | {cascade:.2f} | {per_call:.2f} | {median(ratios):.2f}"


def main() -> None:
    """Print a row of a table for each text, temperature and length of chain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    verifier, alone, middle = (sd.load(f"zoo:{name}") for name in ("verifier", "draft", "draft"))
    print("| text | T | gamma | tau alone | tau cascade | drafted a forward | drafting time |")
    print("|---|---|---|---|---|---|---|")
    texts = {"fresh": fresh(), "repetitive": repetitive()}
    for (name, prompts), temperature, gamma in product(texts.items(), (0.0, 1.0), (4, 8)):
        chain = sd.Chain(gamma)
        arms: list[Proposer] = [
            sd.DraftModel(alone, chain),
            sd.Cascade(middle, sd.NGram(gamma), sd.Rejection(), chain),
        ]
        measured = row_of(verifier, arms, prompts, temperature, given)
        print(f"| {name} | {temperature:g} | {gamma} | {measured} |", flush=True)


if __name__ == "__main__":
    main()
