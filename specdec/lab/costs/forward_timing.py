"""Time a model's forwards over a grid of tokens and contexts, in the runtime that it has."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from specdec.core.errors import require
from specdec.core.tree import CandidateTree
from specdec.decoding.decoder import Clock
from specdec.lm.batch import TreeBatch
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.lm.traffic import step_bytes
from specdec.replaying.forwards import Forwards, Shape, TimedForward
from specdec.results.progress import Progress

WARM_UPS = 2  # rounds: programs are compiled and proven in the first one
SEED = 20230228
Samples = Mapping[Shape, Sequence[float]]  # seconds of forwards of the whole batch


@dataclass(frozen=True)
class ForwardGrid:
    """What is timed.

    Args:
        tokens: that a row reads, as a chain and, from three on, as a tree.
        contexts: cached cells before them.
        batch: rows, B.
        repeats: how often.
    """

    tokens: Sequence[int]
    contexts: Sequence[int]
    batch: int
    repeats: int

    @property
    def shapes(self) -> list[Shape]:
        """All points of the grid."""
        return [
            Shape(branches, number, context)
            for context in self.contexts
            for branches in (False, True)
            for number in self.tokens
            if number > (2 if branches else 0)
        ]


def contexts_within(contexts: Sequence[int], tokens: Sequence[int], max_length: int) -> list[int]:
    """Cut contexts off where a model's own one has no room for the tokens behind them.

    Raises:
        UserError: there is none at all.
    """
    room = max_length - max(tokens)
    fewer = f"fewer than the {max_length} that the model reads"
    require(room >= 1, "tokens", max(tokens), fewer)
    return sorted({min(context, room) for context in contexts})


def time_forwards(lm: HFCausalLM, grid: ForwardGrid) -> Samples:
    """Time every shape of a grid in turns, after rounds that are not timed.

    Each context has a cache of its own, filled once with random text; what a forward appends is
    taken back. Seconds are those of the engine's own timer, with masks and positions being made.
    """
    rows = list(range(grid.batch))
    models = {context: _filled(lm, context, grid) for context in grid.contexts}
    samples: dict[Shape, list[float]] = {shape: [] for shape in grid.shapes}
    order, rng = list(samples), random.Random(SEED)
    total = (WARM_UPS + grid.repeats) * len(order)
    with Progress(total, "time", "forward") as bar, torch.inference_mode():
        for number in range(WARM_UPS + grid.repeats):
            rng.shuffle(order)
            for shape in order:
                seconds = _timed(models[shape.context], rows, shape)
                if number >= WARM_UPS:
                    samples[shape].append(seconds)
                bar.update()
    return samples


def _filled(lm: HFCausalLM, context: int, grid: ForwardGrid) -> HFCausalLM:
    """Return the model with a cache of its own that holds so many cells in each row."""
    model = causal_lm(lm.model, lm.tokenizer, max_length=lm.max_length, runtime=lm.runtime)
    model.open(grid.batch, context + max(grid.tokens))
    rng = random.Random(SEED)
    texts = [rng.choices(range(lm.vocab_size), k=context) for _ in range(grid.batch)]
    model.prefill(range(grid.batch), texts)
    return model


def _timed(model: HFCausalLM, rows: Sequence[int], shape: Shape) -> float:
    trees = [tree_of(shape, row) for row in rows]
    clock = Clock(model.device)
    batch = TreeBatch.of(trees, [shape.context for _ in rows], model.device)
    model.forward(rows, *batch)
    clock.lap("verify")
    for row in rows:
        model.keep(row, shape.context)
    return clock.seconds["verify"]


def tree_of(shape: Shape, token: int) -> CandidateTree:
    """Make a chain, or as many children of the root, of one token again and again."""
    number = shape.num_tokens - 1
    if shape.branches:
        return CandidateTree((token,) * (number + 1), (-1, *(0,) * number))
    return CandidateTree.chain(token, (token,) * number)


def forwards_of(
    lm: HFCausalLM, grid: ForwardGrid, samples: Samples, bytes_per_second: float
) -> Forwards:
    """Take medians, and say of each shape what it must move."""
    known = causal_lm(lm.model, lm.tokenizer, max_length=lm.max_length)
    known.prefill([0], [[0]])  # cells have a size once there is one
    points = [
        TimedForward(shape, median(each), step_bytes(known, grid.batch, *shape[1:]))
        for shape, each in samples.items()
    ]
    return Forwards(grid.batch, bytes_per_second, tuple(points))
