"""Rebuild the embedded model family end to end: text, verifier, draft model, heads, prompts.

    python scripts/build_zoo.py                             # specdec/zoo, hours on two cores
    python scripts/build_zoo.py size=small output=my_small  # 26 M parameters; size=base: 150 M
    python scripts/build_zoo.py mixed_precision=bf16        # where the processor computes in bf16

Models are trained by `experiments/train.py train=lm`, in stages of falling learning rates: cheap
short blocks first, the full context last; heads by `train=medusa` and `train=chained`. A build that
was interrupted resumes.
"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from specdec.core.jsonl import read_jsonl, write_json, write_jsonl, write_text
from specdec.zoo.stdlib import HELD_OUT, held_out_files

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
class Stage:
    """One training run: warm-up and a cosine down to zero, in steps of 4096 tokens."""

    block_length: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Shape:
    """Width, depth and training of one model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    stages: tuple[Stage, ...]  # each goes on from the weights of the one before


# Short blocks first: a CPU reads them half as fast again. A model that never saw more than 256
# tokens is lost beyond them (rotary positions do not extrapolate), so the last stage is no trifle.
# The zoo's models got one more cycle than that takes (warm restarts: Loshchilov & Hutter 2017).
SIZES = {
    "zoo": {
        "verifier": Shape(
            192,
            544,
            8,
            3,
            (Stage(512, 1300, 2.5e-3), Stage(256, 2000, 2e-3), Stage(1024, 800, 1e-3)),
        ),
        "draft": Shape(
            128,
            384,
            1,
            4,
            (Stage(512, 1000, 4e-3), Stage(256, 4000, 3e-3), Stage(1024, 1500, 2e-3)),
        ),
    },
    "small": {
        "verifier": Shape(512, 1376, 8, 8, (Stage(256, 8000, 1.5e-3), Stage(1024, 3000, 7e-4))),
        "draft": Shape(256, 688, 2, 4, (Stage(256, 8000, 3e-3), Stage(1024, 3000, 1.5e-3))),
    },
    "base": {
        "verifier": Shape(1024, 2752, 12, 16, (Stage(256, 20000, 6e-4), Stage(1024, 8000, 3e-4))),
        "draft": Shape(384, 1024, 4, 6, (Stage(256, 20000, 2e-3), Stage(1024, 8000, 1e-3))),
    },
}
# Heads see the shipped verifier's states, which are computed once for both.
HEADS = {
    "medusa": (),
    "chained": ("train.link=both", "train.prefix_attention=true"),
}
HEAD_STEPS = 1000  # of 4 blocks of 512 tokens
SHIPPED_HEADS = ("README.md", "config.json", "model.safetensors", "training.json")
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
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)  # a mistyped option is refused
    options.merge_with_cli()
    if options.size not in SIZES:
        sys.exit(f"error: size={options.size!r}: expected one of {', '.join(SIZES)}")
    work, output = Path(options.work), Path(options.output)
    work.mkdir(parents=True, exist_ok=True)
    build = Build(work, options.seed, options.mixed_precision, options.scale)
    shapes = SIZES[options.size]
    for role in ("verifier", "draft"):
        trained = build.model(role, shapes[role])
        (output / role).mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(trained / name, output / role / name)
    for kind in HEADS:
        trained = build.heads(kind, output / "verifier", shapes["verifier"].num_attention_heads)
        (output / kind).mkdir(exist_ok=True)
        for name in SHIPPED_HEADS:
            shutil.copyfile(trained / name, output / kind / name)
    write_jsonl(output / "prompts.jsonl", prompts())
    write_text(output / "README.md", card(build, shapes, options))
    print(f"built {options.size} in {output}")


