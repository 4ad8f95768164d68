"""What does drafting without training give, and is a hybrid as good as the better of its parts?

    python scripts/build_datastore.py data.path=zoo:train output=outputs/zoo_train
    python benchmarks/lookup.py datastore=outputs/zoo_train                 # half an hour
    python benchmarks/lookup.py datastore=outputs/zoo_train prompts=8 temperatures=[0]

Proposers decode the same prompts in turns, within one process: `fresh` ones are the beginnings of
held-out files as they are; `repetitive` ones are the same, followed by their own first third, so
that the text goes on as a copy. The datastore holds none of the files. Intervals are of a bootstrap
over prompts, and differences are paired. What a proposal of the draft model costs, in plain steps,
is measured beforehand on prompts of its own.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.metrics.estimate import Estimate, Sums, paired_difference, paired_ratio, ratio_estimate
from specdec.metrics.speed import cost_ratio
from specdec.prompts import Message, Prompt

DEFAULTS = {
    "datastore": "???",
    "prompts": 24,
    "pilot": 4,
    "max_new_tokens": 64,
    "gamma": 4,
    "temperatures": [0.0, 1.0],
    "batch": 1,
    "seed": 0,
}
KINDS = ("fresh", "repetitive")
PARTS = ("suffix", "draft model")
HYBRIDS = ("switch", "switch, priced")


def main(arguments: list[str]) -> None:
    """Decode everything, and print a table for each kind of text and each temperature."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_dotlist(arguments))
    assert isinstance(options, DictConfig)
    console = Console(width=150)
    known = sd.load_prompts("zoo:prompts")
    pilot, rest = known[: options.pilot], known[options.pilot :][: options.prompts]
    verifier = sd.load("zoo:verifier")
    for temperature in options.temperatures:
        sampling = sd.Sampling(float(temperature), from_checkpoint=False)
        cost = price(verifier, pilot, sampling, options)
        console.print(f"T={temperature}: a chain of the draft model costs {cost:.2f} plain steps")
        for kind in KINDS:
            prompts = rest if kind == "fresh" else [repeated(prompt) for prompt in rest]
            arms = proposers(verifier, options, cost)
            found = decoded(verifier, arms, prompts, sampling, options)
            console.print(shown(found, f"{kind}, T={temperature}, {len(prompts)} prompts"))


def repeated(prompt: Prompt) -> Prompt:
    """Let a prompt begin anew, so that to go on is to copy."""
    text = prompt.turns[0][-1].content
    again = f"{text}\n\n\n{text[: len(text) // 3]}"
    return replace(prompt, turns=((Message("user", again),),))


def proposers(verifier: sd.HFCausalLM, options: DictConfig, cost: float) -> dict[str, Proposer]:
    """Make all that is compared; each with a draft model of its own, of the same weights."""
    gamma = int(options.gamma)
    datastore = str(options.datastore)

    def drafting(tree: sd.Chain | sd.Sparse | None = None) -> sd.DraftModel:
        return sd.DraftModel(sd.load("zoo:draft"), tree or sd.Chain(gamma))

    likeliest = sd.Sparse([[0] * depth for depth in range(1, gamma + 1)])
    return {
        "none": sd.NoProposer(),
        "ngram": sd.NGram(gamma),
        "suffix": sd.Suffix(gamma),
        "suffix, tree of 12": sd.Suffix(gamma, num_nodes=12),
        "retrieval": sd.Retrieval.load(datastore, gamma),
        "retrieval, tree of 12": sd.Retrieval.load(datastore, gamma, num_nodes=12),
        "suffix + corpus": sd.Suffix.load(gamma, corpus_path=datastore),
        "draft model": drafting(),
        "pool + draft model": sd.Hybrid([sd.Pool(gamma), drafting()]),
        "switch": sd.Hybrid([sd.Suffix(gamma), drafting()]),
        "switch, priced": sd.Hybrid([sd.Suffix(gamma), drafting()], costs=[0, cost]),
        "merge": sd.Hybrid([sd.Suffix(gamma, num_nodes=8), drafting(likeliest)], mode="merge"),
    }


def price(
    verifier: sd.HFCausalLM, pilot: Sequence[Prompt], sampling: sd.Sampling, options: DictConfig
) -> float:
    """Measure what a proposal of the draft model costs, in plain steps."""
    draft = sd.DraftModel(sd.load("zoo:draft"), sd.Chain(int(options.gamma)))
    arms: dict[str, Proposer] = {"none": sd.NoProposer(), "draft": draft}
    found = decoded(verifier, arms, pilot, sampling, options)
    cost = cost_ratio(found.tallies["draft"]).value
    assert cost is not None
    return cost


def decoded(
    verifier: sd.HFCausalLM,
    arms: Mapping[str, Proposer],
    prompts: Sequence[Prompt],
    sampling: sd.Sampling,
    options: DictConfig,
) -> sd.Comparison:
    """Let all of them decode the prompts in turns."""
    return sd.compare(
        verifier,
        arms,
        prompts,
        sampling=sampling,
        max_new_tokens=int(options.max_new_tokens),
        batch=int(options.batch),
        seed=int(options.seed),
        ignore_eos=True,
    )


def steps_of(found: sd.Comparison, name: str) -> Sums:
    """Return emitted tokens and steps, by prompt."""
    traces = traces_of(found, name)
    return Sums(
        np.array([float(len(trace.output_ids)) for trace in traces]),
        np.array([float(len(trace.steps)) for trace in traces]),
    )


def traces_of(found: sd.Comparison, name: str) -> list[sd.Trace]:
    """Return an arm's traces in the order of their prompts, in which all arms' are paired."""
    return sorted(found.traces[name], key=lambda trace: trace.prompt_id)


def seconds_of(found: sd.Comparison, name: str) -> Sums:
    """Return emitted tokens and the seconds of all steps, by prompt."""
    seconds = [
        sum(each.propose_seconds + each.verify_seconds + each.other_seconds for each in trace.steps)
        for trace in traces_of(found, name)
    ]
    return Sums(steps_of(found, name).numerators, np.array(seconds))


def shown(found: sd.Comparison, title: str) -> Table:
    """Show tokens per step and speeds, and hybrids beside the better of their parts."""
    columns = (
        "proposer",
        "tau",
        "tau - better part's",
        "tokens/s : plain",
        "tokens/s : better part",
    )
    table = Table(*columns, title=title)
    better = max(PARTS, key=lambda name: value(ratio_estimate(*steps_of(found, name))))
    faster = max(PARTS, key=lambda name: value(ratio_estimate(*seconds_of(found, name))))
    for name in found.traces:
        is_hybrid = name in HYBRIDS or name == "merge"
        steps, seconds = steps_of(found, name), seconds_of(found, name)
        table.add_row(
            name,
            said(ratio_estimate(*steps)),
            said(paired_difference(steps, steps_of(found, better))) if is_hybrid else "",
            said(paired_ratio(seconds, seconds_of(found, "none"))),
            said(paired_ratio(seconds, seconds_of(found, faster))) if is_hybrid else "",
        )
    table.caption = f"better in tau: {better}; in tokens/s: {faster}"
    return table


def value(estimate: Estimate) -> float:
    """Return a number that is known."""
    assert estimate.value is not None
    return estimate.value


def said(estimate: Estimate) -> str:
    """Write a number with its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
