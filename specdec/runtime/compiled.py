"""A model's steps compiled by inductor: stock modelling code, fewer and larger kernels.

One program serves all sizes of its kind, so that no step waits for a compiler because a text grew
or a tree has other nodes.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._dynamo import mark_dynamic
from torch._inductor import config as inductor
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

from specdec.runtime.attention import FOLDED, THIN, folding
from specdec.runtime.direct import DirectProgram
from specdec.runtime.kernels.operators import have_kernels
from specdec.runtime.preparation import preparing
from specdec.runtime.program import Inputs, Kind, Program, Wanted, program_of
from specdec.runtime.thin_products import ThinProducts

INDUCTOR = "inductor"


class CompiledSteps:
    """The programs of one model, each compiled when it is first asked for.

    Args:
        model: whose steps they are.
        cache_word: the keyword by which its forward takes a cache.
        backend: of `torch.compile`.
    """

    def __init__(self, model: PreTrainedModel, cache_word: str, backend: str = INDUCTOR):
        self._model = model
        self._cache_word = cache_word
        self._backend = backend
        self._programs: dict[Kind, Program] = {}

    def __call__(self, inputs: Inputs, wanted: Wanted = ()) -> tuple[Tensor, ...]:
        """Run a step; returns what is wanted.

        Raises:
            Exception: whatever the compiler says of code that it cannot compile.
        """
        kind = Kind.of(inputs, wanted)
        program = self._programs.get(kind)
        if program is not None:
            return program(*inputs)
        with preparing():
            return self._first(kind, inputs)

    def _first(self, kind: Kind, inputs: Inputs) -> tuple[Tensor, ...]:
        """Compile a program on its first inputs."""
        step = program_of(self._model, self._cache_word, kind.wanted)
        program = DirectProgram(step, self._backend)
        first = _with_room(inputs)
        _let_sizes_differ(first)
        kernels = self._has_kernels()
        with folding(self._model, THIN if kernels else FOLDED):
            step(*first)  # its code installs hooks when it first runs, which no compiler reads
            with tracing(self._model.dtype, self._model.device, kernels):
                program(*first)
        self._programs[kind] = program
        return program(*inputs)

    def _has_kernels(self) -> bool:
        # Rounded weights are packed by the compiler, which knows more about them.
        plain = all(type(each) is nn.Parameter for each in self._model.parameters())
        known = self._backend == INDUCTOR and plain
        return known and have_kernels(self._model.dtype, self._model.device)


def _with_room(inputs: Inputs) -> Inputs:
    """Return inputs whose buffers hold more cells than are in sight, for a first run.

    Where a cache is full at first, a compiler takes the two sizes for one ever after.
    """
    length = len(inputs.columns)
    if inputs.buffers[0].shape[2] > length:
        return inputs
    sizes = [(*each.shape[:2], length + 1, each.shape[3]) for each in inputs.buffers]
    empty = [each.new_zeros(size) for each, size in zip(inputs.buffers, sizes, strict=True)]
    return inputs._replace(buffers=tuple(empty))


def _let_sizes_differ(inputs: Inputs) -> None:
    """Tell the compiler which sizes are of this step alone; those of 1 stay (see `Kind`)."""
    wide = [(each, (0, 1)) for each in (inputs.token_ids, inputs.positions, inputs.slots)]
    wide += [(mask, (0, 2, 3)) for mask in inputs.masks]
    wide += [(buffer, (0, 2)) for buffer in inputs.buffers]
    wide += [(each, (0,)) for each in (inputs.columns, *inputs.draws)]
    for tensor, dims in wide:
        for dim in dims:
            if tensor.shape[dim] > 1:
                mark_dynamic(tensor, dim)


@contextmanager
def tracing(dtype: torch.dtype, device: torch.device, kernels: bool) -> Iterator[None]:
    """What holds while a program is compiled, with or without kernels of our own."""
    noisy = logging.getLogger("torch._inductor"), logging.getLogger("torch._dynamo")
    levels = [each.level for each in noisy]
    for each in noisy:
        each.setLevel(logging.ERROR)
    settings: dict[str, Any] = {"cpp_wrapper": device.type == "cpu"}  # or Python calls its kernels
    if kernels:
        settings["post_grad_custom_pre_pass"] = ThinProducts()
    else:
        # Weights that are constants can be packed for half precision; float32 gains nothing by it,
        # and what is frozen cannot be kept on disk for the next process.
        settings["freezing"] = dtype in (torch.bfloat16, torch.float16)
    alike = shapes.use_duck_shape
    shapes.use_duck_shape = False  # sizes that are equal by chance are not the same size
    # Nor are numbers of the model's code sizes, though those of another model were others.
    constants = dynamo.patch(specialize_float=True, specialize_int=True)
    try:
        with inductor.patch(settings), constants, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")  # torchao's
            yield
    finally:
        shapes.use_duck_shape = alike
        for each, level in zip(noisy, levels, strict=True):
            each.setLevel(level)
