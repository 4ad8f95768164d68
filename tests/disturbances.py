"""Disturb runs, sweeps, recordings, replays, reports and trainings, and see what they say of it.

`python -m tests.disturbances --events 100 --seed 0`. Each event kills a command, lets its writes
fail, or damages what it has left, and then the same command is given again. What must hold:

* nothing false is called complete: it has exactly the tokens or weights of an undisturbed run;
* nothing that was whole is lost: complete runs are not decoded again, whole texts are kept;
* the same command ends well and comes to what an undisturbed one came to, and leaves no litter;
* whatever went wrong was said without a traceback.

Everything is imported once and each command forked off, so that an event costs what it destroys.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

SHORT = ("prompts.limit=3", "max_new_tokens=10", "keep_candidates=1")
TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n" * 20
BROKE = 70  # exit status of a fork that raised
Fault = Callable[[], object]


@dataclass
class Ended:
    """How a forked command ended."""

    status: int
    said: str
    seconds: float


def start(entry_point: str, options: Sequence[str], log: Path, fault: Fault | None) -> int:
    """Fork a command off; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status: Any = BROKE
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [entry_point, *options]
        if fault is not None:
            fault()
        getattr(import_module("specdec.command.doors"), entry_point)()
        status = 0
    except SystemExit as ending:
        status = ending.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status if isinstance(status, int) else 1)


