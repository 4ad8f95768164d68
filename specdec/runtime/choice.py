"""How the steps of a model may be run, by name, and which way suits the work to come."""

import os
from functools import lru_cache

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from transformers import PreTrainedModel

from specdec.core.cache_folder import cache_folder
from specdec.core.errors import UserError, require
from specdec.runtime.cuda_tape import CudaGraphs
from specdec.runtime.graphs import GraphSteps
from specdec.runtime.kernels.build import compiler
from specdec.runtime.program import Expected, Function, reading_of
from specdec.runtime.proven import ProvenSteps, Steps
from specdec.runtime.stock_steps import StockSteps

CACHE_DIR = "TORCHINDUCTOR_CACHE_DIR"
EAGER, COMPILED, CUDA_GRAPHS, AUTO = "eager", "compiled", "cuda_graphs", "auto"
RUNTIMES = (EAGER, COMPILED, CUDA_GRAPHS, AUTO)
WORTH = 3  # times the seconds of preparation: below that a run is over before it has paid
# Rough on purpose, and the same everywhere: an interrupted run must choose the same again.
BYTES_PER_SECOND = {"cpu": 5e9, "cuda": 2e12}
EAGER_SECONDS_PER_LAYER = 3e-4  # of calls, whatever the sizes
COMPILER_SECONDS, COMPILER_SECONDS_PER_LAYER = 12.0, 3.0  # of the two or three programs of a run
CAPTURE_SECONDS, CAPTURE_SECONDS_PER_LAYER = 0.5, 0.05  # of its handful of graphs


def require_runtime(name: object, device: torch.device) -> None:
    """Refuse what is no runtime, or none that can be had here.

    Raises:
        UserError: it is not.
    """
    expected = "one of " + ", ".join(RUNTIMES)
    require(isinstance(name, str) and name in RUNTIMES, "runtime", name, expected)
    if name == COMPILED and not has_compiler(device):
        raise UserError(
            f"runtime={name!r}: no C++ compiler is installed here; runtime=eager needs none"
        )
    if name == CUDA_GRAPHS and device.type != "cuda":
        raise UserError(
            f"runtime={name!r}: a GPU replays them, and device={str(device)!r} is none;"
            f" runtime={COMPILED} runs there"
        )


def has_compiler(device: torch.device) -> bool:
    """Whether programs for a device can be compiled: for CPUs that takes a C++ compiler."""
    return device.type != "cpu" or compiler() is not None


def suited(model: PreTrainedModel, num_tokens: int) -> tuple[str, str]:
    """Choose the runtime that is done first with so many steps of one token; say why in a line."""
    layers = model.config.get_text_config().num_hidden_layers
    num_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    step = num_bytes / BYTES_PER_SECOND[model.device.type] + layers * EAGER_SECONDS_PER_LAYER
    work = num_tokens * step
    to_compile = COMPILER_SECONDS + layers * COMPILER_SECONDS_PER_LAYER
    why = f"about {work:.0f} s of steps, and {to_compile:.0f} s to compile them"
    if work > WORTH * to_compile and has_compiler(model.device):
        return COMPILED, why
    to_capture = CAPTURE_SECONDS + layers * CAPTURE_SECONDS_PER_LAYER
    captured = model.device.type == "cuda" and work > WORTH * to_capture
    return (CUDA_GRAPHS if captured else EAGER), why


def next_best(name: str, device: torch.device) -> str:
    """Return the runtime that is tried where one was refused."""
    return CUDA_GRAPHS if name == COMPILED and device.type == "cuda" else EAGER


def steps_of(name: str, model: PreTrainedModel, cache_word: str) -> ProvenSteps | None:
    """Return the programs that run a model's steps; None: they are run eagerly."""
    return None if name == EAGER else _programs(name, model, cache_word)


@lru_cache(maxsize=4)  # as many as there are models whose weights are kept
def _programs(name: str, model: PreTrainedModel, cache_word: str) -> ProvenSteps:
    steps = _compiled(model, cache_word) if name == COMPILED else StockSteps(model, cache_word)
    if model.device.type == "cuda":  # compiled programs, too: their kernels are many, and short
        linted = name != COMPILED
        steps = GraphSteps(steps, CudaGraphs(model.device).new_tape, linted=linted)
    return ProvenSteps(steps, model, name)


def _compiled(model: PreTrainedModel, cache_word: str) -> Steps:
    keep_programs()
    # Here, since a compiler takes a second to import, and most runs need none.
    from specdec.runtime.compiled import CompiledSteps

    return CompiledSteps(model, cache_word)


@lru_cache(maxsize=4)
def texts_of(name: str, model: PreTrainedModel) -> Function:
    """Return what reads whole texts, [B, T] -> [B, T, H], where the weights stay as they are."""
    called = f"texts of {model.config.model_type}"
    return function_of(name, reading_of(model), model.dtype, called, guarded=True)


def function_of(
    name: str,
    function: Function,
    dtype: torch.dtype,
    called: str,
    guarded: bool = False,
    expected: Expected | None = None,
) -> Function:
    """Return a function of tensors as it is run in a runtime; see `CompiledFunction`."""
    if name != COMPILED:
        return function
    keep_programs()
    from specdec.runtime.compiled_function import CompiledFunction  # here for the same reason

    return CompiledFunction(function, dtype, called, guarded, expected=expected)


def keep_programs() -> None:
    """Let what is compiled once be found again by the next process."""
    # What was written for other threads or instructions does not run, or not even compile, here.
    instructions = torch.backends.cpu.get_cpu_capability()
    folder = cache_folder("compiled") / f"{torch.get_num_threads()}_threads_{instructions}"
    # Importing a compiler sets it, to a folder that the next start of the machine empties.
    if os.environ.get(CACHE_DIR) in (None, default_cache_dir()):
        os.environ[CACHE_DIR] = str(folder)
