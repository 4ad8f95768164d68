"""What verifying costs: the share of a step that goes into the rule, for every rule and tree.

    python benchmarks/verification.py                            # V = 4096 on the CPU
    python benchmarks/verification.py vocab_size=131072 device=cuda dtype=bfloat16 hidden_size=2048

Models with random weights decode a few texts at T = 1; what is timed does not depend on what they
say. The rule's part is the warped distribution of every node (`Sampling.warp`) and `verify`; "all
but" has the commit and the records too. All arms run interleaved in one process; each number is a
median over texts of one text's share of its steps' seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import specdec as sd
from specdec.core.protocols import TreePolicy, VerificationRule
from specdec.lm.hf import HFCausalLM

DEFAULTS = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "layers": 8,
    "draft_hidden_size": 128,
    "draft_layers": 1,
    "texts": 8,
    "new_tokens": 48,
    "device": "cpu",
    "dtype": "float32",
}
TREES: dict[str, Callable[[], TreePolicy]] = {
    "chain of 4": lambda: sd.Chain(4),
    "filtered chain of 4": lambda: sd.Filtered(4, min_prob=1e-4),
    "dynamic, 16 nodes": lambda: sd.Dynamic(16),
    "dynamic, 64 nodes": lambda: sd.Dynamic(64, beam=16),
    "i.i.d. 2, 2, 1": lambda: sd.Sampled([2, 2, 1], "iid"),
    "without replacement 2, 2, 1": lambda: sd.Sampled([2, 2, 1], "without_replacement"),
    "top plus one 2, 2, 1": lambda: sd.Sampled([2, 2, 1], "top_plus_one"),
}
RULES: dict[str, Callable[[], VerificationRule]] = {
    "rejection": sd.Rejection,
    "match": sd.Match,
    "block": sd.Block,
    "traversal": sd.Traversal,
    "kseq": sd.KSeq,
    "top_plus_one": sd.TopPlusOne,
    "typical": sd.Typical,
    "lenient": sd.Lenient,
    "top_k": sd.TopK,
}


PARTS = ("warp", "verify", "other")


class Stopwatch:
    """Adds up the seconds that go into some calls."""

    def __init__(self, on_gpu: bool):
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._on_gpu = on_gpu

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same call, with its time booked under a name."""

        def run(*arguments: Any) -> Any:
            start = self._now()
            try:
                return call(*arguments)
            finally:
                self.seconds[name] += self._now() - start

        return run

    def _now(self) -> float:
        if self._on_gpu:  # a call returns before its work is done
            torch.cuda.synchronize()
        return time.perf_counter()


class TimedRule:
    """A rule whose decisions are timed."""

    def __init__(self, rule: VerificationRule, watch: Stopwatch):
        self.lossless_for = rule.lossless_for
        self.defined_for = rule.defined_for
        self.needs_q = rule.needs_q
        self.verify = watch.timed("verify", rule.verify)


class TimedSampling(sd.Sampling):
    """Plain sampling that times the verifier's distributions; a draft's are its own affair."""

    def __init__(self, watch: Stopwatch):
        super().__init__()
        object.__setattr__(self, "warp", watch.timed("warp", super().warp))

    def at(self, temperature: float | None) -> sd.Sampling:
        return sd.Sampling()


class Bench:
    """Two random models, and the arms that decode with them."""

    def __init__(self, options: DictConfig):
        self.options = options
        self.verifier = random_model(options, options.hidden_size, options.layers)
        self.draft = random_model(options, options.draft_hidden_size, options.draft_layers)
        generator = torch.Generator().manual_seed(0)
        size = (options.texts, 32)
        self.prompts = torch.randint(options.vocab_size, size, generator=generator).tolist()
        self.arms = {
            (tree, rule): self.arm(tree, rule)
            for tree in TREES
            for rule, made in RULES.items()
            if TREES[tree]().draw in made().defined_for
        }

    def arm(self, tree: str, rule: str) -> Callable[[list[int]], dict[str, float]]:
        """Return what decodes one text and gives the shares of its steps' seconds."""
        watch = Stopwatch(self.verifier.device.type == "cuda")
        decoder = sd.SpeculativeDecoder(
            self.verifier,
            sd.DraftModel(self.draft, TREES[tree]()),
            TimedRule(RULES[rule](), watch),
            TimedSampling(watch),
            sd.Stopping(self.options.new_tokens),
            allow_lossy=True,
        )

        def decode(prompt: list[int]) -> dict[str, float]:
            watch.seconds.update(dict.fromkeys(PARTS, 0.0))
            steps = decoder.decode([sd.Request(str(prompt[:4]), prompt)])[0].steps
            total = sum(s.propose_seconds + s.verify_seconds + s.other_seconds for s in steps)
            spent = {**watch.seconds, "other": sum(s.other_seconds for s in steps)}
            return {name: seconds / total for name, seconds in spent.items()}

        return decode

    def race(self) -> dict[tuple[str, str], list[dict[str, float]]]:
        """Let all arms decode each prompt in turn."""
        shares: dict[tuple[str, str], list[dict[str, float]]] = {name: [] for name in self.arms}
        for number, prompt in enumerate([self.prompts[0], *self.prompts]):
            names = list(self.arms)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                share = self.arms[name](prompt)
                if number > 0:  # the first one warms up
                    shares[name].append(share)
        return shares


def random_model(options: DictConfig, hidden_size: int, num_layers: int) -> HFCausalLM:
    """Build a Llama whose next-token distributions are about as peaked as a trained one's."""
    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=options.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=1024,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=3 * hidden_size**-0.5)
    return HFCausalLM(model.to(options.device, getattr(torch, options.dtype)))


def main() -> None:
    """Measure everything and print one table."""
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)  # a mistyped option is refused
    options.merge_with_cli()
    table = Table("tree", "rule", "verify and warp", "range", "all but forwards and drafting")
    for (tree, rule), shares in Bench(options).race().items():
        rule_part = [share["warp"] + share["verify"] for share in shares]
        other = statistics.median(share["other"] for share in shares)
        spread = f"{min(rule_part):.1%} to {max(rule_part):.1%}"
        table.add_row(tree, rule, f"{statistics.median(rule_part):.1%}", spread, f"{other:.1%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(main())
