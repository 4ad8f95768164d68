"""Incremental decoding against none: what a KV cache saves as a text grows, and what bounds it.

    python benchmarks/incremental.py                              # the embedded verifier
    python benchmarks/incremental.py verifier=FOLDER dtype=bfloat16
    python benchmarks/incremental.py verifier=random:FOLDER       # of a config.json alone
    python benchmarks/incremental.py verifier=random:0.5B         # shapes of gpu_models.py
    python benchmarks/incremental.py lengths=32,64,128 repeats=3  # shorter

With a cache (`verifier.cache` as it is) and without (`verifier.cache=none`), both eager and in
turns: the time to the first token of a text of that length, prefill and a step; and the time of a
further token behind it. Times are medians. Each is held against what the machine can do: bytes that
must be moved over the bandwidth of a large copy, operations over those of a large product. What
takes longer of both is the phase's bound, and the floor of its time.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_models import SCALES, random_llama
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from roofline import FIRST, FURTHER, Machine, Phase, table_of
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import specdec as sd
from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import require_writable, write_json
from specdec.decoding.decoder import Clock
from specdec.lm.context import limited_length
from specdec.lm.devices import DTYPES, checked_device, require_dtype, settled_dtype
from specdec.lm.hf import PREFILL_CHUNK
from specdec.lm.layer_kinds import is_recurrent
from specdec.lm.operations import forward_operations
from specdec.lm.recomputing import RecomputingLM
from specdec.lm.traffic import step_bytes
from specdec.report.plots import save
from specdec.report.plots.growth import Axis, Series, growth
from specdec.results.provenance import provenance

DEFAULTS = {
    "verifier": "zoo:verifier",  # or a folder; random:FOLDER or random:0.5B has random weights
    "lengths": "32,64,128,256,512,1024",  # tokens of a text
    "device": "cpu",
    "dtype": "float32",
    "repeats": 9,
    "output": "outputs/incremental/incremental.json",  # and plots beside it
}
CACHE, NONE = "cache", "none"
WARM_UPS = 2
SEED = 20230228


class Bench:
    """One model with a cache and without, and the texts that it reads."""

    def __init__(self, options: DictConfig):
        self.lengths = lengths_of(options.lengths)
        require_int("repeats", options.repeats, 1)
        require_dtype(options.dtype)
        self.device = checked_device(options.device)
        self.dtype = settled_dtype(options.dtype, self.device)
        model = model_of(options.verifier, self.device, self.dtype, max(self.lengths) + 1)
        longest = max(self.lengths) + 1
        self.models: dict[str, sd.HFCausalLM] = {
            CACHE: sd.HFCausalLM(model, max_length=longest),
            NONE: RecomputingLM(model, max_length=longest),
        }
        rng = random.Random(SEED)
        vocab_size = self.models[CACHE].vocab_size
        self.text = rng.choices(range(vocab_size), k=longest)
        self.repeats: int = options.repeats

    @torch.inference_mode()
    def phases(self) -> Iterator[Phase]:
        """Time everything in turns, and say what each phase needs."""
        samples: dict[tuple[str, int], list[dict[str, float]]] = {
            (arm, length): [] for length in self.lengths for arm in self.models
        }
        order, rng = list(samples), random.Random(SEED)
        for number in range(WARM_UPS + self.repeats):
            rng.shuffle(order)
            for arm, length in order:
                seconds = self._timed(self.models[arm], length)
                if number >= WARM_UPS:
                    samples[arm, length].append(seconds)
        for (arm, length), found in samples.items():
            first = median(each["prefill"] + each["step"] for each in found)
            further = median(each["further"] for each in found)
            # Without a cache the first step is what reads the prompt.
            read = first if arm == NONE else median(each["prefill"] for each in found)
            speeds = (length - (arm == CACHE)) / read, 1 / further
            yield Phase(arm, FIRST, length, first, speeds[0], *self._needs_first(arm, length))
            yield Phase(arm, FURTHER, length, further, speeds[1], *self._needs_further(arm, length))

    def _timed(self, lm: sd.HFCausalLM, length: int) -> dict[str, float]:
        """Read a text and return the seconds of its prefill, of the first step, and of one more."""
        *prompt, last = self.text[:length]
        lm.open(1, length + 1)
        clock = Clock(self.device)
        lm.prefill([0], [prompt])
        clock.lap("prefill")
        token = self._step(lm, last)
        clock.lap("step")
        self._step(lm, token)
        clock.lap("further")
        return clock.seconds

    def _step(self, lm: sd.HFCausalLM, token: int) -> int:
        return int(
            lm.forward([0], torch.tensor([[token]], device=lm.device)).logits[0, -1].argmax()
        )

    def _needs_first(self, arm: str, length: int) -> tuple[int, int]:
        """Return bytes and operations until the first token: chunks of the prompt, and a step."""
        if arm == NONE:
            return self._whole(length)
        lm, prompt = self.models[CACHE], length - 1
        starts = range(0, prompt, PREFILL_CHUNK)
        chunks = [(start, min(PREFILL_CHUNK, prompt - start)) for start in starts]
        moved = sum(step_bytes(lm, 1, size, start) for start, size in chunks)
        done = sum(forward_operations(lm, size, start, 0) for start, size in chunks)
        step = step_bytes(lm, 1, 1, prompt), forward_operations(lm, 1, prompt, 1)
        return moved + step[0], done + step[1]

    def _needs_further(self, arm: str, length: int) -> tuple[int, int]:
        if arm == NONE:
            return self._whole(length + 1)
        lm = self.models[CACHE]
        return step_bytes(lm, 1, 1, length), forward_operations(lm, 1, length, 1)

    def _whole(self, length: int) -> tuple[int, int]:
        """Return what reading a whole text needs, whose keys and values nobody keeps."""
        moved = step_bytes(self.models[NONE], 1, length, 0)
        return moved, forward_operations(self.models[CACHE], length, 0, length)


def lengths_of(given: object) -> list[int]:
    """Read the lengths of texts.

    Raises:
        UserError: they are none.
    """
    words = str(given).split(",")
    expected = "lengths of at least 2 tokens, 32,64,128"
    require(all(word.strip().isdigit() for word in words), "lengths", given, expected)
    found = sorted({int(word) for word in words})
    require(found[0] >= 2, "lengths", given, expected)
    return found


def model_of(name: str, device: torch.device, dtype: str, longest: int) -> PreTrainedModel:
    """Load a model that is proven, or draw the weights of `random:FOLDER` or `random:0.5B`.

    Raises:
        UserError: there is none, or it does not read so long a text.
    """
    kind, _, shape = str(name).rpartition("random:")
    if shape == name:
        model = sd.load(name, str(device), dtype, field="verifier").model
    else:
        require(not kind, "verifier", name, "random:FOLDER, random:0.5B, or a model")
        model = drawn_model(shape, device, DTYPES[dtype])
    if model.config.is_encoder_decoder or is_recurrent(model.config):
        kind = model.config.model_type
        raise UserError(f"verifier={name!r}: {kind} keeps more than cells; expected a decoder")
    limited_length(model.config.get_text_config(), longest, "the longest of lengths, and one more")
    return model


def drawn_model(shape: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model of random weights."""
    shapes = {name: each for scale in SCALES.values() for name, each in scale.models.items()}
    if shape in shapes:
        return random_llama(shapes[shape], device, dtype)
    known = f"a folder with a config.json, or one of {', '.join(shapes)}, behind random:"
    require((Path(shape) / "config.json").is_file(), "verifier", f"random:{shape}", known)
    torch.manual_seed(SEED)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(shape), dtype=dtype
        ).eval()


