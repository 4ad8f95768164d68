"""What another tokenizer costs a draft model: tau of both ways beside a draft of the same tokens.

    python benchmarks/other_tokenizers.py draft=my_draft
    python benchmarks/other_tokenizers.py draft=my_draft same=zoo:draft 'gammas=[1,2,4,8]' limit=40

All arms decode every prompt before the next one is begun, so that what else the machine does falls
on all of them. An arm's time for drafting is the median over its steps, relative to the draft of
the same tokens at the last of `gammas`. Intervals are of a bootstrap over the prompts.
"""

import sys
from collections.abc import Iterator
from statistics import median

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

import specdec as sd
from specdec.core.trace import Trace
from specdec.lm.hf import HFCausalLM
from specdec.lm.translation import INTERSECTION, STRINGS
from specdec.metrics import Tally, block_efficiency
from specdec.metrics.estimate import Estimate

DEFAULTS = {
    "verifier": "zoo:verifier",
    "same": "zoo:draft",
    "draft": "???",
    "gammas": [1, 2, 4],
    "temperatures": [0.0, 1.0],
    "prompts": "zoo:prompts",
    "limit": 20,
    "max_new_tokens": 64,
}
Arm = tuple[str, int, sd.DraftModel]


def arms_of(options: DictConfig) -> Iterator[Arm]:
    """Make a proposer of each kind and length, each with a cache of its own."""
    for gamma in options.gammas:
        yield "same tokens", gamma, drafting(sd.load(options.same), gamma)
        for kind in (INTERSECTION, STRINGS):
            draft = sd.load(options.draft, vocabulary_of=options.verifier, vocabulary=kind)
            yield kind, gamma, drafting(draft, gamma)


def drafting(draft: HFCausalLM, gamma: int) -> sd.DraftModel:
    """Draft chains."""
    return sd.DraftModel(draft, sd.Chain(gamma))


def decoded(options: DictConfig, temperature: float) -> list[tuple[Arm, list[Trace]]]:
    """Decode every prompt with every arm, and look whether greedy texts are the same."""
    verifier = sd.load(options.verifier)
    prompts = sd.load_prompts(options.prompts, options.limit)
    found: list[tuple[Arm, list[Trace]]] = [(arm, []) for arm in arms_of(options)]
    sampling, most = sd.Sampling(temperature), options.max_new_tokens
    for prompt in prompts:
        for (_, _, proposer), traces in found:
            traces += sd.generate(
                verifier, proposer, prompt, sampling=sampling, max_new_tokens=most
            )
    texts = {tuple(tuple(trace.output_ids) for trace in traces) for _, traces in found}
    assert temperature > 0 or len(texts) == 1, "greedy texts differ"
    return found


def shown(estimate: Estimate) -> str:
    """Write a number and its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return f"{estimate.value}"
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"


def seconds(traces: list[Trace]) -> float:
    """Return the median time that drafting takes in a step."""
    return median(step.propose_seconds for trace in traces for step in trace.steps if step.drafted)


def main() -> None:
    """Compare, and print a table for each temperature."""
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)
    options.merge_with_cli()
    if OmegaConf.is_missing(options, "draft"):
        sys.exit("error: draft: missing; expected draft=FOLDER, of a model with another tokenizer")
    for temperature in options.temperatures:
        found = decoded(options, temperature)
        unit = next(
            seconds(traces)
            for (kind, gamma, _), traces in found
            if (kind, gamma) == ("same tokens", options.gammas[-1])
        )
        table = Table(title=f"temperature {temperature:g}, {options.limit} prompts")
        for name in ("vocabulary", "gamma", "tau", "drafting time", "drafted", "accepted"):
            table.add_column(name)
        for (kind, gamma, _), traces in found:
            steps = [step for trace in traces for step in trace.steps]
            drafted = sum(step.drafted for step in steps) / len(steps)
            accepted = sum(step.accepted for step in steps) / len(steps)
            table.add_row(
                *(kind, str(gamma), shown(block_efficiency(Tally.of(traces)))),
                *(f"{seconds(traces) / unit:.2f}", f"{drafted:.2f}", f"{accepted:.2f}"),
            )
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
