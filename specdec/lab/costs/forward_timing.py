"""Time a model's forwards over a grid of tokens and contexts, in the runtime that it has."""

import random
from collections.abc import Mapping, Sequence
from statistics import median

import torch

from specdec.decoding.decoder import Clock
from specdec.lab.costs.candidates import Read, Reads, any_tokens
from specdec.lab.costs.forward_grid import ForwardGrid
from specdec.lm.batch import TreeBatch
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.lm.traffic import step_bytes
from specdec.replaying.forwards import Forwards, Shape, TimedForward
from specdec.results.progress import Progress

WARM_UPS = 2  # rounds: programs are compiled and proven in the first one
SEED = 20230228
Samples = Mapping[Shape, Sequence[float]]  # seconds of forwards of the whole batch


def time_forwards(lm: HFCausalLM, grid: ForwardGrid, reads: Reads | None = None) -> Samples:
    """Time every shape of a grid in turns, after rounds that are not timed.

    Each context has a cache of its own, filled once; what a forward appends is taken back. Seconds
    are those of the engine's own timer, with masks and positions being made.

    Args:
        lm: the model.
        grid: what is timed.
        reads: the tokens; None: any will do.
    """
    reads = any_tokens(lm, grid) if reads is None else reads
    models = {context: _filled(lm, grid, some) for context, some in reads.items()}
    samples: dict[Shape, list[float]] = {shape: [] for shape in grid.shapes}
    order, rng = list(samples), random.Random(SEED)
    total = (WARM_UPS + grid.repeats) * len(order)
    with Progress(total, "time", "forward") as bar, torch.inference_mode():
        for number in range(WARM_UPS + grid.repeats):
            rng.shuffle(order)
            for shape in order:
                seconds = _timed(models[shape.context], reads[shape.context], shape)
                if number >= WARM_UPS:
                    samples[shape].append(seconds)
                bar.update()
    return samples


def _filled(lm: HFCausalLM, grid: ForwardGrid, reads: Sequence[Read]) -> HFCausalLM:
    """Return the model with a cache of its own that holds a context in each row."""
    model = causal_lm(lm.model, lm.tokenizer, max_length=lm.max_length, runtime=lm.runtime)
    texts = [each.before for each in reads]
    model.open(len(texts), len(texts[0]) + max(grid.tokens))
    model.prefill(range(len(texts)), texts)
    return model


def _timed(model: HFCausalLM, reads: Sequence[Read], shape: Shape) -> float:
    rows = list(range(len(reads)))
    trees = [each.tree(shape) for each in reads]
    clock = Clock(model.device)
    batch = TreeBatch.of(trees, [shape.context for _ in rows], model.device)
    model.forward(rows, *batch)
    clock.lap("verify")
    for row in rows:
        model.keep(row, shape.context)
    return clock.seconds["verify"]


def forwards_of(
    lm: HFCausalLM,
    grid: ForwardGrid,
    samples: Samples,
    bytes_per_second: float,
    experts: Mapping[Shape, float] | None = None,
) -> Forwards:
    """Take medians, and say of each shape what it must move.

    Args:
        lm: the model.
        grid: what was timed.
        samples: its seconds.
        bytes_per_second: that a copy moves.
        experts: that a sparse layer takes, by shape, where that was counted.
    """
    known = causal_lm(lm.model, lm.tokenizer, max_length=lm.max_length)
    known.prefill([0], [[0]])  # cells have a size once there is one
    points: list[TimedForward] = []
    for shape, each in samples.items():
        touched = (experts or {}).get(shape)
        size = step_bytes(known, grid.batch, shape.num_tokens, shape.context, touched)
        points.append(TimedForward(shape, median(each), size, touched))
    return Forwards(grid.batch, bytes_per_second, tuple(points))