def plotted(phases: Sequence[Phase], caption: str, output: Path) -> list[Path]:
    """Draw times over the length of the text, beside the file; returns what was written."""
    lines: list[Series] = []
    for phase, words in ((FIRST, "until the first token"), (FURTHER, "a further token")):
        for arm, how in ((NONE, "no cache"), (CACHE, "with a KV cache")):
            own = [each for each in phases if (each.arm, each.phase) == (arm, phase)]
            milliseconds = [1e3 * each.seconds for each in own]
            lines.append(Series(f"{words}, {how}", [each.length for each in own], milliseconds))
    axis = Axis(output.stem, "text (tokens)", "What incremental decoding saves", "milliseconds")
    return save(growth(axis, lines, caption), output.parent)


def report_of(phases: Sequence[Phase], machine: Machine, bench: Bench) -> dict[str, Any]:
    """Return all of it as plain values."""
    attention = bench.models[CACHE].attention
    rows = [
        {
            **asdict(each),
            "intensity": each.intensity,
            "bound_by": each.bound(machine),
            "floor_seconds": each.floor(machine),
        }
        for each in phases
    ]
    return {
        "provenance": provenance(bench.device, bench.dtype, attention),
        "machine": {**asdict(machine), "balance": machine.balance},
        "phases": rows,
    }


def main() -> None:
    """Measure, print, draw and write."""
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)  # a mistyped option is refused
    options.merge_with_cli()
    output = Path(options.output)
    try:
        require_writable(output)
        bench = Bench(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    machine = Machine.measured(bench.device, DTYPES[bench.dtype])
    phases = list(bench.phases())
    about = f"{options.verifier}, {bench.dtype}, eager, medians of {bench.repeats}"
    print(
        f"{about}; tokens/s of a first token: its prefill's; floor: times what the machine can do"
    )
    Console(width=110).print(table_of(phases, machine))
    print(
        f"machine: {machine.bytes_per_second / 1e9:.1f} GB/s,"
        f" {machine.operations_per_second / 1e9:.0f} GFLOP/s in {bench.dtype};"
        f" {machine.balance:.1f} FLOP/byte are in balance"
    )
    write_json(output, report_of(phases, machine, bench))
    drawn = plotted(phases, f"{about[0].upper()}{about[1:]}.", output)
    print("written:", output, *drawn)


if __name__ == "__main__":
    main()
