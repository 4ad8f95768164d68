"""Does decoding accept what replay says? Many configurations, two samplings and greedy, many seeds.

    python benchmarks/replay_agreement.py folder=outputs/agreement            # hours
    python benchmarks/replay_agreement.py folder=outputs/agreement seeds=1 limit=8 new_tokens=32

Each configuration is decoded with each seed and replayed twice: on the very texts that it wrote,
where only the luck of the rule is left between the two (given the text, what decoding counts has
the mean that replay computes), and on texts that plain decoding of the verifier wrote, where the
luck of the texts comes on top. What is decoded stays in `folder`; the same command goes on.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from specdec.command.compose import compose_decode
from specdec.command.options import arm_spec, plain
from specdec.command.replay_grid import arm_config
from specdec.core.errors import Unfit
from specdec.lab.arm import sampling_of, stopping_of
from specdec.lab.decoding import decode_into
from specdec.lab.rendered_runs import texts_of_run
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.replay.replayer import Replayer
from specdec.lab.spec import ArmSpec
from specdec.metrics import Tally, block_efficiency, efficiency_contrast, holm
from specdec.metrics.tally import pooled
from specdec.recording.scoring import score
from specdec.recording.texts import Text
from specdec.results.run_dir import read_tally, read_traces

DEFAULTS = {
    "folder": "???",
    "seeds": 6,
    "limit": 40,  # prompts
    "new_tokens": 128,
    "batch": 16,
    "path": "zoo:prompts",
}
SAMPLINGS = {
    "T=0": {"temperature": 0.0, "top_p": 1.0},
    "T=0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "T=1": {"temperature": 1.0, "top_p": 1.0},
}
PLAIN = "proposer=none"
ARMS = [
    "proposer=ngram tree.gamma=4",
    "proposer=draft_model tree.gamma=2",
    "proposer=draft_model tree.gamma=4 verification=block",
    "proposer=draft_model tree.gamma=8 proposer.temperature=0.7",
    "proposer=draft_model tree=filtered tree.gamma=6 tree.min_prob=0.2",
    "proposer=draft_model tree=sampled tree.widths=[3,2,1]",
    "proposer=draft_model tree=sampled tree.widths=[2,2,1] tree.draw=iid verification=kseq",
    "proposer=draft_model tree=sampled tree.widths=[3,1,1] tree.draw=top_plus_one"
    " verification=top_plus_one",
    "proposer=draft_model tree=paths tree.num_paths=3",
    "proposer=draft_model tree=paths tree.num_paths=3 verification=gbv",
    "proposer=draft_model tree=paths tree.num_paths=3 verification=kseq_block",
    "proposer=draft_model tree=sparse",
    "proposer=draft_model tree=dynamic tree.num_nodes=8",
    "proposer=medusa tree=sparse",
    "proposer=chained tree.gamma=4 verification=block",
    "proposer=chained tree=dynamic tree.num_nodes=8",
]


class Arm:
    """A configuration at one sampling, with the sums of what was decoded and replayed so far."""

    def __init__(self, sampling: str, overrides: str):
        self.sampling, self.overrides = sampling, overrides
        self.decoded: list[Tally] = []
        self.replayed: list[Tally] = []  # on its own texts

    def config(self, options: DictConfig, seed: int) -> DictConfig:
        """Compose the configuration of `decode`."""
        shared = plain_config(options, self.sampling, seed)
        return arm_config(self.overrides.split(), {}, plain(shared))


def plain_config(options: DictConfig, sampling: str, seed: int) -> DictConfig:
    """Compose plain decoding of the verifier, from which arms take what they share."""
    return compose_decode(
        [
            *(f"sampling.{name}={value}" for name, value in SAMPLINGS[sampling].items()),
            f"prompts.path={options.path}",
            f"prompts.limit={options.limit}",
            f"max_new_tokens={options.new_tokens}",
            f"seed={seed}",
            PLAIN,
        ]
    )


def job(config: DictConfig, options: DictConfig, number: int) -> ArmSpec:
    """Read a configuration as one of `number` jobs."""
    config.batch = options.batch
    config.sweep.missing, config.sweep.started = number, time.time()
    return arm_spec(config)


def decoded(spec: ArmSpec, folder: Path) -> list[Text]:
    """Decode unless that was done, and return the texts, scored."""
    decode_into(spec, folder)
    verifier, sampling = spec.verifier.build(), spec.sampling.build()
    texts = texts_of_run(read_traces(folder), spec, verifier)
    return [each.text for each in score(texts, verifier, sampling, top_k=0)]


def main() -> None:
    """Decode and replay everything, and print a table after each seed."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    assert isinstance(options, DictConfig)
    arms = [Arm(sampling, overrides) for sampling in SAMPLINGS for overrides in ARMS]
    on_plain: dict[tuple[str, str], list[Tally]] = {}
    for seed in range(options.seeds):
        # Greedy decoding knows no luck: one seed says it all.
        running = [arm for arm in arms if seed == 0 or arm.sampling != "T=0"]
        for arm in running:
            run_once(arm, options, seed, len(running))
        for sampling in dict.fromkeys(arm.sampling for arm in running):
            mine = {arm.overrides: arm for arm in running if arm.sampling == sampling}
            for name, tally in replay_plain(list(mine.values()), options, seed).items():
                on_plain.setdefault((sampling, name), []).append(tally)
        show(arms, on_plain, seed + 1)


