"""How fast the engine is, next to transformers' own loops, on the same models and machine.

    python benchmarks/speed.py                                   # the embedded pair
    python benchmarks/speed.py verifier=FOLDER draft=FOLDER      # any pair
    python benchmarks/speed.py prompts=4 repeats=1               # shorter
    python benchmarks/speed.py runtime=compiled                  # compiled on both sides, too

Everything that is compared runs interleaved in one process, prompt by prompt, and each number is a
ratio of medians over prompts and repeats, with its smallest and largest ratio over the repeats. An
absolute time means little on a shared machine. Prefill counts where transformers is compared, whose
loops cannot be timed without it; between our own proposers and batches the steps count, as in runs.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import CompileConfig, PreTrainedModel, logging, set_seed

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.runtime.preparation import now
from specdec.runtime.proven import ProvenSteps

DEFAULTS = {
    "verifier": "zoo:verifier",
    "draft": "zoo:draft",
    "prompts": 8,
    "repeats": 3,
    "gamma": 4,
    "new_tokens": 96,
    "device": "cpu",
    "dtype": "float32",
    "runtime": "eager",
    "path": "zoo:prompts",
}
Arm = Callable[[list[int]], float]  # decodes a prompt, returns tokens per second


class Bench:
    """Two models, some prompts, and the arms that decode them."""

    def __init__(self, options: DictConfig):
        self.options = options
        place = (options.device, options.dtype)
        how: dict[str, Any] = {"runtime": options.runtime}
        self.verifier = sd.load(options.verifier, *place, **how)
        self.draft = sd.load(options.draft, *place, vocabulary_of=options.verifier, **how)
        texts = [prompt.turns[0][-1].content for prompt in sd.load_prompts(options.path)]
        self.prompts = [self.verifier.encode(text) for text in texts[: options.prompts]]
        # Texts of one length each: an arm that stops early would be timed on other work.
        self.stopping = sd.Stopping(max_new_tokens=options.new_tokens)

    def ours(self, proposer: Proposer, temperature: float, batch: int = 1) -> sd.SpeculativeDecoder:
        """Build our decoder."""
        sampling = sd.Sampling(temperature)
        return sd.SpeculativeDecoder(
            self.verifier, proposer, sd.Rejection(), sampling, self.stopping, batch=batch
        )

    def draft_model(self) -> sd.DraftModel:
        """Build the proposer that drafts chains of gamma tokens."""
        return sd.DraftModel(self.draft, sd.Chain(self.options.gamma))

    def arm(self, proposer: Proposer, temperature: float) -> Arm:
        """Time our decoder on one prompt, prefill included, as transformers' loops are timed."""
        decoder = self.ours(proposer, temperature)

        def decode(prompt: list[int]) -> float:
            start = time.perf_counter()
            trace = decoder.decode([sd.Request(str(prompt[:8]), prompt)])[0]
            return len(trace.output_ids) / (time.perf_counter() - start)

        return decode

    def steps_arm(self, proposer: Proposer) -> Arm:
        """Time our decoder's steps on one prompt: the decode speed that runs report."""
        decoder = self.ours(proposer, 0.0)
        return lambda prompt: decode_speed(decoder, [sd.Request(str(prompt[:8]), prompt)])

    def transformers_arm(
        self, temperature: float, assistant: PreTrainedModel | None, **more: object
    ) -> Arm:
        """Time `generate()` on one prompt, alone or assisted with a constant gamma."""
        model: Any = self.verifier.model
        how: dict[str, Any] = {"do_sample": temperature > 0, **more}
        if temperature > 0:
            how |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        if assistant is not None:
            settings = assistant.generation_config
            settings.num_assistant_tokens = self.options.gamma
            settings.num_assistant_tokens_schedule = "constant"
            settings.assistant_confidence_threshold = 0.0
            how["assistant_model"] = assistant

        def decode(prompt: list[int]) -> float:
            batch = torch.tensor([prompt], device=model.device)
            start = time.perf_counter()
            with torch.inference_mode():
                output = model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    pad_token_id=0,
                    eos_token_id=-1,
                    max_new_tokens=self.options.new_tokens,
                    **how,
                )
            return (output.shape[1] - len(prompt)) / (time.perf_counter() - start)

        return decode

    def compiled_arm(self) -> Arm:
        """Time `generate()` in its fastest form: a static cache, and a forward that is compiled."""
        config: Any = CompileConfig(mode="default")
        config._compile_all_devices = True
        more = {"cache_implementation": "static", "compile_config": config}
        found = self.transformers_arm(0.0, None, **more)
        # The cache is kept from call to call, as large as the longest prompt wants it.
        found(max(self.prompts, key=len))
        return found

    def proposers(self) -> dict[str, Proposer]:
        """Build what is compared with decoding one token at a time."""
        made: dict[str, Proposer] = {"ngram": sd.NGram(self.options.gamma)}
        made["draft_model"] = self.draft_model()
        if self.options.verifier == "zoo:verifier":
            tree = sd.Chain(self.options.gamma)
            how: dict[str, Any] = {"runtime": self.options.runtime}  # on both sides of each ratio
            made["medusa"] = sd.Medusa.load("zoo:medusa", self.verifier, tree, **how)
            made["chained"] = sd.Chained.load("zoo:chained", self.verifier, tree, **how)
        return made

    def step_ratio(self, above: int, below: int) -> float:
        """Compare the median steps of the verifier of so many tokens, timed in turns."""
        self.verifier.open(1, 256)
        self.verifier.prefill([0], [self.prompts[0][:96]])
        seconds: dict[int, list[float]] = {above: [], below: []}
        for _ in range(60):
            for num_tokens, spent in seconds.items():
                spent.append(self._step(num_tokens))
        return statistics.median(seconds[above][8:]) / statistics.median(seconds[below][8:])

    def _step(self, num_tokens: int) -> float:
        token_ids = torch.ones(1, num_tokens, dtype=torch.int64, device=self.verifier.device)
        length, start = self.verifier.length(0), now()
        self.verifier.forward([0], token_ids).logits[0, 0, 0].item()
        seconds = now() - start
        self.verifier.keep(0, length)
        return seconds

    def race(self, arms: dict[str, Arm]) -> dict[str, list[list[float]]]:
        """Let all arms decode each prompt in turn; returns [repeat][prompt] per arm."""
        for arm in arms.values():
            arm(self.prompts[0])
        speeds: dict[str, list[list[float]]] = {name: [] for name in arms}
        for repeat in range(self.options.repeats):
            set_seed(repeat)
            for each in speeds.values():
                each.append([])
            for number, prompt in enumerate(self.prompts):
                names = list(arms)
                first = number % len(names)
                for name in names[first:] + names[:first]:
                    speeds[name][-1].append(arms[name](prompt))
        return speeds


