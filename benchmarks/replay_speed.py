"""How much faster is a grid of configurations replayed than each of them decoded?

    python benchmarks/replay_speed.py                               # minutes
    python benchmarks/replay_speed.py batch=8                       # decoding 8 requests at a time
    python benchmarks/replay_speed.py prompts=8 new_tokens=32 decoded=2 repeats=1      # shorter
    python benchmarks/replay_speed.py path=my.jsonl                 # other prompts

Everything runs in one process, and models are loaded before any clock starts. Recorded is what
`specdec-record` would record, with the same `batch` as decoding; the configurations are planned and
replayed by the code of `specdec-replay`. Of each family a few are decoded on some of the prompts,
and the seconds of all are extrapolated from these, by tokens. Parts are repeated in turn, so that
noise of the machine hits all of them, and medians are shown. An absolute time means little on a
shared machine; the ratio is what counts.
"""

import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.resources import files
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from specdec.command.compose import compose_decode
from specdec.command.options import plain
from specdec.command.replay_grid import plan
from specdec.core.jsonl import write_jsonl
from specdec.lab.arm import build_arm
from specdec.lab.decoding import decode_into
from specdec.lab.record import record
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.replay.replayer import Replayer
from specdec.lab.spec import ArmSpec, with_options
from specdec.metrics import summarize
from specdec.prompts import load_prompts
from specdec.recording.recorded import Recording, read_recording

DEFAULTS = {
    "prompts": 64,
    "new_tokens": 128,
    "temperature": 1.0,
    "top_p": 1.0,
    "batch": 1,  # of decoding and of the recording
    "decoded": 8,  # prompts on which the sample of configurations is decoded
    "repeats": 3,
    "path": "zoo:prompts",
}
GAMMAS = [1, 2, 3, 4, 6, 8, 12, 16]
TREES = ["[2,2]", "[2,2,1]", "[3,2,1]"]  # widths
DRAWN = ["iid", "iid verification=kseq", "iid verification=match", "without_replacement"]
DRAWN += ["without_replacement verification=match", "top_plus_one verification=top_plus_one"]
SPARSE = ["", " tree.paths=[[0,0,0],[1,0],[2]]"]
# As the options of `specdec-replay` have them.
FAMILIES: Mapping[str, Mapping[str, Sequence[object]]] = {
    "none": {"proposer": ["none"]},
    "chains of the draft": {
        "proposer": ["draft_model"],
        "verification": ["rejection", "block", "match"],
        "gamma": GAMMAS,
        "temperature": [None, 0.7, 0.5],
    },
    "chains of heads": {
        "proposer": ["medusa", "chained"],
        "verification": ["rejection", "block"],
        "gamma": [1, 2, 3, 4],
    },
    "n-grams": {"proposer": ["ngram"], "gamma": GAMMAS},
    "sampled trees": {
        "arms": [
            f"proposer=draft_model tree=sampled tree.widths={widths} tree.draw={drawn}"
            for widths in TREES
            for drawn in DRAWN
        ]
    },
    "trees of fixed ranks": {
        "arms": [
            f"proposer={proposer} tree=sparse{paths}"
            for proposer in ("draft_model", "medusa", "chained")
            for paths in SPARSE
        ]
    },
    "dynamic trees": {
        "proposer": ["draft_model", "medusa", "chained"],
        "tree": ["dynamic"],
        "num_nodes": [8, 16, 32],
    },
}
GRID = {"proposer": [], "tree": ["chain"], "verification": ["rejection"], "gamma": [4]}
GRID |= {"num_nodes": [16], "temperature": [None]}
GROWTH = (1, 2, 5, 10, 20, 50, 100)
Arms = Mapping[str, ReplayArm]


class Seconds:
    """Wall seconds of parts that are repeated."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time one run of a part, in silence."""
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            began = time.perf_counter()
            yield
            self._found.setdefault(name, []).append(time.perf_counter() - began)

    def __getitem__(self, name: str) -> float:
        return median(self._found[name])


