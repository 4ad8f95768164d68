"""How fast heads are trained, next to the verifier's plain forward on the same batches, and the
memory that vocabulary logits take.

    python benchmarks/training.py                          # the embedded verifier
    python benchmarks/training.py verifier=FOLDER repeats=5
    python benchmarks/training.py verifier=small           # 26 M parameters, random weights
    python benchmarks/training.py runtimes=[eager,compiled] dtypes=[float32,bfloat16] shares=[1]
    python benchmarks/training.py memory=true              # 128 k tokens of vocabulary

Everything that is compared runs interleaved in one process; each number is a ratio of medians of
tokens per second over the repeats, with the smallest and the largest ratio of one repeat.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import specdec as sd
from specdec.core.sampling import Sampling
from specdec.heads.base import Heads
from specdec.lm.devices import DTYPES
from specdec.lm.hf import HFCausalLM
from specdec.proposer.medusa import MedusaHeads
from specdec.training.acceptance import Acceptance
from specdec.training.chained import ChainedTraining
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.head_losses import HeadLosses
from specdec.training.heads import HeadTraining
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.loss.lk import LK
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Loss
from specdec.training.read_ahead import ReadAhead
from specdec.tree.chain import Chain

DEFAULTS = {
    "verifier": "zoo:verifier",
    "device": "cpu",
    "dtypes": ["float32"],  # of the verifier; heads are trained in float32
    "runtimes": ["eager"],
    "heads": None,  # ["medusa, kl"]: not all of them
    "batch_size": 4,
    "max_length": 512,
    "repeats": 5,
    "clock": "wall",  # processor: seconds of computing, where others compute, too
    "shares": [1.0, 0.25, 0.125],
    "memory": False,
    "vocab_size": 128_000,
    "num_heads": 5,
    "num_tokens": 2048,
    "hidden_size": 64,  # of that model: the logits' size does not depend on it
}
SMALL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
    "bos_token_id": None,
}  # as scripts/build_zoo.py has it
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Arm = Callable[[], None]
ACCEPTANCE = Acceptance(Chain(4), Sampling(0))


def verifier_of(name: str, device: str, dtype: str, runtime: str) -> HFCausalLM:
    """Load a verifier, or make `small`: 26 M random weights, which read the zoo's tokens."""
    if name != "small":
        return sd.load(name, device, dtype, runtime=runtime)
    tokenizer = sd.load("zoo:verifier").tokenizer
    return HFCausalLM(small_model(device, dtype), tokenizer, runtime=runtime)


@lru_cache
def small_model(device: str, dtype: str) -> LlamaForCausalLM:
    """Make the weights that the runtimes share."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).requires_grad_(False).eval()
    torch.nn.Module.to(model, torch.device(device), DTYPES[dtype])  # typed, unlike its own
    return model


def states(
    options: DictConfig, text: Path, how: tuple[str, str], cache: Path | None
) -> VerifierStates:
    """Read the text with a verifier of a type and a runtime, with and without a cache of states."""
    verifier = verifier_of(options.verifier, options.device, *how)
    folder = None if cache is None else str(cache)
    data = str(text)
    found = VerifierStates(verifier, data, data, options.max_length, 1, cache_path=folder)
    found.prepare()
    return found


def training_arm(objective: HeadTraining, batch_size: int, device: str) -> Arm:
    """One forward and backward pass and one step of AdamW."""
    module = objective.module.to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
    steps = itertools.count()
    ahead = ReadAhead(lambda step: [objective.batch(0, batch_size)], end=sys.maxsize)

    def step() -> None:
        (batch,) = ahead.of(next(steps))
        objective.loss(module, batch.to(torch.device(device))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward_arm(source: VerifierStates, batch_size: int, device: str) -> Arm:
    """The verifier's forward with its logits, as training without heads would call it."""
    batch = source.batch(0, batch_size).to(torch.device(device))

    @torch.no_grad()
    def forward() -> None:
        source.verifier.unembed(source.hidden(batch))

    return forward


