"""What does drafting without training give, and is a hybrid as good as the better of its parts?

    python benchmarks/lookup.py                                          # tokens per step
    python benchmarks/lookup.py speed=true batch=1 temperatures=[0]      # and per second
    python benchmarks/lookup.py kinds=[repetitive] temperatures=[1] per_pattern=12

Nothing has to be prepared: what `folder` lacks, a verifier that copies and a datastore of the
text that the models were trained on, is made first, which takes some minutes once. Proposers decode
the same prompts in turns, within one process. `fresh` are beginnings of held-out files;
`repetitive` are of held-out files, too, and go on as they began (`lookup_texts.py`). How repetitive
the verifier's own texts are is said: the share of their tokens that follows the longest suffix that
occurred before.

Intervals are of a bootstrap over prompts, and differences are paired: each hybrid with the part of
it that is the better one on the same prompts. With `speed=true` an arm's tokens per second are the
median over prompts, and ratios are of medians; what a proposal of the draft model costs, in plain
steps, is measured beforehand on prompts of its own.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from lookup_texts import copying_verifier, datastore, foretelling, repetitive
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.metrics.estimate import (
    MIN_PROMPTS,
    QUANTILES,
    Estimate,
    FloatArray,
    Sums,
    bootstrap_weights,
    paired_difference,
    ratio_estimate,
)
from specdec.metrics.speed import cost_ratio
from specdec.prompts import Prompt

DEFAULTS = {
    "folder": "outputs/lookup",
    "kinds": ["fresh", "repetitive"],
    "temperatures": [0.0, 1.0],
    "fresh": 24,
    "per_pattern": 6,
    "pilot": 4,
    "max_new_tokens": 64,
    "gamma": 4,
    "nodes": 12,
    "batch": 8,
    "speed": False,
    "arms": None,  # names of some; null: all
    "seed": 0,
}
PLAIN, PRICED = "none", "suffix + draft model, priced"
HYBRIDS = {  # and their parts
    "pool + draft model": ("pool", "draft model"),
    "suffix + draft model": ("suffix", "draft model"),
    PRICED: ("suffix", "draft model"),
    "suffix tree, draft model merged": ("suffix, tree", "draft model, likeliest"),
}


def main(arguments: list[str]) -> None:
    """Decode everything, and print a table for each kind of text and each temperature."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_dotlist(arguments))
    assert isinstance(options, DictConfig)
    console, folder = Console(width=150), Path(options.folder)
    copying = copying_verifier(folder, int(options.seed))
    verifiers = {"fresh": sd.load("zoo:verifier"), "repetitive": sd.load(copying)}
    known = sd.load_prompts("zoo:prompts")
    pilot, rest = known[: options.pilot], known[options.pilot :][: options.fresh]
    texts = {"fresh": rest, "repetitive": repetitive(options.per_pattern, int(options.seed))}
    for temperature in options.temperatures:
        sampling = sd.Sampling(float(temperature), from_checkpoint=False)
        for kind in options.kinds:
            verifier = verifiers[kind]
            arms = arms_of(verifier, pilot, sampling, options)
            found = decoded(verifier, arms, texts[kind], sampling, options)
            shares = repeated(verifier, texts[kind], found)
            by_name = ", ".join(f"{name} {said(each)}" for name, each in shares.items())
            console.print(f"tokens that the longest suffix foretells: {by_name}")
            console.print(shown(found, f"{kind}, T={temperature:g}, {len(texts[kind])} prompts"))


def arms_of(
    verifier: sd.HFCausalLM, pilot: Sequence[Prompt], sampling: sd.Sampling, options: DictConfig
) -> dict[str, Proposer]:
    """Return what is compared; for speeds also plain decoding and a priced hybrid."""
    known = dict(proposers(options, datastore(Path(options.folder))))
    arms = {name: known[name] for name in options.arms or known}
    if options.speed:
        cost = price(verifier, pilot, sampling, options)
        print(f"T={sampling.temperature:g}: a draft costs {cost:.2f} plain steps")
        parts = [sd.Suffix(options.gamma), drafting(options)]
        arms |= {PLAIN: sd.NoProposer(), PRICED: sd.Hybrid(parts, costs=[0, cost])}
    return arms


def drafting(options: DictConfig, tree: sd.Sparse | None = None) -> sd.DraftModel:
    """Return a draft model with a cache of its own; all have the same weights."""
    return sd.DraftModel(sd.load("zoo:draft"), tree or sd.Chain(options.gamma))


