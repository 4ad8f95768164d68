"""Does `best` name the weights that decode best? The closed form against decoding a few prompts.

    python benchmarks/best_choice.py folder=outputs/best_choice            # an hour
    python benchmarks/best_choice.py folder=outputs/best_choice seeds=1 prompts=40

Heads are trained with several seeds on a text so short that they are best before the end. Each
evaluation takes block efficiency in three ways: decoded on `prompts` held-out prompts, which counts
as the truth; in closed form along 32 held-out samples (`HeldOut`); decoded on 8 prompts
(`Acceptance`). The seconds are of the process, on however many threads.
"""

import json
import sys
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.heads.base import DraftHeads
from specdec.lm.hf import HFCausalLM
from specdec.training.acceptance import Acceptance
from specdec.training.data.samples import Samples
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.expected_acceptance import HeldOut
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from specdec.zoo.stdlib import training_files

DEFAULTS = {
    "folder": "???",
    "seeds": 5,
    "prompts": 400,
    "new_tokens": 32,
    "max_steps": 400,
    "eval_steps": 40,
    "learning_rate": 3e-3,
    "temperature": 0.0,
    "characters": 60_000,  # of the text
    "max_length": 256,
}
WAYS = ("truth", "closed", "decoded")


class Three(HeldOut):
    """Measures in three ways; the first samples of what is held out are the truth's own."""

    def __init__(self, options: DictConfig, truth: Batch):
        tree, sampling = Chain(4), Sampling(options.temperature)
        super().__init__(tree, sampling)
        self._truth = truth
        self._few = Acceptance(tree, sampling)
        number, length = options.prompts, options.new_tokens
        self._many = Acceptance(tree, sampling, number, max_new_tokens=length)

    def measure(
        self,
        verifier: HFCausalLM,
        proposer: Proposer,
        draft: DraftHeads | HFCausalLM,
        held_out: Batch,
    ) -> dict[str, float]:
        """Return block efficiency and seconds of each way, as `closed`, `closed_seconds`, ..."""
        found: dict[str, float] = {}
        of = (verifier, proposer, draft)
        for name, way, batch in (
            ("closed", super().measure, held_out),
            ("decoded", self._few.measure, held_out),
            ("truth", self._many.measure, self._truth),
        ):
            since = time.process_time()
            measured = way(*of, batch)
            found |= {key.replace("eval_block_efficiency", name): v for key, v in measured.items()}
            found[f"{name}_seconds"] = time.process_time() - since
        return {**found, "eval_block_efficiency": found["closed"]}


def train(options: DictConfig, seed: int, output: Path) -> list[dict[str, float]]:
    """Train heads with a seed; returns what each evaluation says."""
    text = Path(options.folder) / "text.txt"
    if not text.is_file():
        text.parent.mkdir(parents=True, exist_ok=True)
        source = "".join(file.read_text(errors="replace") for file in training_files()[::17])
        text.write_text(source[: options.characters])
    verifier = sd.load("zoo:verifier")
    reads = (str(text), "zoo:held_out", options.max_length)
    states = VerifierStates(verifier, *reads, seed=seed)
    states.prepare()
    assert verifier.tokenizer is not None
    held_out = Samples.read("zoo:held_out", verifier.tokenizer, options.max_length)
    first = len(states.held_out.token_ids)  # the truth is no part of what the others see
    acceptance = Three(options, held_out.take(first, options.prompts))
    objective = MedusaTraining(states, CrossEntropy(), acceptance)
    Trainer(
        max_steps=options.max_steps,
        per_device_train_batch_size=4,
        learning_rate=options.learning_rate,
        eval_steps=options.eval_steps,
        save_steps=options.eval_steps,
        seed=seed,
    ).fit(objective, output)
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "truth" in line]


def main() -> int:
    """Train, measure and print."""
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli(sys.argv[1:]))
    assert isinstance(options, DictConfig)
    table = Table("seed", "best step", "closed", "decoded", "lost by closed", "lost by decoded")
    seconds = dict.fromkeys(WAYS, 0.0)
    right = {"closed": 0, "decoded": 0}
    num = 0
    for seed in range(options.seeds):
        found = train(options, seed, Path(options.folder) / f"seed-{seed}")
        chosen = {way: max(found, key=lambda line, way=way: line[way]) for way in WAYS}
        top = chosen["truth"]
        lost = {way: top["truth"] - chosen[way]["truth"] for way in right}
        for way in right:
            right[way] += chosen[way]["step"] == top["step"]
        steps = [f"{int(chosen[way]['step'])}" for way in WAYS]
        table.add_row(f"{seed}", *steps, *(f"{lost[way]:.4f}" for way in right))
        num += len(found)
        for way in WAYS:
            seconds[way] += sum(line[f"{way}_seconds"] for line in found)
    console = Console()
    console.print(table)
    counts = ", ".join(f"{way} {count} of {options.seeds}" for way, count in right.items())
    console.print(f"chosen as by {options.prompts} prompts: {counts}")
    times = ", ".join(f"{way} {total / num:.2f}" for way, total in seconds.items())
    console.print(f"seconds of processors an evaluation: {times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
