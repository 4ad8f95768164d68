"""How fast heads are trained, next to the verifier's plain forward on the same batches, and the
memory that vocabulary logits take.

    python benchmarks/training.py                          # the embedded verifier
    python benchmarks/training.py verifier=FOLDER repeats=5
    python benchmarks/training.py memory=true              # 128 k tokens of vocabulary

Everything that is compared runs interleaved in one process; each number is a ratio of medians of
tokens per second over the repeats, with the smallest and the largest ratio of one repeat.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import specdec as sd
from specdec.core.sampling import Sampling
from specdec.heads.base import Heads
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
from specdec.tree.chain import Chain

DEFAULTS = {
    "verifier": "zoo:verifier",
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 4,
    "max_length": 512,
    "repeats": 5,
    "shares": [1.0, 0.25, 0.125],
    "memory": False,
    "vocab_size": 128_000,
    "num_heads": 5,
    "num_tokens": 2048,
    "hidden_size": 64,  # of that model: the logits' size does not depend on it
}
Arm = Callable[[], None]
ACCEPTANCE = Acceptance(Chain(4), Sampling(0))


def states(options: DictConfig, text: str, cache: str | None) -> VerifierStates:
    """Read the text with a verifier, with and without a cache of its states."""
    verifier = sd.load(options.verifier, options.device, options.dtype)
    found = VerifierStates(verifier, text, text, options.max_length, 1, cache_path=cache)
    found.prepare()
    return found


def training_arm(objective: HeadTraining, batch_size: int, device: str) -> Arm:
    """One forward and backward pass and one step of AdamW."""
    module = objective.module.to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)

    def step() -> None:
        objective.loss(module, objective.batch(0, batch_size).to(torch.device(device))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward_arm(source: VerifierStates, batch_size: int, device: str) -> Arm:
    """The verifier's forward with its logits, as training without heads would call it."""
    token_ids = source.batch(0, batch_size).token_ids.to(device)

    @torch.no_grad()
    def forward() -> None:
        source.verifier.model(input_ids=token_ids, use_cache=False)

    return forward


def arms(options: DictConfig, folder: Path) -> dict[str, Arm]:
    """All that is timed; the first is what the others are divided by."""
    text = folder / "text.txt"
    text.write_text("\n".join(Path(file).read_text() for file in sorted(_sources())[:12]))
    live = states(options, str(text), None)
    cached = states(options, str(text), str(folder / "cache"))
    found = {"verifier forward": forward_arm(live, options.batch_size, options.device)}
    kinds: dict[str, tuple[type[MedusaTraining | ChainedTraining], Loss]] = {
        "medusa, cross_entropy": (MedusaTraining, CrossEntropy()),
        "medusa, kl": (MedusaTraining, KL()),
        "chained (token), kl": (ChainedTraining, KL()),
    }
    for name, (kind, loss) in kinds.items():
        for share in options.shares:
            for where, source in (("on the fly", live), ("cached", cached)):
                objective = kind(source, loss, ACCEPTANCE, share=share)
                objective.prepare()
                label = f"{name}, share {share:g}, {where}"
                found[label] = training_arm(objective, options.batch_size, options.device)
    return found


def _sources() -> list[str]:
    """Some text that is on every machine."""
    return [str(path) for path in Path(statistics.__file__).parent.glob("*.py")]


def time_once(arm: Arm, device: str) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    arm()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def throughput(options: DictConfig) -> Table:
    """Tokens per second of training over those of the verifier's forward."""
    with tempfile.TemporaryDirectory() as folder:
        timed = arms(options, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for repeat in range(options.repeats + 1):
            for name, arm in timed.items():
                took = time_once(arm, options.device)
                if repeat:  # the first is warm-up, and fills the cache
                    seconds[name].append(took)
    baseline, *others = seconds
    table = Table("training", "tokens/s over verifier forward", "smallest ... largest")
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