@dataclass(frozen=True)
class Build:
    """Trains models below one working folder."""

    work: Path
    seed: int
    mixed_precision: str
    scale: float

    def model(self, role: str, shape: Shape) -> Path:
        """Train one model stage by stage; return the folder of the last one."""
        start = [
            f"train.{name}={getattr(shape, name)}"
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
            )
        ]
        if role != "verifier":
            start.append(f"train.tokenizer_path={self.stage('verifier', 0)}")
        for number, stage in enumerate(shape.stages):
            self._train(role, number, stage, start)
            start = [f"train.init_path={self.stage(role, number)}"]
        return self.stage(role, len(shape.stages) - 1)

    def stage(self, role: str, number: int) -> Path:
        """Return the folder of one stage."""
        return self.work / f"{role}_{number}"

    def _train(self, role: str, number: int, stage: Stage, start: list[str]) -> None:
        output = self.stage(role, number)
        steps = max(1, round(stage.steps * self.scale))
        options = [
            "train=lm",
            *self._shared(output, steps),
            # Another seed: no stage should begin with the blocks that the last one began with.
            f"seed={self.seed + number}",
            f"train.block_length={stage.block_length}",
            f"train.max_position_embeddings={CONTEXT}",
            f"trainer.per_device_train_batch_size={TOKENS_PER_STEP // stage.block_length}",
            f"trainer.learning_rate={stage.learning_rate}",
            *start,
        ]
        run(output, options)

    def heads(self, kind: str, verifier: Path, num_attention_heads: int) -> Path:
        """Train heads on a verifier; return their folder."""
        output = self.work / kind
        options = [
            f"train={kind}",
            *self._shared(output, max(1, round(HEAD_STEPS * self.scale))),
            *HEADS[kind],
            f"verifier.path={verifier}",
            f"data.cache_path={self.work / 'states'}",
            f"seed={self.seed}",
            "loss=kl",
            "trainer.per_device_train_batch_size=4",
            "trainer.learning_rate=3e-3",
        ]
        if kind == "chained":
            options.append(f"train.num_attention_heads={num_attention_heads}")
        run(output, options)
        return output

    def _shared(self, output: Path, steps: int) -> list[str]:
        return [
            "data.path=zoo:train",
            "data.held_out_path=zoo:held_out",
            f"output={output}",
            f"max_steps={steps}",
            f"trainer.warmup_steps={min(100, steps // 10)}",
            f"trainer.mixed_precision={self.mixed_precision}",
            "trainer.save_steps=100",
        ]


def run(output: Path, options: list[str]) -> None:
    """Train unless that was done."""
    if not is_finished(output, options):
        subprocess.run([sys.executable, "-m", "specdec", "train", *options], check=True)


def is_finished(output: Path, options: list[str]) -> bool:
    """Whether a stage was trained already; exits where it was with other options."""
    note = output / "stage.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != options:
        sys.exit(f"error: {output} holds a stage of another build; choose another folder, work=...")
    output.mkdir(exist_ok=True)
    write_json(note, options)
    return (output / "model.safetensors").exists()  # saved last


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


def card(build: Build, shapes: dict[str, Shape], options: DictConfig) -> str:
    """Write the model card from what the runs logged."""
    rows: list[str] = []
    for role, shape in shapes.items():
        size = f"{shape.num_hidden_layers} x {shape.hidden_size}"
        for number, stage in enumerate(shape.stages):
            metrics = build.stage(role, number) / "metrics.jsonl"
            last = [row for _, row in read_jsonl(metrics) if "eval_loss" in row][-1]
            rows.append(
                f"| {role} | {size} | {stage.block_length} | {stage.learning_rate:g} |"
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
from scratch on the source text of Python's standard library, and two sets of heads for the larger
one. They are small enough to ship and good enough to have their tokens accepted: a place to try
speculative decoding without a download. Not meant for anything else.

| model | layers x width | block | learning rate | steps | tokens | nats per token | bits per byte |
|---|---|---|---|---|---|---|---|
{rows}

One line is one stage; the next goes on from its weights. The last stage of each, at the full
context of 1024 tokens, is what is shipped, as bf16 safetensors. Losses are on the first 50 000
held-out tokens, read in blocks of the stage's length.

* **Data**: the standard library of Python {python} without tests, encodings and data tables.
  Held out, never trained on: {held_out}. `prompts.jsonl` holds two excerpts of each of these.
  The library's licence is the PSF License Agreement.
* **Heads** (`proposer=medusa`, `proposer=chained`), four each, on the shipped verifier: see the
  cards in their folders.
* **Training**: next-token cross-entropy, AdamW (beta2 0.95, weight decay 0.1), in each stage a
  warm-up and a cosine to zero, steps of 4096 tokens, seed {seed} + number of the stage
* **Command**: `{command}`
"""


if __name__ == "__main__":
    main()
