"""What another tokenizer costs a draft model: tau of both ways beside a draft of the same tokens.

    python benchmarks/other_tokenizers.py draft=my_draft same=my_other_draft
    python benchmarks/other_tokenizers.py draft=my_draft 'gammas=[1,2,4,8]' limit=40

A fair comparison is of drafts that were trained alike, but for their tokens:

    train="train=lm data.path=zoo:train data.held_out_path=zoo:held_out trainer.learning_rate=4e-3
        train.num_hidden_layers=1 train.hidden_size=128 train.intermediate_size=384 max_steps=800
        train.num_attention_heads=4 train.block_length=256 trainer.per_device_train_batch_size=16"
    python experiments/train.py $train output=my_draft train.vocab_size=4096
    python experiments/train.py $train output=my_other_draft train.tokenizer_path=zoo:verifier

All arms decode every prompt before the next one is begun, so that what else the machine does falls
on all of them. An arm's time for drafting is the median over its steps, relative to the draft of
the same tokens at the last of `gammas`; `equal time` is what an arm's tau lacks of that draft's at
the gamma whose drafting takes most nearly as long. Intervals are of a bootstrap over the prompts,
and differences are paired.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

import specdec as sd
from specdec.core.trace import Trace
from specdec.lm.hf import HFCausalLM
from specdec.lm.translation import INTERSECTION, STRINGS
from specdec.metrics.estimate import Estimate, Sums, paired_difference, ratio_estimate

DEFAULTS = {
    "verifier": "zoo:verifier",
    "same": "zoo:draft",
    "draft": "???",
    "gammas": [1, 2, 3, 4],
    "temperatures": [0.0, 1.0],
    "prompts": "zoo:prompts",
    "limit": 20,
    "max_new_tokens": 64,
}
SAME = "same tokens"


@dataclass(frozen=True)
class Arm:
    """A way to draft chains of a length, and what came of it; its cache is its own."""

    vocabulary: str
    gamma: int
    proposer: sd.DraftModel
    traces: list[Trace] = field(default_factory=list[Trace])  # one for each prompt

    @property
    def tau(self) -> Sums:
        """Emitted tokens and steps, by prompt."""
        emitted = [float(len(trace.output_ids)) for trace in self.traces]
        return Sums(np.array(emitted), np.array([float(len(each.steps)) for each in self.traces]))

    @property
    def seconds(self) -> float:
        """The median time that drafting takes in a step."""
        steps = (step for trace in self.traces for step in trace.steps)
        return median(step.propose_seconds for step in steps if step.drafted)

    def mean(self, counter: str) -> float:
        """Return the mean of a counter over steps."""
        return float(np.mean([getattr(s, counter) for each in self.traces for s in each.steps]))


def arms_of(options: DictConfig) -> Iterator[Arm]:
    """Make an arm of each kind and length."""
    for gamma in options.gammas:
        yield Arm(SAME, gamma, drafting(sd.load(options.same), gamma))
        for kind in (INTERSECTION, STRINGS):
            draft = sd.load(options.draft, vocabulary_of=options.verifier, vocabulary=kind)
            yield Arm(kind, gamma, drafting(draft, gamma))


def drafting(draft: HFCausalLM, gamma: int) -> sd.DraftModel:
    """Draft chains."""
    return sd.DraftModel(draft, sd.Chain(gamma))


def decoded(options: DictConfig, temperature: float) -> list[Arm]:
    """Decode every prompt with every arm, and look whether greedy texts are the same."""
    verifier = sd.load(options.verifier)
    found = list(arms_of(options))
    sampling, most = sd.Sampling(temperature), options.max_new_tokens
    for prompt in sd.load_prompts(options.prompts, options.limit):
        for arm in found:
            arm.traces.extend(
                sd.generate(verifier, arm.proposer, prompt, sampling=sampling, max_new_tokens=most)
            )
    texts = {tuple(tuple(trace.output_ids) for trace in arm.traces) for arm in found}
    assert temperature > 0 or len(texts) == 1, "greedy texts differ"
    return found


def shown(estimate: Estimate) -> str:
    """Write a number and its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return f"{estimate.value}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def table_of(arms: list[Arm], title: str) -> Table:
    """Hold all arms against the draft of the same tokens."""
    same = {arm.gamma: arm for arm in arms if arm.vocabulary == SAME}
    unit = same[max(same)].seconds
    columns = ("vocabulary", "gamma", "tau", "- same gamma", "drafting time", "- equal time")
    table = Table(*columns, "drafted", "accepted", title=title)
    for arm in arms:
        row = [arm.vocabulary, str(arm.gamma), shown(ratio_estimate(*arm.tau)), "", "", ""]
        row[4] = f"{arm.seconds / unit:.2f}"
        if arm.vocabulary != SAME:
            equal = min(same.values(), key=lambda each: abs(each.seconds - arm.seconds))
            row[3] = shown(paired_difference(arm.tau, same[arm.gamma].tau))
            row[5] = f"{shown(paired_difference(arm.tau, equal.tau))} (gamma {equal.gamma})"
        table.add_row(*row, f"{arm.mean('drafted'):.2f}", f"{arm.mean('accepted'):.2f}")
    return table


def main() -> None:
    """Compare, and print a table for each temperature."""
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)
    options.merge_with_cli()
    if OmegaConf.is_missing(options, "draft"):
        sys.exit("error: draft: missing; expected draft=FOLDER, of a model with another tokenizer")
    for temperature in options.temperatures:
        title = f"temperature {temperature:g}, {options.limit} prompts"
        Console(width=140).print(table_of(decoded(options, temperature), title))


if __name__ == "__main__":
    main()
