"""What it costs that states cannot be rewound: speedups of recurrent verifiers.

    python benchmarks/recurrent.py
    python benchmarks/recurrent.py families=[mamba2] accuracies=[0.8] gamma=2

Models have random weights. Drafts are the tokens of the verifier's own text, each right with a
known probability, so that the verifier's reading is all that is measured. `limit` is how many
tokens a row may lag behind before they get a forward of their own (`recurrent.MOST_AGAIN`): with 0
they always do. Arms are interleaved; numbers are ratios of medians over the repeats.
"""

import statistics
import sys
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, logging

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.core.trace import Trace
from specdec.lm import recurrent
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.metrics import Tally
from specdec.metrics.speed import reread_share

DEFAULTS = {
    "families": ["llama", "lfm2", "qwen3_5_text", "mamba2", "mamba"],
    "accuracies": [0.6, 0.8, 0.9],
    "limits": [0, 8, 16, 32, 64],
    "gamma": 4,
    "prompts": 2,
    "new_tokens": 64,
    "repeats": 3,
}
SIZE = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
LINEAR = {
    "head_dim": 64, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
    "linear_num_key_heads": 4, "linear_num_value_heads": 4,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "lfm2": {"layer_types": (["conv"] * 3 + ["full_attention"]) * 2},
    "qwen3_5_text": LINEAR,
    "mamba2": {"num_heads": 8, "head_dim": 64, "state_size": 64, "n_groups": 1, "chunk_size": 64},
    "mamba": {"state_size": 16},
}


def main() -> None:
    """Measure every family, and print one table."""
    logging.set_verbosity_error()
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)  # a mistyped option is refused
    options.merge_with(OmegaConf.from_cli(sys.argv[1:]))
    table = Table(title=f"speedup over one token at a time, chains of {options.gamma}")
    names = ("family", "accuracy", "tau", "limit", "speedup", "read once more")
    for name in names:
        table.add_column(name, justify="left" if name == "family" else "right")
    for family in options.families:
        for row in rows_of(family, options):
            table.add_row(family, *row)
    Console(width=100).print(table)


def model_of(family: str) -> PreTrainedModel:
    """Make a model of random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZE, **SHAPES[family]})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def rows_of(family: str, options: DictConfig) -> list[list[str]]:
    """Decode with and without drafts, in turns, for each limit and accuracy."""
    lm = causal_lm(model_of(family))
    generator = torch.Generator().manual_seed(1)
    shape = (options.prompts, 32)
    prompts = torch.randint(lm.vocab_size, shape, generator=generator).tolist()
    requests = [sd.Request(str(number), prompt) for number, prompt in enumerate(prompts)]
    plain = decoded(lm, sd.NoProposer(), requests, options)
    texts = {trace.prompt_id: trace.output_ids for trace in plain}
    rows: list[list[str]] = []
    for accuracy in options.accuracies:
        for limit in options.limits if isinstance(lm, recurrent.RecurrentLM) else [0]:
            recurrent.MOST_AGAIN = limit
            rows.append([f"{accuracy:g}", *_measured(lm, texts, accuracy, requests, options)])
            rows[-1].insert(2, str(limit))
    return rows


def _measured(
    lm: HFCausalLM,
    texts: dict[str, tuple[int, ...]],
    accuracy: float,
    requests: list[sd.Request],
    options: DictConfig,
) -> list[str]:
    speedups: list[float] = []
    traces: list[Trace] = []
    for _ in range(options.repeats):
        plain = Tally.of(decoded(lm, sd.NoProposer(), requests, options))
        traces = decoded(lm, sd.Recorded(texts, options.gamma, accuracy), requests, options)
        found = Tally.of(traces)
        speeds = [t.total("num_emitted") / t.total("decode_seconds") for t in (found, plain)]
        speedups.append(speeds[0] / speeds[1])
    tally = Tally.of(traces)
    share = reread_share(tally)
    tau = tally.total("num_emitted") / tally.total("num_steps")
    again = "-" if share is None or share.value is None else f"{share.value:.0%}"
    return [f"{tau:.2f}", f"{statistics.median(speedups):.2f}", again]


def decoded(
    lm: HFCausalLM, proposer: Proposer, requests: list[sd.Request], options: DictConfig
) -> list[Trace]:
    """Decode all requests, one at a time."""
    stopping = sd.Stopping(options.new_tokens, frozenset())
    decoder = sd.SpeculativeDecoder(lm, proposer, sd.Rejection(), sd.Sampling(0), stopping)
    return decoder.decode(requests)


if __name__ == "__main__":
    main()
