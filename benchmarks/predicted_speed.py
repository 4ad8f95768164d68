"""How near is the speed that replay predicts to the speed that decoding has?

    python experiments/costs.py output=outputs/costs.json
    python benchmarks/predicted_speed.py costs=outputs/costs.json
    python benchmarks/predicted_speed.py costs=outputs/costs.json temperature=1 limit=20

All configurations decode the same prompts in the runtime and dtype of the costs, interleaved in one
process; the texts of plain decoding are then replayed with the measured costs. Speedups are over
plain decoding, on both sides.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from specdec.command.compose import compose_decode
from specdec.command.options import arm_spec, plain
from specdec.command.replay_grid import arm_config
from specdec.core.trace import PlainSteps, Trace
from specdec.lab.arm import Arm, build_arm, sampling_of, stopping_of
from specdec.lab.costs.suitable import costs_to_decode_by
from specdec.lab.interleaving import interleave
from specdec.lab.rendered_runs import texts_of_run
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.replay.replayer import Replayer
from specdec.lm.fingerprint import fingerprint
from specdec.metrics import Tally, block_efficiency, speedup
from specdec.prompts import Prompt
from specdec.recording.scoring import score
from specdec.replaying.costs_file import read_costs

DEFAULTS = {
    "costs": "???",
    "temperature": 0.0,
    "limit": 12,  # prompts
    "new_tokens": 64,
    "batch": 1,
    "path": "zoo:prompts",
}
PLAIN = "proposer=none"
ARMS = [
    PLAIN,
    "proposer=ngram tree.gamma=2",
    "proposer=ngram tree.gamma=8",
    "proposer=draft_model tree.gamma=1",
    "proposer=draft_model tree.gamma=2",
    "proposer=draft_model tree.gamma=4",
    "proposer=draft_model tree.gamma=6 verification=block",
    "proposer=draft_model tree=sparse",
    "proposer=draft_model tree=dynamic tree.num_nodes=8 tree.beam=4",
    "proposer=medusa tree.gamma=2",
    "proposer=medusa tree=sparse",
    "proposer=medusa tree=dynamic tree.num_nodes=8",
    "proposer=chained tree.gamma=1",
    "proposer=chained tree.gamma=3",
    "proposer=chained tree=sparse",
    "proposer=chained tree=dynamic tree.num_nodes=16",
]


def main() -> None:
    """Decode, replay, and print both speedups of each configuration."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    assert isinstance(options, DictConfig)
    known = read_costs(Path(options.costs)).circumstances
    shared = compose_decode(
        [
            f"sampling.temperature={options.temperature}",
            f"prompts.path={options.path}",
            f"prompts.limit={options.limit}",
            f"max_new_tokens={options.new_tokens}",
            f"runtime={known['runtime']}",
            f"dtype={known['dtype']}",
            PLAIN,
        ]
    )
    configs = {name: arm_config(name.split(), {}, plain(shared)) for name in ARMS}
    for config in configs.values():
        config.batch, config.keep_candidates = options.batch, 0
    specs = {name: arm_spec(config) for name, config in configs.items()}
    first = specs[PLAIN]
    verifier = first.verifier.build()
    arms = [build_arm(spec, verifier, name) for name, spec in specs.items()]
    traces = decoded(arms, first.prompts.load())
    clock = [PlainSteps.of(trace) for trace in traces[PLAIN]]
    measured = {name: Tally.of(each, clock) for name, each in traces.items()}
    unscored = texts_of_run(traces[PLAIN], first, verifier)
    texts = [each.text for each in score(unscored, verifier, first.sampling.build(), top_k=0)]
    costs = costs_to_decode_by(options.costs, fingerprint(verifier), verifier, {})
    able = {name: ReplayArm.of(spec) for name, spec in specs.items()}
    given = texts, verifier, sampling_of(first, verifier), stopping_of(first, verifier)
    predicted = Replayer(*given, costs=costs).replay(able)
    show(measured, predicted)


def decoded(arms: list[Arm], prompts: Sequence[Prompt]) -> dict[str, list[Trace]]:
    """Decode all prompts with all arms, in turns."""
    traces: dict[str, list[Trace]] = {arm.name: [] for arm in arms}
    for arm, trace in interleave(arms, prompts, arms[0].turn_size):
        traces[arm.name].append(trace)
    return traces


def show(measured: dict[str, Tally], predicted: dict[str, Tally]) -> None:
    """Print each configuration, the errors, and what choosing by prediction costs."""
    names = [name for name in ARMS if name != PLAIN]
    both = {
        name: [speedup(tallies[name]).value or math.nan for tallies in (measured, predicted)]
        for name in names
    }
    table = Table(title="speedup over plain decoding")
    for name in ("configuration", "tau decoded", "tau replayed", "measured", "predicted", "error"):
        table.add_column(name)
    errors: list[float] = []
    for name, (was, said) in both.items():
        errors.append(said / was - 1)
        taus = [f"{block_efficiency(each[name]).value:.3f}" for each in (measured, predicted)]
        table.add_row(name, *taus, f"{was:.3f}", f"{said:.3f}", f"{100 * errors[-1]:+.1f} %")
    Console(width=120).print(table)
    chosen = max(names, key=lambda name: both[name][1])
    best = max(names, key=lambda name: both[name][0])
    middle = statistics.median(abs(error) for error in errors)
    print(f"{len(names)} configurations: median absolute error {100 * middle:.1f} %")
    print(f"chosen: {chosen}, {both[chosen][0] / both[best][0]:.3f} of the best measured, {best}")


if __name__ == "__main__":
    main()