def decode_speed(decoder: sd.SpeculativeDecoder, requests: Sequence[sd.Request]) -> float:
    """Return tokens per second of all steps, prefill excluded."""
    traces = decoder.decode(requests)
    emitted = sum(len(trace.output_ids) for trace in traces)
    return emitted / sum(map(seconds_of, traces))


def seconds_of(trace: sd.Trace) -> float:
    """Add up a trace's steps."""
    return sum(s.propose_seconds + s.verify_seconds + s.other_seconds for s in trace.steps)


@contextmanager
def forward_seconds(models: Sequence[PreTrainedModel]) -> Iterator[list[float]]:
    """Add up the time spent inside the forwards of some models, or in their programs."""
    spent = [0.0]
    on_gpu = models[0].device.type == "cuda"

    def now() -> float:
        if on_gpu:  # a forward has only been launched when the call returns
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(forward: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            start = now()
            try:
                return forward(*args, **kwargs)
            finally:
                spent[0] += now() - start

        return run

    steps = ProvenSteps.__call__
    originals = [model.forward for model in models]
    for model, original in zip(models, originals, strict=True):
        model.forward = timed(original)
    programs: Any = ProvenSteps
    programs.__call__ = timed(steps)
    try:
        yield spent
    finally:
        for model, original in zip(models, originals, strict=True):
            model.forward = original
        programs.__call__ = steps


def overhead(bench: Bench, temperature: float) -> list[float]:
    """(a) Share of the steps' wall time outside of the models' forwards, per repeat."""
    decoder = bench.ours(bench.draft_model(), temperature)
    for number, prompt in enumerate(bench.prompts):  # compiles all that is to be timed
        decoder.decode([sd.Request(str(number), prompt)])
    shares: list[float] = []
    for _ in range(bench.options.repeats + 1):
        with forward_seconds([bench.verifier.model, bench.draft.model]) as spent:
            total = 0.0
            for number, prompt in enumerate(bench.prompts):
                total += seconds_of(decoder.decode([sd.Request(str(number), prompt)])[0])
        shares.append(1 - spent[0] / total)
    return shares[1:]  # the first one warms up


def ratios(above: list[list[float]], below: list[list[float]]) -> list[float]:
    """Median over all, then the smallest and the largest of the repeats' ratios."""
    each = [statistics.median(a) / statistics.median(b) for a, b in zip(above, below, strict=True)]
    overall = statistics.median(chain(*above)) / statistics.median(chain(*below))
    return [overall, min(each), max(each)]


def batching(bench: Bench, proposer: Callable[[], Proposer], batch: int) -> list[float]:
    """(d) Decode speed with `batch` requests in flight over one at a time."""
    count = max(3 * batch, len(bench.prompts))
    requests = [
        sd.Request(str(number), bench.prompts[number % len(bench.prompts)])
        for number in range(count)
    ]
    decoders = {size: bench.ours(proposer(), 0.0, size) for size in (1, batch)}
    speeds: dict[int, list[list[float]]] = {1: [], batch: []}
    for size, decoder in decoders.items():
        decoder.decode(requests[:size])
    for _ in range(bench.options.repeats):
        for size, decoder in decoders.items():
            speeds[size].append([decode_speed(decoder, requests)])
    return ratios(speeds[batch], speeds[1])


@dataclass(frozen=True)
class Row:
    """One line of the table; `values` are the median, the smallest and the largest."""

    measure: str
    values: Sequence[float]
    target: str
    form: str = "{:.2f}"

    @classmethod
    def spread(cls, measure: str, values: Sequence[float], target: str, form: str) -> "Row":
        """Say what the repeats came to."""
        return cls(measure, [statistics.median(values), min(values), max(values)], target, form)

    def cells(self) -> tuple[str, str, str, str]:
        """Return what the table shows."""
        middle, low, high = map(self.form.format, self.values)
        return self.measure, middle, f"{low} to {high}", self.target


def against_transformers(bench: Bench) -> Iterator[Row]:
    """(a) to (c): what a step takes outside the models, and transformers' loops."""
    for temperature in (0.0, 1.0):
        name, shares = f"T={temperature:g}", overhead(bench, temperature)
        yield Row.spread(f"(a) share outside forwards, {name}", shares, "<= 10 % (15 %)", "{:.1%}")
        ours = bench.arm(bench.draft_model(), temperature)
        assisted = bench.transformers_arm(temperature, bench.draft.model)
        speeds = bench.race({"ours": ours, "assisted": assisted})
        values = ratios(speeds["ours"], speeds["assisted"])
        yield Row(f"(b) draft model / assisted generation, {name}", values, ">= 1.5, >= 1.3")
    plain = {"ours": bench.arm(sd.NoProposer(), 0.0)}
    speeds = bench.race({**plain, "generate": bench.transformers_arm(0.0, None)})
    values = ratios(speeds["ours"], speeds["generate"])
    yield Row("(c) autoregressive / generate(), eager", values, ">= 2")
    if bench.options.runtime != "eager":
        speeds = bench.race({**plain, "compiled": bench.compiled_arm()})
        values = ratios(speeds["ours"], speeds["compiled"])
        yield Row("(c) the same / generate(), static and compiled", values, ">= 1.2")


def against_itself(bench: Bench) -> Iterator[Row]:
    """(d) to (f): batches, proposers, and trees in the same runtime."""
    for name, proposer in (("none", sd.NoProposer), ("draft_model", bench.draft_model)):
        yield Row(f"(d) batch 8 / batch 1, {name}", batching(bench, proposer, 8), ">= 3.5, >= 3")
    arms = {name: bench.steps_arm(each) for name, each in bench.proposers().items()}
    speeds = bench.race({"none": bench.steps_arm(sd.NoProposer()), **arms})
    for name in arms:
        values = ratios(speeds[name], speeds["none"])
        yield Row(f"(e) {name} / none, T=0", values, ">= 1.7, >= 1.4 if learned")
    repeats = range(bench.options.repeats)
    steps = [bench.step_ratio(17, 1) for _ in repeats]
    yield Row.spread("(f) step of 17 tokens / step of one", steps, "<= 1.4", "{:.2f}")


def main() -> None:
    """Measure everything and print one table."""
    logging.set_verbosity_error()  # an EOS id that never comes draws a warning per prompt
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)  # a mistyped option is refused
    options.merge_with_cli()
    bench = Bench(options)
    table = Table("measure", "median", "range over repeats", "target (zoo, small)")
    for row in chain(against_transformers(bench), against_itself(bench)):
        table.add_row(*row.cells())
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())