class Bench:
    """A recording in the making, the configurations, and what everything takes."""

    def __init__(self, options: DictConfig, folder: Path):
        self.options, self.folder = options, folder
        self.seconds = Seconds()
        self.spec = self._plain()
        self.families: dict[str, Arms] = {}
        self.specs: dict[str, ArmSpec] = {}

    def _plain(self) -> ArmSpec:
        """Compose plain decoding, of as many prompts as are wanted."""
        options, prompts = self.options, load_prompts(self.options.path)
        # Prompts that come again are other requests, with noise of their own.
        chosen = [(number, prompts[number % len(prompts)]) for number in range(options.prompts)]
        rows = [
            {"id": f"{number}", "category": prompt.category, "prompt": prompt.turns[0][-1].content}
            for number, prompt in chosen
        ]
        write_jsonl(self.folder / "prompts.jsonl", rows)
        names = ("temperature", "top_p")
        composed = compose_decode(
            [
                *(f"sampling.{name}={options[name]}" for name in names),
                f"prompts.path={self.folder / 'prompts.jsonl'}",
                f"max_new_tokens={options.new_tokens}",
                f"batch={options.batch}",
                "proposer=none",
            ]
        )
        return ArmSpec.of(plain(composed))

    def plan(self) -> None:
        """Compose the configurations of all families."""
        options = OmegaConf.load(str(files("specdec.configs") / "replay.yaml"))
        assert isinstance(options, DictConfig)
        with self.seconds.of("planning"):
            for name, family in FAMILIES.items():
                grid = {key: family.get(key, value) for key, value in GRID.items()}
                options.merge_with({"grid": grid, "arms": family.get("arms", [])})
                planned = plan(options, self.spec.options)
                self.families[name] = planned.arms
                self.specs |= planned.specs

    @property
    def arms(self) -> Arms:
        """All configurations, none beside its likes."""
        found = [pair for arms in self.families.values() for pair in arms.items()]
        random.Random(0).shuffle(found)
        return dict(found)

    def record(self, repeat: int) -> Recording:
        """Decode all prompts without a draft, and score the texts."""
        run, recording = self.folder / f"run{repeat}", self.folder / f"recording{repeat}"
        with self.seconds.of("decoding what is recorded"):
            decode_into(self.spec, run)
        with self.seconds.of("scoring"):
            record(run, recording, top_k=64)
        with self.seconds.of("reading the recording"):
            return read_recording(recording)

    def replay(self, name: str, arms: Arms, recording: Recording) -> None:
        """Replay some configurations."""
        verifier = self.spec.verifier.build()
        with self.seconds.of(name):
            sampling = recording.sampling_of(verifier)
            tallies = Replayer.of(recording, verifier, sampling).replay(arms)
        with self.seconds.of(f"summary {name}"):
            for tally in tallies.values():
                summarize(tally)

    def sample(self) -> dict[str, dict[str, ReplayArm]]:
        """Choose configurations to decode: one of each family, two of large ones."""
        found: dict[str, dict[str, ReplayArm]] = {}
        for family, arms in self.families.items():
            number = 2 if len(arms) > 10 else 1
            places = [len(arms) * (2 * each + 1) // (2 * number) for each in range(number)]
            found[family] = {list(arms)[place]: arms[list(arms)[place]] for place in places}
        return found

    def decode(self, name: str) -> int:
        """Decode one configuration on some prompts; return how many tokens came out."""
        spec = ArmSpec.of(with_options(self.specs[name].options, {"batch": self.options.batch}))
        prompts = spec.prompts.load()[: self.options.decoded]
        arm = build_arm(spec, spec.verifier.build())
        arm.warm_up(prompts[0])
        with self.seconds.of(f"decode {name}"):
            return sum(len(trace.output_ids) for trace in arm.decode(prompts))


def main() -> None:
    """Measure everything, and print it."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    assert isinstance(options, DictConfig)
    with TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        bench.plan()
        measure(bench)


def measure(bench: Bench) -> None:
    """Run all parts in turn, as often as is wanted, and show what they take."""
    arms, sample = bench.arms, bench.sample()
    warm_up(bench, sample)
    per_token: dict[str, list[float]] = {name: [] for some in sample.values() for name in some}
    recording = None
    for repeat in range(bench.options.repeats):
        recording = bench.record(repeat)
        for family, some in sample.items():
            bench.replay(family, bench.families[family], recording)
            for name in some:
                num_tokens = bench.decode(name)
                per_token[name].append(bench.seconds[f"decode {name}"] / num_tokens)
        bench.replay("all", arms, recording)
        for number in sizes(arms):
            bench.replay(f"first {number}", dict(list(arms.items())[:number]), recording)
    assert recording is not None
    decoded = {
        family: sum(median(per_token[name]) for name in some) / len(some) * recording.num_tokens
        for family, some in sample.items()
    }
    show(bench, recording, decoded)


def warm_up(bench: Bench, sample: Mapping[str, Arms]) -> None:
    """Load the models, and let first calls pay for what later ones reuse."""
    prompts = bench.spec.prompts.load()
    for some in sample.values():
        for spec in map(bench.specs.__getitem__, some):
            build_arm(spec, spec.verifier.build()).warm_up(prompts[0])


def sizes(arms: Arms) -> list[int]:
    """Return how many configurations are replayed together to see the growth."""
    return [number for number in GROWTH if number < len(arms)]


def show(bench: Bench, recording: Recording, decoded: Mapping[str, float]) -> None:
    """Print what came of it; `decoded` are the seconds of one configuration of each family."""
    seconds, families = bench.seconds, bench.families
    table = Table(title=f"{len(recording.texts)} texts, {recording.num_tokens} tokens")
    for name in ("family", "configurations", "replay, s", "decoding (estimated), s", "ratio"):
        table.add_column(name, justify="right" if name != "family" else "left")
    total = {family: one * len(families[family]) for family, one in decoded.items()}
    for family, arms in families.items():
        row = (seconds[family], total[family], total[family] / seconds[family])
        table.add_row(family, str(len(arms)), *(f"{value:.1f}" for value in row))
    Console(width=120).print(table)
    steps = ("decoding what is recorded", "scoring", "planning", "reading the recording", "all")
    called = {"all": f"replay of all {len(bench.arms)}"}
    for name in (*steps, "summary all"):
        print(f"{called.get(name, name)}: {seconds[name]:.2f} s")
    ours, theirs = sum(seconds[name] for name in steps), sum(total.values())
    print(f"recording, planning and replay {ours:.1f} s; decoding each {theirs:.0f} s (estimated)")
    print(f"ratio {theirs / ours:.1f}; without the recording {theirs / seconds['all']:.1f}")
    grown = [f"{number}: {seconds[f'first {number}']:.2f} s" for number in sizes(bench.arms)]
    print(f"replay of the first {', '.join(grown)}, {len(bench.arms)}: {seconds['all']:.2f} s")


if __name__ == "__main__":
    main()