def proposers(options: DictConfig, corpus: str) -> Iterator[tuple[str, Proposer]]:
    """Make what is compared."""
    gamma, nodes = int(options.gamma), int(options.nodes)
    likeliest = sd.Sparse([[0] * depth for depth in range(1, gamma + 1)])
    yield "ngram", sd.NGram(gamma)
    yield "pool", sd.Pool(gamma)
    yield "suffix", sd.Suffix(gamma)
    yield "suffix, tree", sd.Suffix(gamma, num_nodes=nodes)
    yield "suffix + corpus", sd.Suffix.load(gamma, corpus_path=corpus)
    yield "retrieval", sd.Retrieval.load(corpus, gamma)
    yield "retrieval, tree", sd.Retrieval.load(corpus, gamma, num_nodes=nodes)
    yield "draft model", drafting(options)
    yield "draft model, likeliest", drafting(options, likeliest)
    yield "pool + draft model", sd.Hybrid([sd.Pool(gamma), drafting(options)])
    yield "suffix + draft model", sd.Hybrid([sd.Suffix(gamma), drafting(options)])
    parts = [sd.Suffix(gamma, num_nodes=nodes), drafting(options, likeliest)]
    yield "suffix tree, draft model merged", sd.Hybrid(parts, mode="merge")


def price(
    verifier: sd.HFCausalLM, pilot: Sequence[Prompt], sampling: sd.Sampling, options: DictConfig
) -> float:
    """Measure what a proposal of the draft model costs, in plain steps."""
    arms: dict[str, Proposer] = {PLAIN: sd.NoProposer(), "draft": drafting(options)}
    found = decoded(verifier, arms, pilot, sampling, options)
    return value(cost_ratio(found.tallies["draft"]))


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


def traces_of(found: sd.Comparison, name: str) -> list[sd.Trace]:
    """Return an arm's traces in the order of their prompts, in which all arms' are paired."""
    return sorted(found.traces[name], key=lambda trace: trace.prompt_id)


def repeated(
    verifier: sd.HFCausalLM, prompts: Sequence[Prompt], found: sd.Comparison
) -> dict[str, Estimate]:
    """Return which share of tokens the longest suffix foretold, by category and of all texts.

    Of the texts of one arm; those of the others have the same distribution.
    """
    tokenizer = verifier.tokenizer
    assert tokenizer is not None
    before = {each.prompt_id: each.turns[0][-1].content for each in prompts}
    hits: dict[str, list[list[bool]]] = {"all": []}
    for trace in traces_of(found, next(iter(found.traces))):
        prompt_ids = tokenizer(before[trace.prompt_id])["input_ids"]
        foretold = list(foretelling(prompt_ids, trace.output_ids))
        hits["all"].append(foretold)
        hits.setdefault(trace.category, []).append(foretold)
    return {
        name: ratio_estimate(
            np.array([float(sum(each)) for each in some]),
            np.array([float(len(each)) for each in some]),
        )
        for name, some in hits.items()
        if len(some) >= MIN_PROMPTS
    }


def steps_of(found: sd.Comparison, name: str) -> Sums:
    """Return emitted tokens and steps, by prompt."""
    traces = traces_of(found, name)
    return Sums(
        np.array([float(len(trace.output_ids)) for trace in traces]),
        np.array([float(len(trace.steps)) for trace in traces]),
    )


def speeds_of(found: sd.Comparison, name: str) -> FloatArray:  # [P]
    """Return tokens per second of decoding, prefill aside, by prompt."""
    return np.array(
        [
            len(trace.output_ids)
            / sum(s.propose_seconds + s.verify_seconds + s.other_seconds for s in trace.steps)
            for trace in traces_of(found, name)
        ]
    )


def ratio_of_medians(first: FloatArray, second: FloatArray) -> Estimate:  # [P], [P]
    """Divide the medians of two arms over the same prompts, which are resampled together."""
    ratios: list[float] = []
    for weights in bootstrap_weights(len(first)):
        drawn = np.repeat(np.arange(len(first)), weights.astype(int))
        ratios.append(float(np.median(first[drawn]) / np.median(second[drawn])))
    low, high = np.quantile(ratios, QUANTILES)
    ratio = float(np.median(first) / np.median(second))
    return Estimate(ratio, float(low), float(high), len(first))


def shown(found: sd.Comparison, title: str) -> Table:
    """Show tokens per step and speeds, and hybrids beside the better of their parts."""
    timed = PLAIN in found.traces
    columns = ("proposer", "tau", "tau - better part's", "better part")
    more = ("tokens/s : plain", "tokens/s : faster part") if timed else ()
    table = Table(*columns, *more, title=title)
    for name in found.traces:
        tau, parts = steps_of(found, name), HYBRIDS.get(name, ())
        parts = [part for part in parts if part in found.traces]
        row = [name, said(ratio_estimate(*tau)), "", ""]
        if parts:
            better = max(parts, key=lambda part: value(ratio_estimate(*steps_of(found, part))))
            row[2:] = said(paired_difference(tau, steps_of(found, better))), better
        if timed:
            speeds = speeds_of(found, name)
            row += [said(ratio_of_medians(speeds, speeds_of(found, PLAIN))), ""]
        if timed and parts:
            fast = max((speeds_of(found, part) for part in parts), key=np.median)
            row[-1] = said(ratio_of_medians(speeds_of(found, name), fast))
        table.add_row(*row)
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
