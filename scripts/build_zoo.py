"""Rebuild the embedded model family end to end: text, tokenizer, verifier, draft model, prompts.

    python scripts/build_zoo.py                             # specdec/zoo, hours on two cores
    python scripts/build_zoo.py size=small output=my_small  # 26 M parameters; size=base: 150 M
    python scripts/build_zoo.py mixed_precision=bf16        # where the processor computes in bf16

Training is `experiments/train.py train=lm`: first on short blocks, then, for the last steps, at the
full context. A build that was interrupted goes on where it stopped.
"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from specdec.core.jsonl import read_jsonl, write_jsonl, write_text
from specdec.zoo.stdlib import HELD_OUT, held_out_files, training_files

CONTEXT = 1024
TOKENS_PER_STEP = 4096
SHIPPED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class Shape:
    """Width, depth and training of one model; steps of 4096 tokens."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    learning_rate: float
    steps: int
    context_steps: int  # of those at the full context, after the others


SIZES = {
    "zoo": {
        "verifier": Shape(192, 544, 8, 3, 2.5e-3, steps=1300, context_steps=100),
        "draft": Shape(128, 384, 1, 4, 4e-3, steps=1000, context_steps=100),
    },
    "small": {
        "verifier": Shape(512, 1376, 8, 8, 1.5e-3, steps=8000, context_steps=500),
        "draft": Shape(256, 688, 2, 4, 3e-3, steps=8000, context_steps=500),
    },
    "base": {
        "verifier": Shape(1024, 2752, 12, 16, 6e-4, steps=20000, context_steps=1000),
        "draft": Shape(384, 1024, 4, 6, 2e-3, steps=20000, context_steps=1000),
    },
}
DEFAULTS = {
    "size": "zoo",
    "output": "specdec/zoo",
    "work": "outputs/zoo_${size}",
    "seed": 0,
    "mixed_precision": "no",
    "scale": 1.0,
}  # scale multiplies all step counts


def main() -> None:
    """Build what the command line asks for."""
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli())
    assert isinstance(options, DictConfig)
    if options.size not in SIZES:
        sys.exit(f"error: size={options.size!r}: expected one of {', '.join(SIZES)}")
    work, output = Path(options.work), Path(options.output)
    work.mkdir(parents=True, exist_ok=True)
    write_texts(work)
    build = Build(work, options.seed, options.mixed_precision, options.scale)
    shapes = SIZES[options.size]
    for role in ("verifier", "draft"):
        trained = build.model(role, shapes[role])
        (output / role).mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copy(trained / name, output / role / name)
    write_jsonl(output / "prompts.jsonl", prompts())
    write_text(output / "README.md", card(work, shapes, options))
    print(f"built {options.size} in {output}")


def write_texts(work: Path) -> None:
    """Write the training text and the held-out text as JSONL, one module a line."""
    for name, files in (("train", training_files()), ("held_out", held_out_files())):
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in files)
        write_jsonl(work / f"{name}.jsonl", ({"text": text} for text in texts))


@dataclass(frozen=True)
class Build:
    """Trains models below one working folder."""

    work: Path
    seed: int
    mixed_precision: str
    scale: float

    def model(self, role: str, shape: Shape) -> Path:
        """Train one model, on short blocks and then at the full context; return its folder."""
        short, full = self.work / f"{role}_short", self.work / role
        shared = [] if role == "verifier" else [f"train.tokenizer_path={self.work / 'verifier'}"]
        sizes = [
            f"train.{name}={getattr(shape, name)}"
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
            )
        ]
        self._train(short, shape.steps, shape.learning_rate, 512, self.seed, [*sizes, *shared])
        # Another seed: the last steps should not begin with the blocks that the first began with.
        longer = [f"train.init_path={short}", f"train.max_position_embeddings={CONTEXT}"]
        rate = shape.learning_rate / 10
        self._train(full, shape.context_steps, rate, CONTEXT, self.seed + 1, longer)
        return full

    def _train(
        self,
        output: Path,
        steps: int,
        learning_rate: float,
        block_length: int,
        seed: int,
        more: list[str],
    ) -> None:
        if (output / "model.safetensors").exists():
            return  # saved only at the end
        steps = max(1, round(steps * self.scale))
        subprocess.run(
            [
                sys.executable,
                "-m",
                "specdec.experiments.train",
                "train=lm",
                f"data.path={self.work / 'train.jsonl'}",
                f"data.held_out_path={self.work / 'held_out.jsonl'}",
                f"output={output}",
                f"max_steps={steps}",
                f"seed={seed}",
                f"train.block_length={block_length}",
                f"trainer.per_device_train_batch_size={TOKENS_PER_STEP // block_length}",
                f"trainer.learning_rate={learning_rate}",
                f"trainer.warmup_steps={min(100, steps // 10)}",
                f"trainer.mixed_precision={self.mixed_precision}",
                "trainer.save_steps=100",
                "trainer.resume_from_checkpoint=latest",
                *more,
            ],
            check=True,
        )


def prompts() -> list[dict[str, str]]:
    """Cut two prompts of about 600 characters, at line ends, from each held-out module."""
    rows: list[dict[str, str]] = []
    for part, share in (("a", 0.3), ("b", 0.65)):
        for name, path in zip(HELD_OUT, held_out_files(), strict=True):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            first = math.floor(len(lines) * share)
            text = ""
            for line in lines[first:]:
                if len(text) + len(line) > 600:
                    break
                text += line
            rows.append(
                {"id": f"{name}:{part}", "category": name.removesuffix(".py"), "prompt": text}
            )
    return rows


def card(work: Path, shapes: dict[str, Shape], options: DictConfig) -> str:
    """Write the model card from what the runs logged."""
    rows: list[str] = []
    for role in ("verifier", "draft"):
        weights = json.loads((work / role / "config.json").read_text())
        for folder, block in ((f"{role}_short", 512), (role, CONTEXT)):
            logged = [row for _, row in read_jsonl(work / folder / "metrics.jsonl")]
            last = [row for row in logged if "eval_loss" in row][-1]
            rows.append(
                f"| {role} | {weights['num_hidden_layers']} x {weights['hidden_size']} | {block} |"
                f" {last['step']} | {last['step'] * TOKENS_PER_STEP / 1e6:.1f} M |"
                f" {last['eval_loss']:.3f} | {last['eval_bits_per_byte']:.3f} |"
            )
    return CARD.format(
        rows="\n".join(rows),
        command=" ".join(["python", *sys.argv]),
        held_out=", ".join(f"`{name}`" for name in HELD_OUT),
        python=sys.version.split()[0],
        seed=options.seed,
    )


CARD = """# The embedded model family

Two Llama-shaped decoder-only models that share one byte-level BPE tokenizer (2048 tokens), trained
from scratch on the source text of Python's standard library. They are small enough to ship and
good enough to accept each other's tokens: a place to try speculative decoding without a download.
Not meant for anything else.

| model | layers x width | block | steps | tokens | held-out loss (nats/token) | bits per byte |
|---|---|---|---|---|---|---|
{rows}

Each model is trained on short blocks first and then, for the last steps, at its full context of
1024 tokens; the second line of each is what is shipped, as bf16 safetensors.

* **Data**: the standard library of Python {python} without tests, encodings and data tables.
  Held out, never trained on: {held_out}. `prompts.jsonl` holds two excerpts of each of these.
  The library's licence is the PSF License Agreement.
* **Training**: next-token cross-entropy, AdamW (beta2 0.95, weight decay 0.1), cosine schedule,
  steps of 4096 tokens, seed {seed}.
* **Command**: `{command}`
"""


if __name__ == "__main__":
    main()