@dataclass
class Scenario:
    """A command, and what it must come to; `{}` in its options is the folder it works in."""

    name: str
    entry_point: str
    options: tuple[str, ...]
    outcome: Callable[[Path], dict[str, object]]  # of what is there and called complete
    folder: Path = Path()
    seconds: float = 0.0
    expected: dict[str, object] = field(default_factory=dict[str, object])
    given: Callable[[Path], object] = lambda folder: None  # put there before the command

    def run(self, fault: Fault | None = None, kill: tuple[int, float] | None = None) -> Ended:
        """Give the command, with a fault or a signal after some seconds."""
        log = self.folder.with_suffix(".log")
        began = time.monotonic()
        pid = start(self.entry_point, self.arguments, log, fault)
        if kill is not None:
            number, after = kill
            while time.monotonic() - began < after and not os.waitid(
                os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                time.sleep(0.002)
            os.kill(pid, number)  # it has not been waited for, so that the id is still its own
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = log.read_text(errors="replace")
        return Ended(status, said, time.monotonic() - began)

    @property
    def arguments(self) -> list[str]:
        """The options, with the folder."""
        return [text.replace("{}", str(self.folder)) for text in self.options]

    def afresh(self) -> None:
        """Forget what was done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.given(self.folder)

    def files(self) -> list[Path]:
        """List what can be damaged: what the command itself has written."""
        found = sorted(self.folder.rglob("*")) if self.folder.is_dir() else []
        return [path for path in found if path.is_file() and "given" not in path.parts]


# --- What is called complete, and what it holds ---


def runs(folder: Path) -> dict[str, object]:
    """Return the tokens of each run that is complete, by its name."""
    from specdec.results.run_dir import read_tally, read_traces, state_of
    from specdec.results.session import read_status

    found: dict[str, object] = {}
    for status in sorted(folder.rglob("status.json")):
        run = status.parent
        if "given" in run.parts or (read_status(run) or {}).get("kind") == "training":
            continue
        if state_of(run) == "complete":
            texts = {(t.prompt_id, t.turn): t.output_ids for t in read_traces(run)}
            sums = [_timeless(row) for row in read_tally(run).to_rows()]
            found[str(run.relative_to(folder))] = (sorted(texts.items()), sums)
    return found


def _timeless(row: Any) -> dict[str, Any]:
    # A text whose clock is lost is kept, and no speed is told of it.
    return {n: value for n, value in row.items() if "second" not in n and "clock" not in n}


def recording(folder: Path) -> dict[str, object]:
    """Return the run, and the texts with what the verifier found of them, if they are complete."""
    from specdec.core.errors import UserError
    from specdec.recording.recorded import read_recording

    found = runs(folder)
    with suppress(UserError):
        read = read_recording(folder)
        found["texts"] = [(t.prompt_id, t.output_ids, t.log_p) for t in read.texts]
    return found


def report(folder: Path) -> dict[str, object]:
    """Return the files of a report; each is there as it must be, or it is not there."""
    names = ("summary.csv", "summary.md", "summary.parquet")
    return {n: (folder / n).read_bytes() for n in names if (folder / n).exists()}


def training(folder: Path) -> dict[str, object]:
    """Return what was trained, if the folder calls it complete."""
    from specdec.training.training_dir import TrainingDir

    found: dict[str, object] = {}
    if TrainingDir.state_of(folder / "trained") != "complete":
        return found
    for place in ("", "best"):
        file = folder / "trained" / place / "model.safetensors"
        if file.exists():
            found[place] = file.read_bytes()
    return found


def whole_texts(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of traces that are as they were written, by run and prompt."""
    from specdec.core.jsonl import whole_rows

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for file in folder.rglob("traces.jsonl"):
        if "given" not in file.parts:
            for row in whole_rows(file):
                found[str(file.parent.relative_to(folder)), row["prompt_id"]] = row
    return found


def change_times(folder: Path) -> dict[str, int]:
    """Return when complete runs became that."""
    return {name: (folder / name / "status.json").stat().st_mtime_ns for name in runs(folder)}


# --- Faults and damage ---


def full_disk(rng: random.Random) -> Fault:
    """Let a file grow no further than a size, as where the disk is full."""
    most = rng.choice((0, 200, 1_000, 3_000, 8_000, 60_000, 1_000_000))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def failing_rename(rng: random.Random) -> Fault:
    """Let one rename fail for want of room, and all after it."""
    left, rename = rng.randrange(12), os.replace

    def replace(*paths: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(paths[0]))
        rename(*paths)

    def apply() -> None:
        os.replace = replace

    return apply


def read_only(rng: random.Random) -> Fault:
    """Let a file system become read-only at some moment."""
    left, opened = rng.randrange(15), io.open

    def opening(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        nonlocal left
        if isinstance(file, str | Path) and set("wax+") & set(mode):
            left -= 1
            if left < 0:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return opened(file, mode, *arguments, **named)

    def apply() -> None:
        io.open = builtins.open = opening

    return apply


def damage(rng: random.Random, file: Path) -> str:
    """Delete, cut, lengthen or garble a file; returns what was done."""
    content = file.read_bytes()
    kind = rng.choice(("deleted", "cut", "garbled", "emptied", "a line less", "a line twice"))
    lines = content.splitlines(keepends=True)
    if kind == "deleted":
        file.unlink()
    elif kind == "a line less":
        file.write_bytes(b"".join(lines[:-1]))
    elif kind == "a line twice":
        file.write_bytes(b"".join([*lines, *lines[-1:]]))
    elif kind == "garbled" and content:
        place = rng.randrange(len(content))
        changed = bytes([content[place] ^ (1 << rng.randrange(8))])
        file.write_bytes(content[:place] + changed + content[place + 1 :])
    else:
        file.write_bytes(
            content[: rng.randrange(len(content))] if kind == "cut" and content else b""
        )
    return kind


def swap(rng: random.Random, folder: Path) -> str:
    """Let two files of one kind, say of two checkpoints, change places; returns what was done."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    pairs = [
        (one, other)
        for place, one in enumerate(files)
        for other in files[place + 1 :]
        if one.name == other.name and "given" not in one.parts
    ]
    if not pairs:
        return ""
    one, other = rng.choice(pairs)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"{one.relative_to(folder)} and {other.relative_to(folder)} swapped"


FAULTS = {"full disk": full_disk, "failing rename": failing_rename, "read-only": read_only}
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
REMOVABLE = r"error: .*\b(checkpoints|cache|answers\.jsonl)\b"  # says so itself


# --- Events ---


class Disturbance:
    """One event after another, each checked."""

    def __init__(self, scenarios: Sequence[Scenario], seed: int, kinds: Sequence[str]):
        self._scenarios = scenarios
        self._kinds = kinds
        self._rng = random.Random(seed)
        self.counts: Counter[str] = Counter()

    def event(self) -> None:
        """Disturb one command, and check all that must hold."""
        rng = self._rng
        scenario = rng.choice(self._scenarios)
        if rng.random() < 0.5:
            scenario.afresh()  # else it goes on from what is there, which is complete
        kind = rng.choice(self._kinds)
        done = kind
        if kind in FAULTS:
            ended = scenario.run(fault=FAULTS[kind](rng))
        elif kind in SIGNALS:
            after = rng.uniform(0, scenario.seconds)
            ended = scenario.run(kill=(SIGNALS[kind], after))
        elif kind == "two writers":
            ended = self._beside_another(scenario)
        else:
            ended = self._interrupted(scenario)
        self._check(scenario, done, ended)
        if kind == "damage" and rng.random() < 0.2:
            done += f", {swap(rng, scenario.folder)}"
            self._check(scenario, done, None)
        elif kind == "damage" and scenario.files():
            for file in rng.sample(
                scenario.files(), min(len(scenario.files()), rng.choice((1, 3)))
            ):
                done += f", {file.name} {damage(rng, file)}"
            self._check(scenario, done, None)
        self._again(scenario, done)
        self.counts[f"{scenario.name}, {kind}"] += 1

    def _interrupted(self, scenario: Scenario) -> Ended:
        if self._rng.random() < 0.5:
            return scenario.run()
        after = self._rng.uniform(0.2, 1) * scenario.seconds
        return scenario.run(kill=(signal.SIGKILL, after))

    def _beside_another(self, scenario: Scenario) -> Ended:
        """Give the command while another process works on the same; one of them may refuse."""
        log = scenario.folder.with_suffix(".other.log")
        other = start(scenario.entry_point, scenario.arguments, log, None)
        time.sleep(self._rng.uniform(0, 0.3) * scenario.seconds)
        ended = scenario.run()
        status = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
        said = log.read_text(errors="replace")
        assert "Traceback" not in said, f"{scenario.name}: two writers\n{said}"
        assert 0 in (status, ended.status), f"{scenario.name}: two writers\n{said}\n{ended.said}"
        return ended

    def _check(self, scenario: Scenario, done: str, ended: Ended | None) -> None:
        """Nothing false is called complete, and nothing was said that only we understand."""
        where = f"{scenario.name}: {done}"
        if ended is not None:
            assert "Traceback" not in ended.said, f"{where}: a traceback\n{ended.said}"
            assert ended.status != BROKE, where
            if ended.status == 0:
                assert scenario.outcome(scenario.folder) == scenario.expected, (
                    f"{where}: it ended well, and is not what it must be\n{ended.said}"
                )
        if done.startswith("damage,") and scenario.name == "report":
            return  # nothing vouches for it but the command that makes it again
        for name, value in scenario.outcome(scenario.folder).items():
            assert value == scenario.expected[name], f"{where}: {name} is called complete"

    def _again(self, scenario: Scenario, done: str) -> None:
        """The same command ends well, keeps what was whole, and comes to what it must."""
        where = f"{scenario.name}: {done}"
        times, texts = change_times(scenario.folder), whole_texts(scenario.folder)
        if "provenance.json" in done:
            texts = {}  # nothing says any more under which circumstances these were decoded
        ended = scenario.run()
        for _ in range(3):  # it may name what cannot be mended, and that is taken away
            named = re.search(REMOVABLE, ended.said) if ended.status == 2 else None
            if named is None:
                break
            for place in scenario.folder.rglob(f"{named[1]}*"):
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            ended = scenario.run()
        assert ended.status == 0, f"{where}: exit status {ended.status}\n{ended.said}"
        found = scenario.outcome(scenario.folder)
        assert found == scenario.expected, f"{where}: not what an undisturbed command comes to"
        after = change_times(scenario.folder)
        if scenario.name != "replay":  # which takes no time and is always done anew
            assert all(after[name] == at for name, at in times.items()), f"{where}: decoded again"
        kept = whole_texts(scenario.folder)
        lost = [name for name, row in texts.items() if name in kept and kept[name] != row]
        assert not lost, f"{where}: {lost} were whole, and are others now"
        litter = [path for path in scenario.folder.rglob(".*") if path.name != ".lock"]
        assert not litter, f"{where}: left behind {litter}"


def made(place: Path, only: Sequence[str]) -> list[Scenario]:
    """Make the scenarios, each with what comes of it undisturbed."""
    text = place / "text.txt"
    text.write_text(TEXT)
    in_sweep = ("-m", "output={}", *SHORT, "proposer=none,ngram")
    train = (
        *("train=medusa", "train.num_heads=1", "train.own_vocabulary_head=false", "max_steps=4"),
        *(f"data.path={text}", f"data.held_out_path={text}", "output={}/trained"),
        *("data.max_length=12", "data.eval_samples=2", "data.cache_path={}/cache", "tree.gamma=1"),
        "data.tokens_path={}/tokens",
        *("distill.path={}/answers.jsonl", "distill.limit=4", "distill.max_new_tokens=4"),
        *("distill.prompt_tokens=8", "evaluation.num_prompts=1", "evaluation.max_new_tokens=4"),
        *("trainer.save_steps=1", "trainer.eval_steps=2", "trainer.warmup_steps=1"),
        *("trainer.logging_steps=1", "trainer.per_device_train_batch_size=2"),
    )
    record = ("output={}", *SHORT, "sampling.temperature=1", "top_k=4")
    replay = ("recording={}/given/recording", "output={}", "grid.proposer=[ngram]")
    every = [
        Scenario("run", "decode", ("output={}", *SHORT, "proposer=ngram"), runs),
        Scenario("sweep", "decode", in_sweep, runs),
        Scenario("recording", "record", record, recording),
        Scenario("replay", "replay", (*replay, "grid.gamma=[1,2]"), replayed),
        Scenario("report", "report", ("run={}",), report),
        Scenario("training", "train", train, training),
    ]
    scenarios = [each for each in every if each.name in only]
    for each in every:
        each.folder = place / each.name
        needed = each in scenarios or any(
            other.name in NEEDS.get(each.name, ()) for other in scenarios
        )
        if each.name == "replay":
            each.given = lambda folder: shutil.copytree(
                place / "whole_recording", folder / "given" / "recording"
            )
        elif each.name == "report":
            each.given = lambda folder: shutil.copytree(place / "whole_sweep", folder / "given")
        if needed:
            prepare(each, place)
    return scenarios


NEEDS = {"recording": ("replay",), "sweep": ("report",)}  # and what needs them


def prepare(scenario: Scenario, place: Path) -> None:
    """Let a command end undisturbed, and keep what came of it."""
    scenario.afresh()
    ended = scenario.run()
    assert ended.status == 0, ended.said
    scenario.seconds = ended.seconds
    scenario.expected = scenario.outcome(scenario.folder)
    assert scenario.expected, f"{scenario.name}: the outcome is blind"
    shutil.copytree(scenario.folder, place / f"whole_{scenario.name}", dirs_exist_ok=True)


def replayed(folder: Path) -> dict[str, object]:
    """Return the sums of each replayed run that is complete."""
    from specdec.results.run_dir import read_tally, state_of

    found = [file.parent for file in sorted(folder.glob("*/status.json"))]
    return {run.name: read_tally(run).to_rows() for run in found if state_of(run) == "complete"}


def disturb(events: int, seed: int, only: Sequence[str], kinds: Sequence[str]) -> Counter[str]:
    """Import everything, disturb so many times, and return what was done, by kind."""
    # No model is loaded here: torch's pool of threads does not outlive a fork.
    for name in (
        "command.compare",
        "command.record",
        "command.replay",
        "command.report",
        "command.train",
        "lab.arm",
        "report.write",
        "training.medusa",
    ):
        import_module(f"specdec.{name}")
    with tempfile.TemporaryDirectory() as place:
        disturbance = Disturbance(made(Path(place), only), seed, kinds)
        for number in range(events):
            try:
                disturbance.event()
            except AssertionError as error:
                raise AssertionError(f"event {number} of seed {seed}: {error}") from None
        return disturbance.counts


KINDS = (*FAULTS, *SIGNALS, "damage", "damage", "two writers")
NAMES = ("run", "sweep", "recording", "replay", "report", "training")


def main() -> None:
    """Disturb as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=sorted(set(KINDS)))
    arguments = parser.parse_args()
    counts = disturb(arguments.events, arguments.seed, arguments.only, arguments.kinds)
    for kind, number in sorted(counts.items()):
        print(f"{number:4}  {kind}")
    print(f"{sum(counts.values())} events: nothing false called complete, nothing whole lost")


if __name__ == "__main__":
    main()