def arms(options: DictConfig, folder: Path) -> dict[str, Arm]:
    """All that is timed; the first is what the others are divided by."""
    text = folder / "text.txt"
    text.write_text("\n".join(Path(file).read_text() for file in sorted(_sources())[:12]))
    found: dict[str, Arm] = {}
    for dtype in options.dtypes:
        for runtime in options.runtimes:
            live, how = states(options, text, (dtype, runtime), None), f"{dtype}, {runtime}"
            found[f"verifier forward, {how}"] = forward_arm(
                live, options.batch_size, options.device
            )
            found |= trainings(options, live, how)
        cached = states(options, text, (dtype, "eager"), folder / f"cache_{dtype}")
        found |= trainings(options, cached, f"{dtype}, cached")
    return found


def trainings(options: DictConfig, source: VerifierStates, how: str) -> dict[str, Arm]:
    """Every kind of heads, with every share of the positions."""
    kinds: dict[str, tuple[type[MedusaTraining | ChainedTraining], Loss]] = {
        "medusa, cross_entropy": (MedusaTraining, CrossEntropy()),
        "medusa, kl": (MedusaTraining, KL()),
        "chained (token), kl": (ChainedTraining, KL()),
    }
    found: dict[str, Arm] = {}
    for name in options.heads or kinds:
        kind, loss = kinds[name]
        for share in options.shares:
            objective = kind(source, loss, ACCEPTANCE, share=share)
            objective.prepare()
            label = f"{name}, share {share:g}, {how}"
            found[label] = training_arm(objective, options.batch_size, options.device)
    return found


def _sources() -> list[str]:
    """Some text that is on every machine."""
    return [str(path) for path in Path(statistics.__file__).parent.glob("*.py")]


def time_once(arm: Arm, device: str, clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    start = clock()
    arm()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def throughput(options: DictConfig) -> Table:
    """Tokens per second of training over those of the first forward of the verifier."""
    with tempfile.TemporaryDirectory() as folder:
        timed = arms(options, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for repeat in range(options.repeats + 1):
            for name, arm in timed.items():
                took = time_once(arm, options.device, CLOCKS[options.clock])
                if repeat:  # the first is warm-up, and fills the cache
                    seconds[name].append(took)
    baseline, *others = seconds
    table = Table("what is timed", f"tokens/s over {baseline}", "smallest ... largest")
    for name in others:
        ratios = [a / b for a, b in zip(seconds[baseline], seconds[name], strict=True)]
        middle = statistics.median(seconds[baseline]) / statistics.median(seconds[name])
        table.add_row(name, f"{middle:.2f}", f"{min(ratios):.2f} ... {max(ratios):.2f}")
    return table


def memory(options: DictConfig) -> Table:
    """Peak memory of one forward and backward pass beyond weights and gradients (Linux)."""
    table = Table("heads", "loss", "weights + gradients (MiB)", "peak beyond them (MiB)")
    for own in (False, True):
        for loss in (CrossEntropy(), KL(), LK()):
            heads = MedusaHeads(
                options.hidden_size, options.vocab_size, options.num_heads, own_vocabulary_head=own
            )
            held, peak = peak_of(heads, loss, options)
            own_text = "own" if own else "shared"
            row = (f"{held:.0f}", f"{peak:.0f}")
            table.add_row(f"{own_text} vocabulary heads", type(loss).__name__, *row)
    return table


def random_verifier(hidden_size: int, vocab_size: int) -> HFCausalLM:
    """The smallest model that has such a vocabulary."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    return HFCausalLM(LlamaForCausalLM(config).requires_grad_(False).eval())


def peak_of(heads: Heads, loss: Loss, options: DictConfig) -> tuple[float, float]:
    """MiB of weights and gradients, and the peak of a pass beyond them."""
    verifier = random_verifier(options.hidden_size, options.vocab_size)
    module = HeadLosses(heads, loss, 0.8)
    token_ids = torch.randint(options.vocab_size, (4, options.num_tokens // 4))
    hidden = torch.randn(*token_ids.shape, options.hidden_size)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    held = sum(p.numel() for p in module.parameters()) * 8 / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    module(verifier, hidden, token_ids, torch.ones_like(token_ids, dtype=torch.bool)).backward()
    return held, _status("VmHWM") - before


def _status(name: str) -> float:
    """MiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print the tables."""
    given = OmegaConf.from_dotlist(sys.argv[1:])
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), given)
    assert isinstance(options, DictConfig)
    console = Console(width=120)
    console.print(memory(options) if options.memory else throughput(options))


if __name__ == "__main__":
    main()
