"""The parts of `gpu.py`: what is measured, and what each number should be."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from gpu_measures import (
    CHAIN_OF_5,
    ONE_TOKEN,
    TREE_OF_32,
    Decoded,
    decoded,
    step_seconds,
    texts_of,
    waits_per_step,
)
from gpu_models import SCALES, copy_bandwidth, random_llama, small_pair
from omegaconf import DictConfig
from transformers import PreTrainedModel

import specdec as sd
from specdec.core.errors import UserError, require
from specdec.core.protocols import Proposer
from specdec.lm.check import prove
from specdec.lm.devices import DTYPES, checked_device, settled_dtype
from specdec.lm.traffic import step_bytes
from specdec.runtime.choice import COMPILED, CUDA_GRAPHS, EAGER, require_runtime
from specdec.tree.sparse import Sparse

T = TypeVar("T")
GAMMA = 4
RUNTIMES = (EAGER, CUDA_GRAPHS, COMPILED)
PATHS = [[0], [1], [0, 0], [1, 0], [0, 0, 0]]


@dataclass(frozen=True)
class Row:
    """One number; `at_most` says on which side of the target it should be."""

    part: str
    measure: str
    value: float
    unit: str = ""
    target: float | None = None
    at_most: bool = True

    @property
    def is_met(self) -> bool | None:
        """Whether the target is reached; None: there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def cells(self) -> tuple[str, ...]:
        """Return what the table shows."""
        wanted = "" if self.target is None else f"{'<=' if self.at_most else '>='} {self.target:g}"
        met = {True: "yes", False: "no", None: ""}[self.is_met]
        return self.measure, f"{self.value:.4g} {self.unit}".strip(), wanted, met


