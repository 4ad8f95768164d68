"""Where prefix-LM attention helps: models of one shape, trained on the same data, compared.

    python benchmarks/prefix_lm.py folder=outputs/prefix_lm              # an hour on two cores
    python benchmarks/prefix_lm.py folder=outputs/prefix_lm max_steps=3000 hidden_size=256

All begin with the same random weights. The causal model learns from every token of a block, a
prefix LM from those behind a random split, which are half as many. So there are two: `prefix_lm`
reads the causal model's blocks in the same order, `prefix_lm_2x` twice as many in each step, and so
learns from as many tokens in as many updates. On held-out files all predict the same tokens behind
the same prefixes. Intervals are of a bootstrap over the files. Then n-grams draft for them, from
the beginnings of the same blocks.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

import specdec as sd
from specdec.lm import mask
from specdec.lm.hf import HFCausalLM
from specdec.lm.mask import PREFIX_LM
from specdec.metrics import Tally, block_efficiency
from specdec.metrics.estimate import Estimate, FloatArray, Sums, paired_difference, ratio_estimate
from specdec.zoo.stdlib import held_out_files

DEFAULTS = {
    "folder": "???",
    "max_steps": 350,
    "batch_size": 16,
    "block_length": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "seed": 0,
    "prefixes": [16, 64, 128, 192],  # tokens
    "distances": [4, 16, 64],  # behind the prefix: the last tokens of the first groups
    "blocks": 10,  # of a file, at most
    "new_tokens": 64,
}
CAUSAL = "causal"


@dataclass(frozen=True)
class Arm:
    """A model: how it sees its prompts, and how many times the blocks a step of it reads."""

    attention: str | None
    times: int = 1


ARMS = {CAUSAL: Arm(None), "prefix_lm": Arm(PREFIX_LM), "prefix_lm_2x": Arm(PREFIX_LM, 2)}


def train(options: DictConfig, name: str) -> Path:
    """Train one of them, unless it is there."""
    output = Path(options.folder) / name
    arm = ARMS[name]
    command = [
        *(sys.executable, "experiments/train.py", "train=lm", "data.path=zoo:train"),
        *("data.held_out_path=zoo:held_out", "train.tokenizer_path=zoo:verifier"),
        f"attention={arm.attention or 'null'}",
        f"train.hidden_size={options.hidden_size}",
        f"train.intermediate_size={3 * options.hidden_size}",
        f"train.num_hidden_layers={options.num_hidden_layers}",
        "train.num_attention_heads=4",
        "train.max_position_embeddings=512",
        f"train.block_length={options.block_length}",
        f"trainer.per_device_train_batch_size={arm.times * options.batch_size}",
        f"max_steps={options.max_steps}",
        *("trainer.save_best=false", "trainer.eval_on_start=false", "trainer.save_steps=100"),
        *(f"trainer.eval_steps={options.max_steps}", f"seed={options.seed}", f"output={output}"),
    ]
    if not (output / "config.json").is_file():
        subprocess.run(command, check=True)
    return output


def blocks_of(tokenizer: Any, options: DictConfig) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks [N, T] of each held-out file, with its number."""
    length = options.block_length
    for number, file in enumerate(held_out_files()):
        ids = torch.tensor(tokenizer(file.read_text(errors="replace"))["input_ids"])
        num = min(len(ids) // length, options.blocks)
        if num:
            yield number, ids[: num * length].view(num, length)


@torch.inference_mode()
def nats(lm: HFCausalLM, token_ids: Tensor, num_prefix: int) -> FloatArray:  # [N, T] -> [N, T]
    """Return what each token costs; 0 within the prefix, where nothing is predicted."""
    found: list[Tensor] = []
    for some in token_ids.split(16):
        lengths = torch.full((len(some),), num_prefix)
        prefixed = lm.prompt_mask == PREFIX_LM
        sight = mask.sight_of(lengths, some.shape[1], lm.model.dtype) if prefixed else {}
        log_p = lm.model(input_ids=some, use_cache=False, **sight).logits[:, :-1].log_softmax(-1)
        own = -log_p.gather(2, some[:, 1:, None])[..., 0]
        found.append(torch.nn.functional.pad(own, (1, 0)))
    costs = torch.cat(found).double()
    costs[:, :num_prefix] = 0
    return costs.numpy()


def sums(files: Sequence[int], losses: FloatArray, span: slice) -> Sums:
    """Add up a span of tokens, file by file."""
    numbers = np.array(files)
    groups = [losses[numbers == number][:, span] for number in sorted(set(files))]
    numerators = np.array([group.sum() for group in groups])
    return Sums(numerators, np.array([float(group.size) for group in groups]))


def shown(estimate: Estimate, digits: int = 3) -> str:
    """Write a number with its interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    ends = f"{estimate.low:.{digits}f}, {estimate.high:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{ends}]"


def compare(models: Mapping[str, HFCausalLM], options: DictConfig) -> Table:
    """Compare the losses of the same tokens, by prefix and by distance from it."""
    pairs = list(blocks_of(models[CAUSAL].tokenizer, options))
    files = [number for number, blocks in pairs for _ in blocks]
    token_ids = torch.cat([blocks for _, blocks in pairs])
    others = [name for name in models if name != CAUSAL]
    table = Table("prefix", "behind it", *models, *(f"{name} - {CAUSAL}" for name in others))
    for num_prefix in options.prefixes:
        costs = {name: nats(lm, token_ids, num_prefix) for name, lm in models.items()}
        for first, last in spans(options, num_prefix):
            span = slice(num_prefix + first, num_prefix + last)
            found = {name: sums(files, each, span) for name, each in costs.items()}
            table.add_row(
                f"{num_prefix}",
                f"{first + 1}-{last}",
                *(shown(ratio_estimate(*each)) for each in found.values()),
                *(shown(paired_difference(found[name], found[CAUSAL])) for name in others),
            )
    return table


def spans(options: DictConfig, num_prefix: int) -> Iterator[tuple[int, int]]:
    """Yield groups of distances, and all of them together."""
    behind = options.block_length - num_prefix
    ends = [end for end in options.distances if end < behind]
    edges = [0, *ends, behind]
    yield from pairwise(edges)
    yield 0, behind


def accepted(models: Mapping[str, HFCausalLM], options: DictConfig) -> Table:
    """Let n-grams draft for all, behind prefixes of the same blocks."""
    table = Table("prefix", *(f"tau of {name}" for name in models))
    pairs = list(blocks_of(next(iter(models.values())).tokenizer, options))
    for num_prefix in options.prefixes:
        requests = [
            sd.Request(f"{number}", block[:num_prefix].tolist(), turn=turn)
            for number, blocks in pairs
            for turn, block in enumerate(blocks[:: max(1, len(blocks) // 4)][:4])
        ]
        found: list[str] = []
        for lm in models.values():
            stopping = sd.Stopping(options.new_tokens)
            parts = (lm, sd.NGram(4), sd.Rejection(), sd.Sampling(0.0), stopping, 8)
            tau = block_efficiency(Tally.of(sd.SpeculativeDecoder(*parts).decode(requests)))
            found.append(shown(tau, 2))
        table.add_row(f"{num_prefix}", *found)
    return table


def main() -> int:
    """Train what is not there, compare and print."""
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli(sys.argv[1:]))
    assert isinstance(options, DictConfig)
    folders = {name: train(options, name) for name in ARMS}
    models = {
        name: sd.load(folder, attention=ARMS[name].attention) for name, folder in folders.items()
    }
    console = Console(width=160)
    console.print("nats per token, of the same held-out tokens")
    console.print(compare(models, options))
    console.print("block efficiency of n-grams, at temperature 0")
    console.print(accepted(models, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