def run_once(arm: Arm, options: DictConfig, seed: int, number: int) -> None:
    """Decode one arm with one seed, and replay it on what it wrote."""
    folder = Path(options.folder) / arm.sampling / str(seed + 1) / arm.overrides
    try:
        spec = job(arm.config(options, seed), options, number)
        texts = decoded(spec, folder)
    except Unfit as reason:
        print(f"left out: {arm.overrides}: {reason}")
        return
    arm.decoded.append(read_tally(folder))
    replayed = replayer(spec, texts, options.batch, seed).replay({"arm": ReplayArm.of(spec)})
    arm.replayed.append(replayed["arm"])


def replay_plain(arms: Sequence[Arm], options: DictConfig, seed: int) -> dict[str, Tally]:
    """Replay all arms of one sampling on texts that were decoded without a draft, other noise."""
    spec = job(plain_config(options, arms[0].sampling, 1000 + seed), options, 1)
    folder = Path(options.folder) / arms[0].sampling / str(seed + 1) / PLAIN
    texts = decoded(spec, folder)
    configs = {arm.overrides: arm.config(options, seed) for arm in arms if arm.decoded}
    able = {name: ReplayArm.of(arm_spec(config)) for name, config in configs.items()}
    return replayer(spec, texts, options.batch, seed).replay(able)


def replayer(spec: ArmSpec, texts: Sequence[Text], batch: int, seed: int) -> Replayer:
    """Replay on texts that were decoded as a spec says."""
    verifier = spec.verifier.build()
    sampling, stopping = sampling_of(spec, verifier), stopping_of(spec, verifier)
    return Replayer(texts, verifier, sampling, stopping, batch, seed)


def rows(
    arms: Sequence[Arm], on_plain: dict[tuple[str, str], list[Tally]]
) -> Iterator[tuple[Arm, Tally, Tally, Tally]]:
    """Yield each arm with the pooled sums: decoded, replayed on its texts, and on plain ones."""
    for arm in arms:
        if arm.decoded:
            plain = on_plain[arm.sampling, arm.overrides]
            yield arm, pooled(arm.decoded), pooled(arm.replayed), pooled(plain)


def show(arms: Sequence[Arm], on_plain: dict[tuple[str, str], list[Tally]], seeds: int) -> None:
    """Print what came of it."""
    found = list(rows(arms, on_plain))
    table = Table(title=f"replayed over decoded tau, {seeds} seeds")
    for name in ("sampling", "configuration", "tau decoded", "own texts", "plain texts"):
        table.add_column(name)
    outside = {"own texts": 0, "plain texts": 0}
    p_values: dict[str, list[float]] = {name: [] for name in outside}
    for arm, engine, own, others in found:
        cells = [arm.sampling, arm.overrides, f"{block_efficiency(engine).value:.3f}"]
        for name, tally in zip(outside, (own, others), strict=True):
            contrast = efficiency_contrast(tally, engine)
            ratio = contrast.ratio()
            assert ratio.value is not None
            assert ratio.low is not None
            assert ratio.high is not None
            outside[name] += ratio.low > 1 + 1e-9 or ratio.high < 1 - 1e-9
            p_values[name].append(contrast.p_value or 0.0)
            cells.append(f"{ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
        table.add_row(*cells)
    Console(width=190).print(table)
    for name, number in outside.items():
        smallest = min(holm(p_values[name]))
        print(f"{name}: {number} of {len(found)} intervals without 1; smallest p {smallest:.2g}")


if __name__ == "__main__":
    main()