class Bench:
    """A device, the runtimes that it has, and what is measured on it."""

    def __init__(self, options: DictConfig):
        require(options.shapes in SCALES, "shapes", options.shapes, "one of " + ", ".join(SCALES))
        self.device = checked_device(options.device)
        self.dtype = DTYPES[settled_dtype(options.dtype, self.device)]
        self.scale = SCALES[options.shapes]
        wanted = (options.runtimes or ",".join(RUNTIMES)).split(",")
        known = set(wanted) <= set(RUNTIMES)
        require(known, "runtimes", options.runtimes, "some of " + ",".join(RUNTIMES))
        self.left_out: dict[str, str] = {}
        self.runtimes: list[str] = list(dict.fromkeys(wanted))
        self._each(lambda runtime: require_runtime(runtime, self.device))
        if options.runtimes is None and self.device.type == "cpu" and COMPILED in self.runtimes:
            reason = "a compiler takes minutes; runtimes=eager,compiled waits for it"
            self._leave_out(COMPILED, reason)
        require(bool(self.runtimes), "runtimes", options.runtimes, "one that this device has")

    @property
    def quick(self) -> str:
        """The runtime of what is not compared between runtimes."""
        on_cpu = self.device.type == "cpu"
        best = COMPILED if on_cpu else CUDA_GRAPHS
        return best if best in self.runtimes else EAGER

    def _each(self, run: Callable[[str], T]) -> dict[str, T]:
        """Run something by each runtime; one that is refused is left out from there on."""
        found: dict[str, T] = {}
        for runtime in list(self.runtimes):
            try:
                found[runtime] = run(runtime)
            except UserError as reason:
                self._leave_out(runtime, str(reason))
        return found

    def _leave_out(self, runtime: str, reason: str) -> None:
        self.runtimes.remove(runtime)
        self.left_out[runtime] = reason
        print(f"{runtime} is left out: {reason}")

    def rows(self) -> Iterator[Row]:
        """Measure everything."""
        yield from self.equal_texts()
        bandwidth = copy_bandwidth(self.device, self.scale.copied_bytes, self.scale.repeats)
        yield Row("(b) memory", "copy bandwidth, read and written", bandwidth / 1e9, "GB/s")
        for name, target in zip(self.scale.models, (1.6, 1.25), strict=False):
            model = random_llama(self.scale.models[name], self.device, self.dtype)
            yield from self.steps(name, model, bandwidth, target)
            yield from self.speculation(name, model)
            yield from self.batches(name, model)
            del model
        yield from self.waits()

    def proposers(self, draft: sd.HFCausalLM) -> dict[str, Callable[[], Proposer]]:
        """Return chains and trees of a draft model."""
        return {
            "none": sd.NoProposer,
            "chain": lambda: sd.DraftModel(draft, sd.Chain(GAMMA)),
            "tree": lambda: sd.DraftModel(draft, Sparse(PATHS)),
        }

    def small(self, runtime: str) -> tuple[sd.HFCausalLM, sd.HFCausalLM]:
        """Return a tiny verifier and its draft."""
        verifier, draft = (sd.HFCausalLM(each, runtime=runtime) for each in small_pair(self.device))
        return verifier, draft

    def equal_texts(self) -> Iterator[Row]:
        """(a) The proof that trees are read rightly, and the same texts in each runtime."""
        error = prove(small_pair(self.device)[0], "tiny")
        yield Row("(a) equality", "tree against plain forwards, relative", error, "", 1e-4)
        prompts = [text[: 3 + 2 * number] for number, text in enumerate(texts_of(5, 11, 512))]

        def texts(runtime: str) -> list[dict[str, Sequence[int]]]:
            verifier, draft = self.small(runtime)
            return [
                decoded(verifier, make(), prompts, 12, batch=3, temperature=each).by_name()
                for make in self.proposers(draft).values()
                for each in (0.0, 1.0)
            ]

        first, *others = self._each(texts).items()
        for runtime, found in others:
            unlike = sum(ours != theirs for ours, theirs in zip(found, first[1], strict=True))
            yield Row("(a) equality", f"texts of {runtime} that differ", unlike, "", 0)

    def steps(
        self, name: str, model: PreTrainedModel, bandwidth: float, target: float
    ) -> Iterator[Row]:
        """(c), (d): one token against the floor, a tree of 32 nodes against one token."""
        part, context, repeats = f"(c), (d) {name}", self.scale.context, self.scale.repeats
        plain = sd.HFCausalLM(model)
        plain.prefill([0], [[1, 1]])  # so that it knows its cells
        floor = step_bytes(plain, 1, 1, context) / bandwidth
        yield Row(part, "floor: bytes over bandwidth", 1e3 * floor, "ms")

        def timed(runtime: str) -> list[float]:
            lm = sd.HFCausalLM(model, runtime=runtime)
            return [step_seconds(lm, each, context, repeats) for each in (ONE_TOKEN, TREE_OF_32)]

        seconds = self._each(timed)
        for runtime, (one, tree) in seconds.items():
            yield Row(part, f"step of one token, {runtime}", 1e3 * one, "ms")
            yield Row(part, f"step of 32 nodes, {runtime}", 1e3 * tree, "ms")
        best = min(seconds, key=lambda runtime: seconds[runtime][0])
        one, tree = seconds[best]
        yield Row(part, f"one token / floor, {best}", one / floor, "", target)
        yield Row(part, f"32 nodes / one token, {best}", tree / one, "", 1.35)

    def speculation(self, name: str, model: PreTrainedModel) -> Iterator[Row]:
        """(e) Drafts that are right with a known probability: measured speedup over theory."""
        lm = sd.HFCausalLM(model, runtime=self.quick)
        scale = self.scale
        prompts = texts_of(scale.texts, scale.context // 8, lm.vocab_size)
        context, repeats = scale.context // 8 + scale.new_tokens, scale.repeats
        one, chain = (step_seconds(lm, each, context, repeats) for each in (ONE_TOKEN, CHAIN_OF_5))
        plain = decoded(lm, sd.NoProposer(), prompts, scale.new_tokens)
        yield Row(f"(e) {name}", f"{GAMMA + 1} tokens / one token, {self.quick}", chain / one)
        for accuracy in (0.6, 0.8, 0.9):
            drafts = sd.Recorded(plain.by_name(), GAMMA, accuracy)
            found = decoded(lm, drafts, prompts, scale.new_tokens)
            speedup = found.tokens_per_second / plain.tokens_per_second
            expected = (1 - accuracy ** (GAMMA + 1)) / (1 - accuracy) / (chain / one)
            measure = f"recorded, acceptance {accuracy}"
            yield Row(f"(e) {name}", f"{measure}: tokens per step", found.block_efficiency)
            yield Row(f"(e) {name}", f"{measure}: speedup", speedup)
            ratio = speedup / expected
            yield Row(f"(e) {name}", f"{measure}: over theory", ratio, "", 0.9, at_most=False)

    def batches(self, name: str, model: PreTrainedModel) -> Iterator[Row]:
        """(f) Tokens per second with one request in flight, and with several."""
        lm = sd.HFCausalLM(model, runtime=self.quick)
        scale = self.scale
        prompts = texts_of(max(scale.batches), scale.context // 8, lm.vocab_size)
        for size in scale.batches:
            some = prompts[: max(size, min(scale.texts, len(prompts)))]
            plain = decoded(lm, sd.NoProposer(), some, scale.new_tokens, size)
            drafts = sd.Recorded(plain.by_name(), GAMMA, 0.8)
            found = decoded(lm, drafts, some, scale.new_tokens, size)
            for what, texts in (("none", plain), ("recorded at 0.8", found)):
                speed = texts.tokens_per_second
                yield Row(f"(f) {name}", f"B = {size}, {what}, {self.quick}", speed, "tokens/s")

    def waits(self) -> Iterator[Row]:
        """(g) How often the host waits in a step, but for clocks that wait for their laps."""
        # Compiled programs hide from who counts whether they wait, and on processors nothing does.
        runtime = CUDA_GRAPHS if CUDA_GRAPHS in self.runtimes else EAGER
        verifier, draft = self.small(runtime)
        for size in (1, 8):
            for name, make in self.proposers(draft).items():
                prompts = texts_of(size, 9, verifier.vocab_size)
                decode = partial(self._decode, verifier, make, prompts)
                found = waits_per_step(verifier, decode)
                yield Row("(g) waits", f"B = {size}, {name}, {runtime}", found, "a step", 2)

    def _decode(
        self, verifier: sd.HFCausalLM, make: Callable[[], Proposer], prompts: list[list[int]]
    ) -> Decoded:
        return decoded(verifier, make(), prompts, new_tokens=24, batch=len(prompts))
