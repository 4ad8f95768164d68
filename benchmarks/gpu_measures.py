"""Measures of `gpu.py`: seconds of a step, texts and their speed, waits of a step."""

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.core.tree import CandidateTree
from specdec.lm.batch import TreeBatch
from specdec.runtime.host_waits import noting_waits
from specdec.runtime.preparation import now

ONE_TOKEN, CHAIN_OF_5 = (-1,), tuple(range(-1, 4))
TREE_OF_32 = (-1, *((node - 1) // 2 for node in range(1, 32)))  # two children each
WARM_UPS = 4  # steps: two of a program are compared with the model's own


def texts_of(num: int, length: int, vocab_size: int) -> list[list[int]]:
    """Draw prompts."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (num, length), generator=generator).tolist()


@torch.inference_mode()
def step_seconds(lm: sd.HFCausalLM, parents: Sequence[int], context: int, repeats: int) -> float:
    """Return the median seconds of a step over one tree, until the host has its first token.

    Each step has a token less in the cache than the one before, as no two steps of a text are of
    one length.
    """
    lm.open(1, context + len(parents))
    lm.prefill([0], texts_of(1, context, lm.vocab_size))
    tree = CandidateTree(tuple(range(len(parents))), tuple(parents))
    seconds: list[float] = []
    for length in range(context, context - WARM_UPS - repeats, -1):
        lm.keep(0, length)
        batch = TreeBatch.of([tree], [length], lm.device)
        start = now()
        lm.forward([0], *batch).logits[0, 0].argmax().item()
        seconds.append(now() - start)
    return statistics.median(seconds[WARM_UPS:])


@dataclass(frozen=True)
class Decoded:
    """Texts that were decoded, and how fast."""

    traces: Sequence[sd.Trace]

    @property
    def num_steps(self) -> int:
        """Steps of all texts."""
        return sum(len(trace.steps) for trace in self.traces)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(trace.output_ids) for trace in self.traces)

    @property
    def tokens_per_second(self) -> float:
        """Speed while decoding: without prefill, captures and compilers."""
        seconds = sum(
            step.propose_seconds + step.verify_seconds + step.other_seconds
            for trace in self.traces
            for step in trace.steps
        )
        return self.num_tokens / seconds

    @property
    def block_efficiency(self) -> float:
        """Tokens per step."""
        return self.num_tokens / self.num_steps

    def by_name(self) -> dict[str, Sequence[int]]:
        """Return the texts, for `sd.Recorded`."""
        return {trace.prompt_id: trace.output_ids for trace in self.traces}


def decoded(
    lm: sd.HFCausalLM,
    proposer: Proposer,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch: int = 1,
    temperature: float = 0.0,
) -> Decoded:
    """Decode prompts, named by their number."""
    decoder = sd.SpeculativeDecoder(
        lm,
        proposer,
        sd.Rejection(),
        sd.Sampling(temperature),
        sd.Stopping(new_tokens),
        batch=batch,
    )
    requests = [sd.Request(str(number), prompt) for number, prompt in enumerate(prompts)]
    return Decoded(decoder.decode(requests))


def waits_per_step(lm: sd.HFCausalLM, decode: Callable[[], object]) -> float:
    """Return how often the host waits for the device in a step of the whole batch.

    Args:
        lm: the verifier.
        decode: decodes texts whose prompts are read together.
    """
    decode()  # captures all shapes
    with counting_waits(lm.device) as waits:
        decode()
    return len(waits) / (lm.num_calls - 1)


@contextmanager
def counting_waits(device: torch.device) -> Iterator[list[str]]:
    """Note each wait within: on a GPU those that torch warns of, elsewhere those that would be."""
    found: list[str] = []
    if device.type != "cuda":
        with ExitStack() as stack:
            for module in ("on_host", "shown"):  # which read at once where it costs something
                name = f"specdec.core.{module}.reading_waits"
                stack.enter_context(patch(name, lambda device: True))
            stack.enter_context(noting_waits(found.append))
            yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [str(each.message) for each in caught if "synchroniz" in str(each.message)]
